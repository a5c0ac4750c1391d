"""Matrix products on the register tile.

BLAS would be as fast, but its worker threads spin for tens of milliseconds after a call and halve
the speed of the kernels that follow.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.jit import parallel
from kfc_numba.kernels.cpu.records import ONE, ZERO
from kfc_numba.kernels.cpu.tile import TILE_ROWS, tile, tile_lanes

DEPTH = 512  # terms that are summed before they are added to the rest: bounds rounding errors


def matmul(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    accumulate: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``a @ b + bias``, each matrix transposed on request.

    Parameters
    ----------
    a : numpy.ndarray
        (M, K), or (K, M) with `transpose_a`; float32 or float64.
    b : numpy.ndarray
        (K, N), or (N, K) with `transpose_b` (then it is copied); of the dtype of `a`.
    bias : numpy.ndarray, optional
        (N,), added to every row.
    transpose_a, transpose_b : bool
        Whether the transpose takes the place of the matrix.
    accumulate : bool
        Whether the product is added to what `out` holds; without a bias.
    out : numpy.ndarray, optional
        Where to write the result; none of the other arrays.

    Returns
    -------
    numpy.ndarray
        (M, N).

    Raises
    ------
    ValueError, TypeError
        Shapes or dtypes that do not fit; `accumulate` without `out` or with a bias.
    """
    a = checked("a", a, 2)
    b = checked("b", b, 2, a.dtype)
    if transpose_b:
        b = np.ascontiguousarray(b.T)
    m, k = a.shape[::-1] if transpose_a else a.shape
    if len(b) != k:
        raise ValueError(f"b has {len(b)} rows after transposition, a has {k} columns")
    n = b.shape[1]
    if accumulate and (out is None or bias is not None):
        raise ValueError("accumulate (=True) needs out, and takes no bias")
    out = output_array(out, (m, n), a.dtype)
    # What the sums are added to: an array, and its strides.
    block = tile_lanes(a.dtype)
    start, start_strides = np.zeros(block, a.dtype), (0, 0)
    if accumulate:
        start, start_strides = out.reshape(-1), (n, 1)
    elif bias is not None:
        start, start_strides = checked("bias", bias, 1, a.dtype), (0, 1)
        if start.shape != (n,):
            raise ValueError(f"bias has shape {start.shape}, it must be {(n,)}, one a column")
    strides = (1, m) if transpose_a else (k, 1)
    flat = a.reshape(-1), strides, b.reshape(-1), start, start_strides, out.reshape(-1)
    _matmul.for_products(m * k * n)(*flat, (m, k, n, block))
    return out


@parallel
def _matmul(a, a_strides, b, start, start_strides, out, sizes):
    m, k, n, block = sizes
    a_x, a_j = a_strides
    start_x, start_f = start_strides
    blocks = -(-n // block)
    tiles = -(-m // TILE_ROWS)
    for task in prange(tiles * blocks):
        # Neighbouring tasks share columns of b, which stay in the cache.
        x, f = np.int64(task) % tiles, (np.int64(task) // tiles) * block
        first = x * m // tiles
        c = first * n + f
        for j in range(0, k, DEPTH):
            tile(
                a, first * a_x + j * a_j, a_x, ZERO, a_j,
                b, j * n + f, ZERO, n,
                start if j == 0 else out,
                first * start_x + f * start_f if j == 0 else c,
                start_x if j == 0 else n,
                out, c, n,
                ONE, min(DEPTH, k - j), (x + 1) * m // tiles - first, min(block, n - f),
            )  # fmt: skip
