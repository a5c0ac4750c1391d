"""Constant matrices of minimal filtering: interpolation of polynomials through a few points.

    y = A' [(G g) * (B' d)]

gives m sums y_i = sum_j g_j d_{i + j} over r taps with m + r - 1 products instead of m * r (Toom,
Cook; Winograd 1980; for convnets Lavin and Gray 2016).

The points are chosen for small rounding errors (see Barabasz et al. 2018): for three and four taps
six, 0, 1, -1, 1/2, -2 and infinity, with 6 / 12 of the products; for five taps eight, 0, +-1,
+-1/2, +-2 and infinity, with 8 / 20.
"""

from __future__ import annotations

import math
from fractions import Fraction

from kfc_numba.kernels.cpu.linear_combination import Matrix

_HALF = Fraction(1, 2)
#: Numbers of taps that there are transforms for; with fewer or more, errors would be large.
TAPS = range(3, 6)


def finite_points(taps: int) -> tuple[Fraction, ...]:
    """Points of the interpolation for a kernel of some taps, but infinity."""
    if taps < 5:
        return Fraction(0), Fraction(1), Fraction(-1), _HALF, Fraction(-2)
    return Fraction(0), Fraction(1), Fraction(-1), _HALF, -_HALF, Fraction(2), Fraction(-2)


_POINTS = {taps: len(finite_points(taps)) + 1 for taps in TAPS}


def points_and_rows(taps: int) -> tuple[int, int]:
    """Number of products, and of output rows, of a block."""
    return _POINTS[taps], _POINTS[taps] + 1 - taps


def transforms(taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """A', G and B' for a kernel of some taps: (rows, points), (points, taps), (points, points)."""
    return interpolation(finite_points(taps), taps)


def interpolation(finite: tuple[Fraction, ...], taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """A', G and B' for some points, besides infinity.

    With p_k the finite points and N_k the product of their differences from p_k: A' holds powers
    p_k^i, G holds p_k^j / N_k, the rows of B' are the coefficients of prod_{l != k} (x - p_l), and
    the point at infinity stands for leading coefficients.
    """
    rows = len(finite) + 2 - taps
    rest = [finite[:k] + finite[k + 1 :] for k in range(len(finite))]
    scales = [math.prod(p - q for q in others) for p, others in zip(finite, rest, strict=True)]
    a = [[*(p**i for p in finite), Fraction(i == rows - 1)] for i in range(rows)]
    g = [[p**j / n for j in range(taps)] for p, n in zip(finite, scales, strict=True)]
    g.append([Fraction(j == taps - 1) for j in range(taps)])
    b = [[*_polynomial(others), Fraction(0)] for others in rest]
    b.append(_polynomial(finite))
    return _floats(a), _floats(g), _floats(b)


def _floats(matrix: list[list[Fraction]]) -> Matrix:
    return [[float(entry) for entry in line] for line in matrix]


def _polynomial(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Coefficients of prod (x - root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        higher, lower = [Fraction(0), *coefficients], [*coefficients, Fraction(0)]
        coefficients = [h - root * c for h, c in zip(higher, lower, strict=True)]
    return coefficients


def transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]
