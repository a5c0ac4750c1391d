"""How often a step waits for the card, as docs/cuda.md says it."""

import re
import threading
from pathlib import Path

import numpy as np
import pytest
from host_array import HostArray
from stand_in import in_cupys_place

import kfc_numba as kfc
from kfc_numba import devices, feeding

SOFTMAX = kfc.SoftmaxCrossEntropy()
PAGE = Path(__file__).parents[2] / "docs" / "cuda.md"
OPTIMIZERS = {
    "SGD()": kfc.SGD,
    "Adam()": kfc.Adam,
    "KFC()": kfc.KFC,
    "KFC(exact_period=4)": lambda: kfc.KFC(exact_period=4),
    "KFC(loss_bound=None)": lambda: kfc.KFC(loss_bound=None),
}


@pytest.fixture(autouse=True)
def card(monkeypatch):
    with in_cupys_place(monkeypatch):
        yield


def network(normalised=False):
    """Many parameters: that there are more makes no difference."""
    layers = [
        *(kfc.Conv2d(2, 2), *[kfc.BatchNorm()] * normalised, kfc.Tanh(), kfc.Conv2d(2, 2)),
        *(kfc.ReLU(), kfc.Flatten(), kfc.Dense(4), kfc.Tanh(), kfc.Dense(3)),
    ]
    return kfc.Sequential(layers, input_shape=(4, 4, 1)).to("cuda")


def batch(count=70):  # more than exact curvature is computed on
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4, 4, 1)).astype(np.float32)
    return devices.upload(x), rng.integers(0, 3, count)


def waits(optimizer, steps=6, normalised=False, targets="cpu"):
    """At each of some steps."""
    trainer, found = kfc.Trainer(network(normalised), SOFTMAX, optimizer), []
    x, y = batch()
    y = devices.to_device(y, targets)
    for _ in range(steps):
        before = HostArray.waits
        trainer.step(x, y)
        found.append(HostArray.waits - before)
    return found


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("optimizer", [kfc.SGD(), kfc.SGD(nesterov=True, l2_reg=0.1), kfc.Adam()])
def test_the_loss_is_all_that_a_plain_step_waits_for(optimizer, normalised):
    assert waits(optimizer, normalised=normalised) == [1] * 6


def test_targets_on_the_card_are_looked_at():
    assert waits(kfc.SGD(), targets="cuda") == [2] * 6


def table():
    """The page's: waits by optimizer."""
    rows = re.findall(r"^\| `([^`]*\(.*\))` +\| (\d+) ", PAGE.read_text(), re.MULTILINE)
    return {name: int(count) for name, count in rows}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_page(name):
    """At the last of some steps, which neither decomposes nor updates factors."""
    optimizer = OPTIMIZERS[name]()
    if isinstance(optimizer, kfc.KFC):
        optimizer.period_growth, optimizer.curvature_update_period = 0.0, 100
    assert waits(optimizer)[-1] == table()[name]


def test_other_steps():
    """Sampled targets, which are looked at; batch normalisation changes nothing."""
    settings = {"period_growth": 0.0, "curvature_update_period": 3}
    updating, balancing, plain = waits(kfc.KFC(**settings))[3:]
    assert plain == table()["KFC()"]
    assert updating == plain + 1
    assert balancing == plain + 4
    assert waits(kfc.KFC(**settings), normalised=True)[5] == plain


def test_a_lag_takes_the_host_off_the_path():
    """Factors are read by another thread, where they are decomposed."""
    settings = {"period_growth": 0.0, "inverse_update_period": 3, "curvature_update_period": 100}
    found = waits(kfc.KFC(**settings, decomposition_lag=1))
    usual = table()["KFC()"]
    assert found[3] == found[5] == usual
    assert waits(kfc.KFC(**settings))[3] > usual
    alone = waits(kfc.KFC(**settings, decomposition_lag=1, balance_layers=False))
    assert alone[1:] == [usual] * 5


def test_what_is_not_finite_is_told_as_on_the_processor():
    """Though it is looked at together, at the end."""
    messages = {}
    for device in ("cpu", "cuda"):
        messages[device] = []
        for optimizer in (kfc.SGD(), kfc.KFC()):
            for change in (np.nan, 1e30):
                trainer = kfc.Trainer(network(normalised=True).to(device), SOFTMAX, optimizer)
                x, y = batch(6)
                x = x.get()
                x[2, 1] = change
                if change == 1e30:
                    trainer.net.params["dense1.weight"] *= 1e30
                before = {n: devices.to_host(v).copy() for n, v in trainer.net.params.items()}
                buffers = dict(trainer.net.buffers)
                with pytest.raises((ValueError, FloatingPointError)) as caught:
                    trainer.step(devices.to_device(x, device), y)
                messages[device].append(f"{type(caught.value).__name__}: {caught.value}")
                for name, value in before.items():
                    np.testing.assert_array_equal(devices.to_host(trainer.net.params[name]), value)
                assert all(trainer.net.buffers[name] is value for name, value in buffers.items())
                assert trainer.steps == 0
    assert messages["cuda"] == messages["cpu"]
    assert "ValueError: x has 4 values that are not finite" in messages["cuda"][0]


def test_a_loss_with_a_value_of_its_own():
    class Doubled(kfc.SoftmaxCrossEntropy):
        def value_and_derivative(self, outputs, targets):
            value, derivative = super().value_and_derivative(outputs, targets)
            return 2 * value, derivative

    there = kfc.Trainer(network(), Doubled(), kfc.SGD()).step(*batch())
    usual = kfc.Trainer(network(), SOFTMAX, kfc.SGD()).step(*batch())
    assert there == pytest.approx(2 * usual, rel=1e-6)


class Counting(kfc.SGD):
    """Notes how often each step waits."""

    def __init__(self):
        super().__init__()
        self._waits = []

    def step(self, *arguments, **named):
        before = HostArray.waits
        value = super().step(*arguments, **named)
        self._waits.append(HostArray.waits - before)
        return value


@pytest.mark.parametrize("free", [1 << 30, 0], ids=["on the card", "batch by batch"])
def test_fitting_waits_for_the_loss_alone(monkeypatch, free):
    with in_cupys_place(monkeypatch, free):
        optimizer = Counting()
        x, y = batch()
        trainer = kfc.Trainer(network(), SOFTMAX, optimizer)
        trainer.fit(x.get(), y, batch_size=16, epochs=2, progress=False)
    assert optimizer._waits == [1] * 10


def test_batches_are_uploaded_one_ahead(monkeypatch):
    """By a thread, while the step before is computed; each once, and none is waited for."""
    begun, usual = [], feeding.PinnedSource._upload

    def upload(self, chosen, *arguments):
        assert threading.current_thread() is not threading.main_thread()
        begun.append(chosen.tolist())
        return usual(self, chosen, *arguments)

    monkeypatch.setattr(feeding.PinnedSource, "_upload", upload)
    x, y = batch(12)
    x = x.get()
    source = feeding.PinnedSource(network(), x, y)
    parts = [np.arange(4), np.arange(4, 8), np.array([9, 1, 5])]
    before = HostArray.waits
    for index, chosen in enumerate(parts):
        following = parts[index + 1] if index < 2 else None
        inputs, targets = source.take(chosen, following)
        if following is not None:
            source._ahead[1].result()  # it ends without being asked for
            assert begun == [part.tolist() for part in parts[: index + 2]]
        assert HostArray.waits == before
        np.testing.assert_array_equal(inputs._values, x[chosen])
        np.testing.assert_array_equal(targets, y[chosen])
    assert len(begun) == 3
