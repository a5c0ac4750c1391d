"""KFC step by step against a reference in NumPy that shares no code with it (`kfc_reference`)."""

import numba
import numpy as np
import numpy_networks as nets
import pytest
from kfc_adaptive_reference import AdaptiveReference
from kfc_reference import DiagonalBlock, Reference

import kfc_numba as kfc

# Both sides compute in float64. What differs is rounding, times the condition of the damped
# blocks (up to 1e5 here), grown over 25 steps: below 1e-9 of each array's size.
RTOL = 1e-8
# Steps of the least quadratic model, with nothing to bound them, are quotients of small differences
# and double such errors from step to step: 1e-8 was seen after 21.
UNBOUNDED_RTOL = 1e-6
SEED = 11
STEPS = 25


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


def convolution():
    """Stride, padding, locations, a layer without bias; softmax."""
    layers = [
        kfc.Conv2d(2, 2, stride=(2, 1), padding=1),
        kfc.Tanh(),
        kfc.Flatten(),
        kfc.Dense(3, bias=False),
    ]
    same = [
        nets.Conv("conv1", (2, 1), 1),
        nets.Tanh(),
        nets.Flatten(),
        nets.Dense("dense1", bias=False),
    ]
    return layers, same, (3, 3, 2), kfc.SoftmaxCrossEntropy(), nets.Softmax()


def regression():
    layers = [kfc.Dense(3), kfc.Tanh(), kfc.Dense(2)]
    same = [nets.Dense("dense1"), nets.Tanh(), nets.Dense("dense2")]
    return layers, same, (4,), kfc.SquaredError(), nets.Squared()


def product():
    layers = [kfc.Dense(3), kfc.Dense(3), kfc.Dense(2)]
    same = [nets.Dense(name) for name in ("dense1", "dense2", "dense3")]
    return layers, same, (4,), kfc.SquaredError(), nets.Squared()


def bernoulli():
    layers, same, shape, *_ = regression()
    return layers, same, shape, kfc.SigmoidCrossEntropy(), nets.Bernoulli()


def normalised():
    layers = [
        kfc.Conv2d(2, 2, bias=False),
        kfc.BatchNorm(),
        kfc.Tanh(),
        kfc.Flatten(),
        kfc.Dense(3),
    ]
    same = [
        nets.Conv("conv1", (1, 1), 0, bias=False),
        nets.BatchNorm("norm1"),
        nets.Tanh(),
        nets.Flatten(),
        nets.Dense("dense1"),
    ]
    return layers, same, (3, 3, 2), kfc.SoftmaxCrossEntropy(), nets.Softmax()


def data(shape, loss, outputs, count):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(count, *shape)) + 0.3
    y = {
        "Softmax": rng.integers(0, outputs, count),
        "Squared": rng.normal(size=(count, outputs)),
        "Bernoulli": rng.integers(0, 3, (count, outputs)) / 2,
    }
    return x, y[type(loss).__name__]


def pair(network, count=20, kind=Reference, **settings):
    """The library's trainer and the reference, with the same parameters and data."""
    layers, same, shape, loss, same_loss = network()
    net = kfc.Sequential(layers, input_shape=shape, seed=3, dtype=np.float64)
    x, y = data(shape, same_loss, net.output_shape[0], count)
    other = kind(same, net.params, net.buffers, same_loss, SEED, settings)
    trainer = kfc.Trainer(net, loss, kfc.KFC(**settings), seed=SEED)
    return trainer, other, x, y


def assert_close(found, expected, what, rtol=RTOL):
    assert found.shape == np.shape(expected), what
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * size, err_msg=what)


def assert_same_path(trainer, other, x, y, batch_size=6, steps=STEPS, rtol=RTOL):
    """Both train; all that the library keeps is compared after each step."""
    references = other.fit(x, y, batch_size)
    compared, before = [], {}

    def compare(row):
        if row["step"] > 0:
            next(references)
            assert_same(trainer, other, before, f"step {row['step']}: ", rtol)
            compared.append(row["step"])
        before.update(trainer.optimizer_state)

    trainer.fit(
        x, y, batch_size=batch_size, max_steps=steps, evaluate_every=1, progress=False, stop=compare
    )
    assert compared == list(range(1, steps + 1))


