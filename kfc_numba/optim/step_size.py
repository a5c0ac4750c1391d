"""How far a step of KFC goes: a bound in units of the loss.

Near an optimum of a well-specified model the noise of a gradient g of M examples has the covariance
F / M. Without noise the best multiple of the natural gradient is 1; with it, it is
``signal / (signal + d / M)``, where ``signal = g^T F^-1 g`` of the gradient without noise, and d is
the number of directions that are not damped away. Where noise prevails, ``v^T F v`` of that step is
``signal^2 M / d``: it is proportional to the batch. And signal is about twice what the loss can
fall. So the bound is a part of the loss for each example of the batch. However large the batch, it
is at most a tenth of the loss, which was found by trying. What no outputs could take away of the
loss, as with grey values for targets of Bernoulli distributions, does not count: in an autoencoder
of Fashion-MNIST that is six sevenths, and with it steps were too long to get far. Measured in units
of the loss it does not depend on how regression targets are scaled, nor on the number of outputs,
and it falls as the fit improves, when less can be gained and noise is what a step mostly follows.

The loss is a running average, which lags: where training takes the loss to some hundredth within
twenty steps, its mean is by then many times what it is, a tenth of that more than all of it, and
steps bounded so led beyond the least and back up to several times it. The mean of roots follows
sooner. Of batches so small that noise bounds their steps, many have next to no loss when others
still have much, of which the mean of roots says too little: of those it is the mean.
"""

from __future__ import annotations

import math

import numpy as np

from kfc_numba.losses import Loss

#: Largest part of the loss that v^T F v may be, however large the batch.
LARGEST_PART = 0.1
#: Weight of the old value in the running average of the loss.
LOSS_EMA = 0.9


def bound_by_loss(part: float, examples: int, loss: float) -> float:
    """Bound of v^T F v.

    Parameters
    ----------
    part : float
        Of the loss, for each example.
    examples : int
        Of the batch.
    loss : float
        A running average.

    Returns
    -------
    float
    """
    return min(part * examples, LARGEST_PART) * loss


def is_by_noise(part: float, examples: int) -> bool:
    """Whether a bound is one by the noise of a batch, and not the largest there is.

    Parameters
    ----------
    part : float
        Of the loss, for each example.
    examples : int
        Of the batch.

    Returns
    -------
    bool
    """
    return part * examples < LARGEST_PART


def what_can_fall(loss: Loss, value: float, targets: np.ndarray) -> float:
    """Part of the loss of a batch that other outputs would not have.

    Parameters
    ----------
    loss : Loss
    value : float
        Of the batch.
    targets : numpy.ndarray

    Returns
    -------
    float
        At least 0 where there is a `Loss.least` above 0, below which only rounding leads.
    """
    least = loss.least(targets)
    return max(value - least, 0.0) if least else value


def next_loss(average: float, value: float, noisy: bool) -> float:
    """Running average of the loss: of its roots, squared, or of noisy batches the mean.

    Parameters
    ----------
    average : float
        NaN before the first step.
    value : float
        Loss of a batch.
    noisy : bool
        Whether a step is bounded for the noise of its batch.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        It is below zero.
    """
    if math.isnan(average):
        new = value
    elif noisy:
        new = LOSS_EMA * average + (1 - LOSS_EMA) * value
    else:
        root = LOSS_EMA * _root(average) + (1 - LOSS_EMA) * _root(value)
        new = math.copysign(root**2, root)
    if new < 0:
        raise ValueError(
            "loss_bound must be None for a loss that can be below zero, as it is: "
            f"{new} on the average"
        )
    return new


def _root(value: float) -> float:
    """Of the magnitude, with the sign of the value."""
    return math.copysign(math.sqrt(abs(value)), value)
