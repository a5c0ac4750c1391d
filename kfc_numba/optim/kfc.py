"""KFC: natural gradient with a Kronecker-factored Fisher matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from kfc_numba.arrays import zeros_like
from kfc_numba.checks import check_choice, check_flag, check_integer
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.damping import DAMPING_STRATEGIES
from kfc_numba.curvature.factors import APPROXIMATIONS, ESTIMATION_MODES, check_samples
from kfc_numba.curvature.inverses import watch_products
from kfc_numba.curvature.structures import check_settings, check_structure, curvature_of
from kfc_numba.evaluation import finite_inputs
from kfc_numba.graph import Capture, Graph, Trace
from kfc_numba.layers.base import Arrays
from kfc_numba.losses import Loss
from kfc_numba.optim import restraint
from kfc_numba.optim.adaptation import Adaptation, adaptation_from, is_adaptive
from kfc_numba.optim.balance import balance_due, balanced, forms_by_layer, initial_balance
from kfc_numba.optim.base import Batch, Optimizer, Scheduled, State
from kfc_numba.optim.default_decay import decay_by_examples, spared
from kfc_numba.optim.exact_forms import EXACT_BY, initial_ratio, next_ratio, precise_forms
from kfc_numba.optim.examples import curvature_sample
from kfc_numba.optim.finite import require_finite
from kfc_numba.optim.judge import initial_judgement, is_rejected, judge
from kfc_numba.optim.lag import Lagged, check_lag, initial_lag
from kfc_numba.optim.momentum import initial_momentum, next_momentum, slope_along
from kfc_numba.optim.periods import inverse_due, update_due
from kfc_numba.optim.saturation import length
from kfc_numba.optim.setting import (
    INVERSIONS,
    bound_at,
    exact_examples_at,
    exact_period_at,
    inversion_of,
    inversion_setting,
    keeps_ratio,
    setting_of,
)
from kfc_numba.optim.step_size import is_by_noise, next_loss, what_can_fall
from kfc_numba.optim.update import propose
from kfc_numba.random import generator


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
    The model costs two tangent passes on part of the batch (`exact_examples`), adaptive damping a
    forward pass at those steps that adapt it, and `max_loss_increase` one at every step.

    Parameters
    ----------
    learning_rate : float or callable of the step
        How much of the natural gradient a step is, where no bound shortens it; usually 0.01 to 0.3.
    damping : float or callable of the step, optional
        What is added to the curvature: more makes steps shorter and more like those of SGD; usually
        1e-5 to 0.1. gamma, in units of the Fisher matrix (of the mean loss of one example). None:
        0.2 over the examples that the curvature has been estimated from, which are those of at most
        30 batches; see `kfc_numba.optim.default_damping`. With `use_adaptive_damping` it is lambda
        before the first step, a number; None is 2e-4 then.
    momentum : float or callable of the step
        Part of the step before that is repeated; usually 0.8 to 0.95. A number is reached
        gradually, as steps last from one batch to the next (`kfc_numba.optim.momentum`). A callable
        is taken as it is, but where steps do not last. Not used with `use_adaptive_momentum`.
    loss_bound : float or callable of the step, optional
        How far a step may change predictions, as a part of the loss for each example of the batch;
        usually 1e-4 to 1e-2. b: v is shortened so that ``v^T F v <= min(b * M, 0.1) * loss``, M
        the examples of the batch, the loss a running average over about ten steps, above
        `Loss.least` (`kfc_numba.optim.step_size`); unless something is adaptive it shrinks where
        steps do not last (`kfc_numba.optim.restraint`). None: no such bound.
    kl_bound : float or callable of the step, optional
        How far a step may change predictions, as about twice their KL divergence; usually 0.01 to
        1. c: v is shortened so that ``v^T F v <= c``, F the *exact* Fisher matrix. With
        `use_adaptive_learning_rate` both bounds are of the step with its momentum.
    norm_constraint : float or callable of the step, optional
        A bound by the approximate Fisher matrix in place of the exact one; usually 1e-3 to 0.1. It
        is of ``learning_rate^2 * g^T Fhat(damping)^-1 g``. Not with `use_adaptive_learning_rate`.
    exact_examples : int, optional
        Examples of the batch that exact curvature is computed on, for the bounds; usually 32 to
        128. A quarter of the batch where that is more. None: all, as always with batch
        normalisation. See `exact_forms.precise_forms`.
    exact_period : int, optional
        Most steps between two computations of ``v^T F v``, for the bounds; usually 1 to 10. They
        are apart where its ratio to ``v^T Fhat v`` has proved steady, which is then taken for what
        it was; never after an inversion, nor where the latter grew by half. None: 4 for batches of
        128 examples and more, unless something is adaptive, otherwise 1 (`benchmarks.bound`).
    exact_by : {"difference", "tangent"}
        How ``v^T F v`` of a bound is computed, where no model is: by a change of predictions or, at
        twice the cost, exactly (but over long steps). See `exact_forms.form`, `update.settled`.
    balance_layers : bool
        Whether each layer's part of v is made as long, by F, as Fhat takes it for, before a bound
        by F shortens v. Not where something is adaptive. See `kfc_numba.optim.balance`.
    curvature_examples : int, optional
        Examples of the batch that the curvature is updated from; usually 128 to 512. None: all, for
        all of it; see `kfc_numba.optim.examples.curvature_sample`.
    curvature_ema : float or callable of the step
        Weight of the old value in the running averages of the curvature; usually 0.8 to 0.99.
    curvature_update_period : int
        Most steps between updates of the curvature; usually 1 to 50.
    inverse_update_period : int
        Most steps between inversions of the curvature; usually 10 to 500.
    period_growth : float
        Periods grow to the two above as this part of the steps done, those between inversions as
        three times it, or 15 times where they are decompositions; usually 0.1 to 0.5. See
        `kfc_numba.optim.periods.is_due`. 0: constant.
    decomposition_lag : int
        Steps from an eigendecomposition to the first that uses it; usually 0 to 20. Above 0 the
        host computes it in a thread of its own while steps go on. See `kfc_numba.optim.lag`.
    num_burnin_steps : int
        Batches whose curvature is averaged, with equal weights, before the first step; usually 0 to
        50. Without `Trainer.fit` (in `Trainer.step`) they are those of the first steps: factors are
        then updated at each of these, and decomposed when the batches have doubled in number.
    estimation_mode : {"fisher_gradients", "fisher_exact", "fisher_empirical"}
        Whether curvature is of sampled targets, of all that are possible, or of those given. See
        `kfc_numba.curvature.factors.output_derivatives`.
    num_estimator_samples : int
        Targets sampled for each example, with fisher_gradients; usually 1 to 4.
    kfac_approx : {"expand", "reduce"}
        Whether locations that share weights count one by one, or as their sum. See
        `kfc_numba.curvature.factors.scale`.
    structure : str or mapping of str to str
        Curvature of a layer: kronecker, ekfac (closer, dearer), diagonal, full, or tridiagonal. The
        last is for a stack of dense layers; a mapping names layers. See
        `kfc_numba.curvature.structures.curvature_of`.
    damping_strategy : {"pi", "exact", "uniform"}
        How damping is divided between the two factors. See
        `kfc_numba.curvature.damping.damped_eigenvalues`.
    inversion : {"cholesky", "eigen"}
        How damped Kronecker factors are inverted. "cholesky": factor by factor, with the damping of
        that step, which holds until the next inversion; a fifth of the time. More than 1,024 inputs
        of a dense layer are divided into parts (`kfc_numba.curvature.parts`). "eigen": by
        eigendecomposition, which serves any damping; so they are also, whatever is given, with
        another `damping_strategy` than pi, adaptive damping, a `decomposition_lag`, and other
        structures than kronecker and diagonal. See `kfc_numba.curvature.inverses.InverseBlock`.
    use_adaptive_learning_rate, use_adaptive_momentum : bool
        Whether it is that of the least quadratic model, at each step.
    use_adaptive_damping : bool
        Whether damping follows the rule of Levenberg and Marquardt.
    adaptation : Adaptation or mapping of str to object, optional
        Settings of adaptive damping, for programs.
    max_loss_increase : float, optional
        Steps that raise the loss of their batch by more than this part are undone; usually 0.05 to
        1. Those after which it (with the l2 penalty) is not finite are, too: momentum then starts
        again from zero, and damping is raised if it is adaptive. None: no step is rejected.
    weight_decay : float or callable of the step, optional
        What each step takes away of all parameters; usually 1e-3 to 0.1. See `Optimizer`. None:
        4e-5 for each example of the batch, up to 2,048, at a learning rate of up to 0.1, where
        targets are classes and nothing is adaptive, but for layers that a normalisation follows,
        otherwise 0; see `kfc_numba.optim.default_decay`.
    l2_reg, averaging
        See `Optimizer`.

    Notes
    -----
    Besides factors and ``momentum/<name>``, the step before, the state has: if learning rate or
    momentum is adaptive, ``learning_rate`` and ``momentum`` of the last step; with adaptive
    damping, ``damping`` (lambda), ``preconditioner_damping`` (gamma, at first lambda + eta) and
    ``reduction_ratio`` (rho where it was last computed, NaN before, 0 where the model predicted no
    decrease); with any of the three ``model_change``, M(delta) - M(0) where it was last computed;
    with `max_loss_increase` ``rejected_steps``, with `loss_bound` ``loss_average``; and what
    `kfc_numba.optim.momentum`, `exact_forms`, `restraint`, `balance` and `lag` keep.

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
        "curvature_ema": "[0, 1)",
        "period_growth": "[0, inf)",
        "max_loss_increase": "[0, inf)",
    }

    def __init__(
        self,
        *,
        learning_rate: Scheduled = 0.1,
        damping: Scheduled | None = None,
        momentum: Scheduled = 0.8,
        loss_bound: Scheduled | None = 2e-3,
        kl_bound: Scheduled | None = None,
        norm_constraint: Scheduled | None = None,
        exact_examples: int | None = 64,
        exact_period: int | None = None,
        exact_by: str = "difference",
        balance_layers: bool = True,
        curvature_examples: int | None = 256,
        curvature_ema: Scheduled = 0.85,
        curvature_update_period: int = 20,
        inverse_update_period: int = 100,
        period_growth: float = 0.2,
        decomposition_lag: int = 0,
        num_burnin_steps: int = 0,
        estimation_mode: str = "fisher_gradients",
        num_estimator_samples: int = 1,
        kfac_approx: str = "expand",
        structure: str | Mapping[str, str] = "kronecker",
        damping_strategy: str = "pi",
        inversion: str = "cholesky",
        use_adaptive_learning_rate: bool = False,
        use_adaptive_momentum: bool = False,
        use_adaptive_damping: bool = False,
        adaptation: Adaptation | Mapping[str, Any] | None = None,
        max_loss_increase: float | None = None,
        l2_reg: Scheduled = 0.0,
        weight_decay: Scheduled | None = None,
        averaging: float | None = 0.1,
    ):
        super().__init__(l2_reg=l2_reg, averaging=averaging)
        self.weight_decay = self.check("weight_decay", weight_decay, optional=True)
        self.learning_rate = self.check("learning_rate", learning_rate)
        self.damping = self.check("damping", damping, optional=True)
        self.momentum = self.check("momentum", momentum)
        self.loss_bound = self.check("loss_bound", loss_bound, optional=True)
        self.kl_bound = self.check("kl_bound", kl_bound, optional=True)
        self.norm_constraint = self.check("norm_constraint", norm_constraint, optional=True)
        self.exact_examples = check_integer("exact_examples", exact_examples, optional=True)
        self.exact_period = check_integer("exact_period", exact_period, optional=True)
        self.exact_by = check_choice("exact_by", exact_by, EXACT_BY)
        self.balance_layers = check_flag("balance_layers", balance_layers)
        self.curvature_examples = check_integer(
            "curvature_examples", curvature_examples, optional=True
        )
        self.curvature_ema = self.check("curvature_ema", curvature_ema)
        self.curvature_update_period = check_integer(
            "curvature_update_period", curvature_update_period
        )
        self.inverse_update_period = check_integer("inverse_update_period", inverse_update_period)
        self.period_growth = self.check("period_growth", period_growth, schedule=False)
        self.decomposition_lag = check_lag(decomposition_lag, structure)
        self._lagged = Lagged()
        self.num_burnin_steps = check_integer("num_burnin_steps", num_burnin_steps, least=0)
        self.estimation_mode = check_choice("estimation_mode", estimation_mode, ESTIMATION_MODES)
        self.num_estimator_samples = check_integer("num_estimator_samples", num_estimator_samples)
        self.kfac_approx = check_choice("kfac_approx", kfac_approx, APPROXIMATIONS)
        self.structure = check_structure(structure)
        self.damping_strategy = check_choice(
            "damping_strategy", damping_strategy, DAMPING_STRATEGIES
        )
        self.inversion = check_choice("inversion", inversion, INVERSIONS)
        check_settings(self.structure, self.kfac_approx, self.damping_strategy)
        check_samples(self.estimation_mode, self.num_estimator_samples)
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
            self.adaptation.first(self.damping)

    def config(self) -> dict[str, Any]:
        settings = {"adaptation": dataclasses.asdict(self.adaptation)}
        if isinstance(self.structure, dict):
            settings["structure"] = dict(self.structure)
        return super().config() | settings

    def initial_state(self, net: Graph) -> State:
        state = {f"momentum/{name}": zeros_like(value) for name, value in net.params.items()}
        state |= self.curvature(net).initial_state()
        if self.decomposition_lag:
            state |= initial_lag(self.curvature(net), state)
        state |= initial_judgement(self)
        if self.loss_bound is not None:
            state["loss_average"] = np.array(np.nan)
        state |= initial_momentum(self) | restraint.initial_restraint(self)
        state |= initial_balance(self, net)
        if keeps_ratio(self):
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
        inverses = inversion_of(self) == "cholesky"
        return curvature_of(net, self.structure, self.kfac_approx, inverses=inverses)

    def prepare(
        self, net: Graph, loss: Loss, batches: Iterable[Batch], state: State, *, seed: int = 0
    ) -> None:
        current = dict(state)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for index, (given, y) in enumerate(batches):
                x = finite_inputs(net, given, "x", f"batch {index} of the burn-in")
                trace = net.forward(x, training=True, seed=seed, step=index)
                value = loss.value(trace.outputs, y)
                if not np.isfinite(value):
                    raise FloatingPointError(f"loss is {value} in batch {index} of the burn-in")
                rng = generator(seed, "burn-in targets", index)
                part, how = self._sample(net, trace, x, y, rng)
                new = self.curvature(net).estimate(part, loss, current, **how)
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
        burnin, growth = self.num_burnin_steps, self.period_growth
        starting = batches < burnin
        if update_due(step, batches, burnin, self.curvature_update_period, growth):
            part, how = self._sample(net, trace, x, y, generator(seed, "targets", step))
            new = curvature.estimate(part, loss, state, **how)
            changes = self._average(net, state, new, step)
            batches += 1
        inversion, period = inversion_of(self), self.inverse_update_period
        due = inverse_due(step, batches, starting, burnin, period, growth, inversion)
        if due and inversion == "cholesky":
            changes |= inversion_setting(self, net, len(x), step, batches)
        try:
            new, renewed = self._lagged.refresh(
                curvature, {**state, **changes}, step, due, self.decomposition_lag
            )
        except (FloatingPointError, np.linalg.LinAlgError) as error:
            raise type(error)(f"{error} at step {step}") from error
        changes |= new
        current = {**state, **changes}
        if curvature.lacks_estimates(current):
            part, how = self._sample(net, trace, x, y, generator(seed, "second moments", step))
            new = curvature.estimate_in_bases(part, loss, current, **how)
            changes |= self._average(net, current, new, step)
            current |= changes

        previous = {name: state[f"momentum/{name}"] for name in net.params}
        if self.loss_bound is not None:
            noisy = is_by_noise(self.scheduled("loss_bound", step), len(x))
            fall = what_can_fall(loss, value, y)
            average = next_loss(float(state["loss_average"]), fall, noisy)
            changes["loss_average"] = np.array(average)
            current |= changes
        slope = slope_along(self, gradients, previous, step)
        bound = bound_at(self, current, step, len(x))
        changes |= next_momentum(self, state, slope, bound, step, len(x))
        current |= changes
        rise = restraint.rise_by_momentum(self, loss, current, slope, bound, step, len(x))
        changes |= restraint.next_restraint(self, current, rise)
        renewed |= (measured := balance_due(self, step))
        setting = setting_of(self, net, current | changes, step, len(x), renewed, rise)
        exact, by_difference = exact_examples_at(self, len(x)), self.exact_by == "difference"
        batch = (net, trace, x, loss)
        how = {"strategy": self.damping_strategy, "outer": trace.outer}
        natural = partial(curvature.precondition, current, gradients, **how)
        layers = partial(forms_by_layer, *batch, seed=seed, step=step) if measured else None
        try:
            update = propose(
                partial(precise_forms, *batch, wanted=exact),
                length(net, trace, x, y, loss, value, setting, exact, by_difference),
                balanced(natural, layers, net, gradients, state, changes),
                gradients,
                previous,
                setting,
            )
            deltas, more = judge(self, net, loss, x, y, value, update, state, step, seed)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} at step {step}") from error
        changes |= more
        if keeps_ratio(self):
            period = exact_period_at(self, len(x))
            changes |= next_ratio(state, update.form_ratio, update.form_length, period)
        changes |= {f"momentum/{name}": delta for name, delta in deltas.items()}
        return deltas, changes

    def decay(
        self, net: Graph, loss: Loss, state: Arrays, changes: Arrays, step: int, examples: int
    ) -> dict[str, float]:
        if is_rejected(state, changes):
            return {}
        if self.weight_decay is not None:
            return super().decay(net, loss, state, changes, step, examples)
        if not loss.of_classes or is_adaptive(self):
            return {}
        part = decay_by_examples(examples, self.scheduled("learning_rate", step))
        return dict.fromkeys(net.params.keys() - spared(net), part)

    def watch(self, trace: Trace, step: int) -> Capture | None:
        # With a penalty the gradient is more than these products.
        by_products = inversion_of(self) == "cholesky" and not self.scheduled("l2_reg", step)
        return watch_products(trace) if by_products else None

    def _sample(
        self, net: Graph, trace: Trace, x: np.ndarray, y: np.ndarray, rng: np.random.Generator
    ) -> tuple[Trace, dict[str, Any]]:
        """Examples that the curvature is estimated from, and how: arguments of `estimate`."""
        part, how = curvature_sample(self.curvature(net), trace, x, y, self.curvature_examples)
        mode, samples = self.estimation_mode, self.num_estimator_samples
        return part, how | {"mode": mode, "rng": rng, "samples": samples}

    def _average(
        self, net: Graph, state: Mapping[str, np.ndarray], new: Arrays, step: int
    ) -> dict[str, np.ndarray]:
        start = int(state["factor_batches"]) < self.num_burnin_steps
        ema = self.scheduled("curvature_ema", step)
        return self.curvature(net).average(state, new, ema, equal=start)
