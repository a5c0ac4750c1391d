"""Steps from predictions that are sure and wrong, on a card as on the processor."""

import numpy as np
import pytest
from host_array import HostArray
from stand_in import in_cupys_place

import kfc_numba as kfc
from kfc_numba.optim import saturation


@pytest.fixture(autouse=True)
def card(monkeypatch):
    with in_cupys_place(monkeypatch):
        yield


@pytest.mark.parametrize("targets", ["host", "card"])
def test_trials_are_those_of_the_processor(targets, monkeypatch):
    rng, tried, usual = np.random.default_rng(0), [], saturation.by_trial
    y = rng.integers(0, 3, 12)
    x = (3000 * (rng.random((12, 4, 4, 1)) + y[:, None, None, None])).astype(np.float32)

    def counted(*given):
        found = usual(*given)
        tried.append(found)
        return found

    monkeypatch.setattr(saturation, "by_trial", counted)
    losses = {}
    for device in ("cpu", "cuda"):
        layers = [kfc.Conv2d(2, 2), kfc.ReLU(), kfc.Flatten(), kfc.Dense(3)]
        net = kfc.Sequential(layers, input_shape=(4, 4, 1), seed=1).to(device)
        optimizer = kfc.KFC(exact_examples=8, averaging=None)
        trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), optimizer)
        given = (x, y) if device == "cpu" else (HostArray(x), y)
        if device == "cuda" and targets == "card":
            given = HostArray(x), HostArray(y)
        losses[device] = [trainer.step(*given) for _ in range(3)]
    assert len(tried) == 6
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-3)
    np.testing.assert_allclose(tried[3:], tried[:3], rtol=1e-2)
