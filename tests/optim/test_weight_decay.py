"""What steps take away of the parameters."""

import itertools

import numpy as np
import plain
import pytest

import kfc_numba as kfc
from kfc_numba.optim.default_decay import decay_by_examples, spared

RATE, DECAY = 0.1, 0.3
CLASSES = kfc.SoftmaxCrossEntropy()
NUMBERS = kfc.SquaredError()


def examples(count, loss):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(count, 3)), rng.uniform(size=(count, 2))
    return x, y.argmax(axis=1) if loss.of_classes else y


def network(dtype=np.float64):
    return kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=dtype, seed=1)


def after_a_step(optimizer, count=5, loss=NUMBERS, **more):
    """Parameters before and after a step, and the state."""
    net = network(**more)
    before = {name: value.copy() for name, value in net.params.items()}
    state = optimizer.init(net)
    optimizer.step(net, loss, *examples(count, loss), state)
    return before, net.params, state


@pytest.mark.parametrize("kind", [kfc.SGD, kfc.Adam, kfc.KFC])
def test_a_part_is_taken_away_apart_from_the_step(kind):
    for dtype, rtol in ((np.float64, 1e-12), (np.float32, 1e-5)):
        before, plain_step, _ = after_a_step(kind(learning_rate=RATE, weight_decay=0), dtype=dtype)
        optimizer = kind(learning_rate=RATE, weight_decay=DECAY)
        _, decayed, state = after_a_step(optimizer, dtype=dtype)
        for name, value in decayed.items():
            assert value.dtype == dtype
            taken = plain_step[name] - value
            np.testing.assert_allclose(taken, RATE * DECAY * before[name], rtol=rtol, atol=rtol)
            if kind is not kfc.Adam:  # momentum carries on the step alone
                own = plain_step[name] - before[name]
                np.testing.assert_allclose(state[f"momentum/{name}"], own, rtol=0, atol=10 * rtol)


def test_adam_is_adamw():
    # The paper of Loshchilov and Hutter, algorithm 2, with PyTorch's product of two rates.
    path, m, v = [dict(plain.network().params)], 0, 0
    for t in range(1, 8):
        g = plain.gradient(path[-1], *plain.batch(t - 1), 0.0)
        g = np.concatenate(list(g.values()))
        theta = np.concatenate(list(path[-1].values()))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-3)
        theta = theta - RATE * (step + DECAY * theta)
        path.append(dict(zip(path[-1], np.split(theta, len(path[-1])), strict=True)))
    optimizer = kfc.Adam(learning_rate=RATE, beta2=0.99, epsilon=1e-3, weight_decay=DECAY)
    plain.assert_paths_equal(plain.trained(optimizer, 7), path, rtol=1e-12)


@pytest.mark.parametrize(
    ("count", "part"), [(8, 3.2e-4), (128, 5.12e-3), (2048, 0.08192), (2100, 0.08192)]
)
def test_kfc_takes_by_the_number_of_examples(count, part):
    assert decay_by_examples(count, 0.1) == pytest.approx(0.1 * part, rel=1e-12)
    assert decay_by_examples(count, 0.02) == pytest.approx(0.02 * part, rel=1e-12)
    rest = after_a_step(kfc.KFC(weight_decay=0), count, CLASSES)[1]
    before, found, _ = after_a_step(kfc.KFC(), count, CLASSES)
    for name, value in found.items():
        np.testing.assert_allclose(rest[name] - value, 0.1 * part * before[name], rtol=1e-9)


def test_a_learning_rate_that_leaves_steps_to_their_bound_takes_no_more():
    assert decay_by_examples(128, 100.0) == decay_by_examples(128, 0.1)
    rest = after_a_step(kfc.KFC(weight_decay=0, learning_rate=1e3), 2048, CLASSES)[1]
    before, found, _ = after_a_step(kfc.KFC(learning_rate=1e3), 2048, CLASSES)
    for name, value in found.items():
        np.testing.assert_allclose(rest[name] - value, 0.1 * 0.08192 * before[name], rtol=1e-9)


def branches():
    """Three layers that a normalisation follows, one of them with another follower besides."""
    x = kfc.Input((3,))
    first = kfc.Dense(4)(x)
    second = kfc.Dense(4)(kfc.BatchNorm()(first))
    both = kfc.Add()(kfc.BatchNorm()(second), second)
    third = kfc.BatchNorm()(kfc.Dense(4)(both))
    return kfc.Graph(x, kfc.Dense(2)(third), dtype=np.float64)


