"""How a launch reaches a card: the one place that knows CuPy.

The host needs longer for a small launch than the card. So all that does not change from one launch
to the next with arguments of the same types is made once, and values go to the driver as they lie
in memory: CuPy's own launch makes an object of each, and a product of matrices has forty.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from kfc_numba.kernels.rates import Rates

if TYPE_CHECKING:
    from kfc_numba.kernels.cuda.launch import DeviceKernel, Dims

_MORE = (1, 1, 1)
_SCALARS = frozenset(np.dtype(char).type for char in "?bBhHiIlLqQfd")


def flattened(arguments: tuple) -> tuple[tuple, list[Any]]:
    """Kinds of arguments, and their values as machine code takes them.

    Returns
    -------
    kinds : tuple
        What distinguishes types: a str for a pointer, a pair of number and kind for a tuple, else
        the type itself, int32 for an int.
    values : list
        Numbers: of an array its address, of records and tuples each field.
    """
    kinds: list[Any] = []
    values: list[Any] = []
    for argument in arguments:
        kind = type(argument)
        if kind is int:
            kinds.append(np.int32)
            values.append(argument)
        elif kind in _SCALARS:
            kinds.append(kind)
            values.append(argument)
        elif kind is tuple:  # of one kind: there are many
            first = argument[0]
            if type(first) is int:
                kinds.append((len(argument), np.int32))
                values += argument
            elif type(first) in _SCALARS:
                kinds.append((len(argument), type(first)))
                values += argument
            else:
                kinds.append((len(argument), first.dtype.char))
                values += [array.data.ptr for array in argument]
        elif issubclass(kind, tuple):
            kinds.append(kind)
            values += argument
        else:
            kinds.append(argument.dtype.char)
            values.append(argument.data.ptr)
    return tuple(kinds), values


def _format(kind: Any) -> str:
    """Of values of a kind, in the characters of `struct`."""
    if isinstance(kind, str):
        return "P"
    if isinstance(kind, tuple):
        return kind[0] * _format(kind[1])
    if issubclass(kind, tuple):
        return len(kind._fields) * "i"
    return np.dtype(kind).char


class Parameters:
    """Memory for the values of a launch, and pointers to each of them, as the driver takes both.

    Parameters
    ----------
    layout : str
        Characters of `struct`, one a value.

    Attributes
    ----------
    room : ctypes.Array
        What values are packed into.
    address : int
        Of the pointers.
    """

    def __init__(self, layout: str):
        self.room = ctypes.create_string_buffer(struct.calcsize(layout))
        start = ctypes.addressof(self.room)
        # "0i" pads to where an int may begin.
        places = [struct.calcsize(f"{layout[:i]}0{char}") for i, char in enumerate(layout)]
        self._pointers = (ctypes.c_void_p * len(layout))(*(start + place for place in places))
        self.address = ctypes.addressof(self._pointers)


class Prepared:
    """A kernel on a card, for arguments of some kinds.

    Parameters
    ----------
    name : str
        Of the kernel, for messages.
    function : cupy.cuda.function.Function
    kinds : tuple
        From `flattened`.
    launch : callable
        CuPy's ``cupy.cuda.driver.launchKernel``.
    """

    def __init__(self, name: str, function: Any, kinds: tuple, launch: Any):
        self._name = name
        self._function = function  # as long as it lives the card keeps the code
        self._pointer = function.ptr
        self._launch = launch
        self._layout = "".join(map(_format, kinds))
        self._pack_into = struct.Struct(self._layout).pack_into
        # Of no launch under way: threads launch at the same time, and handlers of signals between.
        self._spare: list[Parameters] = []

    def __call__(self, grid: Dims, block: Dims, stream: int, values: list[Any]) -> None:
        try:
            given = self._spare.pop()
        except IndexError:
            given = Parameters(self._layout)
        try:
            self._pack_into(given.room, 0, *values)
        except struct.error as error:
            raise OverflowError(
                f"an argument of the kernel {self._name} does not fit its type: {error}"
            ) from None
        grid, block = grid + _MORE[len(grid) :], block + _MORE[len(block) :]
        self._launch(self._pointer, *grid, *block, 0, stream, given.address, 0)
        self._spare.append(given)  # the driver has copied the values


class _Thread(threading.local):
    """What CuPy knows of a thread, as far as launches need it."""

    def __init__(self) -> None:
        self.devices: set[int] = set()  # that have a context here


class Card:
    """Launches on CuPy's current device and stream."""

    def __init__(self) -> None:
        self._prepared: dict[tuple, Any] = {}
        self._rates: dict[int, Rates] = {}
        self._thread = _Thread()
        self._device: Any = None
        self._stream: Any = None

    def __call__(self, kernel: DeviceKernel, grid: Dims, block: Dims, arguments: tuple) -> None:
        if self._device is None:
            self._find_cupy()
        device = self._device()
        kinds, values = flattened(arguments)
        key = (kernel, device, kinds)
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepared[key] = self._prepare(kernel, kinds)
        if device not in self._thread.devices:
            self._begin(device)
        prepared(grid, block, self._stream(device).ptr, values)

    def capability(self) -> tuple[int, int]:
        """Compute capability of the current device."""
        from cupy.cuda import Device

        digits = Device().compute_capability
        return int(digits[:-1]), int(digits[-1])

    def rates(self) -> Rates:
        """What the current device can do in a second."""
        if self._device is None:
            self._find_cupy()
        device = self._device()
        found = self._rates.get(device)
        if found is None:
            from cupy.cuda import Device

            found = self._rates[device] = Rates.of(self.capability(), Device().attributes)
        return found

    def _find_cupy(self) -> None:
        from cupy.cuda import get_current_stream, runtime

        self._stream = get_current_stream
        self._device = runtime.getDevice

    def _begin(self, device: int) -> None:
        """Make the context of a device this thread's: the first call of the runtime does."""
        from cupy.cuda import runtime

        runtime.memGetInfo()
        self._thread.devices.add(device)

    def _prepare(self, kernel: DeviceKernel, kinds: tuple) -> Prepared:
        from cupy.cuda import driver
        from cupy.cuda.function import Module

        code, name = kernel.machine_code(kernel.types_of(kinds), self.capability())
        module = Module()
        module.load(code)
        return Prepared(
            kernel.function.__name__,
            module.get_function(name),
            kinds,
            driver.launchKernel,
        )
