"""KFC: natural gradient with a Kronecker-factored Fisher matrix."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kfc_numba.arrays import zeros_like
from kfc_numba.checks import check_choice, check_flag, check_integer
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.damping import DAMPING_STRATEGIES
from kfc_numba.curvature.factors import APPROXIMATIONS, ESTIMATION_MODES
from kfc_numba.curvature.structures import check_settings, check_structure, curvature_of
from kfc_numba.graph import Graph, Trace
from kfc_numba.layers.base import Arrays
from kfc_numba.losses import Loss
from kfc_numba.optim.adaptation import Adaptation, adaptation_from
from kfc_numba.optim.base import Batch, Optimizer, Scheduled, State, require_finite
from kfc_numba.optim.exact_forms import initial_ratio, known_ratio, next_ratio, pieces
from kfc_numba.optim.judge import initial_judgement, judge
from kfc_numba.optim.periods import is_due
from kfc_numba.optim.step_size import bound_by_loss, growing_momentum, next_loss
from kfc_numba.optim.update import Setting, propose
from kfc_numba.random import generator

#: Periods between decompositions grow by this many times as much as those between updates.
INVERSE_GROWTH = 20


class KFC(Optimizer):
    """KFC-pre, Algorithm 1 of Grosse and Martens (2016): natural gradient with momentum.

    At every step the gradient g (of the mean loss, with the l2 penalty) becomes
    ``v = -learning_rate * Fhat(damping)^-1 g``, Fhat the block-diagonal Kronecker-factored Fisher
    matrix; v is shortened to the bound; ``p = momentum * p + v`` is added to the parameters.
    Parameters of layers without Kronecker factors (batch normalisation) have a damped diagonal
    Fisher in place of the block.

    With `use_adaptive_learning_rate` and `use_adaptive_momentum` the step is instead that of the
    least ``M(delta)``, ``delta = learning_rate * D + momentum * p``, ``D = -Fhat(damping)^-1 g``
    and p the step before, where M is the quadratic model by the exact Fisher matrix plus damping
    and l2 penalty (Martens and Grosse, 2015, section 7); where only one of them is adaptive the
    other is as given. With `use_adaptive_damping` damping follows how well M predicts the loss.
    The model costs two tangent passes on `exact_fraction` of the batch, adaptive damping a
    forward pass at those steps that adapt it, and `max_loss_increase` one at every step.

    Parameters
    ----------
    learning_rate : float or callable of the step
        alpha, at least 0. Not used with `use_adaptive_learning_rate`.
    damping : float or callable of the step
        gamma, above 0, in units of the Fisher matrix (of the mean loss of one example). With
        `use_adaptive_damping` a number: lambda before the first step.
    momentum : float or callable of the step
        mu, from 0 to below 1. A number is reached gradually, ``min(mu, k / (k + 3))`` at step k:
        the first gradients, and the curvature of the first batches, are soon out of date. A
        callable is taken as it is. Not used with `use_adaptive_momentum`.
    loss_bound : float or callable of the step, optional
        b: v is shortened so that ``v^T F v <= min(b * M, 0.25) * loss``, M the number of examples
        of the batch, the loss a running average over about ten steps. Why it is so is said in
        `kfc_numba.optim.step_size`. None: no such bound.
    kl_bound : float or callable of the step, optional
        c: v is shortened so that ``v^T F v <= c`` (about twice the KL divergence between the
        predictions before and after), F the *exact* Fisher matrix on `exact_fraction` of the
        batch. None: no such bound. With `use_adaptive_learning_rate` it is the whole step that is
        shortened by either bound, momentum included.
    norm_constraint : float or callable of the step, optional
        Bound by the *approximate* Fisher matrix: ``learning_rate^2 * g^T Fhat(damping)^-1 g``
        is held to it in the same way. None: no bound. Not with `use_adaptive_learning_rate`.
    exact_fraction : float
        Part of the batch, from its beginning, that exact curvature is computed on; in (0, 1]. It
        has at least 64 examples, or all of the batch, and is doubled while its examples differ so
        much that the mean over them has a relative standard error above 0.2 (with batch
        normalisation it is all of the batch then). Fewer do not hold the bound on the whole batch:
        a few examples often have most of ``v^T F v`` (`benchmarks.bound` measures it).
    exact_period : int
        1: v^T F v is computed at every step. Otherwise it is computed up to this many steps apart
        where its ratio to ``v^T Fhat v`` has proved steady, and after each decomposition; in
        between the ratio is taken for what it was. Steps are then cheaper, and some of them are
        longer than twice the bound (`benchmarks.bound --exact-period` measures how many).
    curvature_ema : float or callable of the step
        Weight of the old value in the running averages of the factors, from 0 to below 1.
    curvature_update_period, inverse_update_period : int
        Steps between updates of the factors, and between their eigendecompositions, at most.
    period_growth : float
        Updates are done at each of the first steps, and then at periods that are this part of the
        steps done, until they have grown to `curvature_update_period`: curvature changes fastest
        at first. Periods between decompositions are 20 times this part. See
        `kfc_numba.optim.periods.is_due`. 0: the periods are constant.
    num_burnin_steps : int
        Number of batches, at the start, whose statistics are averaged with equal weights, whatever
        `curvature_ema` is. `Trainer.fit` takes them before the first step. Without it (in
        `Trainer.step`) they are those of the first steps: factors are then updated at each of
        these, and decomposed when the batches have doubled in number, so that all but the very
        first steps rest on several. 0: none but the first step's own.
    estimation_mode : {"fisher_gradients", "fisher_exact", "fisher_empirical"}
        See `kfc_numba.curvature.factors.output_derivatives`.
    num_estimator_samples : int
        Targets sampled for each example, with ``"fisher_gradients"``.
    kfac_approx : {"expand", "reduce"}
        How locations that share weights enter; see `kfc_numba.curvature.factors.scale`.
    structure : str or mapping of str to str
        ``"kronecker"``, ``"ekfac"``, ``"diagonal"`` or ``"full"`` for all layers, or for each layer
        that a mapping names; or ``"tridiagonal"`` for a stack of dense layers. See
        `kfc_numba.curvature.structures.curvature_of`.
    damping_strategy : {"pi", "exact", "uniform"}
        See `kfc_numba.curvature.damping.damped_eigenvalues`.
    use_adaptive_learning_rate, use_adaptive_momentum : bool
        Whether learning rate, or momentum, is that of the least quadratic model at each step.
    use_adaptive_damping : bool
        Whether damping follows the rule of Levenberg and Marquardt.
    adaptation : Adaptation or mapping of str to object, optional
        Settings of adaptive damping.
    max_loss_increase : float, optional
        A step is rejected after which the objective (loss and l2 penalty, on the batch of the
        step) is above what it was by more than this fraction of its size, or not finite: the
        parameters stay, momentum starts again from zero, and damping is raised if it is adaptive.
        At least 0; None: no step is rejected.
    l2_reg, averaging
        See `Optimizer`.

    Notes
    -----
    Besides factors and ``momentum/<name>``, the step before, the state has

    - with an adaptive learning rate or momentum, ``learning_rate`` and ``momentum``: the
      coefficients of the last step;
    - with adaptive damping, ``damping`` (lambda), ``preconditioner_damping`` (gamma, at first
      lambda + eta) and ``reduction_ratio`` (rho where it was last computed, NaN before, 0 where
      the model predicted no decrease);
    - with any of the three, ``model_change``: M(delta) - M(0) where it was last computed;
    - with `max_loss_increase`, ``rejected_steps``: their number;
    - with `loss_bound`, ``loss_average``; with a bound and `exact_period` above 1 ``form_ratio``,
      ``form_interval`` and ``form_age``, see `kfc_numba.optim.exact_forms`.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    intervals = Optimizer.intervals | {
        "learning_rate": "[0, inf)",
        "damping": "(0, inf)",
        "momentum": "[0, 1)",
        "loss_bound": "(0, inf)",
        "kl_bound": "(0, inf)",
        "norm_constraint": "(0, inf)",
        "exact_fraction": "(0, 1]",
        "curvature_ema": "[0, 1)",
        "period_growth": "[0, inf)",
        "max_loss_increase": "[0, inf)",
    }

    def __init__(
        self,
        *,
        learning_rate: Scheduled = 0.03,
        damping: Scheduled = 3e-4,
        momentum: Scheduled = 0.9,
        loss_bound: Scheduled | None = 1e-4,
        kl_bound: Scheduled | None = None,
        norm_constraint: Scheduled | None = None,
        exact_fraction: float = 0.125,
        exact_period: int = 1,
        curvature_ema: Scheduled = 0.85,
        curvature_update_period: int = 20,
        inverse_update_period: int = 100,
        period_growth: float = 0.1,
        num_burnin_steps: int = 0,
        estimation_mode: str = "fisher_gradients",
        num_estimator_samples: int = 1,
        kfac_approx: str = "expand",
        structure: str | Mapping[str, str] = "kronecker",
        damping_strategy: str = "pi",
        use_adaptive_learning_rate: bool = False,
        use_adaptive_momentum: bool = False,
        use_adaptive_damping: bool = False,
        adaptation: Adaptation | Mapping[str, Any] | None = None,
        max_loss_increase: float | None = None,
        l2_reg: Scheduled = 0.0,
        averaging: float | None = 0.1,
    ):
        super().__init__(l2_reg=l2_reg, averaging=averaging)
        self.learning_rate = self.check("learning_rate", learning_rate)
        self.damping = self.check("damping", damping)
        self.momentum = self.check("momentum", momentum)
        self.loss_bound = self.check("loss_bound", loss_bound, optional=True)
        self.kl_bound = self.check("kl_bound", kl_bound, optional=True)
        self.norm_constraint = self.check("norm_constraint", norm_constraint, optional=True)
        self.exact_fraction = self.check("exact_fraction", exact_fraction, schedule=False)
        self.exact_period = check_integer("exact_period", exact_period)
        self.curvature_ema = self.check("curvature_ema", curvature_ema)
        self.curvature_update_period = check_integer(
            "curvature_update_period", curvature_update_period
        )
        self.inverse_update_period = check_integer("inverse_update_period", inverse_update_period)
        self.period_growth = self.check("period_growth", period_growth, schedule=False)
        self.num_burnin_steps = check_integer("num_burnin_steps", num_burnin_steps, least=0)
        self.estimation_mode = check_choice("estimation_mode", estimation_mode, ESTIMATION_MODES)
        self.num_estimator_samples = check_integer("num_estimator_samples", num_estimator_samples)
        self.kfac_approx = check_choice("kfac_approx", kfac_approx, APPROXIMATIONS)
        self.structure = check_structure(structure)
        self.damping_strategy = check_choice(
            "damping_strategy", damping_strategy, DAMPING_STRATEGIES
        )
        check_settings(self.structure, self.kfac_approx, self.damping_strategy)
        if self.num_estimator_samples > 1 and self.estimation_mode != "fisher_gradients":
            raise ValueError(
                f"num_estimator_samples (={num_estimator_samples!r}) must be 1 with "
                f"estimation_mode {estimation_mode!r}, which samples no targets"
            )
        self.use_adaptive_learning_rate = check_flag(
            "use_adaptive_learning_rate", use_adaptive_learning_rate
        )
        self.use_adaptive_momentum = check_flag("use_adaptive_momentum", use_adaptive_momentum)
        self.use_adaptive_damping = check_flag("use_adaptive_damping", use_adaptive_damping)
        self.adaptation = adaptation_from(adaptation)
        self.max_loss_increase = self.check(
            "max_loss_increase", max_loss_increase, schedule=False, optional=True
        )
        if self.use_adaptive_learning_rate and self.norm_constraint is not None:
            raise ValueError(
                f"norm_constraint (={norm_constraint!r}) must be None with "
                "use_adaptive_learning_rate"
            )
        if not self.use_adaptive_damping and self.adaptation != Adaptation():
            raise ValueError(
                f"adaptation (={adaptation!r}) must be None without use_adaptive_damping"
            )
        if self.use_adaptive_damping:
            self.adaptation.check_first(self.damping)

    def config(self) -> dict[str, Any]:
        settings = {"adaptation": dataclasses.asdict(self.adaptation)}
        if isinstance(self.structure, dict):
            settings["structure"] = dict(self.structure)
        return super().config() | settings

    def initial_state(self, net: Graph) -> State:
        state = {f"momentum/{name}": zeros_like(value) for name, value in net.params.items()}
        state |= self.curvature(net).initial_state()
        state |= initial_judgement(self)
        if self.loss_bound is not None:
            state["loss_average"] = np.array(np.nan)
        if self._keeps_ratio:
            state |= initial_ratio()
        return state

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
        current = dict(state)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for index, (x, y) in enumerate(batches):
                trace = net.forward(x, training=True, seed=seed, step=index)
                value = loss.value(trace.outputs, y)
                if not math.isfinite(value):
                    raise FloatingPointError(f"loss is {value} in batch {index} of the burn-in")
                rng = generator(seed, "burn-in targets", index)
                new = self.curvature(net).estimate(trace, loss, current, **self._estimator(rng, y))
                require_finite("burn-in of ", new, index)
                current |= self._average(net, current, new, index)
        state.update(current)

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
        batches = int(state["factor_batches"])
        starting = batches < self.num_burnin_steps
        if self._update_due(step, batches):
            rng = generator(seed, "targets", step)
            new = curvature.estimate(trace, loss, state, **self._estimator(rng, y))
            changes = self._average(net, state, new, step)
            batches += 1
        decomposing = self._inverse_due(step, batches, starting)
        if decomposing:
            try:
                changes |= curvature.decompose({**state, **changes})
            except (FloatingPointError, np.linalg.LinAlgError) as error:
                raise type(error)(f"{error} at step {step}") from error
        current = {**state, **changes}
        if curvature.lacks_estimates(current):
            rng = generator(seed, "second moments", step)
            new = curvature.estimate_in_bases(trace, loss, current, **self._estimator(rng, y))
            changes |= self._average(net, current, new, step)
            current |= changes

        previous = {name: state[f"momentum/{name}"] for name in net.params}
        if self.loss_bound is not None:
            changes["loss_average"] = np.array(next_loss(float(state["loss_average"]), value))
            current |= changes
        setting = self._setting(current, step, len(x), decomposing)
        try:
            update = propose(
                net,
                loss,
                lambda: pieces(net, trace, x, self.exact_fraction),
                lambda gamma: curvature.precondition(
                    current, gradients, gamma, self.damping_strategy
                ),
                gradients,
                previous,
                setting,
            )
            deltas, more = judge(self, net, loss, x, y, value, update, state, step, seed)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} at step {step}") from error
        changes |= more
        if self._keeps_ratio and not setting.model:
            changes |= next_ratio(state, update.form_ratio, self.exact_period)
        changes |= {f"momentum/{name}": delta for name, delta in deltas.items()}
        return deltas, changes

    def _update_due(self, step: int, batches: int) -> bool:
        """Whether a step updates the factors, which rest on some batches so far."""
        if batches < max(self.num_burnin_steps, 1):
            return True
        # After burn-in the batch of the first step has been seen.
        return step > 0 and is_due(step, self.curvature_update_period, self.period_growth)

    def _inverse_due(self, step: int, batches: int, starting: bool) -> bool:
        """Whether a step decomposes the factors, which rest on some batches now.

        `starting` says that its own is one of those that burn-in asks for.
        """
        doubled = batches & (batches - 1) == 0 or batches == self.num_burnin_steps
        growth = INVERSE_GROWTH * self.period_growth
        due = is_due(step, self.inverse_update_period, growth)
        return due or (starting and doubled)

    @property
    def _keeps_ratio(self) -> bool:
        """Whether v^T F v is wanted, and not computed at every step."""
        bounded = self.kl_bound is not None or self.loss_bound is not None
        return bounded and self.exact_period > 1

    def momentum_at(self, step: int) -> float:
        """Momentum at a step, where it is not adaptive.

        Parameters
        ----------
        step : int

        Returns
        -------
        float
        """
        momentum = self.scheduled("momentum", step)
        return momentum if callable(self.momentum) else growing_momentum(momentum, step)

    def bound_at(self, state: Mapping[str, np.ndarray], step: int, examples: int) -> float | None:
        """Bound of v^T F v at a step, the smaller of `kl_bound` and `loss_bound`.

        Parameters
        ----------
        state : mapping of str to numpy.ndarray
            After the step: the loss of its batch is in the average.
        step : int
        examples : int
            Of the batch.

        Returns
        -------
        float or None
            None: there is no bound.
        """
        bounds = []
        if self.kl_bound is not None:
            bounds.append(self.scheduled("kl_bound", step))
        if self.loss_bound is not None:
            part, loss = self.scheduled("loss_bound", step), float(state["loss_average"])
            bounds.append(bound_by_loss(part, examples, loss))
        return min(bounds, default=None)

    def _setting(
        self, state: Mapping[str, np.ndarray], step: int, examples: int, decomposed: bool
    ) -> Setting:
        adapted = self.use_adaptive_learning_rate or self.use_adaptive_momentum
        l2_reg = self.scheduled("l2_reg", step)
        if self.use_adaptive_damping:
            damping = float(state["damping"])
            gammas = [damping + l2_reg]
            if self.adaptation.preconditioner_damping_interval is not None:
                gamma = float(state["preconditioner_damping"])
                gammas = self.adaptation.preconditioner_dampings(gamma, step)
            adapted |= len(gammas) > 1 or self.adaptation.damping_due(step)
        else:
            damping = self.scheduled("damping", step)
            gammas = [damping]
        return Setting(
            learning_rate=None
            if self.use_adaptive_learning_rate
            else self.scheduled("learning_rate", step),
            momentum=None if self.use_adaptive_momentum else self.momentum_at(step),
            damping=damping,
            l2_reg=l2_reg,
            preconditioner_dampings=gammas,
            kl_bound=self.bound_at(state, step, examples),
            norm_constraint=None
            if self.norm_constraint is None
            else self.scheduled("norm_constraint", step),
            form_ratio=known_ratio(state, decomposed) if self._keeps_ratio else None,
            model=adapted,
        )

    def _estimator(self, rng: np.random.Generator, targets: np.ndarray) -> dict[str, Any]:
        """Arguments of `BlockDiagonal.estimate`."""
        return {
            "mode": self.estimation_mode,
            "rng": rng,
            "targets": targets,
            "samples": self.num_estimator_samples,
        }

    def _average(
        self, net: Graph, state: Mapping[str, np.ndarray], new: Arrays, step: int
    ) -> dict[str, np.ndarray]:
        start = int(state["factor_batches"]) < self.num_burnin_steps
        ema = self.scheduled("curvature_ema", step)
        return self.curvature(net).average(state, new, ema, equal=start)
