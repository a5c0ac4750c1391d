"""What of a proposed step is taken, and what is learnt of it: rejection and adaptive damping."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kfc_numba.arrays import zeros_like
from kfc_numba.graph import Graph
from kfc_numba.losses import Loss
from kfc_numba.optim.adaptation import reduction_ratio
from kfc_numba.optim.base import shift
from kfc_numba.optim.quadratic import inner
from kfc_numba.optim.update import Update

if TYPE_CHECKING:
    from kfc_numba.optim.kfc import KFC


def initial_judgement(optimizer: KFC) -> dict[str, np.ndarray]:
    """Entries of the state that `judge` renews, before the first step.

    Parameters
    ----------
    optimizer : KFC

    Returns
    -------
    dict of str to numpy.ndarray
        Empty where nothing is adaptive and no step is rejected.
    """
    state: dict[str, np.ndarray] = {}
    adaptive_coefficients = optimizer.use_adaptive_learning_rate or optimizer.use_adaptive_momentum
    if adaptive_coefficients:
        state = {"learning_rate": np.zeros(()), "momentum": np.zeros(())}
    if optimizer.use_adaptive_damping:
        first = optimizer.adaptation.first(optimizer.damping)
        state["damping"] = np.array(first)
        gamma = optimizer.adaptation.bound(first + optimizer.scheduled("l2_reg", 0))
        state["preconditioner_damping"] = np.array(gamma)
        state["reduction_ratio"] = np.array(np.nan)
    if adaptive_coefficients or optimizer.use_adaptive_damping:
        state["model_change"] = np.zeros(())
    if optimizer.max_loss_increase is not None:
        state["rejected_steps"] = np.zeros((), np.int64)
    return state


def is_rejected(state: Mapping[str, np.ndarray], changes: Mapping[str, np.ndarray]) -> bool:
    """Whether a step was undone.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
        Before it.
    changes : mapping of str to numpy.ndarray
        With what `judge` has found.

    Returns
    -------
    bool
    """
    name = "rejected_steps"
    return name in changes and int(changes[name]) > int(state[name])


def judge(
    optimizer: KFC,
    net: Graph,
    loss: Loss,
    x: np.ndarray,
    y: np.ndarray,
    value: float,
    update: Update,
    state: Mapping[str, np.ndarray],
    step: int,
    seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What a step adds to the parameters after it was tried, and new entries of the state.

    Parameters
    ----------
    optimizer : KFC
        For its settings.
    net : Graph
    loss : Loss
    x, y : numpy.ndarray
        The batch.
    value : float
        Its loss before the step.
    update : Update
        As proposed.
    state : mapping of str to numpy.ndarray
    step, seed : int

    Returns
    -------
    deltas, changes : dict of str to numpy.ndarray
        As `Optimizer.delta` returns them.

    Raises
    ------
    FloatingPointError
        The loss after the step is not finite, and steps are not rejected.
    """
    adaptation, deltas = optimizer.adaptation, update.deltas
    changes: dict[str, np.ndarray] = {}
    if optimizer.use_adaptive_learning_rate or optimizer.use_adaptive_momentum:
        changes["learning_rate"] = np.array(update.learning_rate)
        changes["momentum"] = np.array(update.momentum)
    if not math.isnan(update.change):
        changes["model_change"] = np.array(update.change)
    due = optimizer.use_adaptive_damping and adaptation.damping_due(step)
    rejected = False
    if due or optimizer.max_loss_increase is not None:
        l2_reg = optimizer.scheduled("l2_reg", step)
        trial = copy.copy(net)
        trial.params = shift(net.params, deltas)
        trace = trial.forward(x, training=True, seed=seed, step=step)
        before = value + l2_reg / 2 * inner(net.params, net.params)
        after = loss.value(trace.outputs, y) + l2_reg / 2 * inner(trial.params, trial.params)
        if optimizer.max_loss_increase is not None:
            limit = before + optimizer.max_loss_increase * abs(before)
            rejected = not after <= limit
            count = state["rejected_steps"] + np.int64(rejected)
            changes["rejected_steps"] = np.asarray(count)
        elif not math.isfinite(after):
            raise FloatingPointError(f"loss after the update is {after}")
    if optimizer.use_adaptive_damping:
        damping, gamma = float(state["damping"]), update.preconditioner_damping
        predicted = update.undamped_change
        if adaptation.include_damping_in_quad_change:
            predicted = update.change
        # Nothing is learnt from a step that is zero.
        if due and predicted:
            actual = after - before if math.isfinite(after) else math.inf
            ratio = reduction_ratio(actual, predicted)
            changes["reduction_ratio"] = np.array(ratio)
            damping = adaptation.next_damping(damping, ratio)
        if rejected:
            factor = adaptation.reject_damping_increase_factor
            damping = adaptation.bound(factor * damping)
            gamma = adaptation.bound(factor * gamma)
        changes["damping"] = np.array(damping)
        changes["preconditioner_damping"] = np.array(gamma)
    if rejected:
        deltas = {name: zeros_like(delta) for name, delta in deltas.items()}
    return deltas, changes
