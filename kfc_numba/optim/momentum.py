"""Momentum of KFC: it grows with the steps that last.

The first gradients are soon out of date, and so is the curvature that the first steps were bounded
by: carried on with full weight they take training far off. So momentum begins at nothing, and is
``n / (n + DELAY)`` after n steps, until it has grown to what it is to be.

A step that lasts does good to a batch that it has not seen, too, or no harm. By how much it raises
the loss there when it is carried on is known from the gradient of that batch, to first order; as a
part of the bound of a step it is the same for all networks and losses. A step counts for more than
one where it lowers the loss, for less where it raises it, and for less than none where it does so
by more than a quarter of the bound: so momentum is soon there where all batches agree, and stays
below where steps lead beyond the least loss along them, as in small networks with batch
normalisation and small batches. Once it is a half it stays as much: less did nowhere better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kfc_numba.layers.base import Arrays
from kfc_numba.optim.quadratic import inner

if TYPE_CHECKING:
    from kfc_numba.optim.kfc import KFC

#: Entry of the state with how many steps lasted, as `lasted_after` counts them.
LASTED = "steps_that_lasted"
#: What momentum of a half takes. With 3 steps of any kind the first dozens went too far; with 10
#: that count for no more than one, trainings on few images were slower to begin.
DELAY = 8.0
#: What a step counts for that neither raises the loss nor lowers it; less by so much where it
#: raises it by the bound; and the most, either way. Found by trying, as `DELAY`.
STEADY, BY_BOUND, MOST = 0.75, 3.0, 2.0


def lasted_after(lasted: float, slope: float, bound: float | None, momentum: float) -> float:
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

    Returns
    -------
    float
        At least what it was, up to `DELAY`.
    """
    count = 1.0
    if bound is not None:
        raised = slope / bound if bound > 0 else 0.0
        count = min(max(STEADY - BY_BOUND * raised, -MOST), MOST)
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
        ``previous^T g``; 0 at the first step, and where it is not carried on, or a model says how.
    """
    carried = not optimizer.use_adaptive_momentum and optimizer.scheduled("momentum", step) > 0
    return inner(previous, gradients) if step > 0 and carried else 0.0


def next_momentum(
    optimizer: KFC, state: Mapping[str, np.ndarray], slope: float, bound: float | None, step: int
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

    Returns
    -------
    dict of str to numpy.ndarray
        ``steps_that_lasted``, or nothing where momentum does not grow.
    """
    if not grows(optimizer) or step == 0:
        return {}
    most = optimizer.scheduled("momentum", step)
    return {LASTED: np.array(lasted_after(float(state[LASTED]), slope, bound, most))}


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
