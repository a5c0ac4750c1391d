"""Sums of the columns of a matrix, in float64."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda, float64, int32, int64

from kfc_numba.kernels.cuda.arguments import empty
from kfc_numba.kernels.cuda.launch import DeviceKernel, device_kernel
from kfc_numba.kernels.cuda.tiles import PROCESSORS

_BESIDE, _ABOVE = 32, 8  # threads of a block
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
    sums = empty((parts, columns), np.float64, matrix)
    _sum_parts((across, parts), (_BESIDE, _ABOVE), matrix, sums, rows, columns, part)
    _add(out.dtype)(-(-columns // _BESIDE), _BESIDE, sums, out, columns, parts)


@device_kernel
def _sum_parts(matrix, sums, rows, columns, part):
    shared = cuda.shared.array((_ABOVE, _BESIDE), float64)
    beside, above = cuda.threadIdx.x, cuda.threadIdx.y
    column = int32(cuda.blockIdx.x * _BESIDE + beside)
    first = int32(cuda.blockIdx.y * part)
    total = 0.0
    if column < columns:
        for row in range(first + above, min(first + part, rows), _ABOVE):
            total += matrix[int64(row) * columns + column]
    shared[above, beside] = total
    cuda.syncthreads()
    if above == 0 and column < columns:
        for other in range(1, _ABOVE):
            total += shared[other, beside]
        sums[int64(cuda.blockIdx.y) * columns + column] = total


@functools.cache
def _add(dtype: np.dtype) -> DeviceKernel:
    kind = dtype.type

    @device_kernel(settings=(str(dtype),))
    def add(sums, out, columns, parts):
        column = cuda.grid(1)
        if column < columns:
            total = 0.0
            for part in range(parts):
                total += sums[int64(part) * columns + column]
            out[column] = kind(total)

    return add
