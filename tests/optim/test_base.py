"""What the optimizers share: one checked step, all or nothing, and the average."""

import inspect
import json
import math

import numpy as np
import plain
import pytest

from kfc_numba.losses import SquaredError
from kfc_numba.optim import KFC, SGD, Adam, CosineDecay, Optimizer
from kfc_numba.optim.adaptation import Adaptation, reduction_ratio


class Fixed(Optimizer):
    """Moves by given deltas and writes given entries of the state."""

    def __init__(self, delta=0.0, change=0.0, **arguments):
        super().__init__(**arguments)
        self._delta, self._change = delta, change

    def initial_state(self, net):
        return {"kept": np.zeros(2)}

    def delta(self, net, loss, trace, x, y, value, gradients, state, step, seed):
        deltas = {name: np.full(3, self._delta) for name in gradients}
        return deltas, {"kept": state["kept"] + self._change}


class BadGradient(plain.Scale):
    def backward(self, arrays, saved, dy, context, **needs):
        dinputs, grads = super().backward(arrays, saved, dy, context, **needs)
        return dinputs, grads | {"bias": np.full(3, np.inf)}


class BadStatistic(plain.Scale):
    def update_buffers(self, arrays, saved):
        return {"mean": np.full(3, np.nan)}


def bad_batch(step):
    x, t = plain.batch(step)
    x[1, 1] = 1e300  # its square is infinite
    return x, t


@pytest.mark.parametrize(
    ("optimizer", "layer", "batch", "message"),
    [
        (SGD(averaging=3), None, bad_batch, "loss is .* at step 2"),
        (Adam(), BadGradient(), plain.batch, "gradient of scale1.bias is not finite at step 2"),
        (Fixed(delta=np.inf), None, plain.batch, "update of scale1.weight is not finite at st"),
        (Fixed(change=np.nan), None, plain.batch, "optimizer state kept is not finite at step"),
        (
            SGD(),
            BadStatistic(),
            plain.batch,
            "running statistic scale1.mean is .* at step 2",
        ),
    ],
)
def test_what_is_not_finite_is_named_and_nothing_changes(optimizer, layer, batch, message):
    net, good = plain.network(), SGD(averaging=3)
    state = optimizer.init(net) | good.init(net)
    for step in range(2):
        good.step(net, SquaredError(), *plain.batch(step), state)
    bad = plain.network(layer=layer)
    bad.params, bad.buffers = net.params, net.buffers
    assert_refused(optimizer, bad, *batch(2), state, message)


def test_an_update_that_overflows_is_not_made():
    net, optimizer = plain.network(), Fixed(delta=1e308)
    net.params["scale1.weight"][:] = 1e308
    x, t = plain.batch(0)
    message = "update of scale1.weight is not finite at step 0"
    assert_refused(optimizer, net, 0 * x, t, optimizer.init(net), message)


def assert_refused(optimizer, net, x, t, state, message):
    arrays = {**net.params, **net.buffers, **state}
    before = {name: value.copy() for name, value in arrays.items()}
    with pytest.raises(FloatingPointError, match=message):
        optimizer.step(net, SquaredError(), x, t, state)
    after = {**net.params, **net.buffers, **state}
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert value is arrays[name]
        np.testing.assert_array_equal(value, before[name])


def test_step_returns_the_loss_before_it_and_commits_the_statistics():
    net, optimizer = plain.network(), SGD(learning_rate=0.1, l2_reg=5.0)
    state = optimizer.init(net)
    x, t = plain.batch(0)
    weights = net.params["scale1.weight"]
    expected = 0.5 * np.square(net.predict(x) - t).sum(axis=1).mean()
    assert optimizer.step(net, SquaredError(), x, t, state) == pytest.approx(expected, rel=1e-14)
    assert net.params["scale1.weight"] is weights
    np.testing.assert_allclose(net.buffers["scale1.mean"], x.mean(axis=0) / 2, rtol=1e-14)
    assert state["step"] == 1
    assert state["step"].dtype == np.int64


def test_layers_get_the_key_of_the_step_for_their_random_numbers():
    class Keyed(plain.Scale):
        def forward(self, arrays, inputs, context):
            keys.append((context.training, context.seed, context.step))
            return super().forward(arrays, inputs, context)

    keys, net, optimizer = [], plain.network(layer=Keyed()), SGD()
    state = optimizer.init(net)
    for step in range(3):
        optimizer.step(net, SquaredError(), *plain.batch(step), state, seed=8)
    assert keys == [(True, 8, 0), (True, 8, 1), (True, 8, 2)]


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_evaluation_uses_the_average_where_it_is_on(kind):
    net, optimizer = plain.network(np.float32), kind(averaging=4.0)
    state = optimizer.init(net)
    held = net.params | net.buffers
    for name, value in optimizer.evaluation_arrays(net, state).items():
        np.testing.assert_array_equal(value, held[name])
    path = []
    for step in range(9):
        optimizer.step(net, SquaredError(), *plain.batch(step, np.float32), state)
        held = net.params | net.buffers
        path.append({name: value.astype(np.float64) for name, value in held.items()})
    weights = [math.exp(-(9 - i) / 4.0) for i in range(1, 10)]
    found = optimizer.evaluation_arrays(net, state)
    assert list(found) == [*net.params, "scale1.mean"]
    for name, value in found.items():
        expected = sum(w * p[name] for w, p in zip(weights, path, strict=True)) / sum(weights)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert np.abs(value - held[name]).max() > 1e-4  # the last ones are others
    off = kind()
    assert off.evaluation_arrays(net, off.init(net)) == net.params | net.buffers


