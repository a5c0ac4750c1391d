"""KFC: natural gradient with a Kronecker-factored Fisher matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.damping import DAMPING_STRATEGIES
from kfc_numba.curvature.factors import APPROXIMATIONS, ESTIMATION_MODES
from kfc_numba.curvature.fisher import quadratic_forms
from kfc_numba.curvature.structures import check_structure, curvature_of
from kfc_numba.graph import Graph, Trace
from kfc_numba.layers.base import Arrays
from kfc_numba.losses import Loss
from kfc_numba.optim.base import Batch, Optimizer, Scheduled, State
from kfc_numba.random import generator


class KFC(Optimizer):
    """KFC-pre, Algorithm 1 of Grosse and Martens (2016): natural gradient with momentum.

    At every step the gradient g (of the mean loss, with the l2 penalty) becomes
    ``v = -learning_rate * Fhat(damping)^-1 g``, Fhat the block-diagonal Kronecker-factored Fisher
    matrix; v is shortened to the bound; ``p = momentum * p + v`` is added to the parameters.
    Parameters of layers without Kronecker factors (batch normalisation) have a damped diagonal
    Fisher in place of the block.

    Parameters
    ----------
    learning_rate : float or callable of the step
        alpha, at least 0.
    damping : float or callable of the step
        gamma, above 0, in units of the Fisher matrix (of the mean loss of one example).
    momentum : float or callable of the step
        mu, from 0 to below 1.
    kl_bound : float or callable of the step, optional
        c: v is shortened so that ``v^T F v <= c`` (about twice the KL divergence between the
        predictions before and after), F the *exact* Fisher matrix on `exact_fraction` of the
        batch. None: no bound.
    norm_constraint : float or callable of the step, optional
        Bound by the *approximate* Fisher matrix: ``learning_rate^2 * g^T Fhat(damping)^-1 g``
        is held to it in the same way. None: no bound.
    exact_fraction : float
        Part of the batch, from its beginning, that exact curvature is computed on; in (0, 1].
    curvature_ema : float or callable of the step
        Weight of the old value in the running averages of the factors, from 0 to below 1.
    curvature_update_period, inverse_update_period : int
        Steps between updates of the factors, and between their eigendecompositions.
    num_burnin_steps : int
        Batches whose statistics are averaged before the first step of `Trainer.fit`.
    estimation_mode : {"fisher_gradients", "fisher_exact", "fisher_empirical"}
        See `kfc_numba.curvature.factors.output_derivatives`.
    num_estimator_samples : int
        Targets sampled for each example, with ``"fisher_gradients"``.
    kfac_approx : {"expand", "reduce"}
        How locations that share weights enter; see `kfc_numba.curvature.factors.scaled`.
    structure : str or mapping of str to str
        ``"kronecker"``, ``"ekfac"``, ``"diagonal"`` or ``"full"`` for all layers, or for each layer
        that a mapping names; or ``"tridiagonal"`` for a stack of dense layers. See
        `kfc_numba.curvature.structures.curvature_of`.
    damping_strategy : {"pi", "exact", "uniform"}
        See `kfc_numba.curvature.damping.damped_eigenvalues`.
    l2_reg, averaging
        See `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    intervals = Optimizer.intervals | {
        "learning_rate": "[0, inf)",
        "damping": "(0, inf)",
        "momentum": "[0, 1)",
        "kl_bound": "(0, inf)",
        "norm_constraint": "(0, inf)",
        "exact_fraction": "(0, 1]",
        "curvature_ema": "[0, 1)",
    }

    def __init__(
        self,
        *,
        learning_rate: Scheduled = 0.03,
        damping: Scheduled = 1e-3,
        momentum: Scheduled = 0.9,
        kl_bound: Scheduled | None = 0.3,
        norm_constraint: Scheduled | None = None,
        exact_fraction: float = 0.125,
        curvature_ema: Scheduled = 0.95,
        curvature_update_period: int = 10,
        inverse_update_period: int = 20,
        num_burnin_steps: int = 10,
        estimation_mode: str = "fisher_gradients",
        num_estimator_samples: int = 1,
        kfac_approx: str = "expand",
        structure: str | Mapping[str, str] = "kronecker",
        damping_strategy: str = "pi",
        l2_reg: Scheduled = 0.0,
        averaging: float | None = None,
    ):
        super().__init__(l2_reg=l2_reg, averaging=averaging)
        self.learning_rate = self.checked("learning_rate", learning_rate)
        self.damping = self.checked("damping", damping)
        self.momentum = self.checked("momentum", momentum)
        self.kl_bound = self.checked("kl_bound", kl_bound, optional=True)
        self.norm_constraint = self.checked("norm_constraint", norm_constraint, optional=True)
        self.exact_fraction = self.checked("exact_fraction", exact_fraction, schedule=False)
        self.curvature_ema = self.checked("curvature_ema", curvature_ema)
        self.curvature_update_period = _integer("curvature_update_period", curvature_update_period)
        self.inverse_update_period = _integer("inverse_update_period", inverse_update_period)
        self.num_burnin_steps = _integer("num_burnin_steps", num_burnin_steps, least=0)
        self.estimation_mode = _choice("estimation_mode", estimation_mode, ESTIMATION_MODES)
        self.num_estimator_samples = _integer("num_estimator_samples", num_estimator_samples)
        self.kfac_approx = _choice("kfac_approx", kfac_approx, APPROXIMATIONS)
        self.structure = check_structure(structure)
        self.damping_strategy = _choice("damping_strategy", damping_strategy, DAMPING_STRATEGIES)

    def initial_state(self, net: Graph) -> State:
        momenta = {f"momentum/{name}": np.zeros_like(value) for name, value in net.params.items()}
        return momenta | self.curvature(net).initial_state()

    def curvature(self, net: Graph) -> BlockDiagonal:
        """What the optimizer estimates of a network's curvature; its arrays are in the state.

        Parameters
        ----------
        net : Graph

        Returns
        -------
        BlockDiagonal
        """
        return curvature_of(net, self.structure, self.kfac_approx)

    def prepare(
        self, net: Graph, loss: Loss, batches: Iterable[Batch], state: State, *, seed: int = 0
    ) -> None:
        for index, (x, y) in enumerate(batches):
            trace = net.forward(x, training=True, seed=seed, step=index)
            rng = generator(seed, "burn-in targets", index)
            new = self.curvature(net).estimate(trace, loss, state, **self._estimator(rng, y))
            state.update(self._averaged(net, state, new, index))

    def delta(
        self,
        net: Graph,
        loss: Loss,
        trace: Trace,
        x: np.ndarray,
        y: np.ndarray,
        value: float,
        gradients: Arrays,
        state: Mapping[str, np.ndarray],
        step: int,
        seed: int,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        curvature = self.curvature(net)
        changes: dict[str, np.ndarray] = {}
        if step % self.curvature_update_period == 0 or not state["factor_weight"]:
            rng = generator(seed, "targets", step)
            new = curvature.estimate(trace, loss, state, **self._estimator(rng, y))
            changes |= self._averaged(net, state, new, step)
        if step % self.inverse_update_period == 0:
            try:
                changes |= curvature.decomposed({**state, **changes})
            except (FloatingPointError, np.linalg.LinAlgError) as error:
                raise type(error)(f"{error} at step {step}") from error
        current = {**state, **changes}
        if curvature.lacks_second_moments(current):
            rng = generator(seed, "second moments", step)
            new = curvature.second_moments(trace, loss, current, **self._estimator(rng, y))
            changes |= self._averaged(net, current, new, step)
            current |= changes

        damping = self.scheduled("damping", step)
        natural = curvature.preconditioned(current, gradients, damping, self.damping_strategy)
        scale = -self.scheduled("learning_rate", step)
        scale *= self._bound(net, loss, trace, x, natural, gradients, scale, step)
        mu = self.scheduled("momentum", step)
        deltas = {
            name: mu * state[f"momentum/{name}"] + scale * value for name, value in natural.items()
        }
        changes |= {f"momentum/{name}": value for name, value in deltas.items()}
        return deltas, changes

    def _estimator(self, rng: np.random.Generator, targets: np.ndarray) -> dict[str, Any]:
        """Arguments of `BlockDiagonal.estimate`."""
        return {
            "mode": self.estimation_mode,
            "rng": rng,
            "targets": targets,
            "samples": self.num_estimator_samples,
        }

    def _averaged(
        self, net: Graph, state: Mapping[str, np.ndarray], new: Arrays, step: int
    ) -> dict[str, np.ndarray]:
        return self.curvature(net).averaged(state, new, self.scheduled("curvature_ema", step))

    def _bound(
        self,
        net: Graph,
        loss: Loss,
        trace: Trace,
        x: np.ndarray,
        natural: Arrays,
        gradients: Arrays,
        scale: float,
        step: int,
    ) -> float:
        """Factor in (0, 1] that brings the step within its bounds."""
        factor = 1.0
        if self.norm_constraint is not None:
            product = sum(
                float(np.vdot(value, gradients[name]).real) for name, value in natural.items()
            )
            length = scale**2 * product
            bound = self.scheduled("norm_constraint", step)
            if length > bound:
                factor = min(factor, math.sqrt(bound / length))
        if self.kl_bound is not None:
            part = net.part(trace, x, max(1, math.ceil(self.exact_fraction * len(x))))
            length = scale**2 * float(quadratic_forms(net, part, loss, [natural])[0, 0])
            bound = self.scheduled("kl_bound", step)
            if length > bound:
                factor = min(factor, math.sqrt(bound / length))
        return factor


def _integer(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} (={value!r}) must be an integer of at least {least}")
    return int(value)


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} (={value!r}) must be one of {choices}")
    return value
