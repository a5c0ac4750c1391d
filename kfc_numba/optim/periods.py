"""When something that is done every so many steps is done: more often at first."""

from __future__ import annotations


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
    if growth == 0:
        return step % period == 0
    due = 0
    while due < step:
        interval = max(1, int(growth * due))
        if interval >= period:
            return (step - due) % period == 0
        due += interval
    return due == step
