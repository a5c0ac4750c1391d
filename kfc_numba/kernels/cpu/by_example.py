"""Sums over all numbers of each example, and over examples; examples picked out of a batch."""

from __future__ import annotations

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import alike, checked, output_array
from kfc_numba.kernels.cpu.jit import parallel


def example_dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner product of two arrays, for each example; float64 from the start.

    Parameters
    ----------
    a, b : numpy.ndarray
        (examples, ...), of one shape and type, float32 or float64.

    Returns
    -------
    numpy.ndarray
        (examples,), float64.
    """
    a, b = alike(a=a, b=b)
    result = np.empty(len(a))
    _dots.for_numbers(a.size)(a.reshape(len(a), -1), b.reshape(len(b), -1), result)
    return result


def square(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """``x * x``.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    x = checked("x", x, None)
    out = output_array(out, x.shape, x.dtype)
    _square(x.reshape(-1), out.reshape(-1))
    return out


def square_sum(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Sum over examples of the squares.

    Parameters
    ----------
    x : numpy.ndarray
        (examples, ...), float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous, of the shape of an example.

    Returns
    -------
    numpy.ndarray
        Of the shape of an example, summed in float64 and rounded once.
    """
    x = checked("x", x, None)
    out = output_array(out, x.shape[1:], x.dtype)
    _square_sum(x.reshape(len(x), -1), out.reshape(-1))
    return out


def take_examples(
    batch: np.ndarray, chosen: np.ndarray, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Some examples of a batch.

    Parameters
    ----------
    batch : numpy.ndarray
        (examples, ...), of any dtype of fixed size.
    chosen : numpy.ndarray
        (n,), int64: their numbers, from 0 to below that of the examples.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
        (n, ...).

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, or a number out of range.
    """
    if not isinstance(batch, np.ndarray):
        raise TypeError(f"batch must be a NumPy array, got {type(batch).__name__}")
    batch = checked("batch", batch, None, batch.dtype)
    chosen = checked("chosen", chosen, 1, np.dtype(np.int64))
    if chosen.min() < 0 or chosen.max() >= len(batch):
        raise ValueError(
            f"chosen must be from 0 to {len(batch) - 1}, got {chosen.min()} to {chosen.max()}"
        )
    out = output_array(out, (len(chosen), *batch.shape[1:]), batch.dtype)
    # As bytes: one compiled function for all dtypes.
    rows, found = (array.reshape(len(array), -1).view(np.uint8) for array in (batch, out))
    _take(rows, chosen, found)
    return out


@parallel
def _take(rows, chosen, found):
    for n in prange(len(chosen)):
        source, target = rows[chosen[n]], found[n]
        for i in range(rows.shape[1]):
            target[i] = source[i]


@parallel
def _dots(a, b, result):
    for n in prange(a.shape[0]):
        total = 0.0
        for i in range(a.shape[1]):
            total += np.float64(a[n, i]) * np.float64(b[n, i])
        result[n] = total


@parallel
def _square(x, y):
    for i in prange(x.size):
        y[i] = x[i] * x[i]


@parallel
def _square_sum(x, result):
    for i in prange(x.shape[1]):
        total = 0.0
        for n in range(x.shape[0]):
            total += np.float64(x[n, i]) * np.float64(x[n, i])
        result[i] = total
