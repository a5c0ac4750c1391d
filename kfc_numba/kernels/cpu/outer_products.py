"""Sums of outer products over pixels: weight gradients and second moments.

C[q, f] = sum over examples and pixels (y, x) of A[y, x, q] * B[y, x, f], with A and B read out of
images by strides. Examples are cut into chunks whose number depends on shapes alone; each chunk
sums into an array of its own, and these are added in order: the bits do not depend on threads.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.image_rows import read_rows
from kfc_numba.kernels.cpu.jit import inlined, parallel
from kfc_numba.kernels.cpu.records import ONE, ZERO, record
from kfc_numba.kernels.cpu.tile import tile, tile_lanes
from kfc_numba.kernels.geometry import Pair

CHUNKS = 16
PARTS_BYTES = 8 * 1024 * 1024  # memory that the partial sums may take
PIXELS = 128  # of B, two vectors each, that stay in L1 while the tiles of a job pass over them
_BLOCK = 1024  # elements of a result that are added up together
_FEW_CHUNKS = 16  # with fewer chunks than this the jobs are shared out as well


#: Elements from one pixel of a sum to the next, down and to the right, in images of A and of B.
STRIDES = record("a_row", "a_pixel", "b_row", "b_pixel")
#: A block C[q, f] of `height` x `lanes` to sum over a rectangle of pixels: its first element in an
#: image of A, in one of B, and in the result.
JOB = record("a", "height", "b", "lanes", "c", "c_pitch", "rows", "columns")


class Jobs:
    """List of blocks C[q, f] to sum, each with its places in the images and its extent.

    Parameters
    ----------
    a_strides, b_strides : (int, int)
        Elements from one pixel of the sum to the next, vertical and horizontal.
    """

    def __init__(self, a_strides: Pair, b_strides: Pair):
        self._strides = (*a_strides, *b_strides)
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
        """The jobs, when all have been added, as records `JOB`."""
        return np.array(self._rows, JOB)

    @functools.cached_property
    def products(self) -> int:
        """Multiply-adds for an example."""
        return sum(height * lanes * y * x for _, height, _, lanes, _, _, y, x in self._rows)

    @functools.cached_property
    def strides(self) -> np.ndarray:
        """A record `STRIDES`."""
        return np.array([self._strides], STRIDES)


class Cut(NamedTuple):
    """How a sum is shared out."""

    chunks: int  # of the examples
    shares: int  # of the jobs
    size: int  # of the result
    lanes: int  # of a tile


class Places(NamedTuple):
    """Where pixels lie in A and in B: the first one, and the distances to others."""

    a: int
    a_example: int
    a_row: int
    a_pixel: int
    b: int
    b_example: int
    b_row: int
    b_pixel: int


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
    parts = np.empty((chunks, out.size), a.dtype)
    sums = np.zeros((chunks, columns), a.dtype)
    _sum_outer.for_products(examples * jobs.products)(
        a.reshape(-1),
        a.shape,
        margins,
        (a if b is None else b).reshape(-1),
        0 if b is None else b.size // examples,
        table,
        jobs.strides,
        parts.reshape(-1),
        sums,
        out,
        Cut(chunks, shares, out.size, tile_lanes(a.dtype)),
    )
    return sums.sum(axis=0, dtype=np.float64)


@parallel
def _sum_outer(a, a_shape, margins, b, b_size, jobs, strides, parts, sums, out, cut):
    # What each thread adds to next is in its cache then.
    for chunk in prange(cut.chunks):
        for place in range(chunk * cut.size, (chunk + 1) * cut.size):
            parts[place] = 0
    for task in prange(cut.chunks * cut.shares):
        chunk, share = np.int64(task) // cut.shares, np.int64(task) % cut.shares
        _sum_chunk(
            a, a_shape, margins, b, b_size, jobs, strides[0], parts, sums, cut, chunk, share
        )  # fmt: skip
    blocks = -(-cut.size // _BLOCK)
    for block in prange(blocks):
        begin, end = block * _BLOCK, min((block + 1) * _BLOCK, cut.size)
        for place in range(begin, end):
            out[place] = parts[place]
        for chunk in range(1, cut.chunks):
            for place in range(begin, end):
                out[place] += parts[chunk * cut.size + place]


@inlined
def _sum_chunk(a, a_shape, margins, b, b_size, jobs, strides, parts, sums, cut, chunk, share):
    """One share of the jobs on one chunk of examples; arrays flat."""
    examples, height, width, channels = a_shape
    begin, end = chunk * examples // cut.chunks, (chunk + 1) * examples // cut.chunks
    mine = jobs[share * jobs.size // cut.shares : (share + 1) * jobs.size // cut.shares]
    direct = margins == (0, 0)
    a_size = height * width * channels
    # A second factor of size 0 stands for the first, with the same margins.
    itself = b_size == 0
    if itself:
        b_size = a_size
    if share == 0 and sums.shape[1] > 0:
        sum_columns(b, begin * b_size, end * b_size, sums, chunk, cut.lanes)
    if direct:
        lines = Places(
            begin * a_size, a_size, strides.a_row, strides.a_pixel,
            begin * b_size, b_size, strides.b_row, strides.b_pixel,
        )  # fmt: skip
        _sum_lines(a, b, lines, mine, parts, chunk * cut.size, end - begin, cut.lanes)
    # Small images: some at a time, so that a block of the result is fetched once for all of them.
    group = max(1, PIXELS // (height * width)) if direct else ONE
    for first in range(begin, end, group):
        image, origin = read_rows(a, a_shape, first, margins, ZERO, height)
        other, other_origin = (image, origin) if itself else (b, first * b_size)
        places = Places(
            origin, a_size, strides.a_row, strides.a_pixel,
            other_origin, b_size, strides.b_row, strides.b_pixel,
        )  # fmt: skip
        count = min(end - first, group)
        _sum_images(image, other, places, mine, parts, chunk * cut.size, count, direct, cut.lanes)


@inlined
def _is_line(job):
    return job.rows == 1 or job.columns == 1


@inlined
def _sum_lines(a, b, places, jobs, parts, c_at, examples, lanes):
    """Jobs of one row or one column of pixels: all examples at once, or a tile sums too little."""
    for number in range(jobs.size):
        job = jobs[number]
        if _is_line(job):
            down = job.rows > 1
            lines = Places(
                places.a, ZERO, places.a_example, places.a_row if down else places.a_pixel,
                places.b, ZERO, places.b_example, places.b_row if down else places.b_pixel,
            )  # fmt: skip
            length = job.rows * job.columns
            sum_block(a, b, lines, job, parts, c_at, examples, length, lanes, ONE)


@inlined
def _sum_images(a, b, places, jobs, parts, c_at, examples, direct, lanes):
    """The other jobs, for some examples, a few rows of pixels at a time."""
    for number in range(jobs.size):
        job = jobs[number]
        if direct and _is_line(job):
            continue
        step = max(1, PIXELS // job.columns)
        for y in range(0, job.rows, step):
            band = Places(
                places.a + y * places.a_row, places.a_example, places.a_row, places.a_pixel,
                places.b + y * places.b_row, places.b_example, places.b_row, places.b_pixel,
            )  # fmt: skip
            rows = min(step, job.rows - y)
            sum_block(a, b, band, job, parts, c_at, rows, job.columns, lanes, examples)


@inlined
def sum_block(a, b, places, job, parts, c_at, rows, columns, block_lanes, examples):
    """All tiles of a job over one rectangle of pixels of some examples."""
    c = c_at + job.c
    for f in range(0, job.lanes, block_lanes):
        for n in range(examples):
            tile(
                a, places.a + job.a + n * places.a_example, 1, places.a_row, places.a_pixel,
                b, places.b + job.b + n * places.b_example + f, places.b_row, places.b_pixel,
                parts, c + f, job.c_pitch,
                parts, c + f, job.c_pitch,
                rows, columns, job.height, min(block_lanes, job.lanes - f),
            )  # fmt: skip


@inlined
def sum_columns(b, begin, end, sums, chunk, block_lanes):
    """Add the columns of examples to ``sums[chunk]``: a row of ones times some pixels at a time."""
    one, flat = np.ones(1, b.dtype), sums.reshape(-1)
    width = sums.shape[1]
    for place in range(begin, end, PIXELS * width):
        pixels = min(PIXELS, (end - place) // width)
        for f in range(0, width, block_lanes):
            at = chunk * width + f
            tile(
                one, ZERO, 1, ZERO, ZERO,
                b, place + f, ZERO, width,
                flat, at, ZERO,
                flat, at, ZERO,
                ONE, pixels, ONE, min(block_lanes, width - f),
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
    _sum_rows.for_numbers(x.size)(x, parts)
    return parts.sum(axis=0)


@parallel
def _sum_rows(x, parts):
    chunks, examples = parts.shape[0], x.shape[0]
    for chunk in prange(chunks):
        for n in range(chunk * examples // chunks, (chunk + 1) * examples // chunks):
            for k in range(x.shape[1]):
                parts[chunk, k] += x[n, k]
