"""A bound that shrinks where steps do not last."""

import math

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.optim import restraint, setting
from kfc_numba.optim.momentum import slope_along
from kfc_numba.optim.setting import bound_at

SHAPE = (8, 8, 1)


def network(seed=0):
    layers = [part for _ in range(4) for part in (kfc.Conv2d(8, 3, padding=1), kfc.ReLU())]
    return kfc.Sequential([*layers, kfc.Flatten(), kfc.Dense(10)], input_shape=SHAPE, seed=seed)


def trainer(**settings):
    return kfc.Trainer(network(), kfc.SoftmaxCrossEntropy(), kfc.KFC(**settings), seed=0)


def batches(steps, examples=64, seed=0):
    """Of images that nobody sees twice."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        x = rng.standard_normal((examples, *SHAPE), np.float32)
        yield x, rng.integers(0, 10, examples)


def trained(seed, steps=150, **settings):
    found = trainer(**settings)
    return np.array([found.step(x, y) for x, y in batches(steps, 128, seed)])


def steady(step):
    """Momentum that does not care whether steps last."""
    return min(0.8, step / (step + 3))


@pytest.mark.parametrize("settings", [{}, {"momentum": steady}], ids=["usual", "steady"])
def test_labels_that_are_random(settings):
    """There is nothing to learn but that: the least loss is that of ten equal probabilities.

    Rounding decides what becomes of one training, so most of some count.
    """
    runs = [trained(seed, **settings) for seed in range(5)]
    assert np.median([run[5:].max() / run[0] for run in runs]) < 2
    assert np.median([run[-20:].mean() for run in runs]) < 1.1 * math.log(10)


def test_without_restraint_they_take_training_far_off(monkeypatch):
    for module in (restraint, setting):
        monkeypatch.setattr(module, "is_restrained", lambda optimizer: False)
    largest = []
    for seed in range(5):
        try:
            largest.append(trained(seed, momentum=steady).max())
        except FloatingPointError:
            largest.append(math.inf)
    assert sum(loss > 1000 for loss in largest) >= 2


def test_a_usual_training_keeps_its_bound():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 256)
    x = 0.5 * rng.standard_normal((256, *SHAPE), np.float32)
    x += np.random.default_rng(1).standard_normal((10, *SHAPE), np.float32)[y]
    found = trainer()
    factors = []
    for step in range(60):
        part = slice(64 * (step % 4), 64 * (step % 4) + 64)
        loss = found.step(x[part], y[part])
        factors.append(float(found.optimizer_state["bound_factor"]))
    assert loss < 0.01
    assert np.mean(np.array(factors) == 1) > 0.9


@pytest.mark.parametrize(
    ("factor", "rise", "expected"),
    [
        (1.0, -1.0, 1.0),
        (1.0, 0.5, 1.0),  # a tenth of the loss
        (0.5, 0.25, 0.55),
        (0.5, 0.5, 0.5**1.7),  # what it may be shrinks less than the bound
        (1.0, 0.6, 5 / 6),
        (1.0, 100.0, 0.25),
        (0.2, 100.0, 0.1),
        (0.01, 0.0, 0.1),  # of a file from when less could be left
        (0.95, 0.0, 1.0),
    ],
)
def test_the_part_that_is_left(factor, rise, expected):
    state = {"bound_factor": np.array(factor), "loss_average": np.array(5.0)}
    found = restraint.next_restraint(kfc.KFC(), state, rise)
    assert found["bound_factor"] == pytest.approx(expected, rel=1e-12)


def test_of_the_bounds_it_is_that_by_the_loss_which_shrinks():
    optimizer = kfc.KFC(kl_bound=5.0)
    state = {"loss_average": np.array(2.0)}
    whole = bound_at(optimizer, state, 0, 64)
    assert bound_at(optimizer, state | {"bound_factor": np.array(0.3)}, 0, 64) == 0.3 * whole
    fixed = kfc.KFC(kl_bound=5.0, loss_bound=None)
    assert bound_at(fixed, state | {"bound_factor": np.array(0.3)}, 0, 64) == 5.0


def test_momentum_is_held_to_what_a_step_may_raise_the_loss_by():
    state = {"bound_factor": np.array(0.5), "loss_average": np.array(10.0)}
    for rise, expected in ((2.0, 0.4 * 0.5**0.7), (0.5, 0.8), (-3.0, 0.8), (0.0, 0.8)):
        assert restraint.held(0.8, rise, state) == pytest.approx(expected, rel=1e-12)
    assert restraint.held(0.8, 0.0, {}) == 0.8
    assert restraint.held(0.8, 1.0, state | {"loss_average": np.zeros(())}) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_bound": None},
        {"loss_bound": None, "kl_bound": 0.1},
        {"use_adaptive_momentum": True},
        {"use_adaptive_learning_rate": True},
        {"use_adaptive_damping": True},
    ],
)
def test_what_is_not_restrained(settings):
    found = trainer(**settings)
    assert "bound_factor" not in found.optimizer_state
    for x, y in batches(3):
        found.step(x, y)
    assert "bound_factor" not in found.optimizer_state


def test_the_rise_is_that_of_the_loss():
    """To first order: of a step before that is short."""
    found = trainer(momentum=lambda step: 0.7)
    (x, y), (x2, y2) = batches(2)
    found.step(x, y)
    net, loss = found.net, found.loss
    previous = {n: 1e-3 * found.optimizer_state[f"momentum/{n}"] for n in net.params}
    before, gradients = net.value_and_grad(x2, y2, loss)
    slope = slope_along(found.optimizer, gradients, previous, 1)
    how = (loss, found.optimizer_state, slope, 0.0, 1, 64)  # a bound of 0: no noise
    rise = restraint.rise_by_momentum(found.optimizer, *how)
    net.params.update({n: net.params[n] + 0.7 * previous[n] for n in previous})
    assert rise == pytest.approx(net.value_and_grad(x2, y2, loss)[0] - before, rel=0.05)
    adaptive = kfc.KFC(momentum=lambda step: 0.7, use_adaptive_damping=True)
    assert restraint.rise_by_momentum(adaptive, *how) == 0


@pytest.mark.parametrize(
    ("loss", "counts"),
    [(kfc.SoftmaxCrossEntropy(), 3), (kfc.SigmoidCrossEntropy(), 3), (kfc.SquaredError(), 0)],
    ids=lambda value: type(value).__name__,
)
def test_a_rise_that_noise_accounts_for_does_not_count(loss, counts):
    """Of targets drawn from probabilities, three standard deviations: momentum^2 bound / M."""
    optimizer = kfc.KFC(momentum=lambda step: 0.5)
    bound, examples = 0.04, 16  # a standard deviation of 0.05 before momentum

    def rise(slope):
        return restraint.rise_by_momentum(optimizer, loss, {}, slope, bound, 1, examples)

    least = counts * 0.05
    assert rise(1.01 * least + 1e-6) == pytest.approx(0.5 * (1.01 * least + 1e-6), rel=1e-12)
    if counts:
        assert rise(0.99 * least) == 0
    assert rise(-0.01) == -0.005


def learnt_by_heart(x, y, loss, outputs, units, seed, epochs):
    layers = [part for _ in range(2) for part in (kfc.Dense(units), kfc.ReLU())]
    net = kfc.Sequential([*layers, kfc.Dense(outputs)], input_shape=x.shape[1:], seed=seed)
    found = kfc.Trainer(net, loss, kfc.KFC(), seed=seed)
    history = found.fit(x, y, epochs=epochs, progress=False)
    return history.rows[-1]["training_loss"]


def wrong_classes(seed):
    """One of twenty is wrong: of 128 examples the noise of batches is what the loss is made of."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((640, 6), np.float32)
    y = (x[:, 0] + x[:, 1] > 0) != (rng.random(640) < 0.05)
    return learnt_by_heart(x, y.astype(int), kfc.SoftmaxCrossEntropy(), 2, 16, seed, 60)


def noisy_numbers(seed):
    """A pass has four batches, each of which differs from the others."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, 12), np.float32)
    y = np.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.5 * rng.standard_normal((400, 1))
    return learnt_by_heart(x, y, kfc.SquaredError(), 1, 32, seed, 200)


@pytest.mark.parametrize("train", [wrong_classes, noisy_numbers])
def test_few_examples_are_learnt_by_heart(train, monkeypatch):
    """They stood, with all but nothing of the bound, where each rise counted."""
    now = [train(seed) for seed in (0, 2)]
    monkeypatch.setattr(restraint, "LEAST", 1e-4)
    monkeypatch.setattr(restraint, "BY_NOISE", 0.0)
    before = [train(seed) for seed in (0, 2)]
    assert all(loss < 0.4 * other for loss, other in zip(now, before, strict=True))
