"""When things are done, how often exact curvature is computed, and how far a step goes."""

import math

import naive
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import eigen
from kfc_numba.curvature.fisher import quadratic_forms
from kfc_numba.optim import quadratic
from kfc_numba.optim.exact_forms import (
    form,
    form_due,
    initial_ratio,
    next_ratio,
    precise_forms,
)
from kfc_numba.optim.examples import sample_by_weight, spaced_part
from kfc_numba.optim.periods import is_due, steps_until
from kfc_numba.optim.setting import exact_examples_at, exact_period_at, keeps_ratio
from kfc_numba.optim.step_size import bound_by_loss, next_loss, what_can_fall
from kfc_numba.optim.update import ratio_of_forms


def times(until, period, growth):
    return [step for step in range(until) if is_due(step, period, growth)]


def test_periods_grow_to_the_largest():
    assert times(13, 3, 0) == [0, 3, 6, 9, 12]
    assert times(60, 6, 0.1) == [*range(20), *range(20, 30, 2), *range(30, 40, 3), 42, 46, 50, 55]
    assert times(500, 100, 2.0) == [0, 1, 3, 9, 27, 81, 181, 281, 381, 481]
    assert times(9, 4, 1.0) == [0, 1, 2, 4, 8]
    assert times(30, 10, 1e9) == [0, 1, 11, 21]
    assert times(5, 1, 0.1) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("period", "growth"), [(3, 0), (1, 0.1), (6, 0.1), (9, 0.03), (100, 2.0), (10, 1e9)]
)
def test_steps_until_the_next_time(period, growth):
    due = times(500, period, growth)
    for step in range(400):
        assert step + steps_until(step, period, growth) == min(t for t in due if t > step)


@pytest.mark.parametrize(
    ("exact", "approximate", "ratio"),
    [(3.0, 2.0, 1.5), (-1e-9, 2.0, 0), (1.0, 0.0, 0), (1.0, 5e-324, 0), (np.nan, 1.0, 0)],
)
def test_a_ratio_of_forms_is_above_zero_or_not_known(exact, approximate, ratio):
    """Rounding takes v^T F v below zero where predictions are sure; no checkpoint may hold that."""
    assert ratio_of_forms(exact, approximate) == ratio


def test_a_late_step_is_found_at_once():
    # A search from the beginning would take minutes.
    assert is_due(10**9, 20, 0.1) == is_due(10**9 + 20, 20, 0.1)
    for growth in (1e-9, 5e-324):
        assert steps_until(10**9, 20, growth) == 1


def ratio_after(computed, longest=8):
    """State after steps at which ratios were computed, or not (None)."""
    state = initial_ratio()
    for value in computed:
        state = state | next_ratio(state, value, 1.0, longest)
    return state


def test_a_steady_ratio_is_computed_less_and_less_often():
    state = initial_ratio()
    computed = []
    for step in range(40):
        due = form_due(state, refreshed=False)
        computed += [step] * due
        state = state | next_ratio(state, 5.0 if due else None, 1.0 + step, 8)
        assert state["form_ratio"] == 5.0
    assert computed == [0, 1, 3, 7, 15, 23, 31, 39]
    assert state["form_length"] == 40.0  # at the last of these


def test_a_ratio_that_moves_is_computed_at_every_step():
    state = ratio_after([1.0, 1.0, None, 1.0])
    assert state["form_interval"] == 4
    assert not form_due(state, refreshed=False)
    assert form_due(state, refreshed=True)
    state = state | next_ratio(state, 1.7, 1.0, 8)
    assert (state["form_interval"], state["form_ratio"], state["form_age"]) == (1, 1.7, 0)
    assert form_due(state, refreshed=False)
    # Down as well as up; nearer than that, the geometric mean.
    assert ratio_after([1.7, 1.0])["form_interval"] == 1
    assert ratio_after([1.0, 1.5])["form_ratio"] == pytest.approx(math.sqrt(1.5))
    assert ratio_after([1.0, 1.5], longest=1)["form_interval"] == 1


def test_a_ratio_of_zero_is_no_ratio():
    for computed in ([0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]):
        state = ratio_after(computed)
        assert state["form_interval"] == 1
        assert form_due(state, refreshed=False)


def test_bound_and_loss():
    assert bound_by_loss(1e-3, 50, 3.0) == pytest.approx(0.15)
    assert bound_by_loss(1e-3, 1000, 3.0) == pytest.approx(0.3)  # a tenth of the loss


