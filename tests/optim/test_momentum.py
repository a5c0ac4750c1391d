"""Momentum that grows with the steps that last."""

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.optim.momentum import (
    DELAY,
    LASTED,
    grown,
    grows,
    initial_momentum,
    lasted_after,
    momentum_at,
    next_momentum,
    slope_along,
)

SHAPE = (8, 8, 1)


@pytest.mark.parametrize(
    ("raised", "count"), [(0.0, 0.75), (0.25, 0.0), (0.5, -0.75), (-0.25, 1.5), (-9, 2), (9, -2)]
)
def test_what_a_step_counts_for(raised, count):
    assert lasted_after(20.0, raised * 0.3, 0.3, 0.8) == pytest.approx(20 + count)


def test_counts_end_where_momentum_does():
    assert lasted_after(31.5, -1.0, 0.1, 0.8) == pytest.approx(32)
    assert grown(0.8, 32.0) == pytest.approx(0.8)
    assert grown(0.8, 0.0) == 0
    assert grown(0.8, DELAY) == pytest.approx(0.5)
    assert lasted_after(0.0, -1.0, 0.1, 0.0) == 0  # no momentum


@pytest.mark.parametrize(("lasted", "after"), [(0.5, 0.5), (8.0, 8.0), (9.0, 8.0), (20.0, 18.0)])
def test_up_to_a_half_it_does_not_go_back(lasted, after):
    assert lasted_after(lasted, 1.0, 0.1, 0.8) == after


def test_without_a_bound_each_step_counts():
    assert lasted_after(3.0, 1e9, None, 0.8) == 4
    assert lasted_after(3.0, 0.0, 0.0, 0.8) == pytest.approx(3.75)  # a loss of zero


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"momentum": 0.0}, True),
        ({"momentum": lambda step: 0.6}, False),
        ({"use_adaptive_momentum": True}, False),
        ({"use_adaptive_learning_rate": True}, True),
    ],
)
def test_where_it_grows(settings, expected):
    optimizer = kfc.KFC(**settings)
    assert grows(optimizer) == expected
    assert (initial_momentum(optimizer) != {}) == expected
    assert (LASTED in optimizer.init(network())) == expected
    assert (next_momentum(optimizer, {LASTED: np.zeros(())}, 0.0, 1.0, 1) != {}) == expected


def test_a_schedule_is_taken_as_it_is():
    assert momentum_at(kfc.KFC(momentum=lambda step: 0.1 * step), {}, 4) == pytest.approx(0.4)


def test_the_slope_is_the_inner_product():
    one, other = {"a": np.array([1.0, 2.0])}, {"a": np.array([3.0, -1.0])}
    assert slope_along(kfc.KFC(), one, other, 1) == pytest.approx(1.0)
    for optimizer in (kfc.KFC(momentum=0.0), kfc.KFC(use_adaptive_momentum=True)):
        assert slope_along(optimizer, one, other, 1) == 0
    assert slope_along(kfc.KFC(), one, other, 0) == 0


def network():
    parts = [(kfc.Conv2d(12, 3, padding=1), kfc.BatchNorm(), kfc.ReLU()) for _ in range(3)]
    layers = [layer for part in parts for layer in part]
    layers += [kfc.GlobalAvgPool2d(), kfc.Dense(10)]
    return kfc.Sequential(layers, input_shape=SHAPE, seed=0)


def after(batches):
    trainer = kfc.Trainer(network(), kfc.SoftmaxCrossEntropy(), kfc.KFC(), seed=0)
    found = []
    for step, batch in enumerate(batches):
        trainer.step(*batch)
        found.append(momentum_at(trainer.optimizer, trainer.optimizer_state, step))
    return found


def noise(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((16, *SHAPE), np.float32), rng.integers(0, 10, 16)


def test_it_grows_where_batches_agree_and_not_where_they_do_not():
    alike = after([noise(0)] * 40)
    assert alike[0] == 0
    assert alike[-1] > 0.75
    unlike = after([noise(seed) for seed in range(40)])
    assert max(unlike) < 0.6
