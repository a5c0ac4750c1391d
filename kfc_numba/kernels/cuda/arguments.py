"""Checks at the edge of the device kernels: what passes them is valid and contiguous."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.kernels.backend import on_device

#: Functions that make uninitialised arrays, by type of array.
_makers: dict[type, Any] = {}
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def checked(name: str, array: Any, ndim: int | None, dtype: np.dtype | None = None) -> Any:
    """C-contiguous array of the given dimensions and dtype (float32 or float64 if None).

    Raises
    ------
    TypeError
        Not an array on a device, or of another dtype.
    ValueError
        Of another number of dimensions, or empty.
    """
    if not on_device(array):
        raise TypeError(f"{name} must be a device array, got {type(array).__name__}")
    allowed = FLOATS if dtype is None else (dtype,)
    if array.dtype not in allowed:
        raise TypeError(
            f"{name} has dtype {array.dtype}, it must be {' or '.join(map(str, allowed))}"
        )
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}, it must have {ndim} dimensions")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, it must not be empty")
    return array if array.flags.c_contiguous else array_namespace(array).ascontiguousarray(array)


def alike(**arrays: Any) -> list[Any]:
    """Arrays by name that pass `checked`, all of the shape and dtype of the first."""
    (first, value), *others = arrays.items()
    found = [checked(first, value, None)]
    for name, other in others:
        found.append(checked(name, other, None, found[0].dtype))
        if other.shape != value.shape:
            raise ValueError(
                f"{name} has shape {other.shape}, it must be that of {first}, {value.shape}"
            )
    return found


def empty(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """Uninitialised array where `like` is."""
    kind = type(like)
    make = _makers.get(kind)
    if make is None:  # to look for it takes as long as to take the memory
        cupy = sys.modules.get("cupy")
        own = cupy is not None and kind is cupy.ndarray
        # CuPy's `empty` is this, and a function in Python around it.
        make = _makers[kind] = cupy.ndarray if own else array_namespace(like).empty  # type: ignore[union-attr]
    return make(shape, dtype=dtype)


def output_array(out: Any, shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """`out` if it fits, or a new array where `like` is if it is None."""
    if out is None:
        return empty(shape, dtype, like)
    if not on_device(out) or out.dtype != dtype:
        got = out.dtype if on_device(out) else type(out).__name__
        raise TypeError(f"out must be a device array of dtype {dtype}, got {got}")
    if out.shape != shape or not out.flags.c_contiguous:
        raise ValueError(f"out (of shape {out.shape}) must be C-contiguous and of shape {shape}")
    return out


def scalar(array: Any) -> Any:
    """The only number of an array, as Python's: waits until the device has it."""
    return array.get().item()


def shaped(name: str, array: Any, dtype: np.dtype | None, shape: tuple[int, ...]) -> Any:
    """An array that passes `checked`, of the given shape."""
    array = checked(name, array, None, dtype)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return array


def apart(**arrays: Any) -> None:
    """Raise where the first of two contiguous arrays, by name, shares memory with the second."""
    (name, array), (other, second) = arrays.items()
    first, start = array.data.ptr, second.data.ptr
    if first < start + second.nbytes and start < first + array.nbytes:
        raise ValueError(f"{name} must not share memory with {other}")