@pytest.mark.parametrize("noisy", [False, True])
def test_the_average_of_the_loss(noisy):
    assert next_loss(math.nan, 4.0, noisy) == 4.0
    assert next_loss(3.0, 3.0, noisy) == pytest.approx(3.0)
    # (0.9 * 2 + 0.1 * 1)^2 of roots, or the mean
    assert next_loss(4.0, 1.0, noisy) == pytest.approx(3.7 if noisy else 3.61)
    assert next_loss(4.0, -1.0, noisy) == pytest.approx(3.5 if noisy else 2.89)
    with pytest.raises(ValueError, match="below zero"):
        next_loss(0.01, -1.0, noisy)


def test_a_loss_that_falls_fast_is_soon_the_average_of_large_batches():
    """To a thousandth in twenty steps: the mean is still a hundred times the loss."""
    losses = 4.0 * 1e-3 ** (np.arange(21) / 20)
    average, mean = math.nan, math.nan
    for value in losses:
        average = next_loss(average, value, noisy=False)
        mean = next_loss(mean, value, noisy=True)
    assert mean > 100 * losses[-1]
    assert average < 0.4 * mean


def test_what_no_outputs_take_away_does_not_count():
    loss, y = kfc.SigmoidCrossEntropy(), np.array([[0.5], [0.0]])
    half = math.log(2) / 2  # the entropy of the first, over two examples
    assert what_can_fall(loss, 1.0, y) == pytest.approx(1 - half)
    assert what_can_fall(loss, half - 1e-9, y) == 0  # rounding
    assert what_can_fall(kfc.SquaredError(), -1.0, y) == -1.0  # refused by `next_loss`


class Shifted(kfc.SquaredError):
    """A density of small variance has negative log-likelihoods below zero."""

    def value(self, outputs, targets):
        return super().value(outputs, targets) - 100.0

    def value_and_derivative(self, outputs, targets):
        value, derivative = super().value_and_derivative(outputs, targets)
        return value - 100.0, derivative


def test_a_loss_below_zero_needs_another_bound():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
    optimizer = kfc.KFC()
    state = optimizer.init(net)
    before = net.params["dense1.weight"].copy()
    with pytest.raises(ValueError, match="loss_bound must be None for a loss that can be below"):
        optimizer.step(net, Shifted(), x, y, state)
    np.testing.assert_array_equal(net.params["dense1.weight"], before)
    assert state["step"] == 0
    optimizer = kfc.KFC(loss_bound=None, kl_bound=0.1)
    optimizer.step(net, Shifted(), x, y, optimizer.init(net))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_steps_do_not_depend_on_the_unit_of_the_targets(scale):
    # Fisher matrix and damping stay; gradients, loss and bound follow the targets.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    moves = []
    for unit in (1.0, scale):
        net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
        net.params["dense1.weight"][:] = 0
        optimizer = kfc.KFC(estimation_mode="fisher_exact")
        state = optimizer.init(net)
        for _ in range(5):
            optimizer.step(net, kfc.SquaredError(), x, unit * y, state)
        moves.append(net.params["dense1.weight"] / unit)
    np.testing.assert_allclose(moves[1], moves[0], rtol=1e-9)


def test_averages_over_a_part_of_the_steps():
    # Weights by the definition: each step makes those before it count less, by its own timescale.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
    optimizer = kfc.SGD(learning_rate=0.1, averaging=0.25)
    state = optimizer.init(net)
    path, weights = [], np.zeros(0)
    for step in range(1, 13):
        optimizer.step(net, kfc.SquaredError(), x, y, state)
        path.append(net.params["dense1.weight"].copy())
        weights = np.append(weights * math.exp(-1 / max(1.0, 0.25 * step)), 1.0)
        expected = np.average(path, axis=0, weights=weights)
        found = optimizer.evaluation_arrays(net, state)["dense1.weight"]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_inner_products_of_numpy_are_not_by_blas(monkeypatch):
    # BLAS's threads spin after a call; a step without decompositions makes none.
    monkeypatch.setattr(quadratic, "array_namespace", None)
    one = {"a": np.arange(3.0), "b": np.ones((2, 2), np.float32)}
    other = {"a": np.ones(3), "b": np.full((2, 2), 2.0, np.float32)}
    assert quadratic.inner(one, other) == 11.0


