"""Checks at the edge of the kernels: what passes them is valid and contiguous."""

from __future__ import annotations

from typing import Any

import numpy as np

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def checked(name: str, array: Any, ndim: int | None, dtype: np.dtype | None = None) -> np.ndarray:
    """C-contiguous array of the given dimensions and dtype (float32 or float64 if None).

    Raises
    ------
    TypeError
        Not an array, or of another dtype.
    ValueError
        Of another number of dimensions, or empty.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
    allowed = FLOATS if dtype is None else (dtype,)
    if array.dtype not in allowed:
        raise TypeError(
            f"{name} has dtype {array.dtype}, it must be {' or '.join(map(str, allowed))}"
        )
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}, it must have {ndim} dimensions")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, it must not be empty")
    # A read-only array is another type to Numba, as is a subclass: it would compile every kernel a
    # second time.
    flags = array.flags
    if flags.c_contiguous and flags.writeable:
        return array if type(array) is np.ndarray else np.asarray(array)
    return np.array(array, order="C")


def alike(**arrays: Any) -> list[np.ndarray]:
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


def real(name: str, value: Any) -> float:
    """A number, which may be infinite or NaN, as a float."""
    if isinstance(value, (float, int)) or (
        isinstance(value, np.generic) and value.dtype.kind in "fiu"
    ):
        return float(value)
    raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def output_array(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`out` if it fits, or a new array where it is None."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype:
        got = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"out must be a NumPy array of dtype {dtype}, got {got}")
    if out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(
            f"out (of shape {out.shape}) must be C-contiguous, writable and of shape {shape}"
        )
    return out
