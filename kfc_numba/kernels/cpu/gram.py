"""The product of a matrix's transpose with the matrix, of which half is computed."""

from __future__ import annotations

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.dense import DEPTH, matmul
from kfc_numba.kernels.cpu.jit import parallel
from kfc_numba.kernels.cpu.records import ONE, ZERO
from kfc_numba.kernels.cpu.tile import tile, tile_lanes
from kfc_numba.kernels.cpu.triangle import mirror_block, pairs_of


def gram(rows: np.ndarray) -> np.ndarray:
    """``rows^T @ rows``, symmetric to the last bit.

    Parameters
    ----------
    rows : numpy.ndarray
        (K, N), contiguous, float32 or float64.

    Returns
    -------
    numpy.ndarray
        (N, N), with the bits of `kfc_numba.kernels.cpu.dense.matmul`.
    """
    terms, size = rows.shape
    lanes = tile_lanes(rows.dtype)
    if size <= lanes:  # one block: there is no half to leave out, and threads can share the whole
        return matmul(rows, rows, transpose_a=True)
    out = np.empty((size, size), rows.dtype)
    pairs, start = pairs_of(-(-size // lanes)), np.zeros(lanes, rows.dtype)
    _gram.for_products(terms * size * (size + lanes) // 2)(
        rows.reshape(-1), pairs, start, out.reshape(-1), (terms, size, lanes)
    )
    return out


@parallel
def _gram(rows, pairs, start, out, sizes):
    terms, size, lanes = sizes
    for task in prange(pairs.size):
        i, j = pairs[task].i * lanes, pairs[task].j * lanes
        c = i * size + j
        for k in range(0, terms, DEPTH):
            tile(
                rows, k * size + i, ONE, ZERO, size,
                rows, k * size + j, ZERO, size,
                start if k == 0 else out,
                ZERO if k == 0 else c,
                ZERO if k == 0 else size,
                out, c, size,
                ONE, min(DEPTH, terms - k), min(lanes, size - i), min(lanes, size - j),
            )  # fmt: skip
        mirror_block(out, size, i, j, lanes)