@pytest.mark.parametrize("shape", [(2, 3), (4, 2, 3)])
def test_rotations_of_numpy_are_not_by_blas(monkeypatch, shape):
    rng = np.random.default_rng(0)
    matrix, left, right = (
        rng.normal(size=(*shape[:-2], *own)) for own in (shape[-2:], (2, 2), (3, 3))
    )
    expected = np.swapaxes(left, -1, -2) @ matrix @ right
    monkeypatch.setattr(eigen, "array_namespace", None)
    np.testing.assert_allclose(eigen.rotate(matrix, left, right), expected, rtol=1e-12)


@pytest.mark.parametrize(("examples", "period"), [(1, 1), (127, 1), (128, 4), (2048, 4)])
def test_large_batches_have_their_forms_computed_seldom(examples, period):
    assert exact_period_at(kfc.KFC(), examples) == period
    assert exact_period_at(kfc.KFC(exact_period=3), examples) == 3
    assert exact_period_at(kfc.KFC(use_adaptive_momentum=True), examples) == 1


@pytest.mark.parametrize(("examples", "wanted"), [(8, 64), (256, 64), (257, 65), (2048, 512)])
def test_of_large_batches_a_part_is_looked_at(examples, wanted):
    assert exact_examples_at(kfc.KFC(), examples) == wanted
    assert exact_examples_at(kfc.KFC(exact_examples=None), examples) is None


def test_when_a_ratio_is_kept():
    for settings in ({}, {"exact_period": 1}, {"use_adaptive_damping": True}):
        assert keeps_ratio(kfc.KFC(**settings))
    assert not keeps_ratio(kfc.KFC(loss_bound=None))


@pytest.mark.parametrize("period", [1, 8])
def test_a_gradient_of_zero_is_a_step_of_zero(period):
    # A fit without error: nothing to do, and nothing to divide by.
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
    net.params["dense1.weight"][:] = 0
    x, y = np.random.default_rng(0).normal(size=(6, 3)), np.zeros((6, 2))
    optimizer = kfc.KFC(exact_period=period)
    state = optimizer.init(net)
    for _ in range(5):
        assert optimizer.step(net, kfc.SquaredError(), x, y, state) == 0
    np.testing.assert_array_equal(net.params["dense1.weight"], 0)
    assert state.get("form_ratio", 0) == 0
    # It goes on from there.
    optimizer.step(net, kfc.SquaredError(), x, y + 1, state)
    assert net.params["dense1.bias"].min() > 0


class Looked(kfc.SoftmaxCrossEntropy):
    """A loss that notes how many examples curvature is computed on."""

    def __init__(self):
        self.on = []

    def fisher_product(self, outputs, v):
        self.on.append(len(outputs))
        return super().fisher_product(outputs, v)


def certain(count, open_ones):
    """Outputs whose last ones leave much open, and the others next to nothing."""
    z = np.zeros((count, 3))
    z[: count - open_ones, 0] = 20
    return z


@pytest.mark.parametrize(
    ("count", "open_ones", "wanted", "looked_at"),
    [(320, 20, 40, 40), (320, 20, 20, 20), (320, 200, 10, 10), (32, 1, 2, 2), (32, 1, 32, 32)],
)
@pytest.mark.parametrize("coupled", [False, True])
def test_examples_that_leave_most_open_are_looked_at(coupled, count, open_ones, wanted, looked_at):
    layers = [kfc.Dense(3), kfc.BatchNorm()] if coupled else [kfc.Dense(3)]
    net = kfc.Sequential(layers, input_shape=(3,), dtype=np.float64)
    x, loss = certain(count, open_ones), Looked()
    net.params["dense1.weight"][...] = np.eye(3)
    trace = net.forward(x, training=True)
    directions = [
        {n: np.random.default_rng(k).normal(size=v.shape) for n, v in net.params.items()}
        for k in range(2)
    ]
    found = precise_forms(net, trace, x, loss, directions, wanted)
    assert set(loss.on) == {count if coupled else looked_at}
    np.testing.assert_allclose(found, quadratic_forms(net, trace, loss, directions), rtol=1e-3)


def nonlinear(dtype, *layers):
    net = kfc.Sequential(
        [kfc.Dense(5), kfc.Tanh(), *layers, kfc.Dense(3)], input_shape=(4,), dtype=dtype, seed=0
    )
    rng = np.random.default_rng(0)
    direction = {n: rng.normal(size=v.shape).astype(dtype) for n, v in net.params.items()}
    return net, rng.normal(size=(40, 4)).astype(dtype), direction


