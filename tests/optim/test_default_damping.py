"""Damping where none is given."""

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.optim.default_damping import damping_by_examples

SOFTMAX = kfc.SoftmaxCrossEntropy()


def network(*, normalised=False):
    layers = [kfc.Conv2d(2, 3), *[kfc.BatchNorm()] * normalised, kfc.ReLU(), kfc.Flatten()]
    return kfc.Sequential([*layers, kfc.Dense(3)], input_shape=(4, 4, 1))


def batch(count):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 4, 4, 1)).astype(np.float32), rng.integers(0, 3, count)


@pytest.mark.parametrize(
    ("examples", "wanted", "batches", "seen"),
    [(8, 256, 1, 8), (8, 256, 7, 56), (8, 4, 7, 28), (300, None, 2, 600), (8, 8, 999, 240)],
)
def test_it_falls_with_what_the_curvature_has_seen(examples, wanted, batches, seen):
    found = damping_by_examples(network(), examples, wanted, batches)
    assert found == pytest.approx(0.2 / seen, rel=1e-15)


def test_batch_normalisation_has_all_examples():
    found = damping_by_examples(network(normalised=True), 300, 100, 1)
    assert found == pytest.approx(0.2 / 300, rel=1e-15)


@pytest.mark.parametrize("settings", [{}, {"curvature_examples": 4}, {"num_burnin_steps": 3}])
def test_steps_are_those_of_a_schedule_that_says_the_same(settings):
    x, y = batch(12)
    trainers = []
    for damping in (None, lambda step: 0.2 / seen(step)):
        trainer = kfc.Trainer(network(), SOFTMAX, kfc.KFC(damping=damping, **settings))
        trainers.append(trainer)

    def seen(step):
        count = min(6, settings.get("curvature_examples", 6))
        return count * (step + settings.get("num_burnin_steps", 1))

    for trainer in trainers:
        trainer.fit(x, y, batch_size=6, total_steps=5, progress=False)
    one, two = trainers
    for name, value in one.net.params.items():
        np.testing.assert_array_equal(value, two.net.params[name])


def test_adaptive_damping_starts_with_a_number():
    state = kfc.KFC(use_adaptive_damping=True).init(network())
    assert state["damping"] == 2e-4
