"""Which kernels compute on an array. The only file that knows all of them."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np

#: Packages of kernels by type of array, as far as they have been asked for.
_packages: dict[type, ModuleType] = {}


def kernels(array: Any) -> ModuleType:
    """Package of the kernels that compute on an array of this type.

    Parameters
    ----------
    array : numpy.ndarray or cupy.ndarray

    Returns
    -------
    module
        `kfc_numba.kernels.cpu` for NumPy arrays, `kfc_numba.kernels.cuda` for CuPy arrays.
    """
    package = _packages.get(type(array))
    if package is None:
        package = _packages[type(array)] = _package(array)
    return package


def on_device(array: Any) -> bool:
    """Whether an array lies in the memory of a graphics card, where kernels can reach it.

    Parameters
    ----------
    array : object

    Returns
    -------
    bool
    """
    return _is_device_type(type(array))  # type: ignore[arg-type]


@functools.cache
def _is_device_type(kind: Any) -> bool:
    return kind in _device_types or kind.__module__.partition(".")[0] == "cupy"


#: Types of device arrays besides CuPy's.
_device_types: set[type] = set()


def add_device_type(kind: type) -> None:
    """Let the device kernels compute on arrays of another type, which is like CuPy's.

    Parameters
    ----------
    kind : type
        Its arrays have ``data.ptr``, and a namespace for `array_api_compat.array_namespace`.
    """
    _device_types.add(kind)
    _is_device_type.cache_clear()


def _package(array: Any) -> ModuleType:
    if isinstance(array, np.ndarray):
        from kfc_numba.kernels import cpu

        return cpu
    if on_device(array):
        return device_kernels()
    raise TypeError(
        f"no kernels compute on {type(array).__name__}; NumPy and CuPy arrays are supported"
    )


def device_kernels() -> ModuleType:
    """The kernels for NVIDIA cards, `kfc_numba.kernels.cuda`."""
    from kfc_numba.kernels import cuda

    return cuda


def compilation(array: np.ndarray) -> ModuleType:
    """Module that compiles, ahead of time, the kernels that compute on an array of this type.

    Parameters
    ----------
    array : numpy.ndarray

    Returns
    -------
    module
        `kfc_numba.kernels.cpu.ahead` for NumPy arrays.
    """
    kernels(array)
    from kfc_numba.kernels.cpu import ahead

    return ahead
