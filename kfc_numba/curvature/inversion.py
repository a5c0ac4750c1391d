"""The inverse of a damped factor, by Cholesky: a fifth of the time of an eigendecomposition."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from kfc_numba.arrays import cast, contiguous
from kfc_numba.curvature import lapack
from kfc_numba.curvature.eigen import ONE_THREAD, decompose


def damped_inverse(matrix: Any, damping: Any, name: str) -> Any:
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

    Returns
    -------
    numpy.ndarray
        Of the shape and dtype of `matrix`, symmetric.

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
        groups = range(matrix.shape[0])
        return xp.stack([damped_inverse(matrix[g, ...], damping[g], name) for g in groups])
    damping = cast(damping, matrix.dtype)
    try:
        return _of_positive(matrix, damping)
    except np.linalg.LinAlgError:
        values, vectors = decompose(matrix, name)
        with ONE_THREAD:
            return (vectors / (values + damping)) @ xp.matrix_transpose(vectors)


def _of_positive(matrix: Any, damping: Any) -> Any:
    """The same of one that is positive definite with its damping; else LinAlgError."""
    if is_numpy_array(matrix):
        with ONE_THREAD:
            damped = matrix.copy()
            damped.ravel()[:: len(damped) + 1] += damping
            return lapack.inverse(damped)
    xp = array_namespace(matrix)
    eye = xp.eye(matrix.shape[0], dtype=matrix.dtype, device=device(matrix))
    found = xp.linalg.inv(matrix + eye * damping)
    # An LU factorisation does not ask for positive definiteness.
    if not xp.all(xp.linalg.diagonal(found) >= 0):
        raise np.linalg.LinAlgError("the inverse is not positive definite")
    return contiguous((found + xp.matrix_transpose(found)) / 2)
