"""Gradients of single examples, a few examples at a time.

The gradient of one example is a sum over its output locations: DW = DS^T [[A]], with the example's
rows of the patch matrix. EKFAC wants it in eigenbases, ``left^T DW right``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from kfc_numba.arrays import contiguous
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import KroneckerLayer, Saved
from kfc_numba.precision import tensor_cores

#: Bytes of patches, or of gradients if they are larger, that are laid out at a time.
CHUNK_BYTES = 1 << 24


def example_gradients(
    layer: KroneckerLayer,
    saved: Saved,
    dy: np.ndarray,
    left: np.ndarray | None = None,
    right: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """``left^T DW right`` of each example, DW as the layer's matrix.

    Parameters
    ----------
    layer : KroneckerLayer
    saved : tuple
        What the layer kept of a batch.
    dy : numpy.ndarray
        Derivatives of the layer's outputs, each of its example's own loss.
    left, right : numpy.ndarray, optional
        (I, I) and (D, D), with a leading axis of groups where the layer has groups. None: no
        rotation.

    Yields
    ------
    numpy.ndarray
        (some examples, I, D), or (some examples, groups, I, D); all examples in order.
    """
    for rows, patches in _chunks(layer, saved, dy):
        if rows.ndim == 3:
            yield _products(rows, patches, left, right)
        else:
            parts = [
                _products(r, p, _at(left, g), _at(right, g))
                for g, (r, p) in enumerate(zip(rows, patches, strict=True))
            ]
            yield array_namespace(*parts).stack(parts, axis=1)


@tensor_cores(False)
def squared_sum(
    layer: KroneckerLayer,
    saved: Saved,
    dy: np.ndarray,
    left: np.ndarray | None = None,
    right: np.ndarray | None = None,
) -> np.ndarray:
    """Sum over examples of the squared entries of ``left^T DW right``.

    Parameters
    ----------
    layer, saved, dy, left, right
        As in `example_gradients`.

    Returns
    -------
    numpy.ndarray
        (I, D), or (groups, I, D).
    """
    total: np.ndarray | None = None
    if layer.locations(saved, dy) == 1:
        # One outer product an example, whose square is the outer product of squares.
        for rows, patches in _chunks(layer, saved, dy):
            groups = rows.ndim == 4
            pairs = zip(rows, patches, strict=True) if groups else [(rows, patches)]
            part = array_namespace(dy).stack(
                [
                    kernels(dy).matmul(
                        kernels(r).square(_rotate(r, _at(left, g) if groups else left)[:, 0]),
                        kernels(p).square(_rotate(p, _at(right, g) if groups else right)[:, 0]),
                        transpose_a=True,
                    )
                    for g, (r, p) in enumerate(pairs)
                ]
            )
            part = part if groups else part[0]
            total = part if total is None else total + part
    else:
        for gradients in example_gradients(layer, saved, dy, left, right):
            part = kernels(gradients).square_sum(gradients)
            total = part if total is None else total + part
    assert total is not None
    return total


def _chunks(
    layer: KroneckerLayer, saved: Saved, dy: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of DS and patches of some examples: (examples, locations, outputs and columns)."""
    one = layer.homogeneous(tuple(None if a is None else a[:1] for a in saved))
    gradient = dy.shape[-1] * one.shape[-1] * one.itemsize
    count = max(1, CHUNK_BYTES // max(one.nbytes, gradient))
    for start in range(0, len(dy), count):
        part = slice(start, start + count)
        patches = layer.homogeneous(tuple(None if a is None else a[part] for a in saved))
        yield contiguous(layer.output_rows(dy[part])), patches


def _at(matrices: np.ndarray | None, group: int) -> np.ndarray | None:
    return None if matrices is None else matrices[group]


def _rotate(rows: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    if matrix is None:
        return rows
    flat = contiguous(rows).reshape(-1, rows.shape[-1])
    return kernels(rows).matmul(flat, matrix).reshape(*rows.shape[:-1], matrix.shape[1])


@tensor_cores(False)
def _products(
    rows: np.ndarray, patches: np.ndarray, left: np.ndarray | None, right: np.ndarray | None
) -> np.ndarray:
    """``left^T rows^T patches right`` of each example: the shorter of two orders."""
    rows = _rotate(rows, left)
    early = rows.shape[1] < rows.shape[2]
    if early:
        patches = _rotate(patches, right)
    if is_numpy_array(rows):
        k = kernels(rows)
        result = np.empty((len(rows), rows.shape[2], patches.shape[2]), rows.dtype)
        for r, p, out in zip(rows, patches, result, strict=True):
            k.matmul(r, p, transpose_a=True, out=out)
    else:
        xp = array_namespace(rows)
        result = xp.matmul(xp.matrix_transpose(rows), patches)
    return result if early else _rotate(result, right)
