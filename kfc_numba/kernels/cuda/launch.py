"""How device code is compiled, kept and launched: the one place that knows numba-cuda."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numba.core.caching import FunctionCache
from numba.cuda.compiler import compile_cuda, kernel_fixup
from numba.cuda.dispatcher import CUDADispatcher

from kfc_numba.kernels.cpu.jit import sources
from kfc_numba.kernels.cuda.card import Card, flattened
from kfc_numba.kernels.rates import Rates

_OLDEST = (7, 5)  # compute capability; what cards do not share is decided when kernels are compiled
Dims = tuple[int, ...]


class DeviceKernel:
    """A function of device code; ``kernel(grid, block, *arguments)`` launches it.

    It takes pointers to the numbers of C-contiguous arrays, and scalars. An argument is a device
    array (its code sees a pointer, ``x[i]``), an int (int32), a NamedTuple of such ints, a NumPy
    scalar of its own type, for what needs 64 bits or is a real number: ``x.dtype.type(factor)``, or
    a tuple of arrays of one dtype, of ints, or of numbers of one.
    What the function closes over are constants of its code.

    Parameters
    ----------
    function : callable
        Python that numba-cuda compiles, without a return value.
    max_registers : int, optional
        Registers that a thread may use at most.
    settings : tuple
        What the functions that it calls were made for: part of the name under which its code is
        kept, as the values are that it closes over itself.
    """

    def __init__(
        self,
        function: Callable[..., None],
        max_registers: int | None = None,
        settings: tuple = (),
    ):
        functools.update_wrapper(self, function)
        self.function = function
        self.max_registers = max_registers
        self.settings = settings
        self._machine_code: dict[tuple, tuple[bytes, str]] = {}

    def __call__(self, grid: Dims | int, block: Dims | int, *arguments: Any) -> None:
        grid = (grid,) if isinstance(grid, int) else grid
        block = (block,) if isinstance(block, int) else block
        _executor(self, grid, block, arguments)

    def types(self, arguments: tuple) -> tuple:
        """Numba's types of the arguments of a launch."""
        return self.types_of(flattened(arguments)[0])

    @staticmethod
    def types_of(kinds: tuple) -> tuple:
        """The same, of the kinds that `flattened` returns."""
        return tuple(map(_type, kinds))

    def machine_code(self, types: tuple, capability: tuple[int, int]) -> tuple[bytes, str]:
        """Code for a card, from the cache on disk if it is there, and the name of its entry."""
        key = (types, capability)
        if key not in self._machine_code:
            file = self._file(types, capability)
            kept = _read(file)
            if kept is None:
                made = compiled(self, types, capability)
                code = made.library.get_cubin(cc=capability).code
                kept = made.fndesc.llvm_func_name.encode() + b"\n" + code
                _write(file, kept)
            name, _, code = kept.partition(b"\n")
            self._machine_code[key] = code, name.decode()
        return self._machine_code[key]

    def _file(self, types: tuple, capability: tuple[int, int]) -> Path | None:
        """Where the code is kept, under a name that changes with all it is made of."""
        path = Path(self.function.__code__.co_filename)
        try:
            folder = FunctionCache(self.function).cache_path
        except RuntimeError:  # no folder can be written
            return None
        cells = [cell.cell_contents for cell in self.function.__closure__ or ()]
        parts = (
            sources(path),
            self.function.__qualname__,
            [_described(cell) for cell in cells],
            types,
            capability,
            self.max_registers,
            self.settings,
            _versions(),
        )
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        return Path(folder) / f"{path.stem}.{self.function.__name__}-{digest[:24]}.cubin"


def device_kernel(
    function: Callable[..., None] | None = None,
    *,
    max_registers: int | None = None,
    settings: tuple = (),
) -> Any:
    """Decorator that makes a `DeviceKernel`, with or without settings."""
    if function is None:
        return functools.partial(DeviceKernel, max_registers=max_registers, settings=settings)
    return DeviceKernel(function, max_registers, settings)


