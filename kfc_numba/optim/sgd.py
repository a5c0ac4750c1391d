"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kfc_numba.arrays import combine, zeros_like
from kfc_numba.checks import check_flag
from kfc_numba.graph import Graph
from kfc_numba.layers.base import Arrays
from kfc_numba.optim.base import Optimizer, Scheduled, State


class SGD(Optimizer):
    """Gradient descent with classical or Nesterov momentum.

    ``p = mu p - alpha g``, then ``theta += p``; with Nesterov's momentum (in the form of
    Sutskever et al., 2013, that evaluates gradients at the point looked ahead to)
    ``theta += mu p - alpha g`` with the new p.

    Parameters
    ----------
    learning_rate : float or callable of the step
        Length of a step, in gradients; usually 1e-3 to 0.1. alpha, at least 0.
    momentum : float or callable of the step
        Part of the step before that is repeated; usually 0.8 to 0.95. mu, from 0 to below 1.
    nesterov : bool
        Whether momentum is Nesterov's, whose gradients look ahead.
    l2_reg, weight_decay, averaging
        See `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    needs_loss = False
    intervals = Optimizer.intervals | {"learning_rate": "[0, inf)", "momentum": "[0, 1)"}

    def __init__(
        self,
        *,
        learning_rate: Scheduled = 0.03,
        momentum: Scheduled = 0.9,
        nesterov: bool = False,
        l2_reg: Scheduled = 0.0,
        weight_decay: Scheduled = 0.0,
        averaging: float | None = 0.1,
    ):
        super().__init__(l2_reg=l2_reg, weight_decay=weight_decay, averaging=averaging)
        self.learning_rate = self.check("learning_rate", learning_rate)
        self.momentum = self.check("momentum", momentum)
        self.nesterov = check_flag("nesterov", nesterov)

    def initial_state(self, net: Graph) -> State:
        return {f"momentum/{name}": zeros_like(value) for name, value in net.params.items()}

    def delta(
        self,
        net: Graph,
        loss: Any,
        trace: Any,
        x: np.ndarray,
        y: np.ndarray,
        value: float,
        gradients: Arrays,
        state: Mapping[str, np.ndarray],
        step: int,
        seed: int,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        alpha = self.scheduled("learning_rate", step)
        mu = self.scheduled("momentum", step)
        velocities = {name: state[f"momentum/{name}"] for name in gradients}
        velocities = combine(mu, velocities, -alpha, gradients)
        steps = combine(mu, velocities, -alpha, gradients) if self.nesterov else velocities
        return steps, {f"momentum/{name}": value for name, value in velocities.items()}
