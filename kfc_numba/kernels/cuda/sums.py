"""Sums along an axis of terms made of two arrays, in an order that depends on shapes alone.

Threads take numbers in turn, a block adds up theirs as a tree, and what blocks have summed is
summed once more by one block: no two threads ever add to the same number.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from kfc_numba.kernels.cuda.arguments import empty
from kfc_numba.kernels.cuda.grids import THREADS, Grid, ceil_div, cover
from kfc_numba.kernels.cuda.integers import div, mod
from kfc_numba.kernels.cuda.lanes import lanes_of, load_lanes, wide
from kfc_numba.kernels.cuda.launch import device_kernel, inlined

_LEAST = 1 << 12  # numbers of a row that are worth a block
_BLOCKS = 1 << 10  # that keep all multiprocessors busy
_LEAST_ROWS = 64  # that are worth a block
_WIDTH = 32  # channels of a block: a row of them is a whole line of memory
DOUBLE = np.dtype(np.float64)


def row_sums(function: Any, a: Any, b: Any, rows: int, columns: int, dtype: Any = DOUBLE) -> Any:
    """Sums along the rows of ``function(a, b)``, of two arrays seen as (rows, columns).

    Parameters
    ----------
    function : callable
        Made by `inlined`; of one number of each array.
    a, b : cupy.ndarray
        Contiguous, of rows * columns numbers.
    rows, columns : int
    dtype : numpy.dtype
        In which terms are added.

    Returns
    -------
    cupy.ndarray
        (rows,) of `dtype`.
    """
    lanes = lanes_of(a, b)
    width = cover(ceil_div(columns, lanes))
    height = THREADS // width
    row_blocks = ceil_div(rows, height)
    chunks = min(ceil_div(columns, _LEAST), max(1, _BLOCKS // row_blocks))
    chunk = ceil_div(columns, chunks * lanes) * lanes
    chunks = ceil_div(columns, chunk)
    sums = empty((rows,) if chunks == 1 else (rows, chunks), dtype, a)
    at_once = wide(lanes, a, b, apart=0 if rows == 1 else columns)
    kernel = _row_sums(function, a.dtype.type, b.dtype.type, dtype.type, lanes, at_once)
    kernel(
        (row_blocks, chunks), (width, height), a, b, sums,
        np.int64(rows), np.int64(columns), np.int64(chunk),
    )  # fmt: skip
    return sums if chunks == 1 else row_sums(first, sums, sums, rows, chunks, dtype)


def segment_sums(
    function: Any, a: Any, b: Any, center: Any, size: int, rows: int, channels: int
) -> tuple[Any, Any]:
    """Sums over `size` rows after `size` rows of the two terms ``function(a, b, center)``.

    Parameters
    ----------
    function : callable
        Made by `inlined`; of one number of each array, and of the float64 of its channel.
    a, b : cupy.ndarray
        Contiguous, of rows * channels numbers.
    center : cupy.ndarray
        (channels,).
    size, rows, channels : int

    Returns
    -------
    firsts, seconds : cupy.ndarray
        (segments, channels), float64.
    """
    segments, grid, block, shape = _segment_shape(size, rows, channels)
    firsts, seconds = (empty((segments, channels), DOUBLE, a) for _ in range(2))
    _segment_sums(function)(grid, block, a, b, center, firsts, seconds, *shape)
    return firsts, seconds


@functools.lru_cache(maxsize=1024)
def _segment_shape(size: int, rows: int, channels: int) -> tuple[int, int, Grid, tuple]:
    """Number of segments, grid and block, and what the kernel is told of the shape."""
    segments = ceil_div(rows, size)
    width = cover(channels, _WIDTH)
    tiles = ceil_div(channels, width)
    block = width, cover(size, THREADS // width)
    return segments, segments * tiles, block, (np.int64(rows), np.int64(size), channels, tiles)


def column_sums(
    function: Any, a: Any, b: Any, center: Any, rows: int, channels: int
) -> tuple[Any, Any]:
    """Sums over all rows, otherwise as `segment_sums`.

    Returns
    -------
    firsts, seconds : cupy.ndarray
        (channels,), float64.
    """
    most = max(1, _BLOCKS // ceil_div(channels, _WIDTH))
    size = max(_LEAST_ROWS, ceil_div(rows, most))  # a function of the shape alone
    firsts, seconds = segment_sums(function, a, b, center, size, rows, channels)
    segments = len(firsts)
    if segments > 1:
        firsts, seconds = segment_sums(_both, firsts, seconds, firsts, segments, segments, channels)
    return firsts.reshape(channels), seconds.reshape(channels)


def rounded(sums: Any, divisor: int, out: Any) -> Any:
    """Sums over a divisor, in the type of another array."""
    size = np.int64(out.size)
    _rounded(ceil_div(out.size, THREADS), THREADS, sums, np.float64(divisor), out, size)
    return out


@inlined
def first(a, b):
    """The term that is the number of the first array."""
    return a


@inlined
def _both(a, b, center):
    return a, b


@device_kernel
def _rounded(sums, divisor, out, size):
    i = cuda.grid(1)
    if i < size:
        out[i] = sums[i] / divisor


@functools.cache
def _row_sums(function: Any, a_type: Any, b_type: Any, kind: Any, lanes: int, at_once: bool) -> Any:
    @device_kernel
    def row_sums(a, b, sums, rows, columns, chunk):
        x, width = cuda.threadIdx.x, cuda.blockDim.x
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        total = kind(0)
        if row < rows:
            u, v = cuda.local.array(lanes, a_type), cuda.local.array(lanes, b_type)
            i = cuda.blockIdx.y * chunk + x * lanes
            stop = min(columns, (cuda.blockIdx.y + 1) * chunk)
            while i + lanes <= stop:
                load_lanes(a, row * columns + i, u, lanes, at_once)
                load_lanes(b, row * columns + i, v, lanes, at_once)
                for k in range(lanes):
                    total += kind(function(u[k], v[k]))
                i += width * lanes
            for k in range(lanes):  # what is left for one thread, less than its lanes
                if i + k < stop:
                    total += kind(function(a[row * columns + i + k], b[row * columns + i + k]))
        partial = cuda.shared.array(THREADS, kind)
        here = cuda.threadIdx.y * width + x
        partial[here] = total
        cuda.syncthreads()
        half = width >> 1
        while half > 0:
            if x < half:
                partial[here] += partial[here + half]
            cuda.syncthreads()
            half >>= 1
        if x == 0 and row < rows:
            sums[row * cuda.gridDim.y + cuda.blockIdx.y] = partial[here]

    return row_sums


@functools.cache
def _segment_sums(function: Any) -> Any:
    @device_kernel
    def segment_sums(a, b, center, firsts, seconds, rows, size, channels, tiles):
        y, width, height = cuda.threadIdx.y, cuda.blockDim.x, cuda.blockDim.y
        segment = div(cuda.blockIdx.x, tiles)
        c = mod(cuda.blockIdx.x, tiles) * width + cuda.threadIdx.x
        first, second = np.float64(0), np.float64(0)
        if c < channels:
            middle = np.float64(center[c])
            r = segment * size + y
            stop = min(rows, (segment + 1) * size)
            while r < stop:
                one, other = function(a[r * channels + c], b[r * channels + c], middle)
                first += one
                second += other
                r += height
        partial = cuda.shared.array((2, THREADS), np.float64)
        here = y * width + cuda.threadIdx.x
        partial[0, here], partial[1, here] = first, second
        cuda.syncthreads()
        half = height >> 1
        while half > 0:
            if y < half:
                partial[0, here] += partial[0, here + half * width]
                partial[1, here] += partial[1, here + half * width]
            cuda.syncthreads()
            half >>= 1
        if y == 0 and c < channels:
            firsts[segment * channels + c] = partial[0, here]
            seconds[segment * channels + c] = partial[1, here]

    return segment_sums