def compiled(
    kernel: DeviceKernel, types: tuple, capability: tuple[int, int], *, launchable: bool = True
) -> Any:
    """What numba-cuda makes of a kernel: needs no card.

    Its ``library`` has ``get_llvm_str()``, ``get_asm_str(cc=)`` (PTX) and ``get_cubin(cc=)``. If
    not `launchable`, it is a function for other device code, which returns the status of Python.
    """
    from numba.core import types as numba_types

    made = compile_cuda(
        kernel.function,
        numba_types.void,
        types,
        cc=capability,
        max_registers=kernel.max_registers,
    )
    if launchable:
        kernel_fixup(made.library.get_function(made.fndesc.llvm_func_name), False)
    return made


class _DeviceFunction(CUDADispatcher):
    """numba-cuda's, which would ask the driver for a card before it compiles anything."""

    def compile_device(self, args: tuple, return_type: Any = None) -> Any:
        made = self.overloads.get(args)
        if made is None:
            made = compile_cuda(
                self.py_func,
                return_type,
                args,
                forceinline=True,
                cc=_OLDEST,
                nvvm_options={"opt": 3},
            )
            self.overloads[args] = made
            made.target_context.insert_user_function(made.entry_point, made.fndesc, [made.library])
        return made


def inlined(function: Callable) -> Any:
    """Decorator of a function that becomes part of whatever device code calls it."""
    return _DeviceFunction(function, targetoptions={"device": True, "forceinline": True})


class Executor(Protocol):
    """What runs device code: a card, or in tests the processor."""

    def __call__(self, kernel: DeviceKernel, grid: Dims, block: Dims, arguments: tuple) -> None: ...

    def capability(self) -> tuple[int, int]: ...

    def rates(self) -> Rates: ...


_executor: Executor = Card()


def capability() -> tuple[int, int]:
    """Compute capability of the card that launches go to at present."""
    return _executor.capability()


def rates() -> Rates:
    """What that card can do in a second."""
    return _executor.rates()


@contextlib.contextmanager
def executed_by(executor: Executor) -> Any:
    """Within the context another executor runs all device code."""
    global _executor
    before, _executor = _executor, executor
    try:
        yield executor
    finally:
        _executor = before


@functools.cache
def _type(kind: Any) -> Any:
    from numba.core import types as numba_types
    from numba.np import numpy_support

    if isinstance(kind, tuple):
        return numba_types.UniTuple(_type(kind[1]), kind[0])
    if isinstance(kind, type) and issubclass(kind, tuple):
        return numba_types.NamedUniTuple(numba_types.int32, len(kind._fields), kind)  # type: ignore[attr-defined]
    own = numpy_support.from_dtype(np.dtype(kind))
    return numba_types.CPointer(own) if isinstance(kind, str) else own


def _described(value: Any) -> Any:
    """A constant of a kernel as part of a name: a function by all that it closes over in turn."""
    if isinstance(value, (tuple, list)):
        return [_described(part) for part in value]
    function = getattr(value, "py_func", getattr(value, "_defn", value))
    if not inspect.isfunction(function):
        return value
    cells = [_described(cell.cell_contents) for cell in function.__closure__ or ()]
    return sources(Path(function.__code__.co_filename)), function.__qualname__, cells


@functools.cache
def _versions() -> tuple[str, ...]:
    import numba
    import numba_cuda

    return numba.__version__, numba_cuda.__version__


def _read(file: Path | None) -> bytes | None:
    """Code that was kept, if it is whole: behind the hash of itself."""
    if file is None:
        return None
    try:
        kept = file.read_bytes()
    except OSError:
        return None
    digest, code = kept[:32], kept[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(file: Path | None, code: bytes) -> None:
    """Keep code if that is possible; whole or not at all."""
    if file is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.parent)
        try:
            with open(descriptor, "wb") as stream:
                stream.write(hashlib.sha256(code).digest() + code)
            os.replace(name, file)
        except OSError:
            os.unlink(name)
            raise
