"""What the optimizers hand on: keys of random numbers, defaults, names in messages."""

import inspect

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature.damping import factored_damping
from kfc_numba.optim.adaptation import Adaptation
from kfc_numba.optim.quadratic import quadratic_model
from kfc_numba.optim.update import Setting, bounded_scale, propose


class Keyed(kfc.Tanh):
    """Remembers what random numbers would be keyed by."""

    def __init__(self):
        self.keys = []

    def forward(self, arrays, inputs, context):
        self.keys.append((context.training, context.seed, context.step))
        return super().forward(arrays, inputs, context)


def batches(count):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(5, 3)), rng.normal(size=(5, 2))) for _ in range(count)]


def test_every_forward_pass_of_a_step_has_the_key_of_the_step():
    # With dropout the loss after a step is then that of the same units.
    layer, data = Keyed(), batches(3)
    net = kfc.Sequential([kfc.Dense(2), layer], input_shape=(3,), dtype=np.float64)
    optimizer = kfc.KFC(num_burnin_steps=2, max_loss_increase=1.0)
    state = optimizer.init(net)
    optimizer.prepare(net, kfc.SquaredError(), data[:2], state, seed=6)
    assert layer.keys == [(True, 6, 0), (True, 6, 1)]
    for step, batch in enumerate(data):
        layer.keys.clear()
        optimizer.step(net, kfc.SquaredError(), *batch, state, seed=6)
        # The step itself, a difference for the bound, the step tried.
        assert layer.keys == [(True, 6, step)] * 3


def test_the_seed_is_zero_if_none_is_given():
    found = []
    for key in ({}, {"seed": 0}, {"seed": 1}):
        net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
        optimizer = kfc.KFC(num_burnin_steps=1)
        state = optimizer.init(net)
        optimizer.prepare(net, kfc.SquaredError(), batches(1), state, **key)
        found.append(state["gamma/dense1"])
        for batch in batches(3):
            optimizer.step(net, kfc.SquaredError(), *batch, state, **key)
        found.append(net.params["dense1.weight"])
    for place in (0, 1):
        np.testing.assert_array_equal(found[place], found[2 + place])
        assert not np.array_equal(found[place], found[4 + place])


#: What `docs/experiments.md` and the README were measured with, where they say nothing else.
KFC_DEFAULTS = {
    "learning_rate": 0.1,
    "damping": None,
    "momentum": 0.8,
    "loss_bound": 2e-3,
    "kl_bound": None,
    "norm_constraint": None,
    "exact_examples": 64,
    "exact_period": None,
    "exact_by": "difference",
    "balance_layers": True,
    "curvature_examples": 256,
    "curvature_ema": 0.85,
    "curvature_update_period": 20,
    "inverse_update_period": 100,
    "period_growth": 0.2,
    "decomposition_lag": 0,
    "num_burnin_steps": 0,
    "estimation_mode": "fisher_gradients",
    "num_estimator_samples": 1,
    "kfac_approx": "expand",
    "structure": "kronecker",
    "damping_strategy": "pi",
    "inversion": "cholesky",
    "use_adaptive_learning_rate": False,
    "use_adaptive_momentum": False,
    "use_adaptive_damping": False,
    "adaptation": None,
    "max_loss_increase": None,
}


@pytest.mark.parametrize(
    ("optimizer", "defaults"),
    [
        (kfc.SGD, {"learning_rate": 0.03, "momentum": 0.9, "nesterov": False}),
        (kfc.Adam, {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}),
        (kfc.KFC, KFC_DEFAULTS),
    ],
)
def test_defaults(optimizer, defaults):
    found = {n: p.default for n, p in inspect.signature(optimizer).parameters.items()}
    decay = None if optimizer is kfc.KFC else 0.0
    assert found == defaults | {"l2_reg": 0.0, "weight_decay": decay, "averaging": 0.1}
    for name, value in found.items():
        assert getattr(optimizer(), name) == (Adaptation() if name == "adaptation" else value)
    assert optimizer().num_burnin_steps == 0
    assert optimizer(averaging=7.0).averaging == 7.0
    assert Adaptation().max_damping == 1e8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"curvature_update_period": 0}, ValueError, r"curvature_update_period \(=0\)"),
        ({"inverse_update_period": 0}, ValueError, r"inverse_update_period \(=0\)"),
        ({"num_burnin_steps": -1}, ValueError, r"num_burnin_steps \(=-1\)"),
        ({"num_estimator_samples": 0}, ValueError, r"^num_estimator_samples \(=0\)"),
        ({"estimation_mode": "x"}, ValueError, r"^estimation_mode \(='x'\)"),
        ({"kfac_approx": "x"}, ValueError, r"^kfac_approx \(='x'\)"),
        ({"damping_strategy": "x"}, ValueError, r"^damping_strategy \(='x'\)"),
        ({"use_adaptive_learning_rate": 2}, TypeError, r"^use_adaptive_learning_rate \(=2\)"),
        ({"use_adaptive_momentum": 2}, TypeError, r"^use_adaptive_momentum \(=2\)"),
        ({"use_adaptive_damping": 2}, TypeError, r"^use_adaptive_damping \(=2\)"),
        # These are no schedules.
        ({"exact_examples": lambda step: 32}, TypeError, r"^exact_examples \(=.* 1 or None"),
        ({"exact_examples": 0}, ValueError, r"^exact_examples \(=0\) must .* 1 or None"),
        ({"curvature_examples": 0.5}, TypeError, r"^curvature_examples \(=0.5\) .* 1 or None"),
        ({"max_loss_increase": lambda step: 0.5}, TypeError, r"^max_loss_increase \(="),
    ],
)
def test_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        kfc.KFC(**arguments)


