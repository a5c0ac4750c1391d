"""The quadratic model of the objective along a few directions, by the exact Fisher matrix.

    M(delta) - M(0) = g^T delta + 1/2 delta^T (F + (lambda + eta) I) delta

(Martens and Grosse, 2015, sections 6.4 and 7), for updates ``delta = sum_i c_i d_i`` in the span
of some directions: all that is needed are products between those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from kfc_numba.arrays import cast, together
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Arrays


@dataclass(frozen=True)
class QuadraticModel:
    """The model along n directions d_i.

    Attributes
    ----------
    fisher : numpy.ndarray
        d_i^T F d_j, (n, n), float64.
    squares : numpy.ndarray
        d_i^T d_j, (n, n), float64.
    slopes : numpy.ndarray
        g^T d_i, (n,), float64; g with the l2 penalty.
    damping, l2_reg : float
        lambda and eta.
    rounding : float
        Relative error of the products, below which directions count as parallel.
    """

    fisher: np.ndarray
    squares: np.ndarray
    slopes: np.ndarray
    damping: float
    l2_reg: float
    rounding: float

    def part(self, indices: Sequence[int]) -> QuadraticModel:
        """The model along some of the directions.

        Parameters
        ----------
        indices : sequence of int

        Returns
        -------
        QuadraticModel
        """
        chosen = list(indices)
        grid = np.ix_(chosen, chosen)
        return replace(
            self,
            fisher=self.fisher[grid],
            squares=self.squares[grid],
            slopes=self.slopes[chosen],
        )

    def matrix(self, *, damped: bool = True) -> np.ndarray:
        """d_i^T (F + (lambda + eta) I) d_j.

        Parameters
        ----------
        damped : bool
            Without it lambda is left out; eta is of the objective, and stays.

        Returns
        -------
        numpy.ndarray
            (n, n), float64.
        """
        more = self.l2_reg + (self.damping if damped else 0.0)
        return self.fisher + more * self.squares

    def change(self, coefficients: np.ndarray, *, damped: bool = True) -> float:
        """M(delta) - M(0).

        Parameters
        ----------
        coefficients : numpy.ndarray
            c, (n,).
        damped : bool
            See `matrix`.

        Returns
        -------
        float
        """
        c = np.asarray(coefficients)
        return float(self.slopes @ c + c @ self.matrix(damped=damped) @ c / 2)

    def minimum(self, fixed: Sequence[float | None]) -> np.ndarray:
        """Coefficients of the least M, of the least norm if there are several.

        Parameters
        ----------
        fixed : sequence of float or None
            For each direction its coefficient, or None where it is to be found.

        Returns
        -------
        numpy.ndarray
            c, (n,), float64.
        """
        c = np.array([0.0 if value is None else value for value in fixed])
        free = [index for index, value in enumerate(fixed) if value is None]
        matrix = self.matrix()
        slopes = (self.slopes + matrix @ c)[free]
        # In units of each direction's own length: one may be a million times the other.
        lengths = np.sqrt(np.diag(matrix)[free])
        scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        scaled = scale[:, None] * matrix[np.ix_(free, free)] * scale
        c[free] = -scale * (np.linalg.pinv(scaled, self.rounding, True) @ (scale * slopes))
        return c


def quadratic_model(
    fisher: np.ndarray,
    directions: Sequence[Arrays],
    gradients: Arrays,
    *,
    damping: float,
    l2_reg: float,
) -> QuadraticModel:
    """The model along some directions.

    Parameters
    ----------
    fisher : numpy.ndarray
        All d_i^T F d_j, (n, n), float64.
    directions : sequence of mappings
        n directions, each one array for each parameter.
    gradients : mapping of str to numpy.ndarray
        g, with the l2 penalty.
    damping, l2_reg : float
        lambda and eta.

    Returns
    -------
    QuadraticModel

    Raises
    ------
    FloatingPointError
        A product between directions is not finite.
    """
    count = len(directions)
    squares = np.empty((count, count))
    for i in range(count):
        for j in range(i, count):
            squares[i, j] = squares[j, i] = inner(directions[i], directions[j])
    slopes = np.array([inner(gradients, direction) for direction in directions])
    for what, values in (("Fisher matrix", fisher), ("squares", squares), ("slopes", slopes)):
        if not np.isfinite(values).all():
            raise FloatingPointError(f"{what} of the quadratic model not finite")
    first = next(iter(gradients.values()))
    rounding = 10 * float(array_namespace(first).finfo(first.dtype).eps)
    return QuadraticModel(fisher, squares, slopes, damping, l2_reg, rounding)


def inner(one: Arrays, other: Arrays) -> float:
    """Inner product over all parameters, added up in float64.

    Parameters
    ----------
    one, other : mapping of str to numpy.ndarray
        One array for each parameter.

    Returns
    -------
    float
    """
    return float(sum(inners(one, other).values()))


def inners(one: Arrays, other: Arrays) -> dict[str, float]:
    """Inner product of each parameter, added up in float64.

    Parameters
    ----------
    one, other : mapping of str to numpy.ndarray
        One array for each parameter.

    Returns
    -------
    dict of str to float
        By the name of the parameter.
    """
    many = together(one.values())
    if many is None:
        return {name: float(_dot(value, other[name])) for name, value in one.items()}
    found = many.inners(list(one.values()), [other[name] for name in one])
    return dict(zip(one, found.tolist(), strict=True))


def _dot(a: np.ndarray, b: np.ndarray) -> Any:
    if is_numpy_array(a):
        # Not by BLAS, whose threads spin for milliseconds after a call and take the core from the
        # kernels that follow.
        return kernels(a).dot(a, b)
    return array_namespace(a).sum(cast(a, np.float64) * cast(b, np.float64))
