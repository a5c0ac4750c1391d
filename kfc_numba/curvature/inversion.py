"""The inverse of a damped factor, by Cholesky: a fifth of the time of an eigendecomposition.

An inverse costs three times as much as the Cholesky factor, but a product with it a third of the
solution with the factor. So what is used once or twice is better left as a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_array, is_numpy_array

from kfc_numba.arrays import cast, contiguous
from kfc_numba.curvature import lapack
from kfc_numba.curvature.eigen import ONE_THREAD, decompose, product, rotate
from kfc_numba.kernels.backend import kernels

#: A matrix with this many times as many rows as are solved for until the next inversion, all steps
#: together, stays a Cholesky factor: measured with OpenBLAS in float32, N from 400 to 1,569.
_ROWS = 5
#: Rows from which threads together gain more than they wait for each other, measured with two; and
#: from which it pays to compile the kernel.
_WIDE = 512


def keeps_factor(size: int, rows: int, steps: float) -> bool:
    """Whether the Cholesky factor is kept in place of the inverse.

    Parameters
    ----------
    size : int
        N, rows of the matrix.
    rows : int
        Right-hand sides at each step.
    steps : float
        For which it is used; zero: nobody knows.

    Returns
    -------
    bool
    """
    return 0 < _ROWS * rows * steps <= size


def damped_inverse(matrix: Any, damping: Any, name: str, *, factor: bool = False) -> Any:
    """``(matrix + damping I)^-1`` of a symmetric positive semidefinite matrix.

    Where rounding makes the damped matrix indefinite, as with damping far below its precision, it
    comes from the eigendecomposition, without the eigenvalues below zero.

    Parameters
    ----------
    matrix : numpy.ndarray
        (N, N) or, for groups, (groups, N, N); float32 or float64.
    damping : numpy.ndarray
        () or (groups,), float64, above zero.
    name : str
        Name of the factor, for the message.
    factor : bool
        Leave it at the Cholesky factor, for arrays of NumPy alone: the lower triangle is L, of
        ``L L^T = matrix + damping I``, and nothing else counts.

    Returns
    -------
    numpy.ndarray
        Of the shape and dtype of `matrix`; the inverse is symmetric.

    Raises
    ------
    FloatingPointError
        An entry is not finite.
    numpy.linalg.LinAlgError
        As `kfc_numba.curvature.eigen.decompose`.
    """
    xp = array_namespace(matrix)
    if not xp.all(xp.isfinite(matrix)):
        raise FloatingPointError(f"factor {name} is not finite")
    if matrix.ndim == 3:
        parts = [
            damped_inverse(matrix[g, ...], damping[g], name, factor=factor)
            for g in range(matrix.shape[0])
        ]
        return xp.stack(parts)
    damping = cast(damping, matrix.dtype)
    try:
        return _of_positive(matrix, damping, factor)
    except np.linalg.LinAlgError:
        values, vectors = decompose(matrix, name)
        with ONE_THREAD:
            if factor:
                return np.linalg.qr((vectors * np.sqrt(values + damping)).T)[1].T
            return (vectors / (values + damping)) @ xp.matrix_transpose(vectors)


def _of_positive(matrix: Any, damping: Any, factor: bool) -> Any:
    """The same of one that is positive definite with its damping; else LinAlgError."""
    if is_numpy_array(matrix):
        with ONE_THREAD:
            found = np.array(matrix, order="C")
            found.ravel()[:: len(found) + 1] += damping
            if is_wide(len(found)):
                _eliminate(found, factor)
            else:
                (lapack.cholesky if factor else lapack.invert)(found)
            return found
    xp = array_namespace(matrix)
    eye = xp.eye(matrix.shape[0], dtype=matrix.dtype, device=device(matrix))
    damped = matrix + eye * damping
    found = _solved_on_card(damped, eye) if is_cupy_array(matrix) else xp.linalg.inv(damped)
    # An LU factorisation does not ask for positive definiteness, and cuSOLVER leaves NaN.
    if not xp.all(xp.linalg.diagonal(found) >= 0):
        raise np.linalg.LinAlgError("the inverse is not positive definite")
    return contiguous((found + xp.matrix_transpose(found)) / 2)


def is_wide(size: int) -> bool:
    """Whether a matrix of this size is inverted by a kernel, on all threads, not by LAPACK on one.

    Parameters
    ----------
    size : int
        N, rows of the matrix.

    Returns
    -------
    bool
    """
    return size >= _WIDE


def _eliminate(matrix: np.ndarray, factor: bool) -> None:
    package = kernels(matrix)
    if not (package.cholesky_factor if factor else package.cholesky_inverse)(matrix):
        raise np.linalg.LinAlgError("the matrix is not positive definite")


def _solved_on_card(matrix: Any, right: Any) -> Any:
    """``matrix^-1 right`` by Cholesky, which takes less than the LU of `cupy.linalg.inv`."""
    from cupyx.lapack import posv

    return posv(matrix, right)


def between_inverses(matrix: Any, left: Any, right: Any, factors: tuple[bool, bool]) -> Any:
    """``left^-1 @ matrix @ right^-1``, of damped matrices.

    Parameters
    ----------
    matrix : numpy.ndarray
        (I, D), or (groups, I, D).
    left, right : numpy.ndarray
        Their inverses, or Cholesky factors; (I, I) and (D, D), or with a leading axis of groups.
    factors : tuple of bool
        Which of the two are Cholesky factors.

    Returns
    -------
    numpy.ndarray
        Of the shape of `matrix`.
    """
    if not any(factors):
        return rotate(matrix, left, right, back=True)
    if matrix.ndim == 3:
        groups = [
            between_inverses(matrix[g, ...], left[g, ...], right[g, ...], factors)
            for g in range(matrix.shape[0])
        ]
        return array_namespace(matrix).stack(groups)
    half = _solved(matrix.T, left).T if factors[0] else product(left, matrix)
    return _solved(half, right) if factors[1] else product(contiguous(half), right)


def rows_pay(rows: int, outputs: int, inputs: int) -> bool:
    """Whether products of vectors take less than their sum does, between two inverses.

    Parameters
    ----------
    rows : int
        Number of products ``dy a^T`` that add up to a matrix.
    outputs, inputs : int
        Its shape, (I, D).

    Returns
    -------
    bool
    """
    both = outputs * inputs
    return rows * (outputs**2 + inputs**2 + both) < both * (outputs + inputs)


def products_between_inverses(
    outputs: Any, inputs: Any, left: Any, right: Any, factors: tuple[bool, bool]
) -> Any:
    """``left^-1 @ (outputs^T @ inputs) @ right^-1``, row by row of the two factors.

    Parameters
    ----------
    outputs, inputs : numpy.ndarray
        (M, I) and (M, D).
    left, right, factors
        As in `between_inverses`.

    Returns
    -------
    numpy.ndarray
        (I, D), the transpose of an array in C order.
    """
    outputs, inputs = (
        _solved(rows, matrix) if is_factor else product(rows, matrix)
        for rows, matrix, is_factor in zip((outputs, inputs), (left, right), factors, strict=True)
    )
    return product(inputs, outputs, transpose_a=True).T


def _solved(rows: Any, lower: Any) -> Any:
    """``rows (L L^T)^-1``."""
    if is_numpy_array(rows):
        with ONE_THREAD:
            return lapack.solve(lower, rows)
    # A state from the host, until the next inversion.
    xp = array_namespace(rows)
    lower = xp.tril(lower)
    return xp.linalg.solve(lower.T, xp.linalg.solve(lower, rows.T)).T