def assert_same(trainer, other, before, where, rtol=RTOL):
    """Parameters, running statistics, the averages of both and the optimizer's state are equal."""
    net, state = trainer.net, trainer.optimizer_state
    for name, value in trainer.raw_params.items():
        assert_close(value, other.params[name], where + name, rtol)
    for name, value in trainer.raw_buffers.items():
        assert_close(value, other.buffers[name], where + name, rtol)
    found = trainer.optimizer.evaluation_arrays(net, state)
    for name, value in other.averages().items():
        assert_close(found[name], value, where + "average of " + name, rtol)
    for name, value in other.state().items():
        assert_close(state[name], value, where + name, rtol)
    for name, block in other.blocks.items():
        if not isinstance(block, DiagonalBlock):
            added = block.added(other.damping, "pi") if other.inverts else (None, None)
            sizes = [len(factor) for factor in block.decomposed]
            for kind, factor, more, others in zip(
                ("omega", "gamma"), block.decomposed, added, reversed(sizes), strict=True
            ):
                kept = f"{kind}_inverse/{name}" if other.inverts else f"{kind}_values/{name}"
                found = state[kept]
                if not other.inverts:
                    expected = np.linalg.eigvalsh(factor)
                elif other.stays_factor(len(factor), others):
                    found, expected = np.tril(found), np.linalg.cholesky(factor + more)
                else:
                    expected = np.linalg.inv(factor + more)
                assert_close(found, expected, where + kept, rtol)
                # Inversions cost: there is none in between.
                assert (state[kept] is not before[kept]) == other.refreshed, where + kept


def ramp(start, slope):
    """A schedule that is another number at each step."""
    return lambda step: start + slope * step


# Short periods that do not divide each other, so that stale factors and bases are both seen.
USUAL = {
    "learning_rate": 0.2,
    "damping": 0.05,
    "curvature_update_period": 2,
    "inverse_update_period": 3,
    "period_growth": 0.0,
    "num_burnin_steps": 3,
    "curvature_ema": 0.8,
    "loss_bound": None,
    "kl_bound": 0.3,
}


def test_the_backward_pass_of_the_reference_is_the_transpose_of_its_tangent():
    for network in (convolution, regression, normalised):
        _, other, x, _ = pair(network)
        rng = np.random.default_rng(0)
        direction = {name: rng.normal(size=value.shape) for name, value in other.params.items()}
        z, kept = nets.forward(other.layers, other.params, x)
        dz = rng.normal(size=z.shape)
        passed = nets.backward(other.layers, other.params, kept, dz)
        product = 0.0
        for layer in other.layers:
            if layer.names:
                gradients = layer.arrays(passed[layer.name][1].sum(axis=0), other.params)
                product += sum(np.sum(g * direction[name]) for name, g in gradients.items())
        expected = np.sum(dz * nets.tangent(other.layers, other.params, x, direction))
        assert product == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [nets.Softmax, nets.Squared, nets.Bernoulli])
def test_roots_and_derivatives_of_the_losses_of_the_reference(loss):
    z = np.array([0.3, -0.4, 0.8])
    fisher, root = loss().fisher(z), loss().root(z)
    np.testing.assert_allclose(root @ root.T, fisher, rtol=1e-12, atol=1e-15)
    # The Fisher matrix is the covariance of the derivative by sampled targets: by counting.
    targets = np.tile(z, (20000, 1))
    d = loss().derivative(targets, loss().sample(targets, np.random.default_rng(0)))
    np.testing.assert_allclose(d.T @ d / len(d), fisher, atol=0.03)


@pytest.mark.parametrize("network", [convolution, regression, bernoulli, normalised])
def test_defaults(network):
    assert_same_path(*pair(network))


@pytest.mark.parametrize("network", [convolution, regression, bernoulli, normalised])
def test_defaults_by_eigendecomposition(network):
    assert_same_path(*pair(network, inversion="eigen"))


@pytest.mark.parametrize("inversion", ["cholesky", "eigen"])
def test_a_schedule_of_damping(inversion):
    settings = USUAL | {"damping": ramp(0.02, 0.01)}
    assert_same_path(*pair(convolution, **settings, inversion=inversion))


@pytest.mark.parametrize("network", [convolution, regression, normalised])
def test_forms_by_tangents(network):
    assert_same_path(*pair(network, exact_by="tangent"))


