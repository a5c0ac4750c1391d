"""Where arrays lie: in the memory of the host, or of a graphics card; and the way between."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from kfc_numba.checks import as_array, check_choice
from kfc_numba.kernels.backend import device_kernels, on_device

#: Devices that networks compute on.
DEVICES = ("cpu", "cuda")
#: Packages that a card needs, by module.
PACKAGES = {"cupy": "CuPy", "numba_cuda": "numba-cuda"}


class DeviceError(RuntimeError):
    """What a graphics card needs is missing."""


def check_device(device: Any) -> str:
    """A device by name, if it can be used here.

    Parameters
    ----------
    device : {"cpu", "cuda"}

    Returns
    -------
    str

    Raises
    ------
    ValueError
        Another name.
    DeviceError
        A package, the driver or the card is missing; the message says which, and what to install.
    """
    check_choice("device", device, DEVICES)
    if device == "cuda":
        problem = missing()
        if problem is not None:
            raise DeviceError(f"device (='cuda') cannot be used: {problem}")
    return device


def missing() -> str | None:
    """What is missing for ``device="cuda"``, in words; None if nothing is.

    Returns
    -------
    str or None
    """
    for module, package in PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            return (
                f"the package {package} is missing ({error}); "
                "pip install 'kfc_numba[cuda13]', or [cuda12] where the driver is older"
            )
    try:
        count = cupy().cuda.runtime.getDeviceCount()
    except cupy().cuda.runtime.CUDARuntimeError as error:
        return f"no NVIDIA driver that works ({error}); install the driver of the card"
    if not count:
        return "there is no NVIDIA card"
    try:
        device_kernels()
    except Exception as error:  # whatever it is that does not go together
        return (
            f"numba-cuda does not work with the NumPy and Numba that are installed ({error}); "
            "pip install --upgrade 'kfc_numba[cuda13]' takes versions that do"
        )
    return None


def cupy() -> ModuleType:
    """The package of device arrays; nothing imports it before it is asked for."""
    return sys.modules.get("cupy") or importlib.import_module("cupy")


def device_of(array: Any) -> str:
    """``"cuda"`` for an array in the memory of a card, else ``"cpu"``.

    Parameters
    ----------
    array : numpy.ndarray or cupy.ndarray

    Returns
    -------
    str
    """
    return "cuda" if on_device(array) else "cpu"


def to_device(array: Any, device: str) -> Any:
    """An array on a device; itself if it lies there already.

    Parameters
    ----------
    array : numpy.ndarray or cupy.ndarray
    device : {"cpu", "cuda"}

    Returns
    -------
    numpy.ndarray or cupy.ndarray
    """
    if device_of(array) == device:
        return array
    return upload(array) if device == "cuda" else array.get()


def like(values: Any, array: Any) -> Any:
    """An array of the host, moved to where another one lies."""
    return to_device(values, device_of(array))


def taken(array: Any, numbers: np.ndarray) -> Any:
    """Some examples of an array, where it lies.

    Parameters
    ----------
    array : numpy.ndarray or cupy.ndarray
    numbers : numpy.ndarray
        Theirs.
    """
    # Indexed and not by `take`, which waits for a card.
    return array[like(numbers, array)]


def to_host(array: Any) -> Any:
    """An array in the memory of the host; what is no device array is returned as it is."""
    return array.get() if on_device(array) else array


def upload(array: Any) -> Any:
    """A copy on the current card."""
    return cupy().asarray(array)


def check_places(device: str, state: Mapping[str, Any]) -> None:
    """Raise ValueError where arrays of a state do not lie on the device of their network.

    Parameters
    ----------
    device : {"cpu", "cuda"}
    state : mapping of str to numpy.ndarray
        Numbers in it, arrays without an axis, are the host's.
    """
    for name, value in state.items():
        if value.ndim and device_of(value) != device:
            raise ValueError(
                f"state[{name!r}] must lie on the device of net, {device!r}, and is on "
                f"{device_of(value)!r}: `Trainer.to` moves both"
            )


def downloading(arrays: Mapping[str, Any]) -> Callable[[], dict[str, np.ndarray]]:
    """A way to the host that another thread can go, while this one asks the card for more.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray or cupy.ndarray
        As this thread's stream makes them; nothing may be written to them afterwards.

    Returns
    -------
    callable
        Returns them in the memory of the host; it waits for what was asked for before, and no more.
    """
    if not any(map(on_device, arrays.values())):
        return lambda: dict(arrays)
    made, device = cupy().cuda.get_current_stream().record(), cupy().cuda.Device()

    def download() -> dict[str, np.ndarray]:
        with device, cupy().cuda.Stream(non_blocking=True) as stream:
            stream.wait_event(made)
            return {name: to_host(value) for name, value in arrays.items()}

    return download


def synchronize(device: str) -> None:
    """Wait until a device has done what it was asked for."""
    if device == "cuda":
        cupy().cuda.get_current_stream().synchronize()


def owned(name: str, array: Any) -> Any:
    """An array as this library takes it: device arrays of any library without a copy, else NumPy's.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    array : array_like
        Arrays with ``__cuda_array_interface__`` (CuPy, PyTorch, JAX, Numba) stay on the card.

    Returns
    -------
    numpy.ndarray or cupy.ndarray
    """
    if on_device(array):
        return array
    if hasattr(array, "__cuda_array_interface__"):
        return cupy().asarray(array)
    return as_array(name, array)


def free_bytes() -> int:
    """Bytes of the current card that CuPy's pool can still give, of its own and of nobody's."""
    free, _ = cupy().cuda.runtime.memGetInfo()
    pool = cupy().get_default_memory_pool()
    free, limit = free + pool.free_bytes(), pool.get_limit()
    return min(free, limit - pool.used_bytes()) if limit else free


class DeviceMemory:
    """What `kfc_numba.workspace.Workspace` is for a network in the memory of the host.

    CuPy's memory pool recycles blocks by itself, in the order of the stream.
    """

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Uninitialised C-contiguous array.

        Raises
        ------
        MemoryError
            The card has too little free memory; the message says how much there is.
        """
        try:
            return cupy().empty(shape, dtype)
        except Exception as error:
            if not isinstance(error, cupy().cuda.memory.OutOfMemoryError):
                raise
            free, total = cupy().cuda.runtime.memGetInfo()
            size = math.prod(shape) * np.dtype(dtype).itemsize
            raise MemoryError(
                f"an array of {size:,} bytes does not fit on the card, which has {free:,} of "
                f"{total:,} bytes free; `net.memory(batch_size)` says what a step needs"
            ) from None

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """The same as `empty`, filled with zeros."""
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def clear(self) -> None:
        """Give the blocks that are not in use back to the card."""
        cupy().get_default_memory_pool().free_all_blocks()
