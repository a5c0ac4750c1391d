"""What optimizers do to arrays of parameters: the twin of the functions for cards, one by one.

NumPy takes a pass over memory, and a new array, for each operation; for a dense layer of a million
weights that is what a step takes longest for after its products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.jit import parallel

_SMALL = 1 << 14  # numbers that NumPy is done with before threads would have woken


def combined(
    factors: Sequence[float], xs: Sequence[np.ndarray], b: float, ys: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """``a x + b y`` of pairs of arrays, with an a of each."""
    return [
        _launched(_combine, x, y, a, b) if _is_worth_it(x, y) else np.asarray(a * x + b * y)
        for a, x, y in zip(factors, xs, ys, strict=True)
    ]


def scaled(xs: Sequence[np.ndarray], factors: Sequence[float]) -> list[np.ndarray]:
    """``a x`` of arrays, with a number of each."""
    return [
        _launched(_scale, x, x, a) if _is_worth_it(x, x) else np.asarray(a * x)
        for x, a in zip(xs, factors, strict=True)
    ]


def averaged(
    averages: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    weight: float,
    roots: Sequence[bool],
) -> list[np.ndarray]:
    """``average + (value - average) / weight`` of pairs of arrays, averages in float64.

    With the square roots of values where `roots` says so.
    """
    new = [
        np.sqrt(y, dtype=x.dtype) if r else y
        for x, y, r in zip(averages, values, roots, strict=True)
    ]
    return [
        _launched(_average, x, y, weight)
        if _is_worth_it(x, y)
        else np.asarray(x + (y - x) / weight)
        for x, y in zip(averages, new, strict=True)
    ]


def _launched(kernel: Any, x: np.ndarray, y: np.ndarray, *numbers: float) -> np.ndarray:
    out = np.empty(x.shape, x.dtype)
    kernel(x.reshape(-1), y.reshape(-1), out.reshape(-1), *map(x.dtype.type, numbers))
    return out


def _is_worth_it(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether a kernel takes two arrays, and is done with them before NumPy."""
    kinds = (np.float32, np.float64)
    return (
        x.size > _SMALL
        and x.shape == y.shape
        and x.flags.c_contiguous
        and y.flags.c_contiguous
        and y.dtype in kinds
        and x.dtype in (y.dtype, np.float64)
    )


@parallel
def _combine(x, y, out, a, b):
    for i in prange(x.size):
        out[i] = a * x[i] + b * y[i]


@parallel
def _scale(x, _, out, a):
    for i in prange(x.size):
        out[i] = a * x[i]


@parallel
def _average(x, y, out, weight):
    for i in prange(x.size):
        out[i] = x[i] + (y[i] - x[i]) / weight