@pytest.mark.parametrize("exact_by", ["difference", "tangent"])
def test_forms_that_are_not_computed_at_every_step(exact_by):
    bounds = {"loss_bound": None, "kl_bound": 0.05}
    trainer, other, x, y = pair(convolution, exact_period=8, exact_by=exact_by, **bounds)
    assert_same_path(trainer, other, x, y, batch_size=10)
    assert STEPS / 4 < len(other.exact_on) < STEPS - 3


def test_forms_are_computed_where_layers_are_balanced_anew():
    periods = {"period_growth": 0.0, "inverse_update_period": 50, "exact_period": 8}
    bound = {"loss_bound": None, "kl_bound": 1e-3}  # short steps, so that ratios are steady
    trainer, other, x, y = pair(convolution, count=30, **periods, **bound)
    assert_same_path(trainer, other, x, y, batch_size=30)
    assert len(other.exact_on) < STEPS / 2


@pytest.mark.parametrize("network", [convolution, regression, bernoulli, normalised])
def test_layers_that_are_balanced_by_some_of_the_examples(network):
    trainer, other, x, y = pair(network, count=120)
    assert_same_path(trainer, other, x, y, batch_size=50)
    scales = [v for name, v in trainer.optimizer_state.items() if name.startswith("layer_scale/")]
    assert min(scales) < 1 < max(scales)


@pytest.mark.parametrize("exact_by", ["difference", "tangent"])
@pytest.mark.parametrize(("count", "batch", "size"), [(20, 6, 1e5), (120, 80, 1e3)])
def test_steps_that_are_shortened_where_they_lead(count, batch, size, exact_by):
    """Layers without activations raise predictions by their product."""
    trainer, other, x, y = pair(product, count, exact_by=exact_by)
    # The first steps are those that are shortened; errors of rounding grow with each.
    assert_same_path(trainer, other, x, size * (y + 3), batch, steps=STEPS // 2)
    assert other.shorter


@pytest.mark.parametrize("network", [convolution, normalised])
def test_layers_as_the_approximation_has_them(network):
    trainer, other, x, y = pair(network, balance_layers=False)
    assert_same_path(trainer, other, x, y)
    assert not any(name.startswith("layer_") for name in trainer.optimizer_state)


@pytest.mark.parametrize("network", [convolution, regression, bernoulli, normalised])
@pytest.mark.parametrize("strategy", ["pi", "exact", "uniform"])
def test_networks_and_damping_strategies(network, strategy):
    assert_same_path(*pair(network, **USUAL, damping_strategy=strategy))


@pytest.mark.parametrize("structure", ["ekfac", "diagonal"])
@pytest.mark.parametrize("strategy", ["pi", "exact", "uniform"])
def test_structures(structure, strategy):
    assert_same_path(*pair(convolution, **USUAL, structure=structure, damping_strategy=strategy))


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "diagonal"])
@pytest.mark.parametrize(
    "how",
    [
        {"num_estimator_samples": 3},
        {"estimation_mode": "fisher_exact"},
        {"estimation_mode": "fisher_empirical"},
    ],
)
def test_estimation_modes(structure, how):
    assert_same_path(*pair(normalised, **USUAL, structure=structure, **how))


@pytest.mark.parametrize(("update", "inverse"), [(1, 1), (1, 4), (3, 2)])
def test_periods(update, inverse):
    periods = {"curvature_update_period": update, "inverse_update_period": inverse}
    assert_same_path(*pair(regression, **USUAL | periods))


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "diagonal"])
@pytest.mark.parametrize(("lag", "late"), [(1, {0, 1}), (2, {0, 2}), (9, {0, 4})])
def test_decompositions_that_come_late(structure, lag, late):
    """As late as they are asked for, or when the next one begins."""
    settings = USUAL | {"inverse_update_period": 4, "decomposition_lag": lag, "exact_period": 3}
    trainer, other, x, y = pair(normalised, **settings, structure=structure)
    assert_same_path(trainer, other, x, y)
    assert set(other.late) == late


