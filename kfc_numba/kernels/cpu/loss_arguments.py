"""What the kernels of losses share: checks, sums by example, launches over chunks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kfc_numba.checks import check_integer
from kfc_numba.kernels.cpu.arguments import checked
from kfc_numba.kernels.cpu.jit import serial

_CHUNK = 1 << 12  # numbers of a chunk, about: they stay in the cache from step to step
_SMALL = 2  # chunks that one thread is done with before others would have woken


def shaped(name: str, array: Any, dtype: np.dtype | None, shape: tuple[int, ...]) -> np.ndarray:
    """An array that passes `checked`, of the given shape."""
    array = checked(name, array, None, dtype)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return array


def component(x: np.ndarray, index: Any) -> int:
    """The number of a component of an example."""
    index, size = check_integer("index", index, least=0), math.prod(x.shape[1:])
    if index >= size:
        raise ValueError(f"index (={index}) must be below {size}, the components of an example")
    return index


def by_example(values: np.ndarray, examples: int) -> np.ndarray:
    """Sums of a vector's numbers that belong to one example."""
    if len(values) == examples:
        return values
    sums = np.empty(examples)
    _sums(values.reshape(examples, -1), sums)
    return sums


def launch(kernel: Any, rows: np.ndarray, *others: np.ndarray) -> None:
    """Call a kernel whose last argument is the number of rows, or of numbers, of a chunk."""
    chunk = max(1, _CHUNK // math.prod(rows.shape[1:]))
    call = kernel.serial if len(rows) <= _SMALL * chunk else kernel
    call(rows, *others, chunk)


@serial
def _sums(values, sums):
    for r in range(len(values)):
        total = 0.0
        for k in range(values.shape[1]):
            total += values[r, k]
        sums[r] = total
