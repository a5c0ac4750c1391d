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
    ("raised", "small", "large"),
    [(0.0, 1, 1), (0.25, 0, 1), (0.5, -1, 1), (-0.125, 1.5, 1.5), (-9, 2, 2), (9, -2, 1)],
)
def test_what_a_step_counts_for(raised, small, large):
    """With small batches, bounded for their noise, and with large ones."""
    for noisy, count in ((True, small), (False, large)):
        found = lasted_after(18.0, raised * 0.3, 0.3, 0.8, noisy)
        assert found == pytest.approx(18 + count)


def test_counts_end_where_momentum_does():
    assert lasted_after(23.5, -1.0, 0.1, 0.8, True) == pytest.approx(24)
    assert grown(0.8, 24.0) == pytest.approx(0.8)
    assert grown(0.8, 0.0) == 0
    assert grown(0.8, DELAY) == pytest.approx(0.5)
    assert lasted_after(0.0, -1.0, 0.1, 0.0, True) == 0  # no momentum


@pytest.mark.parametrize(("lasted", "after"), [(0.5, 0.5), (6.0, 6.0), (7.0, 6.0), (20.0, 18.0)])
def test_up_to_a_half_it_does_not_go_back(lasted, after):
    assert lasted_after(lasted, 1.0, 0.1, 0.8, True) == after


def test_without_a_bound_each_step_counts():
    assert lasted_after(3.0, 1e9, None, 0.8, False) == 4
    assert lasted_after(3.0, 0.0, 0.0, 0.8, True) == 4  # a loss of zero


@pytest.mark.parametrize(
    ("examples", "settings", "after"),
    [
        (49, {}, 8.0),
        (51, {}, 11.0),
        (49, {"loss_bound": 1e-2}, 11.0),
        (9, {"loss_bound": 1e-2}, 8.0),
        (9, {"loss_bound": None, "kl_bound": 0.1}, 11.0),
    ],
)
def test_which_batches_are_small(examples, settings, after):
    state = {LASTED: np.array(10.0)}
    found = next_momentum(kfc.KFC(**settings), state, 9.0, 0.1, 5, examples)
    assert found[LASTED] == after


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
    assert (next_momentum(optimizer, {LASTED: np.zeros(())}, 0.0, 1.0, 1, 8) != {}) == expected


def test_a_schedule_is_taken_as_it_is():
    assert momentum_at(kfc.KFC(momentum=lambda step: 0.1 * step), {}, 4) == pytest.approx(0.4)


def test_the_slope_is_the_inner_product():
    one, other = {"a": np.array([1.0, 2.0])}, {"a": np.array([3.0, -1.0])}
    assert slope_along(kfc.KFC(), one, other, 1) == pytest.approx(1.0)
    for settings in ({"momentum": 0.0}, {"use_adaptive_momentum": True}, {"loss_bound": None}):
        assert slope_along(kfc.KFC(**settings), one, other, 1) == 0
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
    assert np.mean(unlike[20:]) < np.mean(alike[20:]) - 0.15