@pytest.mark.parametrize("layers", [[], [kfc.BatchNorm()]], ids=["plain", "coupled"])
@pytest.mark.parametrize("kind", [kfc.SquaredError, kfc.SoftmaxCrossEntropy])
@pytest.mark.parametrize("wanted", [None, 12])
def test_a_form_by_a_difference(monkeypatch, layers, kind, wanted):
    net, x, direction = nonlinear(np.float64, *layers)
    trace, loss = net.forward(x, training=True), kind()
    exact = precise_forms(net, trace, x, loss, [direction], wanted)[0, 0]
    monkeypatch.setattr(kfc.Graph, "tangent", None)
    errors = [
        abs(form(net, trace, x, loss, direction, wanted, scale) / exact - 1)
        for scale in (1e-2, -1e-3, 1e-4)
    ]
    # Of the first order in the scale, and of no other size.
    assert 0 < errors[1] < 0.2 * errors[0]
    assert 0 < errors[2] < 0.2 * errors[1]
    assert errors[2] < 1e-3


def test_where_a_difference_says_nothing_a_tangent_does():
    net, x, direction = nonlinear(np.float32)
    trace, loss = net.forward(x), kfc.SquaredError()
    exact = precise_forms(net, trace, x, loss, [direction], 12)[0, 0]
    for over in (0.0, 1e-6):  # none wanted, lost in rounding
        assert form(net, trace, x, loss, direction, 12, over) == exact
    assert form(net, trace, x, loss, direction, 12, 1e-2) != exact
    with np.errstate(over="ignore", invalid="ignore"):
        assert form(net, trace, x, loss, direction, 12, 1e39) == np.inf


def test_a_difference_drops_the_units_that_were_dropped(monkeypatch):
    net, x, direction = nonlinear(np.float64, kfc.Dropout(0.5))
    trace, loss = net.forward(x, training=True, seed=3, step=2), kfc.SquaredError()
    exact = precise_forms(net, trace, x, loss, [direction], 12)[0, 0]
    monkeypatch.setattr(kfc.Graph, "tangent", None)
    found = form(net, trace, x, loss, direction, 12, 1e-5)
    assert found == pytest.approx(exact, rel=1e-3)
    other = net.forward(x, training=True, seed=3, step=3)
    assert abs(form(net, other, x, loss, direction, 12, 1e-5) / exact - 1) > 0.02


@pytest.mark.parametrize("kind", [kfc.SquaredError, kfc.SoftmaxCrossEntropy])
def test_each_example_counts_by_its_chance(kind):
    """Where all are alike it makes no difference which are looked at."""
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
    x = np.tile(np.random.default_rng(0).normal(size=3), (400, 1))
    trace, loss = net.forward(x), kind()
    direction = {n: np.random.default_rng(1).normal(size=v.shape) for n, v in net.params.items()}
    found = precise_forms(net, trace, x, loss, [direction], 7)
    np.testing.assert_allclose(found, quadratic_forms(net, trace, loss, [direction]), rtol=1e-12)


@pytest.mark.parametrize("wanted", [1, 2, 5, 19])
@pytest.mark.parametrize("kind", ["even", "skewed", "equal", "mostly zero", "steps"])
def test_a_sample_by_weight(kind, wanted):
    rng = np.random.default_rng(0)
    weights = {
        "even": rng.uniform(0.5, 1, 20),
        "skewed": rng.standard_cauchy(20) ** 2,
        "equal": np.ones(20),
        "mostly zero": rng.uniform(size=20) * (np.arange(20) % 4 == 1),
        "steps": 2.0 ** (np.arange(20) % 4),
    }[kind]
    chosen, factors = sample_by_weight(weights, wanted)
    expected = naive.sample_by_weight(weights, wanted)
    np.testing.assert_array_equal(np.sort(chosen), np.flatnonzero(expected))
    np.testing.assert_allclose(factors, expected[chosen], rtol=1e-12)
    assert len(chosen) == min(wanted, np.count_nonzero(weights))
    assert factors.min() >= 1 - 1e-12
    # Exact for what is in proportion to the weights.
    assert factors @ weights[chosen] == pytest.approx(weights.sum(), rel=1e-12)


