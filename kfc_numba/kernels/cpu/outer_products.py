"""Sums of outer products over pixels: weight gradients and second moments.

C[q, f] = sum over examples and pixels (y, x) of A[y, x, q] * B[y, x, f], with A and B read out of
images by strides. Examples are cut into chunks whose number depends on shapes alone; each chunk
sums into an array of its own, and these are added in order: the bits do not depend on threads.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.image_rows import read_rows
from kfc_numba.kernels.cpu.jit import parallel, serial
from kfc_numba.kernels.cpu.tile import tile, tile_lanes
from kfc_numba.kernels.geometry import Pair

CHUNKS = 16
PARTS_BYTES = 8 * 1024 * 1024  # memory that the partial sums may take
PIXELS = 128  # of B, two vectors each, that stay in L1 while the tiles of a job pass over them
_FEW_CHUNKS = 16  # with fewer chunks than this the jobs are shared out as well


class Jobs:
    """List of blocks C[q, f] to sum, each with its places in the images and its extent.

    Parameters
    ----------
    a_strides, b_strides : (int, int)
        Elements from one pixel of the sum to the next, vertical and horizontal.
    """

    def __init__(self, a_strides: Pair, b_strides: Pair):
        self.strides = (*a_strides, *b_strides)
        self._rows: list[tuple[int, ...]] = []

    def add(
        self, *, a: int, height: int, b: int, lanes: int, c: int, c_pitch: int, extent: Pair
    ) -> None:
        """Add a block of `height` x `lanes`.

        `a`, `b` and `c` are the places of the first element in an image of A, of B, and in the
        result; `extent` is the number of pixels that are summed, vertical and horizontal.
        """
        self._rows.append((a, height, b, lanes, c, c_pitch, *extent))

    @functools.cached_property
    def table(self) -> np.ndarray:
        """The jobs, when all have been added, as an integer array, one a row."""
        return np.array(self._rows, np.int64).reshape(len(self._rows), 8)


def sum_outer_products(
    a: np.ndarray,
    margins: Pair,
    b: np.ndarray | None,
    jobs: Jobs,
    out: np.ndarray,
    columns: int = 0,
) -> np.ndarray:
    """Sum the blocks of `jobs` into `out`, and the columns of `b` while it is in the cache.

    Parameters
    ----------
    a : numpy.ndarray
        (examples, height, width, channels), contiguous.
    margins : (int, int)
        Pixels of zeros that rows of `a` have on the left and on the right as they are read.
    b : numpy.ndarray or None
        (examples, ...), contiguous, of the dtype of `a`. None: `a` itself, with its margins.
    jobs : Jobs
    out : numpy.ndarray
        Flat result; elements that no job covers become zero.
    columns : int
        Size of the last axis of `b`, if it is to be summed over all others; or 0.

    Returns
    -------
    numpy.ndarray
        (columns,), float64: the sums of the columns of `b`.
    """
    table = jobs.table
    examples = len(a)
    chunks = max(1, min(examples, CHUNKS, PARTS_BYTES // max(out.nbytes, 1)))
    shares = max(1, min(len(table), -(-_FEW_CHUNKS // chunks)))
    parts = np.zeros((chunks, out.size), a.dtype)
    sums = np.zeros((chunks, columns), a.dtype)
    _sum_outer(
        a.reshape(-1),
        a.shape,
        margins,
        (a if b is None else b).reshape(-1),
        0 if b is None else b.size // examples,
        table,
        jobs.strides,
        parts.reshape(-1),
        sums,
        (chunks, shares, out.size, tile_lanes(a.dtype)),
    )
    np.sum(parts, axis=0, out=out)
    return sums.sum(axis=0, dtype=np.float64)


@parallel
def _sum_outer(a, a_shape, margins, b, b_size, table, strides, parts, sums, cut):
    shares = cut[1]
    for task in prange(cut[0] * shares):
        _sum_chunk(
            a,
            a_shape,
            margins,
            b,
            b_size,
            table,
            strides,
            parts,
            sums,
            cut,
            np.int64(task) // shares,
            np.int64(task) % shares,
        )


@serial
def _sum_chunk(a, a_shape, margins, b, b_size, table, strides, parts, sums, cut, chunk, share):
    """One share of the jobs on one chunk of examples; arrays flat."""
    examples, height, a_width, channels = a_shape
    a_i, a_j, b_i, b_j = strides
    chunks, shares, size, block_lanes = cut
    begin, end = chunk * examples // chunks, (chunk + 1) * examples // chunks
    jobs = range(share * table.shape[0] // shares, (share + 1) * table.shape[0] // shares)
    direct = margins[0] + margins[1] == 0
    a_size = height * a_width * channels
    # A second factor of size 0 stands for the first, with the same margins.
    itself = b_size == 0
    if itself:
        b_size = a_size
    if share == 0 and sums.shape[1] > 0:
        sum_columns(b, begin * b_size, end * b_size, sums, chunk, block_lanes)
    if direct:
        # One row or one column of pixels: all examples at once, or a tile would sum too little.
        for job in jobs:
            rows, columns = table[job, 6], table[job, 7]
            if rows == 1 or columns == 1:
                sum_block(
                    a, begin * a_size, 0, a_size, a_j if rows == 1 else a_i,
                    b, begin * b_size, 0, b_size, b_j if rows == 1 else b_i,
                    table, job, parts, chunk * size, end - begin, rows * columns, block_lanes, 1,
                )  # fmt: skip
    # Small images: some at a time, so that a block of the result is fetched once for all of them.
    group = max(1, PIXELS // (height * a_width)) if direct else 1
    for first in range(begin, end, group):
        image, a_origin = read_rows(a, a_shape, first, margins, 0, height)
        other, b_origin = (image, a_origin) if itself else (b, first * b_size)
        for job in jobs:
            rows, columns = table[job, 6], table[job, 7]
            if direct and (rows == 1 or columns == 1):
                continue
            step = max(1, PIXELS // columns)
            for y in range(0, rows, step):
                sum_block(
                    image, a_origin + y * a_i, a_size, a_i, a_j,
                    other, b_origin + y * b_i, b_size, b_i, b_j,
                    table, job, parts, chunk * size, min(step, rows - y), columns, block_lanes,
                    min(end - first, group),
                )  # fmt: skip


@serial
def sum_block(
    a, a_at, a_n, a_i, a_j, b, b_at, b_n, b_i, b_j, table, job, parts, c_at, rows, columns,
    block_lanes, examples,
):  # fmt: skip
    """All tiles of a job over one rectangle of pixels of some examples."""
    depth, width, c_pitch = table[job, 1], table[job, 3], table[job, 5]
    a_at, b_at, c_at = a_at + table[job, 0], b_at + table[job, 2], c_at + table[job, 4]
    for f in range(0, width, block_lanes):
        for n in range(examples):
            tile(
                a, a_at + n * a_n, 1, a_i, a_j,
                b, b_at + n * b_n + f, b_i, b_j,
                parts, c_at + f, c_pitch,
                parts, c_at + f, c_pitch,
                rows, columns, depth, min(block_lanes, width - f),
            )  # fmt: skip


@serial
def sum_columns(b, begin, end, sums, chunk, block_lanes):
    """Add the columns of examples to ``sums[chunk]``: a row of ones times some pixels at a time."""
    one, flat = np.ones(1, b.dtype), sums.reshape(-1)
    width, none = sums.shape[1], 0 * chunk
    for place in range(begin, end, PIXELS * width):
        pixels = min(PIXELS, (end - place) // width)
        for f in range(0, width, block_lanes):
            at = chunk * width + f
            tile(
                one, none, 1, none, none,
                b, place + f, none, width,
                flat, at, none,
                flat, at, none,
                none + 1, pixels, none + 1, min(block_lanes, width - f),
            )  # fmt: skip


def sum_leading(x: np.ndarray) -> np.ndarray:
    """Sum over the first axis, accumulated in float64 in a fixed order.

    Parameters
    ----------
    x : numpy.ndarray
        (examples, size), contiguous.

    Returns
    -------
    numpy.ndarray
        (size,), float64.
    """
    chunks = min(len(x), CHUNKS)
    parts = np.zeros((chunks, x.shape[1]))
    _sum_rows(x, parts)
    return parts.sum(axis=0)


@parallel
def _sum_rows(x, parts):
    chunks, examples = parts.shape[0], x.shape[0]
    for chunk in prange(chunks):
        for n in range(chunk * examples // chunks, (chunk + 1) * examples // chunks):
            for k in range(x.shape[1]):
                parts[chunk, k] += x[n, k]
