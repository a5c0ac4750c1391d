"""Sums of the columns of a matrix, in float64.

Blocks sum parts of the rows, and where there are several, one block for some columns sums theirs.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda, float64, int32, int64

from kfc_numba.kernels.cuda.arguments import empty
from kfc_numba.kernels.cuda.launch import DeviceKernel, device_kernel
from kfc_numba.kernels.cuda.tiles import PROCESSORS

_BESIDE = 32  # columns of a block: a row of them is a whole line of memory
_ABOVE = 8  # rows that a block reads at once
_PARTS_ABOVE = 16  # and of the sums of parts, for which there are few blocks
_ROWS = 64  # that a block sums at least


def sum_columns(matrix: Any, out: Any) -> None:
    """Sum the rows of a matrix, in float64 and in an order that its shape fixes, into `out`.

    Parameters
    ----------
    matrix : cupy.ndarray
        (rows, columns).
    out : cupy.ndarray
        (columns,), of the same dtype; rounded once.
    """
    rows, columns = matrix.shape
    across = -(-columns // _BESIDE)
    parts = max(1, min(-(-4 * PROCESSORS // across), -(-rows // _ROWS)))
    part = -(-rows // parts)
    sums = out if parts == 1 else empty((parts, columns), np.float64, matrix)
    add = _adding(sums.dtype, _ABOVE)
    add((across, parts), (_BESIDE, _ABOVE), matrix, sums, rows, columns, part)
    if parts > 1:
        add = _adding(out.dtype, _PARTS_ABOVE)
        add(across, (_BESIDE, _PARTS_ABOVE), sums, out, parts, columns, parts)


@functools.cache
def _adding(dtype: np.dtype, above: int) -> DeviceKernel:
    """Sums of parts of the rows, as numbers of a type, by blocks so many rows high."""
    kind = dtype.type

    @device_kernel(settings=(str(dtype), above))
    def sum_parts(matrix, sums, rows, columns, part):
        shared = cuda.shared.array((above, _BESIDE), float64)
        beside, line = cuda.threadIdx.x, cuda.threadIdx.y
        column = int32(cuda.blockIdx.x * _BESIDE + beside)
        first = int32(cuda.blockIdx.y * part)
        total = 0.0
        if column < columns:
            for row in range(first + line, min(first + part, rows), above):
                total += matrix[int64(row) * columns + column]
        shared[line, beside] = total
        cuda.syncthreads()
        if line == 0 and column < columns:
            for other in range(1, above):
                total += shared[other, beside]
            sums[int64(cuda.blockIdx.y) * columns + column] = kind(total)

    return sum_parts
