"""Adam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import zeros_like
from kfc_numba.graph import Graph
from kfc_numba.layers.base import Arrays
from kfc_numba.optim.base import Optimizer, Scheduled, State


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015, algorithm 1).

    ``m`` and ``v`` are exponentially weighted averages of the gradient and of its square;
    ``theta -= alpha m / (sqrt(v) + epsilon)``. The averages carry the sum of their weights, which
    for constant `beta1` and `beta2` is the paper's bias correction ``1 - beta^k`` and for
    schedules keeps them unbiased too. The l2 penalty is part of the gradient;
    with `weight_decay` in its place this is AdamW.

    Parameters
    ----------
    learning_rate : float or callable of the step
        About how far a step moves each parameter; usually 1e-4 to 1e-2. alpha, at least 0.
    beta1 : float or callable of the step
        Weight of the old value in the average of gradients; usually 0.8 to 0.95. From 0 to below 1.
    beta2 : float or callable of the step
        Weight of the old value in the average of their squares; usually 0.95 to 0.9999. From 0 to
        below 1.
    epsilon : float or callable of the step
        What is added to the root of that average; usually 1e-10 to 1e-4. Positive.
    l2_reg, weight_decay, averaging
        See `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    needs_loss = False
    intervals = Optimizer.intervals | {
        "learning_rate": "[0, inf)",
        "beta1": "[0, 1)",
        "beta2": "[0, 1)",
        "epsilon": "(0, inf)",
    }

    def __init__(
        self,
        *,
        learning_rate: Scheduled = 1e-3,
        beta1: Scheduled = 0.9,
        beta2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-8,
        l2_reg: Scheduled = 0.0,
        weight_decay: Scheduled = 0.0,
        averaging: float | None = 0.1,
    ):
        super().__init__(l2_reg=l2_reg, weight_decay=weight_decay, averaging=averaging)
        self.learning_rate = self.check("learning_rate", learning_rate)
        self.beta1 = self.check("beta1", beta1)
        self.beta2 = self.check("beta2", beta2)
        self.epsilon = self.check("epsilon", epsilon)

    def initial_state(self, net: Graph) -> State:
        state = {"first_weight": np.zeros(()), "second_weight": np.zeros(())}
        for name, value in net.params.items():
            state[f"first/{name}"] = zeros_like(value)
            state[f"second/{name}"] = zeros_like(value)
        return state

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
        beta1, beta2 = self.scheduled("beta1", step), self.scheduled("beta2", step)
        epsilon = self.scheduled("epsilon", step)
        weight1 = beta1 * float(state["first_weight"]) + (1 - beta1)
        weight2 = beta2 * float(state["second_weight"]) + (1 - beta2)
        deltas = {}
        changes = {"first_weight": np.array(weight1), "second_weight": np.array(weight2)}
        xp = array_namespace(*gradients.values())
        for name, gradient in gradients.items():
            first = beta1 * state[f"first/{name}"] + (1 - beta1) * gradient
            second = beta2 * state[f"second/{name}"] + (1 - beta2) * (gradient * gradient)
            changes[f"first/{name}"], changes[f"second/{name}"] = first, second
            deltas[name] = (-alpha / weight1) * first / (xp.sqrt(second / weight2) + epsilon)
        return deltas, changes
