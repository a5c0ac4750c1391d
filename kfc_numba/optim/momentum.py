"""Momentum of KFC: it grows with the steps that last.

The first gradients are soon out of date, and so is the curvature that the first steps were bounded
by: carried on with full weight they take training far off. So momentum begins at nothing, and is
``n / (n + DELAY)`` after n steps, until it has grown to what it is to be.

A step that lasts does good to a batch that it has not seen, too, or no harm. By how much it raises
the loss there when it is carried on is known from the gradient of that batch, to first order; as a
part of the bound of a step it is the same for all networks and losses. A step counts for two where
it lowers the loss by a quarter of the bound: where batches agree momentum is soon there.

With batches so small that a step is bounded for its noise (`kfc_numba.optim.step_size`) one counts
for less where it raises the loss, and for less than none where it does so by more than a quarter of
the bound. There momentum stays below what it could be where steps lead beyond the least loss along
them, as in small networks with batch normalisation; but at a half it stays, since less did nowhere
better. With larger batches steps raise the next loss, too, and trainings were slower without
momentum all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kfc_numba.layers.base import Arrays
from kfc_numba.optim.quadratic import inner
from kfc_numba.optim.step_size import is_by_noise

if TYPE_CHECKING:
    from kfc_numba.optim.kfc import KFC

#: Entry of the state with how many steps lasted, as `lasted_after` counts them.
LASTED = "steps_that_lasted"
#: Steps that lasted, for a momentum of a half. With 3, whether they lasted or not, the first dozens
#: went too far; with 8 and more large batches on CIFAR-10 had higher losses after a hundred steps.
DELAY = 6.0
#: What a step counts for less where it raises the loss by the bound, and the most that it counts
#: for, either way. Found by trying, as `DELAY`.
BY_BOUND, MOST = 4.0, 2.0


def lasted_after(
    lasted: float, slope: float, bound: float | None, momentum: float, noisy: bool
) -> float:
    """How many steps lasted, after one more.

    Parameters
    ----------
    lasted : float
        Until now.
    slope : float
        Derivative of the loss of the next batch along the step.
    bound : float or None
        What v^T F v of a step may be. None: each step counts for one.
    momentum : float
        That it grows to, below 1; nothing is counted beyond.
    noisy : bool
        Whether a step counts for less where it raises the loss.

    Returns
    -------
    float
        At least what it was, up to `DELAY`.
    """
    raised = slope / bound if bound else 0.0
    count = min(max(1 - BY_BOUND * raised, -MOST if noisy else 1), MOST)
    least, most = min(lasted, DELAY), DELAY * momentum / (1 - momentum)
    return min(max(lasted + count, least), most)


def grown(momentum: float, lasted: float) -> float:
    """Momentum after steps that lasted.

    Parameters
    ----------
    momentum : float
        At most.
    lasted : float
        `lasted_after`.

    Returns
    -------
    float
    """
    return min(momentum, lasted / (lasted + DELAY))


def grows(optimizer: KFC) -> bool:
    """Whether momentum grows: neither a model finds it, nor does a schedule say what it is.

    Parameters
    ----------
    optimizer : KFC

    Returns
    -------
    bool
    """
    return not (optimizer.use_adaptive_momentum or callable(optimizer.momentum))


def initial_momentum(optimizer: KFC) -> dict[str, np.ndarray]:
    """State before the first step.

    Parameters
    ----------
    optimizer : KFC

    Returns
    -------
    dict of str to numpy.ndarray
        ``steps_that_lasted``, or nothing where momentum does not grow.
    """
    return {LASTED: np.zeros(())} if grows(optimizer) else {}


def slope_along(optimizer: KFC, gradients: Arrays, previous: Arrays, step: int) -> float:
    """Derivative of the loss of a batch along the step before.

    Parameters
    ----------
    optimizer : KFC
    gradients : mapping of str to numpy.ndarray
        Of the batch.
    previous : mapping of str to numpy.ndarray
        The step before.
    step : int

    Returns
    -------
    float
        ``previous^T g``; 0 where nothing depends on it: at the first step, without momentum, or a
        number for it, or a bound.
    """
    carried = not optimizer.use_adaptive_momentum and optimizer.scheduled("momentum", step) > 0
    bounded = optimizer.loss_bound is not None or optimizer.kl_bound is not None
    return inner(previous, gradients) if step > 0 and carried and bounded else 0.0


def next_momentum(
    optimizer: KFC,
    state: Mapping[str, np.ndarray],
    slope: float,
    bound: float | None,
    step: int,
    examples: int,
) -> dict[str, np.ndarray]:
    """State with the momentum of a step.

    Parameters
    ----------
    optimizer : KFC
    state : mapping of str to numpy.ndarray
        After the step before.
    slope : float
        `slope_along`.
    bound : float or None
        Of a step, before what this one makes of it.
    step : int
    examples : int
        Of the batch.

    Returns
    -------
    dict of str to numpy.ndarray
        ``steps_that_lasted``, or nothing where momentum does not grow.
    """
    if not grows(optimizer) or step == 0:
        return {}
    most, part = optimizer.scheduled("momentum", step), optimizer.loss_bound
    noisy = part is not None and is_by_noise(optimizer.scheduled("loss_bound", step), examples)
    return {LASTED: np.array(lasted_after(float(state[LASTED]), slope, bound, most, noisy))}


def momentum_at(optimizer: KFC, state: Mapping[str, np.ndarray], step: int) -> float:
    """Momentum at a step, where no model finds it.

    Parameters
    ----------
    optimizer : KFC
    state : mapping of str to numpy.ndarray
        With `next_momentum` of the step.
    step : int

    Returns
    -------
    float
    """
    momentum = optimizer.scheduled("momentum", step)
    return grown(momentum, float(state[LASTED])) if grows(optimizer) else momentum
