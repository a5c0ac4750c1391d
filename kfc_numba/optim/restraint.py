"""Steps that do not last: how the bound shrinks, and what no step can achieve.

The step before is carried on as momentum, and should do some good to a batch that it has not seen.
How much it raises the loss there is known to first order from the gradient of the batch: where that
is more than a step may be long, what a step learns of its batch spoils others, as with labels that
are random or all but. Steps of a fixed part of the loss then take predictions ever further from
the best there are, and the loss with them, to thousands of times what it was. So the bound shrinks
by as much, and grows again while steps last; and of the step before no more is carried on than the
bound allows.

Gradients of batches differ, too, and where targets are drawn from probabilities by as much as the
Fisher matrix says: along a step v that is ``v^T F v / M``, squared, M the examples, and ``v^T F v``
the bound. Where the loss is low noise is often more than a tenth of it, and says nothing of whether
steps last. So a rise that noise accounts for does not count; nor does it with grey values for
targets, which have less noise, but there it is little beside a tenth of the loss. And the bound
never shrinks to nothing: with few batches in a pass, as of 400 examples, a step raises the loss of
the others for a while just because they are others, and trainings that went on with a thousandth of
the bound stood for thousands of steps.

Nor can a step lower the loss of its batch by more than all of it. Where its gradient promises more,
as where most units of a network are dead, its length was found on too few examples or over too long
a way, and it is shortened to what could be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kfc_numba.losses import Loss
from kfc_numba.optim.adaptation import is_adaptive
from kfc_numba.optim.momentum import momentum_at
from kfc_numba.optim.saturation import saturates
from kfc_numba.optim.step_size import LARGEST_PART

if TYPE_CHECKING:
    from kfc_numba.optim.kfc import KFC

#: Entry of the state with the part of the bound that is left: 1 at first, and at most.
FACTOR = "bound_factor"
#: From one step to the next the part shrinks to this at least, and grows by this at most. Found by
#: trying, as what a rise is measured by: by half of it usual trainings were held back, by twice it
#: those on random labels were not.
SHRINKING, GROWTH = 0.25, 1.1
#: The least part. With less regressions on 400 examples stood at a hundred times the loss that they
#: came to with this; with more those on random labels went further off before they were held.
LEAST = 0.1
#: What a step may raise the loss by goes with this power of the part that is left. What noise makes
#: of it goes with its length, the root of the bound: held to the bound itself, ever shorter steps
#: were ever more often found to rise, and some trainings stood (digits, batches of 32). Held to the
#: root, those on random labels were not held back enough.
POWER = 0.7
#: Standard deviations of what noise raises the loss by, up to which a rise does not count.
BY_NOISE = 3.0


def is_restrained(optimizer: KFC) -> bool:
    """Whether the bound may shrink: one by the loss, of steps whose coefficients no model finds.

    Parameters
    ----------
    optimizer : KFC

    Returns
    -------
    bool
    """
    return optimizer.loss_bound is not None and not is_adaptive(optimizer)


def initial_restraint(optimizer: KFC) -> dict[str, np.ndarray]:
    """State before the first step.

    Parameters
    ----------
    optimizer : KFC

    Returns
    -------
    dict of str to numpy.ndarray
        ``bound_factor``, or nothing where nothing is restrained.
    """
    return {FACTOR: np.ones(())} if is_restrained(optimizer) else {}


def part_left(state: Mapping[str, np.ndarray]) -> float:
    """The part of the bound that is left; all of it where nothing is restrained.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray

    Returns
    -------
    float
        Above 0, at most 1.
    """
    return float(state.get(FACTOR, 1.0))


def rise_by_momentum(
    optimizer: KFC,
    loss: Loss,
    state: Mapping[str, np.ndarray],
    slope: float,
    bound: float | None,
    step: int,
    examples: int,
) -> float:
    """By how much the step before, carried on, raises the loss of a batch, to first order.

    Parameters
    ----------
    optimizer : KFC
    loss : Loss
    state : mapping of str to numpy.ndarray
        With the momentum of the step.
    slope : float
        `kfc_numba.optim.momentum.slope_along`.
    bound : float or None
        Of a step, before what this one makes of it.
    step : int
    examples : int
        Of the batch.

    Returns
    -------
    float
        0 where nothing is restrained, or where the noise of the batch accounts for it.
    """
    if not is_restrained(optimizer):
        return 0.0
    momentum = momentum_at(optimizer, state, step)
    rise = momentum * slope
    if bound is not None and saturates(loss):
        noise = momentum * math.sqrt(bound / examples)
        if 0 < rise <= BY_NOISE * noise:
            return 0.0
    return rise


def largest_rise(state: Mapping[str, np.ndarray]) -> float:
    """By how much a step before may raise the loss: at first as much as a large batch's bound.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
        With the loss of the batch in the average.

    Returns
    -------
    float
    """
    return part_left(state) ** POWER * LARGEST_PART * float(state["loss_average"])


def next_restraint(
    optimizer: KFC, state: Mapping[str, np.ndarray], rise: float
) -> dict[str, np.ndarray]:
    """State with the bound of a step.

    Parameters
    ----------
    optimizer : KFC
    state : mapping of str to numpy.ndarray
        After the step before, with the loss of this step's batch in the average.
    rise : float
        `rise_by_momentum`.

    Returns
    -------
    dict of str to numpy.ndarray
        ``bound_factor``, or nothing where nothing is restrained.
    """
    if not is_restrained(optimizer):
        return {}
    factor, most = part_left(state), largest_rise(state)
    if rise > most:
        factor = max(LEAST, factor * max(SHRINKING, most / rise))
    else:
        factor = min(1.0, max(LEAST, GROWTH * factor))
    return {FACTOR: np.array(factor)}


def held(momentum: float, rise: float, state: Mapping[str, np.ndarray]) -> float:
    """Momentum by which the step before raises the loss by no more than it may.

    Parameters
    ----------
    momentum : float
        As it would be.
    rise : float
        `rise_by_momentum`, with it.
    state : mapping of str to numpy.ndarray
        With the restraint of the step.

    Returns
    -------
    float
    """
    if not rise > 0:  # nor where nothing is restrained
        return momentum
    return momentum * min(1.0, largest_rise(state) / rise)
