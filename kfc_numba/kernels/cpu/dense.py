"""Matrix products on the register tile.

BLAS would be as fast, but its worker threads spin for tens of milliseconds after a call and halve
the speed of the kernels that follow.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.jit import parallel
from kfc_numba.kernels.cpu.tile import TILE_ROWS, tile, tile_lanes

_DEPTH = 512  # terms that are summed before they are added to the rest: bounds rounding errors


def matmul(
    a: np.ndarray,
    b: np.ndarray,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Product of two matrices, each of them transposed on request.

    Parameters
    ----------
    a : numpy.ndarray
        (M, K), or (K, M) with `transpose_a`; float32 or float64.
    b : numpy.ndarray
        (K, N), or (N, K) with `transpose_b` (then it is copied); of the dtype of `a`.
    transpose_a, transpose_b : bool
        Whether the transpose takes the place of the matrix.
    out : numpy.ndarray, optional
        Where to write the result; neither `a` nor `b`.

    Returns
    -------
    numpy.ndarray
        (M, N).

    Raises
    ------
    ValueError, TypeError
        Shapes or dtypes that do not fit.
    """
    a = checked("a", a, 2)
    b = checked("b", b, 2, a.dtype)
    if transpose_b:
        b = np.ascontiguousarray(b.T)
    m, k = a.shape[::-1] if transpose_a else a.shape
    if len(b) != k:
        raise ValueError(f"b has {len(b)} rows after transposition, a has {k} columns")
    out = output_array(out, (m, b.shape[1]), a.dtype)
    strides = (1, m) if transpose_a else (k, 1)
    zero = np.zeros(tile_lanes(a.dtype), a.dtype)
    _matmul(a.reshape(-1), strides, b.reshape(-1), zero, out.reshape(-1), (m, k, b.shape[1], 0, 1))
    return out


@parallel
def _matmul(a, a_strides, b, zero, out, sizes):
    m, k, n, none, one = sizes
    a_x, a_j = a_strides
    block = zero.size
    blocks = -(-n // block)
    tiles = -(-m // TILE_ROWS)
    for task in prange(tiles * blocks):
        # Neighbouring tasks share columns of b, which stay in the cache.
        x, f = np.int64(task) % tiles, (np.int64(task) // tiles) * block
        first = x * m // tiles
        c = first * n + f
        for j in range(0, k, _DEPTH):
            tile(
                a, first * a_x + j * a_j, a_x, none, a_j,
                b, j * n + f, none, n,
                zero if j == 0 else out, none if j == 0 else c, none if j == 0 else n,
                out, c, n,
                one, min(_DEPTH, k - j), (x + 1) * m // tiles - first, min(block, n - f),
            )  # fmt: skip
