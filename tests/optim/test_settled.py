"""A step that is looked at where it leads, not only where it starts."""

import math

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.optim import saturation
from kfc_numba.optim.setting import setting_of
from kfc_numba.optim.update import LEEWAY, REACH, reach, settled

SHAPE = (8, 8, 1)


def network(*last):
    layers = [part for _ in range(2) for part in (kfc.Conv2d(8, 3, padding=1), kfc.ReLU())]
    return kfc.Sequential([*layers, kfc.Flatten(), *last, kfc.Dense(5)], input_shape=SHAPE, seed=0)


def bounded(bound, rate=0.1):
    optimizer = kfc.KFC(learning_rate=rate, loss_bound=None, kl_bound=bound)
    return setting_of(optimizer, network(), optimizer.init(network()), 0, 40, True)


class Form:
    """u^T F u that grows with the way, and remembers over which it was asked for."""

    def __init__(self, least, power=0.0, per=1.0, end=math.inf):
        self.least, self.power, self.per, self.end, self.over = least, power, per, end, []

    def __call__(self, over):
        self.over.append(over)
        if abs(over) > self.end:
            return math.inf
        return self.least * (1 + abs(over / self.per) ** self.power)


@pytest.mark.parametrize("expected", [-0.05, -0.02, -0.5])
def test_a_step_about_as_long_as_expected_is_looked_at_over_a_part(expected):
    form = Form(100.0)
    assert settled(form, bounded(0.5), expected) == 200.0
    assert form.over == [REACH * expected]


@pytest.mark.parametrize("expected", [0.0, -1e-4, -0.01])
def test_one_that_is_longer_is_looked_at_as_a_whole(expected):
    form = Form(100.0)
    assert settled(form, bounded(0.5), expected) == 200.0
    assert form.over == [REACH * expected, -0.05]


@pytest.mark.parametrize("power", [1, 2, 4, 8])
@pytest.mark.parametrize("per", [1e-6, 1e-3, 0.03])
def test_the_step_is_within_the_bound_where_it_leads(power, per):
    form, setting = Form(1.0, power, per), bounded(0.5)
    scale = reach(setting, settled(form, setting, 0.0))
    assert scale**2 * form(scale) <= LEEWAY * 0.5
    # Nor is it much shorter than it may be: no shorter than a tenth.
    assert (10 * scale) ** 2 * form(10 * scale) > 0.5
    assert len(form.over) < 20


@pytest.mark.parametrize("expected", [0.0, -0.1, -1.0])
def test_what_is_not_finite_is_too_far(expected):
    form, setting = Form(0.01, end=1e-5), bounded(0.5)
    scale = reach(setting, settled(form, setting, expected))
    assert 1e-6 < -scale <= 1e-5
    nowhere = Form(0.01, end=0.0)
    assert settled(nowhere, setting, expected or -0.1) == math.inf


def test_no_bound_no_shortening():
    assert settled(Form(1e6, 4, 1e-3), bounded(None), 0.0) > 1e6


def unscaled(examples=640):
    """A regression whose targets are of another size than what a network begins with."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, *SHAPE), np.float32)
    y = np.tanh(x.reshape(examples, -1) @ rng.standard_normal((64, 5)) / 8)
    return x, (1e4 * y + 3e4).astype(np.float32)


def losses(batch, steps, *last, **settings):
    x, y = unscaled()
    trainer = kfc.Trainer(network(*last), kfc.SquaredError(), kfc.KFC(**settings), seed=0)
    rng = np.random.default_rng(1)
    chosen = [rng.integers(0, len(x), batch) for _ in range(steps)]
    return np.array([trainer.step(x[i], y[i]) for i in chosen])


@pytest.mark.parametrize(
    ("last", "settings"),
    [((), {}), ((kfc.Dropout(0.3),), {}), ((), {"exact_by": "tangent"})],
    ids=["usual", "dropout", "tangent"],
)
def test_targets_that_nobody_scaled(last, settings):
    found = losses(128, 120, *last, **settings)
    assert found.max() < 20 * found[0]
    assert found[-10:].mean() < 0.05 * found[0]


def test_by_a_tangent_pass_it_is_looked_at_from_where_it_starts():
    form = Form(100.0)
    assert settled(form, bounded(0.5), -0.05, part=0.0) == 200.0
    assert form.over == [0.0]


def test_looked_at_where_it_starts_alone_it_goes_far_off(monkeypatch):
    monkeypatch.setattr(saturation, "settled", lambda form, setting, way, part: form(part * way))
    found = losses(128, 3)
    assert found.max() > 1e4 * found[0]
