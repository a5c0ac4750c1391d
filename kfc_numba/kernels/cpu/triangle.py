"""Symmetric matrices of which one triangle is computed, in square blocks."""

from __future__ import annotations

import functools

import numpy as np

from kfc_numba.kernels.cpu.jit import inlined
from kfc_numba.kernels.cpu.records import record

#: A block of the lower triangle, by the numbers of its rows and columns.
PAIR = record("i", "j")


@functools.lru_cache(maxsize=32)
def pairs_of(blocks: int) -> np.ndarray:
    """All blocks of a lower triangle with so many rows of them.

    Parameters
    ----------
    blocks : int

    Returns
    -------
    numpy.ndarray
        Records `PAIR`, by rows: those of the first few rows come first.
    """
    return np.array([(i, j) for i in range(blocks) for j in range(i + 1)], PAIR)


@inlined
def mirror_block(a, size, i, j, lanes):
    """Copy a block, from row i and column j of the lower triangle on, across the diagonal.

    `a` is the flat matrix of so many rows, and `lanes` are the rows of a block.
    """
    below = i > j
    for f in range(j, min(j + lanes, size)):
        begin = i if below else f + 1
        for q in range(begin, min(i + lanes, size)):
            a[f * size + q] = a[q * size + f]
