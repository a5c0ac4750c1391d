"""Symmetric matrices with known eigenvalues as SciPy linear operators."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator


class SpectralOperator(LinearOperator):
    """A power of a symmetric matrix whose eigenvalues and eigenvectors are known.

    Parameters
    ----------
    size : int
        Number of parameters.
    dtype : numpy.dtype
    power : float
        1 for the matrix, -1 for its inverse, 0.5 and -0.5 for their symmetric roots.

    Raises
    ------
    ValueError
        A negative power of a singular matrix: without damping, an eigenvalue is not above what
        rounding alone makes of zero.
    """

    #: Multiple of the identity, or nearly, that is part of the matrix: no eigenvalue is below it.
    damping: float = 0.0

    def __init__(self, size: int, dtype: Any, power: float):
        super().__init__(dtype=np.dtype(dtype), shape=(size, size))
        self.power = float(power)
        if self.power < 0:
            values = self._values()
            if self._is_singular(values):
                raise ValueError(
                    f"a power of {power} needs eigenvalues above 0, the least is {values.min()}, "
                    "which rounding makes of 0: damping must be above 0"
                )

    # What kinds of operators define.

    def _values(self) -> np.ndarray:
        """Eigenvalues at power 1, all of them, float64."""
        raise NotImplementedError

    def _rounding(self) -> np.ndarray:
        """For each of `_values`, what rounding can make of an eigenvalue that is zero.

        As `numpy.linalg.matrix_rank` does: the largest eigenvalue of the matrix that was
        decomposed, times its size, times the precision of its dtype.
        """
        raise NotImplementedError

    def _product(self, vector: np.ndarray, power: float) -> np.ndarray:
        raise NotImplementedError

    def _with_power(self, power: float) -> SpectralOperator:
        raise NotImplementedError

    # What follows.

    def _is_singular(self, values: np.ndarray) -> bool:
        # Decompositions clip eigenvalues at zero, so that damping alone makes a matrix regular.
        return not self.damping > 0 and bool(np.any(values <= self._rounding()))

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        return self._product(np.ravel(vector), self.power)

    def _adjoint(self) -> SpectralOperator:
        return self

    def inverse(self) -> SpectralOperator:
        """The inverse: the same eigenvectors, reciprocal eigenvalues."""
        return self._with_power(-self.power)

    def sqrt(self) -> SpectralOperator:
        """The symmetric root; ``inverse().sqrt()`` is the inverse root."""
        return self._with_power(self.power / 2)

    def eigenvalues(self) -> np.ndarray:
        """All eigenvalues.

        Returns
        -------
        numpy.ndarray
            (parameters,), float64, ascending.
        """
        return np.sort(self._values() ** self.power)

    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return float(np.sum(self._values() ** self.power))

    def logdet(self) -> float:
        """Logarithm of the determinant; -inf where an eigenvalue is zero but for rounding."""
        values = self._values()
        if self._is_singular(values):
            return -np.inf
        return float(self.power * np.sum(np.log(values)))

    def sample(self, rng: np.random.Generator, count: int = 1) -> np.ndarray:
        """Draw from the normal distribution of mean zero with this matrix as covariance.

        ``operator.inverse().sample(rng)`` draws from N(0, inverse): Laplace's posterior, if the
        operator is the precision.

        Parameters
        ----------
        rng : numpy.random.Generator
        count : int

        Returns
        -------
        numpy.ndarray
            (count, parameters), of the operator's dtype.
        """
        result = np.empty((count, self.shape[0]), self.dtype)
        for row in result:
            row[:] = self._product(rng.standard_normal(len(row)), self.power / 2)
        return result