@pytest.mark.parametrize("structure", ["kronecker", "ekfac"])
def test_decompositions_that_come_late_at_the_start(structure):
    """Burn-in in the first steps; periods that grow; several of them due within the lag."""
    settings = {"num_burnin_steps": 4, "decomposition_lag": 3, "structure": structure}
    settings |= {"period_growth": 0.02, "inverse_update_period": 6}
    trainer, other, x, y = pair(regression, **USUAL | settings)
    for step, batch in zip(range(STEPS), other.batches(x, y, 6), strict=False):
        other.step(*batch)
        before = dict(trainer.optimizer_state)
        trainer.step(*batch)
        assert_same(trainer, other, before, f"step {step + 1}: ")
    assert set(other.late) == {0, 1, 2, 3}


def test_reduce():
    assert_same_path(*pair(convolution, **USUAL, kfac_approx="reduce"))


SCHEDULED = USUAL | {
    "learning_rate": ramp(0.3, -0.01),
    "damping": ramp(0.02, 0.003),
    "momentum": ramp(0.5, 0.015),
    "curvature_ema": ramp(0.5, 0.015),
    "l2_reg": ramp(0.01, 0.002),
    "weight_decay": ramp(0.1, 0.01),
    "averaging": 7.0,
}


@pytest.mark.parametrize("network", [convolution, normalised])
@pytest.mark.parametrize(
    "bounds", [["kl_bound"], ["norm_constraint"], ["kl_bound", "norm_constraint"]]
)
def test_schedules_penalty_averaging_and_bounds(network, bounds):
    both = {"kl_bound": ramp(0.02, 0.0016), "norm_constraint": ramp(0.01, 0.0008)}
    settings = {name: bound if name in bounds else None for name, bound in both.items()}
    trainer, other, x, y = pair(network, **SCHEDULED | settings, exact_period=3)
    assert_same_path(trainer, other, x, y)
    # Each bound was in force at some steps, and none at others.
    assert set(other.shortened) == {"", *bounds}


@pytest.mark.parametrize("structure", ["kronecker", "ekfac"])
@pytest.mark.parametrize("burnin", [0, 1, 7])
def test_steps_without_burn_in_before_them(structure, burnin):
    settings = USUAL | {"num_burnin_steps": burnin, "structure": structure}
    # One batch alone makes factors of full rank here: EKFAC's eigenvectors are then unique.
    trainer, other, x, y = pair(regression, **settings)
    for step, batch in zip(range(STEPS), other.batches(x, y, 6), strict=False):
        other.step(*batch)
        before = dict(trainer.optimizer_state)
        trainer.step(*batch)
        assert_same(trainer, other, before, f"step {step + 1}: ")


@pytest.mark.parametrize("network", [convolution, normalised])
@pytest.mark.parametrize(("count", "wanted"), [(20, 7), (50, 48)])
def test_bound_on_part_of_the_batch(network, count, wanted):
    settings = USUAL | {"exact_examples": wanted, "kl_bound": 1e-3, "num_burnin_steps": 1}
    trainer, other, x, y = pair(network, count, **settings)
    assert_same_path(trainer, other, x, y, batch_size=count)
    assert "kl_bound" in other.shortened
    assert set(other.exact_on) == {count if network is normalised else wanted}


@pytest.mark.parametrize("network", [convolution, normalised])
@pytest.mark.parametrize("mode", ["fisher_gradients", "fisher_empirical"])
@pytest.mark.parametrize("structure", ["kronecker", "ekfac"])
@pytest.mark.parametrize("wanted", [24, 48])  # of which a convolution needs 32
def test_curvature_of_part_of_the_batch(network, mode, structure, wanted):
    # Enough for factors of full rank: EKFAC's eigenvectors are then unique.
    settings = {"curvature_examples": wanted, "estimation_mode": mode, "structure": structure}
    trainer, other, x, y = pair(network, 50, **USUAL | settings | {"num_burnin_steps": 2})
    assert_same_path(trainer, other, x, y, batch_size=50)


# The adaptive step.

ADAPTIVE = ["use_adaptive_learning_rate", "use_adaptive_momentum", "use_adaptive_damping"]
RULE = {"damping_adaptation_interval": 2, "preconditioner_damping_interval": 3}


def adaptive_pair(network, switches, **settings):
    settings = USUAL | {"exact_period": 1} | dict.fromkeys(switches, True) | settings
    return pair(network, kind=AdaptiveReference, **settings)