def test_without_a_strategy_damping_has_factors_by_traces():
    omega, gamma = np.array([1.0, 3.0]), np.array([0.1, 0.2, 0.6])
    found = factored_damping(omega, gamma, 0.25)
    pi = np.sqrt(2.0 / 0.3)
    np.testing.assert_allclose(found, [pi / 2, 1 / (2 * pi)], rtol=1e-14)


def test_exact_damping_has_no_factors():
    with pytest.raises(ValueError, match=r"damping_strategy \(='exact'\) must be 'pi' or 'uni"):
        factored_damping(np.ones(3), np.ones(2), 0.1, "exact")


def test_thresholds_and_bounds_of_damping_must_differ():
    with pytest.raises(ValueError, match=r"min_damping \(=0.1\) must be below max_damping \(=0.1"):
        Adaptation(min_damping=0.1, max_damping=0.1)
    assert kfc.SGD(nesterov=True).nesterov
    with pytest.raises(TypeError, match=r"^nesterov \(=2\)"):
        kfc.SGD(nesterov=2)
    with pytest.raises(TypeError, match=r"^include_damping_in_quad_change \(=2\)"):
        Adaptation(include_damping_in_quad_change=2)


@pytest.mark.parametrize(
    "trouble",
    [lambda y: np.exp(y + 1e4), lambda y: 1 / (0 * y), lambda y: 0 * y / (0 * y)],
    ids=["overflow", "division by zero", "invalid value"],
)
def test_what_numpy_would_warn_of_in_a_layer_is_an_error_with_a_place(trouble):
    class Harsh(kfc.Tanh):
        def forward(self, arrays, inputs, context):
            outputs, saved = super().forward(arrays, inputs, context)
            return trouble(outputs), saved

    (batch,) = batches(1)
    net = kfc.Sequential([kfc.Dense(2), Harsh()], input_shape=(3,), dtype=np.float64)
    optimizer = kfc.KFC(num_burnin_steps=1)
    state = optimizer.init(net)
    with pytest.raises(FloatingPointError, match=r"^loss is .* in batch 0 of the burn-in"):
        optimizer.prepare(net, kfc.SquaredError(), [batch], state)
    with pytest.raises(FloatingPointError, match=r"^loss is .* at step 0"):
        optimizer.step(net, kfc.SquaredError(), *batch, state)


def test_a_schedule_of_the_penalty_enters_the_first_damping():
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
    optimizer = kfc.KFC(
        use_adaptive_damping=True, damping=0.1, l2_reg=lambda step: 0.3 / (1 + step)
    )
    state = optimizer.init(net)
    assert state["preconditioner_damping"] == pytest.approx(0.4)
    assert np.isnan(state["reduction_ratio"])


SCHEDULED = {
    kfc.SGD: {"learning_rate": 0.1, "momentum": 0.5, "l2_reg": 0.1},
    kfc.Adam: {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.5, "epsilon": 0.1, "l2_reg": 0.1},
    kfc.KFC: {
        "learning_rate": 0.1,
        "damping": 0.1,
        "momentum": 0.5,
        "loss_bound": 0.1,
        "kl_bound": 0.1,
        "norm_constraint": 0.1,
        "curvature_ema": 0.5,
        "l2_reg": 0.1,
    },
}


@pytest.mark.parametrize("kind", SCHEDULED, ids=lambda kind: kind.__name__)
def test_every_schedule_is_asked_for_the_number_of_the_step(kind):
    asked = {name: [] for name in SCHEDULED[kind]}

    def schedule(name, value):
        return lambda step: asked[name].append(step) or value

    schedules = {name: schedule(name, value) for name, value in SCHEDULED[kind].items()}
    more = {"max_loss_increase": 1.0, "structure": "ekfac"} if kind is kfc.KFC else {}
    optimizer = kind(**schedules, **more)
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
    state = optimizer.init(net)
    for step, batch in enumerate(batches(3)):
        optimizer.step(net, kfc.SquaredError(), *batch, state)
        for steps in asked.values():
            assert set(steps) == {step}
            steps.clear()


