"""LAPACK's routines for symmetric matrices without Python's global lock.

`scipy.linalg` holds the lock while LAPACK computes, for tenths of a second: no other thread of the
process goes on, neither that of the steps with ``KFC(decomposition_lag=)`` nor another one that
inverts the next factor. A routine that is called by its address lets the lock go.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np

# Arguments, all by reference. ?syevd: jobz, uplo, n, a, lda, w, work, lwork, iwork, liwork, info.
# ?potrf, ?potri: uplo, n, a, lda, info. ?potrs: uplo, n, nrhs, a, lda, b, ldb, info.
_ARGUMENTS = {"syevd": 11, "potrf": 5, "potri": 5, "potrs": 8}
_MIRRORED = 64  # rows that are transposed at once


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a symmetric matrix, by divide and conquer.

    Parameters
    ----------
    matrix : numpy.ndarray
        (N, N), float32 or float64, finite; the lower triangle counts.

    Returns
    -------
    values : numpy.ndarray
        (N,), ascending.
    vectors : numpy.ndarray
        (N, N), in columns, Fortran order.

    Raises
    ------
    numpy.linalg.LinAlgError
        The solver does not converge.
    """
    vectors = np.array(matrix, order="F")
    values = np.empty(len(matrix), matrix.dtype)
    work, iwork = np.empty(1, matrix.dtype), np.empty(1, np.intc)
    _call(vectors, values, work, -1, iwork, -1)  # how much space it wants
    # In float32 a number of more than 24 bits is rounded, perhaps down.
    wanted = int(np.ceil(float(work[0]) * (1 + np.finfo(matrix.dtype).eps)))
    work, iwork = np.empty(wanted, matrix.dtype), np.empty(int(iwork[0]), np.intc)
    info = _call(vectors, values, work, len(work), iwork, len(iwork))
    if info:
        raise np.linalg.LinAlgError(f"LAPACK's syevd ended with info {info}")
    return values, vectors


def _call(
    vectors: np.ndarray,
    values: np.ndarray,
    work: np.ndarray,
    work_size: int,
    iwork: np.ndarray,
    iwork_size: int,
) -> int:
    size, info = ctypes.c_int(len(values)), ctypes.c_int()
    _routine("syevd", vectors.dtype.char)(
        ctypes.byref(ctypes.c_char(b"V")),
        ctypes.byref(ctypes.c_char(b"L")),
        ctypes.byref(size),
        vectors.ctypes.data,
        ctypes.byref(size),
        values.ctypes.data,
        work.ctypes.data,
        ctypes.byref(ctypes.c_int(work_size)),
        iwork.ctypes.data,
        ctypes.byref(ctypes.c_int(iwork_size)),
        ctypes.byref(info),
    )
    return info.value


def cholesky(matrix: np.ndarray) -> None:
    """Cholesky factor of a positive definite matrix, in its place.

    Parameters
    ----------
    matrix : numpy.ndarray
        (N, N), float32 or float64, finite, in C order; the lower triangle counts. After it L is in
        that triangle, where the matrix was ``L L^T``; what is above the diagonal stays.

    Raises
    ------
    numpy.linalg.LinAlgError
        It is not positive definite but for rounding; what it holds then is of no use.
    """
    _call_in_place("potrf", matrix)


def invert(matrix: np.ndarray) -> None:
    """Inverse of a positive definite matrix, in its place, by its Cholesky factor.

    Parameters
    ----------
    matrix : numpy.ndarray
        As `cholesky` takes it. After it the inverse, symmetric to the last bit.

    Raises
    ------
    numpy.linalg.LinAlgError
        As `cholesky`.
    """
    _call_in_place("potrf", matrix)
    _call_in_place("potri", matrix)
    for first in range(0, len(matrix), _MIRRORED):  # of the lower triangle, which stays in caches
        rows = slice(first, first + _MIRRORED)
        matrix[:first, rows] = matrix[rows, :first].T
        block = np.tril(matrix[rows, rows])
        matrix[rows, rows] = block + np.tril(block, -1).T


def _call_in_place(name: str, matrix: np.ndarray) -> None:
    size, info = ctypes.c_int(len(matrix)), ctypes.c_int()
    _routine(name, matrix.dtype.char)(
        # Its transpose is what LAPACK sees, whose upper triangle this lower one is.
        ctypes.byref(ctypes.c_char(b"U")),
        ctypes.byref(size),
        matrix.ctypes.data,
        ctypes.byref(size),
        ctypes.byref(info),
    )
    if info.value:
        raise np.linalg.LinAlgError(f"LAPACK's {name} ended with info {info.value}")


def solve(lower: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows times the inverse of a positive definite matrix of which the Cholesky factor is known.

    Parameters
    ----------
    lower : numpy.ndarray
        (N, N), as `cholesky` leaves it.
    rows : numpy.ndarray
        (K, N), of the same dtype.

    Returns
    -------
    numpy.ndarray
        (K, N), ``rows (L L^T)^-1``.
    """
    result = np.array(rows, order="C")  # columns, for LAPACK
    size, count = ctypes.c_int(len(lower)), ctypes.c_int(len(rows))
    info = ctypes.c_int()
    lower = np.ascontiguousarray(lower)
    _routine("potrs", lower.dtype.char)(
        ctypes.byref(ctypes.c_char(b"U")),
        ctypes.byref(size),
        ctypes.byref(count),
        lower.ctypes.data,
        ctypes.byref(size),
        result.ctypes.data,
        ctypes.byref(size),
        ctypes.byref(info),
    )
    if info.value:  # an argument is out of range
        raise ValueError(f"LAPACK's potrs ended with info {info.value}")
    return result


@functools.cache
def _routine(name: str, kind: str) -> Callable[..., None]:
    from numba.extending import get_cython_function_address  # as late as kernels are

    letter = {"f": "s", "d": "d"}[kind]
    address = get_cython_function_address("scipy.linalg.cython_lapack", letter + name)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * _ARGUMENTS[name])(address)