def test_a_sample_by_weight_has_no_bias():
    """Values that come with any of the weights alike are counted as often as there are of them."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(1, 3, 12)
    sums = np.zeros(12)
    for _ in range(4000):
        order = rng.permutation(12)
        chosen, factors = sample_by_weight(weights[order], 5)
        np.testing.assert_allclose(factors @ weights[order][chosen], weights.sum())
        value = rng.permutation(12)
        sums[value[chosen]] += factors
    # A factor is about 12/5 with chance 5/12: its mean has a spread of 0.02.
    np.testing.assert_allclose(sums / 4000, 1, atol=0.1)


def test_examples_whose_trace_is_lost_in_rounding_count_alike():
    """In float32 the trace of a certain prediction comes out as zero, or below."""
    rng = np.random.default_rng(0)
    net = kfc.Sequential([kfc.Dense(4)], input_shape=(6,), seed=0)
    x = rng.normal(size=(512, 6)).astype(np.float32)
    net.params["dense1.weight"][:] = 60 * rng.normal(size=(6, 4))
    trace, loss = net.forward(x), kfc.SoftmaxCrossEntropy()
    assert loss.fisher_trace(trace.outputs).min() <= 0
    direction = {n: rng.normal(size=v.shape).astype(v.dtype) for n, v in net.params.items()}
    found = precise_forms(net, trace, x, loss, [direction], 64)
    expected = quadratic_forms(net, trace, loss, [direction])
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # of all that are open


def test_a_loss_without_columns_has_examples_that_count_alike():
    class Own(kfc.SquaredError):
        fisher_columns = kfc.Loss.fisher_columns
        fisher_trace = kfc.Loss.fisher_trace

    x, y = np.random.default_rng(0).normal(size=(2, 90, 3))
    net = kfc.Sequential([kfc.Dense(3)], input_shape=(3,), dtype=np.float64)
    np.testing.assert_array_equal(Own().fisher_trace(net.predict(x)), np.ones(90))
    trainer = kfc.Trainer(net, Own(), kfc.KFC())
    before = trainer.step(x, y)
    assert trainer.step(x, y) < before


@pytest.mark.parametrize(("count", "wanted"), [(10, 4), (511, 256), (300, 256), (12, 4)])
def test_a_spaced_part_is_of_the_whole_batch(count, wanted):
    net = kfc.Sequential([kfc.Dense(1)], input_shape=(1,), dtype=np.float64)
    x = np.arange(count, dtype=float)[:, None]
    part, y = spaced_part(net, net.forward(x), x, x, wanted)
    assert len(part.outputs) == len(y) == wanted
    np.testing.assert_array_equal(spaced_part(net, net.forward(x), x, x.tolist(), wanted)[1], y)
    gaps = np.diff(np.append(y[:, 0], count))
    assert y[0, 0] == 0
    assert set(gaps) <= {count // wanted, -(-count // wanted)}


def test_an_axis_that_was_added_changes_no_step():
    """NumPy gives a new axis a stride of zero, as has an array whose shape alone is kept."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=(100, 8, 8))
    found = []
    for x in (t[..., None], t[..., None].copy()):
        net = kfc.Sequential(
            [kfc.Conv2d(2, 3), kfc.Tanh(), kfc.Flatten(), kfc.Dense(1)],
            input_shape=(8, 8, 1),
            dtype=np.float64,
        )
        trainer = kfc.Trainer(net, kfc.SquaredError(), kfc.KFC(exact_examples=8, loss_bound=1e-6))
        for _ in range(3):
            trainer.step(x, t.mean(axis=(1, 2))[:, None])
        found.append(net.params)
    for name, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][name])


def test_the_least_model_along_a_direction_of_zero():
    model = quadratic.QuadraticModel(
        np.diag([2.0, 0.0]), np.diag([1.0, 0.0]), np.array([1.0, 0.0]), 0.0, 0.0, 1e-15
    )
    np.testing.assert_allclose(model.minimum([None, None]), [-0.5, 0.0], rtol=1e-14)


def test_small_gradients_have_a_ratio_too():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
    net.params["dense1.weight"][:] = 0
    optimizer = kfc.KFC(exact_period=8)
    state = optimizer.init(net)
    optimizer.step(net, kfc.SquaredError(), x, 1e-6 * y, state)
    assert state["form_ratio"] > 0