def test_what_a_normalisation_follows_is_spared_by_default_alone():
    net, loss = branches(), CLASSES
    assert spared(net) == {"dense1.weight", "dense1.bias", "dense3.weight", "dense3.bias"}
    assert not spared(network())
    before = {name: value.copy() for name, value in net.params.items()}
    x, y = examples(8, loss)

    def after(weight_decay):
        for name, value in before.items():
            net.params[name][...] = value
        optimizer = kfc.KFC(weight_decay=weight_decay)
        optimizer.step(net, loss, x, y, optimizer.init(net))
        return {name: value.copy() for name, value in net.params.items()}

    plain_step = after(0)
    for found, part, whole in ((after(None), 3.2e-4, spared(net)), (after(DECAY), DECAY, ())):
        for name, value in found.items():
            taken = 0 if name in whole else 0.1 * part * before[name]
            np.testing.assert_allclose(plain_step[name] - value, taken, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("loss", [kfc.SquaredError(), kfc.SigmoidCrossEntropy()])
def test_nothing_is_taken_where_targets_are_no_classes(loss):
    assert not loss.of_classes
    rest, found = (after_a_step(kfc.KFC(weight_decay=w), 5, loss)[1] for w in (0, None))
    for name, value in found.items():
        np.testing.assert_array_equal(value, rest[name])


@pytest.mark.parametrize("switch", ["learning_rate", "momentum", "damping"])
def test_what_adapts_takes_nothing_unless_it_is_told(switch):
    how = {f"use_adaptive_{switch}": True}
    rest, found, told = (
        after_a_step(kfc.KFC(**how, weight_decay=decay), 5, CLASSES)[1]
        for decay in (0, None, DECAY)
    )
    for name, value in rest.items():
        np.testing.assert_array_equal(found[name], value)
    assert np.abs(told["dense1.weight"] - rest["dense1.weight"]).max() > 1e-3


def test_a_rejected_step_takes_nothing():
    # The second batch has what is predicted for targets: carrying on raises its loss.
    how = {"max_loss_increase": 0.0, "momentum": lambda step: 0.99, "loss_bound": None}
    optimizer = kfc.KFC(**how, damping=1e-6, weight_decay=DECAY)
    net, loss = network(), NUMBERS
    x, y = examples(5, loss)
    state = optimizer.init(net)
    optimizer.step(net, loss, x, y, state)
    assert state["rejected_steps"] == 0
    before = {name: value.copy() for name, value in net.params.items()}
    optimizer.step(net, loss, x, net.forward(x).outputs, state)
    assert state["rejected_steps"] == 1
    for name, value in net.params.items():
        np.testing.assert_array_equal(value, before[name])


def test_schedules_of_both():
    path = plain.trained(
        kfc.SGD(learning_rate=lambda k: 0.1 / (k + 1), momentum=0, weight_decay=lambda k: 0.2 * k),
        4,
    )
    for step, (old, new) in enumerate(itertools.pairwise(path)):
        gradient = plain.gradient(old, *plain.batch(step), 0.0)
        rate = 0.1 / (step + 1)
        for name, value in new.items():
            kept = (1 - rate * 0.2 * step) * old[name]
            np.testing.assert_allclose(value, kept - rate * gradient[name], rtol=1e-12)


@pytest.mark.parametrize("optimizer", [kfc.SGD, kfc.Adam, kfc.KFC])
def test_bad_input(optimizer):
    with pytest.raises(ValueError, match=r"weight_decay \(=-0.1\) must be a number in \[0, inf\)"):
        optimizer(weight_decay=-0.1)
    message = r"learning_rate \* weight_decay at step 0 \(=2.0\) must be a number in \[0, 1\]"
    net, many = network(), optimizer(learning_rate=0.5, weight_decay=4.0)
    before, state = net.params["dense1.weight"].copy(), many.init(net)
    with pytest.raises(ValueError, match=message):
        many.step(net, CLASSES, *examples(5, CLASSES), state)
    np.testing.assert_array_equal(net.params["dense1.weight"], before)
    assert state["step"] == 0


def test_weight_decay_must_be_a_number_for_others():
    with pytest.raises(TypeError, match=r"weight_decay \(=None\) must be a number"):
        kfc.SGD(weight_decay=None)