def test_lengths_that_are_not_finite_are_named():
    common = {"learning_rate": 0.1, "momentum": 0.0, "damping": 0.1, "l2_reg": 0.0, "model": False}
    common |= {"preconditioner_dampings": [0.1], "form_ratio": 0.0, "form_length": 0.0}
    common |= {"form_due": True, "fall": None}
    one = {"a": np.ones(2)}
    bound = Setting(**common, norm_constraint=0.1, kl_bound=None)
    with pytest.raises(FloatingPointError, match=r"^g\^T Fhat\^-1 g of the step is inf$"):
        bounded_scale(bound, {"a": np.array([np.inf, 1.0])}, one, lambda: 1.0)
    bound = Setting(**common, norm_constraint=None, kl_bound=0.1)
    with pytest.raises(FloatingPointError, match=r"^v\^T F v of the step is nan$"):
        bounded_scale(bound, one, one, lambda: np.nan)


def test_a_step_much_farther_by_the_approximation_has_its_form_computed():
    setting = Setting(
        learning_rate=1.0, momentum=0.0, damping=0.1, l2_reg=0.0, model=False, form_due=False,
        preconditioner_dampings=[0.1], form_ratio=3.0, form_length=4.0, norm_constraint=None,
        kl_bound=1e-3, fall=None,
    )  # fmt: skip
    found = []
    for length in (6.0, 6.1):
        gradients = {"a": np.array([length])}
        update = propose(
            None, lambda v, scale: 80.0, lambda gamma: {"a": np.ones(1)}, gradients,
            {"a": np.zeros(1)}, setting,
        )  # fmt: skip
        found.append((update.form_ratio, update.form_length))
        form = 80.0 if update.form_ratio else 3.0 * length
        assert update.learning_rate**2 * form == pytest.approx(1e-3)
    assert found == [(None, None), (80.0 / 6.1, 6.1)]


def test_no_step_is_to_lower_the_loss_by_more_than_all_of_it():
    common = {"momentum": 0.0, "damping": 0.1, "l2_reg": 0.0, "model": False, "form_due": True}
    common |= {"preconditioner_dampings": [0.1], "form_ratio": 0.0, "form_length": 0.0}
    gradients, natural = {"a": np.array([3.0])}, {"a": np.array([5.0])}  # u^T g = 15
    given = None, lambda v, scale: 1e-9, lambda gamma: natural, gradients, {"a": np.zeros(1)}
    for fall, bound, rate in (
        (0.3, 1.0, 0.02),
        (2.0, 1.0, 0.1),
        (None, 1.0, 0.1),
        (0.3, None, 0.1),
    ):
        setting = Setting(
            **common, learning_rate=0.1, norm_constraint=None, kl_bound=bound, fall=fall
        )
        update = propose(*given, setting)
        assert update.learning_rate == pytest.approx(rate, rel=1e-12)
        assert update.deltas["a"] == pytest.approx(-5 * rate)


def test_second_moments_are_those_of_the_targets_given():
    (x, y), loss = batches(1)[0], kfc.SquaredError()
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
    optimizer = kfc.KFC(structure="ekfac", estimation_mode="fisher_empirical", curvature_ema=0.0)
    curvature, trace = optimizer.curvature(net), net.forward(x)
    expected = curvature.compute(trace, loss, mode="fisher_empirical", targets=y)
    state = optimizer.init(net)
    optimizer.step(net, loss, x, y, state)
    for name, value in expected.items():
        np.testing.assert_allclose(state[name], value, rtol=1e-12, atol=1e-14)


def test_a_first_step_has_no_momentum_to_adapt(monkeypatch):
    (x, y), loss = batches(1)[0], kfc.SquaredError()
    usual, passes, found = kfc.Graph.tangent, [], []
    monkeypatch.setattr(kfc.Graph, "tangent", lambda *a: passes.append(1) or usual(*a))
    for adaptive in (False, True):
        net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
        before = net.params["dense1.weight"].copy()
        how = {"learning_rate": 0.5, "norm_constraint": 1e-3, "weight_decay": 0.0}
        optimizer = kfc.KFC(**how, use_adaptive_momentum=adaptive)
        optimizer.step(net, loss, x, y, optimizer.init(net))
        found.append(net.params["dense1.weight"] - before)
    assert len(passes) == 2  # one a step: of the gradient alone
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10)


@pytest.mark.parametrize("what", ["Fisher matrix", "squares", "slopes"])
def test_products_that_are_not_finite_are_named(what):
    bad = {"a": np.array([1.0, np.inf])}
    good = {"a": np.array([1.0, 0.0])}  # zero times infinity is not finite either
    fisher = np.full((1, 1), np.inf if what == "Fisher matrix" else 1.0)
    direction, gradient = bad if what == "squares" else good, bad if what == "slopes" else good
    with pytest.raises(FloatingPointError, match=f"^{what} of the quadratic model not finite"):
        quadratic_model(fisher, [direction], gradient, damping=0.1, l2_reg=0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_directions_are_parallel_within_rounding_of_their_dtype(dtype):
    vector = {"a": np.ones(2, dtype)}
    model = quadratic_model(np.ones((1, 1)), [vector], vector, damping=0.1, l2_reg=0.0)
    assert np.finfo(dtype).eps < model.rounding < 100 * np.finfo(dtype).eps
