"""When something that is done every so many steps is done: more often at first."""

from __future__ import annotations

#: Periods between inversions grow by this many times as much as those between updates: by Cholesky
#: an inversion costs less than an update, by an eigendecomposition a few of them.
INVERSE_GROWTH = {"cholesky": 3, "eigen": 15}


def is_due(step: int, period: int, growth: float) -> bool:
    """Whether something is done at a step.

    It is done at ``s_0 = 0`` and ``s_(k+1) = s_k + min(period, max(1, floor(growth * s_k)))``: at
    each of the first steps, then whenever training has become longer by the part `growth`, and at
    last every `period` steps. What changes fast at first, and slower as training goes on, is always
    about equally fresh.

    Parameters
    ----------
    step : int
    period : int
        Steps from one time to the next, at most.
    growth : float
        Zero: every `period` steps from the start.

    Returns
    -------
    bool
    """
    return step == 0 or steps_until(step - 1, period, growth) == 1


def steps_until(step: int, period: int, growth: float) -> int:
    """Steps from one to the next at which something is done.

    Parameters
    ----------
    step, period : int
    growth : float
        As `is_due`.

    Returns
    -------
    int
        At least 1.
    """
    # Up to here it is done at each step.
    due = int(min(step, 2 / growth)) if growth else 0
    while due <= step:
        interval = min(period, max(1, int(growth * due))) if growth else period
        if interval == period:  # and so on for good
            return period - (step - due) % period
        due += interval
    return due - step


def update_due(step: int, batches: int, burnin: int, period: int, growth: float) -> bool:
    """Whether a step updates the factors.

    Parameters
    ----------
    step : int
    batches : int
        Those that the factors rest on so far.
    burnin, period, growth : int, int, float
        ``num_burnin_steps``, ``curvature_update_period`` and ``period_growth`` of KFC.

    Returns
    -------
    bool
    """
    if batches < max(burnin, 1):
        return True
    # After burn-in the batch of the first step has been seen.
    return step > 0 and is_due(step, period, growth)


def inverse_due(
    step: int, batches: int, starting: bool, burnin: int, period: int, growth: float, inversion: str
) -> bool:
    """Whether a step inverts the factors.

    Parameters
    ----------
    step : int
    batches : int
        Those that the factors rest on now.
    starting : bool
        Whether that of the step is one of those that burn-in asks for.
    burnin, period, growth : int, int, float
        ``num_burnin_steps``, ``inverse_update_period`` and ``period_growth`` of KFC.
    inversion : {"cholesky", "eigen"}

    Returns
    -------
    bool
    """
    doubled = batches & (batches - 1) == 0 or batches == burnin
    return is_due(step, period, INVERSE_GROWTH[inversion] * growth) or (starting and doubled)
