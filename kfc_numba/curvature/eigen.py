"""Eigendecomposition of the factors, and the algebra in their eigenbases."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from array_api_compat import array_namespace, is_numpy_array

from kfc_numba.arrays import cast, contiguous
from kfc_numba.kernels.backend import kernels


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
        values, vectors = scipy.linalg.eigh(matrix, driver="evd", check_finite=False)
    else:
        values, vectors = xp.linalg.eigh(matrix)
    if not (xp.all(xp.isfinite(values)) and xp.all(xp.isfinite(vectors))):
        raise np.linalg.LinAlgError("the result is not finite")
    return values, vectors


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
        xp = array_namespace(matrix, left, right)
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