def test_the_average_does_not_act_on_training():
    for one, other in zip(plain.trained(SGD(averaging=2), 5), plain.trained(SGD(), 5), strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (lambda step: 1 - step, ValueError, r"learning_rate at step 2 \(=-1\) must be a number in"),
        (lambda step: [1.0][step:], TypeError, r"learning_rate at step 0 \(=\[1.0\]\) must be a n"),
    ],
)
def test_values_of_schedules_are_checked_when_used(schedule, error, message):
    with pytest.raises(error, match=message):
        plain.trained(SGD(learning_rate=schedule), 5)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array(0.5), 0.5])
def test_numpy_numbers_become_numbers(value):
    optimizer = SGD(learning_rate=value)
    assert type(optimizer.learning_rate) is float
    assert optimizer.scheduled("learning_rate", 0) == 0.5
    assert SGD(learning_rate=lambda step: value).scheduled("learning_rate", 3) == 0.5


def test_config_goes_through_json():
    optimizer = Adam(learning_rate=CosineDecay(initial=0.1, steps=5), averaging=10)
    config = json.loads(json.dumps(optimizer.config()))
    assert config == {
        "optimizer": "Adam",
        "learning_rate": "CosineDecay(initial=0.1, final=0.0, steps=5)",
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "l2_reg": 0.0,
        "weight_decay": 0.0,
        "averaging": 10,
    }
    assert eval(repr(optimizer)).config() == optimizer.config()


@pytest.mark.parametrize(
    "written",
    [
        *(
            "KFC()",
            "SGD()",
            "Adam()",
            "KFC(structure='ekfac')",
            "KFC(structure={'dense1': 'full'})",
        ),
        "KFC(learning_rate=CosineDecay(initial=0.1, final=0.0, steps=5), damping=0.1, l2_reg=0.01)",
        "KFC(loss_bound=None, use_adaptive_damping=True, averaging=None)",
        "KFC(use_adaptive_damping=True, adaptation=Adaptation(min_damping=0.0001))",
        "SGD(learning_rate=0.5, nesterov=True)",
        "Adaptation()",
        "Adaptation(damping_adaptation_interval=2, preconditioner_damping_interval=None)",
    ],
)
def test_repr_has_what_is_not_the_default_in_the_order_of_the_arguments(written):
    found = eval(written)
    assert repr(found) == written
    if not isinstance(found, Adaptation):
        assert len(found.config()) == 1 + len(inspect.signature(type(found)).parameters)


def test_repr_of_an_optimizer_that_needs_arguments_has_them_all():
    class Needy(SGD):
        def __init__(self, *, rate, momentum=0.5):
            super().__init__(learning_rate=rate, momentum=momentum)
            self.rate = rate

    shared = "l2_reg=0.0, weight_decay=0.0, averaging=0.1"
    own = f"rate=0.1, momentum=0.5, {shared}, learning_rate=0.1, nesterov=False"
    assert repr(Needy(rate=0.1)) == f"Needy({own})"


ADAPTIVE = KFC(use_adaptive_learning_rate=True, use_adaptive_momentum=True, max_loss_increase=0.1)


@pytest.mark.parametrize(
    ("optimizer", "counts"),
    [
        (SGD(), {"step"}),
        (Adam(), {"step"}),
        (KFC(), {"step", "factor_batches", "form_age"}),
        (KFC(loss_bound=None), {"step", "factor_batches"}),
        (ADAPTIVE, {"step", "factor_batches", "form_age", "rejected_steps"}),
    ],
    ids=["SGD", "Adam", "KFC", "KFC without a ratio", "adaptive KFC"],
)
def test_counts_in_the_state_are_integers(optimizer, counts):
    state = optimizer.init(plain.network())
    integers = {name for name in state if state[name].dtype == np.int64}
    assert integers - {"form_interval"} == counts
    assert all(state[name] == 0 for name in counts)
    if optimizer is ADAPTIVE:
        assert {"learning_rate", "momentum", "model_change"} <= set(state)


def test_private_attributes_are_no_hyperparameters():
    optimizer = Fixed(delta=1.5)
    assert "delta" not in repr(optimizer)
    assert not any("delta" in name for name in optimizer.config())


def test_a_private_name_is_one_that_begins_with_an_underscore():
    optimizer = Fixed(delta=1.5)
    optimizer._hidden, optimizer.open_ = 3, 4
    assert "hidden" not in repr(optimizer)
    assert "open_=4" in repr(optimizer)


@pytest.mark.parametrize(
    ("actual", "predicted", "ratio"),
    [
        (-3.0, -2.0, 1.5),
        (1.0, -4.0, -0.25),
        (-1.0, 0.0, 0.0),
        (-1.0, 2.0, 0.0),
        (-1.0, float("nan"), 0.0),
        (-np.inf, -1.0, np.finfo(np.float64).max),
        (np.inf, -1.0, -np.finfo(np.float64).max),
    ],
)
def test_reduction_ratio(actual, predicted, ratio):
    assert reduction_ratio(actual, predicted) == ratio


def test_an_optimizer_has_no_penalty_and_averages_a_tenth_of_the_steps():
    assert (Fixed().l2_reg, Fixed().averaging) == (0.0, 0.1)
