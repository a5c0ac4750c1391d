"""What a step takes on a card, foretold and counted, and what is said where that is too much."""

import re
import weakref

import host_array
import numpy as np
import pytest
from stand_in import in_cupys_place

import kfc_numba as kfc
from kfc_numba import devices
from kfc_numba.kernels.cuda import launch, winograd
from kfc_numba.memory import told

SOFTMAX = kfc.SoftmaxCrossEntropy()
SHAPE = (8, 8, 2)


class Card:
    """Memory of a size; whoever takes more is refused."""

    def __init__(self, size):
        self.size = size
        self.used = self.peak = 0
        self._room = host_array._room

    def room(self, shape, dtype):
        found = self._room(shape, dtype)
        owner = found
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if self.used + owner.nbytes > self.size:
            raise MemoryError(f"Out of memory allocating {owner.nbytes} bytes")
        self.used += owner.nbytes
        self.peak = max(self.peak, self.used)
        weakref.finalize(owner, self._free, owner.nbytes)
        return found

    def _free(self, size):
        self.used -= size


@pytest.fixture
def card(monkeypatch):
    with in_cupys_place(monkeypatch):
        found = Card(1 << 40)
        monkeypatch.setattr(host_array, "_room", found.room)
        runtime = devices.cupy().cuda.runtime
        monkeypatch.setattr(runtime, "memGetInfo", lambda: (found.size - found.used, found.size))
        yield found


def trainer(optimizer):
    layers = [
        *(kfc.Conv2d(8, 3, padding=1), kfc.ReLU(), kfc.MaxPool2d(2), kfc.Conv2d(8, 3)),
        *(kfc.BatchNorm(), kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)),
    ]
    net = kfc.Sequential(layers, input_shape=SHAPE)
    return kfc.Trainer(net, SOFTMAX, optimizer).to("cuda")


def batch(count):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, *SHAPE)).astype(np.float32), rng.integers(0, 3, count)


@pytest.mark.parametrize("optimizer", [kfc.SGD, kfc.KFC])
def test_a_step_takes_what_is_foretold(card, optimizer):
    found = trainer(optimizer())
    before = card.used
    found.step(*batch(24))
    new = found.net.memory(24, found.optimizer)
    new = new["changes"] + new["activations"]
    # As on the processor; kernels take memory for a moment, and small arrays 512 bytes at least.
    assert 0.5 * new < card.peak - before < 1.3 * new


def test_filtering_takes_its_room_besides(card, monkeypatch):
    """In a small network that it pays for, of layers alike, that is much: no kernel is run."""
    monkeypatch.setattr(host_array.HostArray, "fills", False)
    layers = [layer for _ in range(3) for layer in (kfc.Conv2d(128, 3, padding=1), kfc.ReLU())]
    net = kfc.Sequential([*layers, kfc.Flatten(), kfc.Dense(2)], input_shape=(16, 16, 3))
    taken = []
    with launch.executed_by(lambda *launched: None):
        for pays in (winograd.pays, lambda *shape: 0):
            monkeypatch.setattr(winograd, "pays", pays)
            found = kfc.Trainer(net, SOFTMAX, kfc.SGD()).to("cuda")
            before = card.peak = card.used
            found.step(np.zeros((256, 16, 16, 3), np.float32), np.zeros(256, int))
            taken.append(card.peak - before)
    foretold = net.memory(256, found.optimizer)
    new = foretold["changes"] + foretold["activations"]
    assert taken[1] < 1.3 * new < taken[0] < 1.3 * new + winograd.ROOM


@pytest.mark.parametrize("optimizer", [kfc.SGD, kfc.KFC])
def test_the_batch_that_fits_is_said(card, optimizer):
    found = trainer(optimizer())
    found.step(*batch(4))
    params = {name: value.get() for name, value in found.net.params.items()}
    card.size = card.used + round(1.4 * _needed(found, 16))
    few, more = _needed(found, 16), _needed(found, 17)
    count = 17 + round(0.8 * few / (more - few))  # nearly twice what there is room for
    with pytest.raises(MemoryError) as caught:
        found.step(*batch(count))
    message = str(caught.value)
    assert message.startswith(f"a batch of {count} examples needs about ")
    needed = int(re.search(r"about ([\d,]+) bytes", message)[1].replace(",", ""))
    assert needed == pytest.approx(_needed(found, count), rel=0.01)
    most = int(re.search(r"at most (\d+) fit", message)[1])
    assert 16 <= most < count
    free = int(re.search(r"has ([\d,]+) free", message)[1].replace(",", ""))
    assert _needed(found, most) - 1 <= free / 1.3 < _needed(found, most + 1)
    assert found.steps == 1
    for name, value in params.items():
        np.testing.assert_array_equal(found.net.params[name].get(), value)
    found.step(*batch(most))
    assert found.steps == 2


def _needed(found, count):
    foretold = found.net.memory(count, found.optimizer)
    return foretold["changes"] + foretold["activations"]


def test_where_none_fits(card):
    found = trainer(kfc.SGD())
    card.size = card.used + 1000
    with pytest.raises(MemoryError, match=r"batch of 9 examples .* free: none fits"):
        found.step(*batch(9))


@pytest.mark.parametrize(("count", "advice"), [(9, "at most 8 fit"), (1, "none fits")])
def test_a_batch_that_did_not_fit_is_not_advised_whatever_was_foretold(card, count, advice):
    def fails():
        raise MemoryError

    with pytest.raises(MemoryError, match=advice):
        told(fails, trainer(kfc.SGD()).net, batch(count)[0])


def test_what_a_failed_step_left_in_a_circle_counts_as_free(card):
    def fails():
        circle = [host_array._room((1 << 20,), np.float32)]
        circle.append(circle)
        raise MemoryError

    net = trainer(kfc.SGD()).net
    free = card.size - card.used
    with pytest.raises(MemoryError, match=f"has {free:,} free"):
        told(fails, net, batch(9)[0])


def test_predictions_and_evaluations(card):
    found = trainer(kfc.SGD())
    x, y = batch(200)
    card.size = card.used + 400_000
    for call in (found.net.predict, lambda x, **how: kfc.evaluate(found.net, SOFTMAX, x, y, **how)):
        with pytest.raises(MemoryError, match="a batch of 200 examples") as caught:
            call(x)
        most = int(re.search(r"at most (\d+) fit", str(caught.value))[1])
        assert most > 5
        call(x, batch_size=most)


def test_memory_is_the_same_on_either_device(card):
    found = trainer(kfc.KFC())
    there = found.net.memory(8, found.optimizer)
    assert found.net.device == "cuda"
    found.to("cpu")
    assert found.net.memory(8, found.optimizer) == there