@pytest.mark.parametrize("network", [convolution, normalised])
@pytest.mark.parametrize(
    "switches", [ADAPTIVE, ADAPTIVE[:2], ADAPTIVE[:1], ADAPTIVE[1:2], ADAPTIVE[2:]]
)
@pytest.mark.parametrize("include", [True, False])
def test_adaptive_steps(network, switches, include):
    rule = RULE | {"include_damping_in_quad_change": include}
    rule = {"adaptation": rule} if "use_adaptive_damping" in switches else {}
    trainer, other, x, y = adaptive_pair(network, switches, l2_reg=ramp(0.01, 0.002), **rule)
    assert_same_path(trainer, other, x, y)


@pytest.mark.parametrize("network", [convolution, normalised, regression])
@pytest.mark.parametrize("switches", [[], ADAPTIVE[:1], ADAPTIVE[2:], ADAPTIVE])
@pytest.mark.parametrize(("bound", "limit"), [(None, 0.05), (0.02, 0.0)])
def test_steps_that_are_rejected_or_shortened(network, switches, bound, limit):
    settings = {"kl_bound": bound, "max_loss_increase": limit, "l2_reg": ramp(0.01, 0.002)}
    settings["weight_decay"] = ramp(0.1, 0.0)
    settings |= {"adaptation": RULE} if "use_adaptive_damping" in switches else {}
    if "use_adaptive_momentum" not in switches:
        settings["momentum"] = ramp(0.9, 0.0)  # from the first step, for steps that go too far
    trainer, other, x, y = adaptive_pair(network, switches, **settings)
    rtol = UNBOUNDED_RTOL if switches and bound is None else RTOL
    assert_same_path(trainer, other, x, y, rtol=rtol)
    assert other.rejected < STEPS / 2
    if len(switches) < 3 and bound is None:
        assert other.rejected > 0
    assert ("kl_bound" in other.shortened) == (bound is not None)


@pytest.mark.parametrize("switches", [ADAPTIVE[2:], ADAPTIVE[1:], ADAPTIVE])
def test_the_ratio_is_that_of_the_model_where_there_is_one(switches):
    trainer, other, x, y = adaptive_pair(
        convolution, switches, exact_period=4, kl_bound=0.02, adaptation=RULE
    )
    assert_same_path(trainer, other, x, y)
    assert "kl_bound" in other.shortened


def test_default_rules_of_damping():
    # 21 steps: gamma is tried at the twentieth.
    trainer, other, x, y = pair(
        regression, kind=AdaptiveReference, use_adaptive_damping=True, exact_period=1
    )
    assert_same_path(trainer, other, x, y, steps=21)
    assert other.tried[19] > 0


@pytest.mark.parametrize("interval", [None, 2])
def test_rules_of_damping(interval):
    rule = {
        "damping_adaptation_interval": 1,
        "damping_adaptation_decay": 0.8,
        "damping_lower_threshold": 0.7,
        "damping_upper_threshold": 0.9,
        "min_damping": 0.045,
        "max_damping": 0.08,
        "preconditioner_damping_interval": interval,
        "preconditioner_damping_decay": 0.9,
        "reject_damping_increase_factor": 1.7,
    }
    settings = {"kl_bound": None, "norm_constraint": 1.0, "max_loss_increase": 0.0}
    settings |= {"learning_rate": 1.0, "momentum": lambda step: min(0.8, step / (step + 3))}
    trainer, other, x, y = adaptive_pair(convolution, ADAPTIVE[2:], adaptation=rule, **settings)
    lambdas = []
    other.bounded, bounded = (
        lambda value: lambdas.append(bounded(value)) or lambdas[-1],
        other.bounded,
    )
    assert_same_path(trainer, other, x, y)
    # Damping was at both of its bounds, and between.
    assert {0.045, 0.08} < {round(float(value), 9) for value in lambdas}
    assert 0 < other.rejected < STEPS
    assert "norm_constraint" in other.shortened


def test_adaptive_steps_on_part_of_the_batch():
    settings = {"exact_examples": 9, "adaptation": RULE, "num_burnin_steps": 1}
    trainer, other, x, y = adaptive_pair(convolution, ADAPTIVE, count=20, **settings)
    assert_same_path(trainer, other, x, y, batch_size=20)
    assert set(other.exact_on) == {9}
