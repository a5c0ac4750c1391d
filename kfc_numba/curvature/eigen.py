"""Eigendecomposition of the factors, and the algebra in their eigenbases."""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

import numpy as np
import scipy.linalg
from array_api_compat import array_namespace, is_numpy_array
from threadpoolctl import ThreadpoolController

from kfc_numba.arrays import cast, contiguous
from kfc_numba.curvature import lapack
from kfc_numba.kernels.backend import kernels

#: Rows of a matrix from which on it is seen whether its rank is low.
LEAST_LOW_RANK = 256


def decompose(matrix: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a symmetric positive semidefinite matrix.

    Parameters
    ----------
    matrix : numpy.ndarray
        (N, N) or, for groups, (groups, N, N); float32 or float64. The lower triangle counts.
    name : str
        Name of the factor, for the message.

    Returns
    -------
    values : numpy.ndarray
        (..., N), ascending; those below zero, which rounding makes, are zero.
    vectors : numpy.ndarray
        (..., N, N), eigenvectors in columns.

    Raises
    ------
    FloatingPointError
        An entry is not finite.
    numpy.linalg.LinAlgError
        The solver does not converge, in float64 either.
    """
    xp = array_namespace(matrix)
    if not xp.all(xp.isfinite(matrix)):
        raise FloatingPointError(f"factor {name} is not finite")
    if matrix.ndim == 3 and is_numpy_array(matrix):
        pairs = [decompose(part, name) for part in matrix]
        return np.stack([v for v, _ in pairs]), np.stack([q for _, q in pairs])
    try:
        values, vectors = _eigh(matrix)
    except np.linalg.LinAlgError:
        try:
            values, vectors = _eigh(cast(matrix, np.float64))
        except np.linalg.LinAlgError as error:
            raise np.linalg.LinAlgError(
                f"factor {name} of shape {matrix.shape} has no decomposition: {error}"
            ) from error
    values = xp.where(values > 0, values, xp.zeros_like(values))
    return (
        xp.astype(values, matrix.dtype, copy=False),
        contiguous(xp.astype(vectors, matrix.dtype, copy=False)),
    )


def _eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    xp = array_namespace(matrix)
    if is_numpy_array(matrix):
        values, vectors = _eigh_on_one_thread(matrix)
    else:
        values, vectors = xp.linalg.eigh(matrix)
    if not (xp.all(xp.isfinite(values)) and xp.all(xp.isfinite(vectors))):
        raise np.linalg.LinAlgError("the result is not finite")
    return values, vectors


def _eigh_on_one_thread(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with ONE_THREAD:
        pair = _low_rank_eigh(matrix) if len(matrix) >= LEAST_LOW_RANK else None
        if pair is not None:
            return pair
        return lapack.eigh(matrix)


def _low_rank_eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The decomposition of a matrix of less than half the full rank, else None.

    A wide factor of a dense layer is one at the start of training: its rank is the number of
    examples seen. With the pivoted Cholesky factorisation ``A = L L^T``, L of r columns, and
    ``L = Q R``, the eigenvectors are Q times those of ``R R^T``, and the rest of a complete basis:
    O(N^2 r) operations. What the factorisation leaves is below N times the rounding error of the
    largest entry, as the error of the full decomposition is.
    """
    names = ("pstrf", "geqrf", "orgqr")
    pstrf, geqrf, orgqr = scipy.linalg.get_lapack_funcs(names, (matrix,))
    size = len(matrix)
    lower, pivots, rank, info = pstrf(matrix, lower=1)
    if info < 0 or not 0 < rank < size / 2:
        return None
    root = np.empty((size, rank), matrix.dtype)
    root[pivots - 1] = np.tril(lower)[:, :rank]
    reflections, scales, _, _ = geqrf(root)
    upper = np.triu(reflections[:rank])
    values, within = lapack.eigh(upper @ upper.T)
    whole = np.zeros((size, size), matrix.dtype, order="F")
    whole[:, :rank] = reflections
    basis, _, _ = orgqr(whole, scales, lwork=64 * size)
    vectors = np.concatenate([basis[:, rank:], basis[:, :rank] @ within], axis=1)
    return np.concatenate([np.zeros(size - rank), values]), vectors


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


class _OneThread:
    """BLAS computes on one thread while anybody is inside, and after that on as many as before.

    OpenBLAS's threads spin when they wait, which keeps a core from the kernels that follow and from
    other processes: two trainings at once would wait for each other's. The number belongs to the
    process: who left first would otherwise change it, and with it the last bits, for the others.
    Whoever comes first sets it, and whoever leaves last, which may be another thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                _release()
                self._limit = _blas().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *problem: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._restore()

    def _restore(self) -> None:
        _release()
        self._limit.restore_original_limits()
        _release()

    def after_fork(self) -> None:
        """In the child there is nobody inside, whatever threads the parent has."""
        self._lock = threading.Lock()
        if self._inside:
            self._inside = 0
            self._restore()


def _release() -> None:
    """Let this thread set the number: from version 3.7 on threadpoolctl keeps it for one thread."""
    for library in _blas().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)


ONE_THREAD = _OneThread()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=ONE_THREAD.after_fork)


def rotate(
    matrix: np.ndarray, left: np.ndarray, right: np.ndarray, *, back: bool = False
) -> np.ndarray:
    """``left^T @ matrix @ right``, into the eigenbases; or ``left @ matrix @ right^T``, `back`.

    Parameters
    ----------
    matrix : numpy.ndarray
        (I, D), or (groups, I, D).
    left, right : numpy.ndarray
        (I, I) and (D, D), or with a leading axis of groups.
    back : bool

    Returns
    -------
    numpy.ndarray
        Of the shape of `matrix`.
    """
    if not is_numpy_array(matrix):
        xp = array_namespace(matrix)
        first, last = (
            (left, xp.matrix_transpose(right)) if back else (xp.matrix_transpose(left), right)
        )
        return xp.matmul(xp.matmul(first, matrix), last)
    if matrix.ndim == 3:
        return np.stack(
            [rotate(m, q, r, back=back) for m, q, r in zip(matrix, left, right, strict=True)]
        )
    # With the large eigenvectors as the left factor of each product: a right factor that is to be
    # transposed is copied.
    half = product(right, np.ascontiguousarray(matrix.T), transpose_a=not back)
    return product(left, half, transpose_a=not back, transpose_b=True)


def product(
    a: np.ndarray, b: np.ndarray, *, transpose_a: bool = False, transpose_b: bool = False
) -> np.ndarray:
    """Product of two matrices: the kernel's for NumPy's arrays, otherwise the library's own.

    Parameters
    ----------
    a, b : numpy.ndarray
    transpose_a, transpose_b : bool
        Whether a factor enters transposed.

    Returns
    -------
    numpy.ndarray
    """
    if is_numpy_array(a):
        return kernels(a).matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
    return (a.T if transpose_a else a) @ (b.T if transpose_b else b)
