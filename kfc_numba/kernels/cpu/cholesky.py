"""Cholesky factors and inverses of wide symmetric matrices, on all threads.

LAPACK's are for one thread, and several of OpenBLAS spin after they are done, while the kernels
that follow want the cores. For a diagonal block of the matrix A, ``A_KK = L L^T``, block
elimination computes for the other rows I

    X_I = A_IK L^-T,    A_IJ <- A_IJ - X_I X_J^T.

With the rows below the block alone this is Cholesky's algorithm, and X_I takes the place of A_IK.
With all other rows it is a sweep: ``A_IK <- X_I L^-1`` and ``A_KK <- -(L L^T)^-1`` besides, and
-A^-1 is what is left when all blocks have been eliminated.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import checked
from kfc_numba.kernels.cpu.jit import inlined, parallel
from kfc_numba.kernels.cpu.records import ONE, ZERO, record
from kfc_numba.kernels.cpu.tile import tile, tile_lanes
from kfc_numba.kernels.cpu.triangle import mirror_block, pairs_of

ROWS = 128  # of a diagonal block: what one thread factors alone
PITCH = 2 * ROWS + 16  # from row to row of its triangles: not a power of two, for the cache
GROUP = 8  # rows that are factored number by number
#: The size of a matrix, its blocks of as many rows as a tile has lanes, and whether it is swept.
PLAN = record("size", "blocks", "lanes", "sweep")


class Room(NamedTuple):
    """What block elimination works with: of all rows, and of two diagonal blocks in turn."""

    x: np.ndarray  # X, (N, ROWS), flat
    packed: np.ndarray  # -X^T, in blocks of lanes, flat
    both: np.ndarray  # [L^T, L^-1], (2, ROWS * PITCH), as the next two
    right: np.ndarray  # L^-T
    negative: np.ndarray  # -L^-1; -L^T while that grows
    zero: np.ndarray  # a row of zeros


class Block(NamedTuple):
    """A diagonal block that is eliminated."""

    first: int  # row
    rows: int
    begin: int  # the first of the blocks of rows that are worked on
    parity: int  # where what belongs to it is


def cholesky_factor(matrix: np.ndarray) -> bool:
    """Cholesky factor of a symmetric positive definite matrix, in its place.

    Parameters
    ----------
    matrix : numpy.ndarray
        (N, N), float32 or float64, finite, contiguous; the lower triangle counts. After it L is in
        that triangle, where the matrix was ``L L^T``; what is above the diagonal is of no use.

    Returns
    -------
    bool
        Whether it is positive definite but for rounding; if not, what it holds is of no use.

    Raises
    ------
    TypeError, ValueError
        `matrix` is not as said.
    """
    return _eliminated(matrix, sweep=False)


def cholesky_inverse(matrix: np.ndarray) -> bool:
    """Inverse of a symmetric positive definite matrix, in its place.

    Parameters
    ----------
    matrix : numpy.ndarray
        As `cholesky_factor` takes it. After it the inverse, symmetric to the last bit.

    Returns
    -------
    bool
        As `cholesky_factor`.

    Raises
    ------
    TypeError, ValueError
        As `cholesky_factor`.
    """
    found = _eliminated(matrix, sweep=True)
    if found:
        size, lanes = len(matrix), tile_lanes(matrix.dtype)
        pairs = pairs_of(-(-size // lanes))
        _negate.for_numbers(matrix.size)(matrix.reshape(-1), pairs, size, lanes)
    return found


def _eliminated(matrix: np.ndarray, sweep: bool) -> bool:
    if checked("matrix", matrix, 2) is not matrix or len(set(matrix.shape)) > 1:
        raise ValueError(
            f"matrix (of shape {matrix.shape}) must be square, C-contiguous and writable"
        )
    size, lanes = len(matrix), tile_lanes(matrix.dtype)
    blocks = -(-size // lanes)
    positive = np.ones(1, np.bool_)
    _eliminate.for_products(size**3)(
        matrix.reshape(-1),
        Room(
            np.empty(size * ROWS, matrix.dtype),
            np.empty(blocks * lanes * ROWS, matrix.dtype),
            np.empty((2, ROWS * PITCH), matrix.dtype),
            np.empty((2, ROWS * PITCH), matrix.dtype),
            np.empty((2, ROWS * PITCH), matrix.dtype),
            np.zeros(lanes, matrix.dtype),
        ),
        pairs_of(blocks),
        np.array([(size, blocks, lanes, sweep)], PLAN),
        positive,
    )
    return bool(positive[0])


@parallel
def _eliminate(a, room, pairs, plans, positive):
    size, blocks, sweep = plans[0].size, plans[0].blocks, plans[0].sweep
    # Step -1 only factors the first diagonal block.
    for step in range(-1, -(-size // ROWS)):
        if not positive[0]:
            break
        begin = _block(plans[0], step).begin
        for number in prange(begin, blocks):
            _solve(a, room, plans[0], step, np.int64(number))
        # All else at once, the next diagonal block too, or threads would fall asleep meanwhile.
        rest = blocks - begin
        count = 1 + rest * (rest + 1) // 2
        # A choice among the arguments of prange would leave this loop to one thread.
        tasks = count + blocks if sweep and step >= 0 else count
        for task in prange(tasks):
            _go_on(a, room, pairs, plans[0], positive, step, count, np.int64(task))


@inlined
def _block(plan, step):
    if step < 0:
        return Block(ZERO, ZERO, plan.blocks, ONE)
    first = step * ROWS
    rows = min(ROWS, plan.size - first)
    begin = ZERO if plan.sweep else min(plan.blocks, -(-(first + rows) // plan.lanes))
    return Block(first, rows, begin, step % 2)


@inlined
def _go_on(a, room, pairs, plan, positive, step, count, task):
    """The next diagonal block, a pair of blocks of rows, or rows to finish."""
    block = _block(plan, step)
    if task >= count:
        _finish(a, room, plan, block, task - count)
        return
    following = block.first + block.rows
    begin = following // plan.lanes
    end = -(-min(following + ROWS, plan.size) // plan.lanes)
    if task == 0:
        i_begin, i_end, j_begin, j_end = begin, end, begin, end
    else:
        pair = pairs[task - 1]
        i_begin, j_begin = block.begin + pair.i, block.begin + pair.j
        i_end, j_end = i_begin + 1, j_begin + 1
        if begin <= i_begin < end and begin <= j_begin < end:
            return  # that is the first task's
    for i in range(i_begin, i_end):
        for j in range(j_begin, min(j_end, i + 1)):
            _subtract(a, room, plan, block, i * plan.lanes, j * plan.lanes)
    if task == 0 and following < plan.size:
        positive[0] = _factor(a, room, plan, following, 1 - block.parity)


@inlined
def _factor(a, room, plan, first, parity):
    """Factor a diagonal block, by elimination in ``[A_KK, I]``, which leaves ``[L^T, L^-1]``."""
    both, right, negative = room.both[parity], room.right[parity], room.negative[parity]
    size, lanes = plan.size, plan.lanes
    rows = min(ROWS, size - first)
    for q in range(rows):
        for v in range(rows):
            both[q * PITCH + v] = a[(first + v) * size + first + q]
            both[q * PITCH + rows + v] = q == v
    for top in range(0, rows, GROUP):
        height = min(GROUP, rows - top)
        end = rows + top + height  # of what is not zero in L^-1 so far
        if top > 0:
            for f in range(top, end, lanes):
                tile(
                    negative, top, 1, ZERO, PITCH,
                    both, f, ZERO, PITCH,
                    both, top * PITCH + f, PITCH,
                    both, top * PITCH + f, PITCH,
                    ONE, top, height, min(lanes, end - f),
                )  # fmt: skip
        for p in range(top, top + height):
            if not both[p * PITCH + p] > 0:  # or NaN
                return False
            _scale_row(both, p, top, end, 1 / np.sqrt(both[p * PITCH + p]))
            for r in range(p + 1, top + height):
                _subtract_row(both, r, p, top, end, both[p * PITCH + r])
            for v in range(p, rows):
                negative[p * PITCH + v] = -both[p * PITCH + v]
    for p in range(rows):
        for v in range(p + 1):
            a[(first + p) * size + first + v] = both[v * PITCH + p]
    for p in range(rows):
        for v in range(rows):
            inverse = both[p * PITCH + rows + v]
            negative[p * PITCH + v] = -inverse
            right[v * PITCH + p] = inverse
    return True


@inlined
def _scale_row(x, row, begin, end, factor):
    # Unsigned places: Numba knows that they are positive, and the loop is vectorised.
    at = np.uintp(row * PITCH)
    for v in range(np.uintp(begin), np.uintp(end)):
        x[at + v] *= factor


@inlined
def _subtract_row(x, row, other, begin, end, factor):
    at, other_at = np.uintp(row * PITCH), np.uintp(other * PITCH)
    for v in range(np.uintp(begin), np.uintp(end)):
        x[at + v] -= factor * x[other_at + v]


@inlined
def _solve(a, room, plan, step, number):
    """X of a block of rows, and -X^T, by which others are multiplied."""
    block = _block(plan, step)
    size, lanes, first, rows = plan.size, plan.lanes, block.first, block.rows
    begin = number * lanes
    if first <= begin < first + rows:
        return
    height = min(lanes, size - begin)
    x, packed, right = room.x, room.packed, room.right[block.parity]
    # Of rows above the diagonal block the transpose is in the triangle.
    below = begin > first
    place = begin * size + first if below else first * size + begin
    down, along = (size, ONE) if below else (ONE, size)
    for c in range(0, rows, lanes):
        wide = min(lanes, rows - c)
        tile(
            a, place, down, ZERO, along,
            right, c, ZERO, PITCH,
            room.zero, ZERO, ZERO,
            x, begin * ROWS + c, ROWS,
            ONE, c + wide, height, wide,
        )  # fmt: skip
    for q in range(rows):
        for v in range(height):
            packed[begin * ROWS + q * lanes + v] = -x[(begin + v) * ROWS + q]
    if not plan.sweep:
        for v in range(height):
            for q in range(rows):
                a[place + v * size + q] = x[(begin + v) * ROWS + q]


@inlined
def _subtract(a, room, plan, block, i, j):
    """Subtract X_I X_J^T from a block of the triangle."""
    size, lanes, first, rows = plan.size, plan.lanes, block.first, block.rows
    if rows == 0 or first <= i < first + rows or first <= j < first + rows:
        return
    tile(
        room.x, i * ROWS, ROWS, ZERO, ONE,
        room.packed, j * ROWS, ZERO, lanes,
        a, i * size + j, size,
        a, i * size + j, size,
        ONE, rows, min(lanes, size - i), min(lanes, size - j),
    )  # fmt: skip


@inlined
def _finish(a, room, plan, block, number):
    """``X_I L^-1``, or of the diagonal block itself ``-L^-T L^-1``, in the triangle."""
    size, lanes, first, rows = plan.size, plan.lanes, block.first, block.rows
    begin = number * lanes
    both, negative = room.both[block.parity], room.negative[block.parity]
    pitch = np.int64(PITCH)
    left, place, down, along = negative, ZERO, ONE, pitch
    right, right_at, right_pitch = both, rows, pitch
    c, height, wide = begin * size + first, min(lanes, size - begin), rows
    if begin < first:  # its transpose, from -X^T
        right, right_at, right_pitch = room.packed, begin * ROWS, lanes
        c, height, wide = first * size + begin, rows, height
    elif begin < first + rows:
        place = begin - first
    else:
        left, place, down, along = room.x, begin * ROWS, np.int64(ROWS), ONE
    for f in range(0, wide, lanes):
        tile(
            left, place, down, ZERO, along,
            right, right_at + f, ZERO, right_pitch,
            room.zero, ZERO, ZERO,
            a, c + f, size,
            ONE, rows, height, min(lanes, wide - f),
        )  # fmt: skip


@parallel
def _negate(a, pairs, size, lanes):
    """Of a block of the triangle, and across the diagonal."""
    for task in prange(pairs.size):
        i, j = pairs[task].i * lanes, pairs[task].j * lanes
        for q in range(i, min(i + lanes, size)):
            for f in range(j, min(j + lanes, q + 1)):
                a[q * size + f] = -a[q * size + f]
        mirror_block(a, size, i, j, lanes)
