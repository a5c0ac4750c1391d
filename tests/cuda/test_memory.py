"""What a step takes on a card, foretold and counted, and what is said where that is too much."""

import gc
import math
import re
import weakref
from types import SimpleNamespace

import host_array
import numpy as np
import pytest
from host_array import untouched
from stand_in import in_cupys_place

import kfc_numba as kfc
from kfc_numba import devices, memory
from kfc_numba.kernels import cuda
from kfc_numba.kernels.cuda import launch, room, winograd
from kfc_numba.kernels.geometry import Windows
from kfc_numba.kernels.rates import H200
from kfc_numba.memory import told
from kfc_numba.precision import tensor_cores

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


@pytest.fixture
def noted(card, monkeypatch):
    """The card where no kernel is run, and no memory is filled."""
    monkeypatch.setattr(host_array.HostArray, "fills", False)
    with launch.executed_by(Nothing()):
        yield card


class Nothing:
    """Executor that runs nothing, for a card of a capability."""

    def __call__(self, *launched):
        pass

    def capability(self):
        return 9, 0

    def rates(self):
        return H200


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
    # As on the processor; small arrays take 512 bytes at least.
    needed = _needed(found, 24)
    assert 0.5 * needed < card.peak - before < 1.3 * needed


@pytest.mark.parametrize("optimizer", [kfc.SGD, kfc.KFC])
def test_what_filtering_takes_is_foretold(noted, monkeypatch, optimizer):
    """In a small network that it pays for, of layers alike, that is much."""
    layers = [layer for _ in range(3) for layer in (kfc.Conv2d(128, 3, padding=1), kfc.ReLU())]
    layers += [kfc.MaxPool2d(16), kfc.Flatten(), kfc.Dense(2)]
    net = kfc.Sequential(layers, input_shape=(16, 16, 3))
    x, y = np.zeros((256, 16, 16, 3), np.float32), np.zeros(256, int)
    room = []
    for pays in (winograd.pays, lambda *shape, **which: 0):
        monkeypatch.setattr(winograd, "pays", pays)
        found = kfc.Trainer(net, SOFTMAX, optimizer()).to("cuda")
        before = noted.peak = noted.used
        found.step(x, y)
        foretold = found.net.memory(256, found.optimizer)
        needed = _while_it_lasts(foretold)
        assert 0.6 * needed < noted.peak - before < 1.02 * needed
        room.append(foretold["kernels"])
    assert room[1] < 1e8 < room[0] < winograd.ROOM + 1e8


GEOMETRIES = [
    ((512, 16, 16, 64), 64, {"padding": 1}),
    ((128, 56, 56, 64), 64, {"padding": 1}),  # in two times
    ((1000, 14, 14, 256), 256, {"padding": 1}),
    ((64, 16, 16, 32), 64, {"stride": 2, "padding": 1}),
    ((64, 16, 16, 32), 64, {"dilation": 2}),
    ((64, 15, 15, 32), 32, {"groups": 4}),
    ((3, 5, 5, 1), 2, {}),
]
REST = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "filters", "geometry"), GEOMETRIES)
def test_room_of_convolutions(noted, shape, filters, geometry, dtype, tf32):
    geometry = REST | geometry
    windows = {name: value for name, value in geometry.items() if name != "groups"}
    output = Windows.of(shape[1:3], (3, 3), *windows.values()).output
    x, dy = (untouched(s, dtype) for s in (shape, (shape[0], *output, filters)))
    weight = untouched((3, 3, shape[3] // geometry["groups"], filters), dtype)
    with tensor_cores(tf32):
        taken = max(
            _taken(noted, cuda.conv2d_forward, x, weight, **geometry),
            _taken(noted, cuda.conv2d_grad_input, dy, weight, shape, **geometry),
            _taken(noted, cuda.conv2d_grad_parameters, x, dy, (3, 3), **geometry),
        )
        foretold = room.convolution(shape, (3, 3), filters, np.dtype(dtype), **geometry)
    # Blocks are rounded up, and the gradient by the bias takes little.
    assert abs(taken - foretold) < 1 << 18


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "filters", "geometry"), GEOMETRIES)
def test_room_of_moments(noted, shape, filters, geometry, dtype):
    geometry, kind = REST | geometry, np.dtype(dtype)
    groups = geometry["groups"]
    x = untouched(shape, dtype)
    foretold = room.patch_moment(shape, (3, 3), kind, **geometry)
    assert 0 <= _taken(noted, cuda.patch_second_moment, x, (3, 3), **geometry) - foretold < 1 << 12
    foretold = room.patch_means(shape, (3, 3))
    assert 0 <= _taken(noted, cuda.patch_means, x, (3, 3), **geometry) - foretold < 1 << 12
    foretold = room.moment(shape, kind, groups)
    assert 0 <= _taken(noted, cuda.output_second_moment, x, groups=groups) - foretold < 1 << 12


