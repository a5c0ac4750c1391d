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
        A negative power, and an eigenvalue that is not above zero.
    """

    def __init__(self, size: int, dtype: Any, power: float):
        super().__init__(dtype=np.dtype(dtype), shape=(size, size))
        self.power = float(power)
        if self.power < 0:
            least = self._values().min()
            if not least > 0:
                raise ValueError(
                    f"a power of {power} needs eigenvalues above 0, the least is {least}: "
                    "damping must be above 0"
                )

    # What kinds of operators define.

    def _values(self) -> np.ndarray:
        """Eigenvalues at power 1, all of them, float64."""
        raise NotImplementedError

    def _product(self, vector: np.ndarray, power: float) -> np.ndarray:
        raise NotImplementedError

    def _with_power(self, power: float) -> SpectralOperator:
        raise NotImplementedError

    # What follows.

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
        """Logarithm of the determinant; -inf where an eigenvalue is zero."""
        with np.errstate(divide="ignore"):
            return float(self.power * np.sum(np.log(self._values())))

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
