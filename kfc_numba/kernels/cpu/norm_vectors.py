"""What batch normalisation computes of the statistics of its channels: vectors, in float64.

Nothing on a CPU; on a card each operation takes the host as long as a kernel on all of the data.
"""

from __future__ import annotations

import numpy as np

Vector = np.ndarray


def norm_terms(
    weight: Vector, bias: Vector, mean: Vector, variance: Vector, *, epsilon: float
) -> tuple[Vector, Vector, Vector, Vector]:
    """What ``weight * (x - mean) / sqrt(variance + epsilon) + bias`` is computed from.

    Parameters
    ----------
    weight, bias : numpy.ndarray
        (channels,), float32 or float64.
    mean, variance : numpy.ndarray
        (channels,), float64, or of the dtype of the weight.
    epsilon : float

    Returns
    -------
    mean, inverse, scale, offset : numpy.ndarray
        (channels,), float64: ``inverse = 1 / sqrt(variance + epsilon)``, ``scale = weight *
        inverse``, and the bias.
    """
    double = np.float64
    inverse = 1 / np.sqrt(variance.astype(double, copy=False) + epsilon)
    return mean.astype(double, copy=False), inverse, weight * inverse, bias.astype(double)


def norm_gradients(
    weight: Vector, sums: Vector, products: Vector, inverse: Vector, scale: Vector, rows: int
) -> tuple[Vector, Vector, Vector, Vector]:
    """Gradients of a loss by weight and bias, and the terms of the one by x.

    With ``h = (x - mean) * inverse`` the gradient by x is ``scale * (dy - mean of dy - h * mean of
    (dy * h))``.

    Parameters
    ----------
    weight : numpy.ndarray
        (channels,).
    sums, products : numpy.ndarray
        (channels,), float64: sums over rows of dy and of ``dy * (x - mean)``.
    inverse, scale : numpy.ndarray
        (channels,), float64, from `norm_terms`.
    rows : int

    Returns
    -------
    dweight, dbias : numpy.ndarray
        (channels,), of the dtype of the weight.
    slope, offset : numpy.ndarray
        (channels,), float64: the gradient by x is ``scale * dy + slope * (x - mean) + offset``.
    """
    dweight = products * inverse
    slope, offset = -scale * inverse * dweight / rows, -scale * sums / rows
    return dweight.astype(weight.dtype), sums.astype(weight.dtype), slope, offset


def norm_slopes(
    dweight: Vector,
    dbias: Vector,
    sums: Vector,
    products: Vector,
    inverse: Vector,
    scale: Vector,
    rows: int,
) -> tuple[Vector, Vector]:
    """Terms of the derivative along a direction of x, weight and bias.

    The Jacobian of the normalisation is symmetric: what comes from dx is as in `norm_gradients`.

    Parameters
    ----------
    dweight, dbias : numpy.ndarray
        (channels,), the direction.
    sums, products : numpy.ndarray
        (channels,), float64: sums over rows of dx and of ``dx * (x - mean)``.
    inverse, scale : numpy.ndarray
        (channels,), float64, from `norm_terms`.
    rows : int

    Returns
    -------
    slope, offset : numpy.ndarray
        (channels,), float64: the derivative is ``scale * dx + slope * (x - mean) + offset``.
    """
    slope = dweight * inverse - scale * inverse**2 * products / rows
    return slope, dbias.astype(np.float64) - scale * sums / rows


def norm_running(
    running_mean: Vector,
    running_variance: Vector,
    mean: Vector,
    variance: Vector,
    *,
    momentum: float,
    rows: int,
) -> tuple[Vector, Vector]:
    """Running averages after a batch, the variance of the unbiased estimate.

    Parameters
    ----------
    running_mean, running_variance : numpy.ndarray
        (channels,), float32 or float64.
    mean, variance : numpy.ndarray
        (channels,), float64, of the batch; the variance with the number of rows as divisor.
    momentum : float
        Weight of the old value.
    rows : int
        At least 2.

    Returns
    -------
    running_mean, running_variance : numpy.ndarray
        (channels,), new arrays of their dtype.
    """
    pairs = (running_mean, mean), (running_variance, variance * (rows / (rows - 1)))
    found = [(momentum * old + (1 - momentum) * new).astype(old.dtype) for old, new in pairs]
    return found[0], found[1]