@pytest.mark.parametrize("shape", [(256, 512, 10), (40000, 256, 256), (3, 2, 1)])
def test_room_of_products(noted, shape):
    rows, inputs, outputs = shape
    x, dy = untouched((rows, inputs)), untouched((rows, outputs))
    taken = _taken(noted, cuda.matmul, x, dy, transpose_a=True)
    assert 0 <= taken - room.product(*shape, np.dtype(np.float32)) < 1 << 12


def _taken(card, call, *arguments, **named):
    """Bytes at most that a call took besides what it returns."""
    gc.collect()
    before = card.peak = card.used
    found = call(*arguments, **named)
    results = found if isinstance(found, tuple) else (found,)
    return card.peak - before - sum(result.nbytes for result in results)


def test_a_layer_says_what_its_kernels_take(card):
    kind = np.dtype(np.float32)
    conv, shape, x = kfc.Conv2d(64, 3, padding=1), (32, 32, 64), (100, 32, 32, 64)
    same = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    least = room.convolution(x, (3, 3), 64, kind, **same)
    moment = room.patch_moment(x, (3, 3), kind, **same)
    assert conv.room(100, shape, kind, None) == least
    assert conv.room(100, shape, kind, "expand") == max(least, moment)
    assert conv.room(100, shape, kind, "reduce") == max(least, room.patch_means(x, (3, 3)))
    dense = kfc.Dense(32)
    assert dense.room(100, (50, 8), kind, None) == room.product(5000, 8, 32, kind)
    ones = 5000 * 9 * 4
    with_ones = room.moment((5000, 9), kind) + ones
    assert dense.room(100, (50, 8), kind, "expand") == max(
        with_ones, room.moment((5000, 32), kind), room.product(5000, 8, 32, kind)
    )
    assert kfc.LocalResponseNorm().room(100, (4, 4, 2), kind, None) == 4 * 100 * 32
    assert kfc.ReLU().room(100, shape, kind, "expand") == 0


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
    return _while_it_lasts(found.net.memory(count, found.optimizer))


def _while_it_lasts(foretold):
    """What a step takes and gives back, of what it needs."""
    return foretold["changes"] + foretold["activations"] + foretold["kernels"]


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
    here = found.net.memory(8, found.optimizer)
    assert here["kernels"] == 0 < there["kernels"]
    assert here | {"kernels": there["kernels"], "total": there["total"]} == there
    assert there["total"] == here["total"] + there["kernels"]


def test_memory_of_a_network_that_has_no_parameters(card):
    """One without layers cannot be built; the least is one whose kernels take nothing."""
    net = kfc.Sequential([kfc.Flatten()], input_shape=SHAPE, device="cuda")
    found = net.memory(8)
    assert {name for name, size in found.items() if size} == {"activations", "total"}
    assert found["total"] == found["activations"] >= 8 * 4 * math.prod(SHAPE)
    layerless = SimpleNamespace(device="cuda", layers=[], dtype=np.dtype(np.float32))
    assert memory._room(layerless, 8, None) == 0
