"""What is wrong is told on a card as on the processor; arrays of either place are taken."""

import numpy as np
import pytest
from host_array import HostArray
from stand_in import in_cupys_place

import kfc_numba as kfc
from kfc_numba import devices
from kfc_numba.kernels import cuda as kernels

SOFTMAX = kfc.SoftmaxCrossEntropy()
SHAPE = (4, 3, 2)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, *SHAPE)), RNG.integers(0, 3, 5)


@pytest.fixture(autouse=True)
def card(monkeypatch):
    with in_cupys_place(monkeypatch):
        yield


def network(device, dtype=np.float32):
    layers = [kfc.Conv2d(2, 2), kfc.ReLU(), kfc.Flatten(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=SHAPE, dtype=dtype).to(device)


def trainer(device, loss=SOFTMAX, dtype=np.float32, optimizer=kfc.SGD(learning_rate=0.1)):  # noqa: B008
    return kfc.Trainer(network(device, dtype), loss, optimizer)


def told(call):
    with pytest.raises((TypeError, ValueError, FloatingPointError)) as caught:
        call()
    return type(caught.value), str(caught.value)


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


BATCHES = {
    "no examples": (X[:0], Y[:0]),
    "no pixels": (X[:, :0], Y),
    "another shape": (X[:, 1:], Y),
    "channels first": (X.transpose(0, 3, 1, 2), Y),
    "one example": (X[0], Y[:1]),
    "complex": (X.astype(complex), Y),
    "not finite": (changed(X, (3, 0, 0, 0), np.nan), Y),
    "too large for float32": (changed(X, (1, 0, 0, 0), 1e300), Y),
    "fewer targets": (X, Y[:-1]),
    "no targets": (X, Y[:0]),
    "unknown class": (X, changed(Y, 2, 3)),
    "targets of floats": (X, Y.astype(float)),
    "targets in a column": (X, Y[:, None]),
}
CALLS = {
    "step": lambda found, x, y: found.step(x, y),
    "fit": lambda found, x, y: found.fit(x, y, epochs=1, progress=False),
    "value_and_grad": lambda found, x, y: found.net.value_and_grad(x, y, SOFTMAX),
    "evaluate": lambda found, x, y: kfc.evaluate(found.net, SOFTMAX, x, y),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("batch", BATCHES)
def test_batches(batch, call):
    x, y = BATCHES[batch]
    if call == "value_and_grad" and batch in ("not finite", "too large for float32"):
        return  # no step: what comes out is what went in
    expected = told(lambda: CALLS[call](trainer("cpu"), x, y))
    for device, places in (("cuda", "cpu cpu"), ("cuda", "cuda cuda"), ("cpu", "cuda cuda")):
        places = places.split()
        given = [devices.to_device(a, place) for a, place in zip((x, y), places, strict=True)]
        found = trainer(device)
        before = {name: devices.to_host(value) for name, value in found.net.params.items()}
        assert told(lambda found=found, given=given: CALLS[call](found, *given)) == expected
        for name, value in before.items():
            np.testing.assert_array_equal(devices.to_host(found.net.params[name]), value)


@pytest.mark.parametrize("loss", [kfc.SquaredError(), kfc.SigmoidCrossEntropy()])
def test_targets_that_are_numbers(loss):
    y = RNG.random((5, 3))
    for bad in (y[:, 1:], changed(y, (1, 1), np.nan), y.astype(complex), y[:0]):
        expected = told(lambda bad=bad: trainer("cpu", loss).step(X, bad))
        for place in ("cpu", "cuda"):
            given = devices.to_device(bad, place)
            assert told(lambda given=given: trainer("cuda", loss).step(X, given)) == expected


@pytest.mark.parametrize("home", ["cpu", "cuda"])  # "device" is the fixture of all tests here
@pytest.mark.parametrize("places", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
@pytest.mark.parametrize("optimizer", [kfc.SGD(), kfc.KFC(curvature_examples=2, exact_examples=3)])
def test_arrays_of_either_place_are_taken(home, places, optimizer):
    """Uploaded, or brought to the host: the README says so."""
    expected = trainer(home, optimizer=optimizer).step(X, Y)
    x, y = (devices.to_device(a, place) for a, place in zip((X, Y), places, strict=True))
    found = trainer(home, optimizer=optimizer)
    assert found.step(x, y) == expected
    assert kfc.evaluate(found.net, SOFTMAX, x, y) == kfc.evaluate(found.net, SOFTMAX, X, Y)
    outputs = found.net.predict(x)
    assert devices.device_of(outputs) == places[0]
    np.testing.assert_array_equal(devices.to_host(outputs), found.net.predict(X))
    history = found.fit(x, y, epochs=1, batch_size=2, validation=(x, y), progress=False)
    assert history.rows[-1]["validation_loss"] > 0


def test_parameters_elsewhere_are_refused():
    """Of the network, and of the optimizer's state: what to do about it is said."""
    found = trainer("cuda")
    found.net.params["dense1.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"dense1.bias.*on the device 'cuda', got .* on cpu"):
        found.step(X, Y)
    with pytest.raises(ValueError, match=r"dense1.bias.*on the device 'cuda', got .* on cpu"):
        found.net.predict(X)
    found = trainer("cpu")
    found.net.params["dense1.bias"] = devices.upload(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"dense1.bias.*on the device 'cpu', got .* on cuda"):
        found.step(X, Y)
    found = trainer("cuda")
    found.optimizer_state["momentum/dense1.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"momentum/dense1.bias.*'cuda'.*'cpu': `Trainer.to`"):
        found.step(X, Y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_that_are_not_contiguous(dtype):
    expected = trainer("cuda", dtype=dtype).step(X, Y)
    turned = devices.upload(X.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    assert isinstance(turned, HostArray)
    assert not turned.flags.c_contiguous
    wide = devices.upload(np.repeat(X, 2, axis=0))[::2]
    targets = devices.upload(np.repeat(Y, 2))[::2]
    assert not targets.flags.c_contiguous
    for x in (turned, wide):
        found = trainer("cuda", dtype=dtype)
        np.testing.assert_array_equal(found.net.predict(x).get(), found.net.predict(X))
        assert found.step(x, targets) == expected
    found = trainer("cuda", dtype=dtype)
    weight = found.net.params["dense1.weight"]
    found.net.params["dense1.weight"] = devices.upload(weight.get().T).T
    with pytest.raises(ValueError, match=r"dense1.weight'\] must be a C-contiguous"):
        found.step(X, Y)


def test_kinds_of_numbers():
    """Float64 works, in inputs and in the network; inputs of other kinds are converted."""
    outputs = network("cuda", np.float64).predict(devices.upload(X))
    assert outputs.dtype == np.float64
    np.testing.assert_allclose(outputs.get(), network("cpu", np.float64).predict(X), rtol=1e-12)
    for dtype in (np.float64, np.float32, np.float16, np.uint8, bool):
        given = (X > 0).astype(dtype)
        found = network("cuda").predict(devices.upload(given))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.get(), network("cuda").predict(X > 0))
    found = trainer("cuda", dtype=np.float64)
    found.step(devices.upload(X), Y)
    assert all(v.dtype == np.float64 for v in found.optimizer_state.values() if v.ndim)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_half_precision_is_refused(device):
    with pytest.raises(ValueError, match=r"dtype \(=.*float16.*\) must be float32 or float64"):
        network(device, np.float16)
    half = devices.to_device(X[:, 0, 0].astype(np.float16), device)
    for call in (
        lambda: SOFTMAX.value(half, Y),
        lambda: SOFTMAX.predictive_mean(half),
        lambda: kfc.SquaredError().fisher_trace(half),
    ):
        with pytest.raises(
            TypeError, match="outputs must be float32 or float64, got dtype float16"
        ):
            call()
    found = network(device)
    bias = found.params["dense1.bias"]
    found.params["dense1.bias"] = bias.astype(np.float16)
    with pytest.raises(ValueError, match=r"must be a C-contiguous float32 array .*got float16"):
        found.predict(X)


def test_kernels_say_what_they_take():
    """Host arrays, half precision and empty arrays; each kernel's own tests have more."""
    given = devices.upload(X.astype(np.float32))
    with pytest.raises(TypeError, match="x must be a device array, got ndarray"):
        kernels.relu_forward(X)
    with pytest.raises(TypeError, match="x has dtype float16, it must be float32 or float64"):
        kernels.relu_forward(given.astype(np.float16))
    with pytest.raises(ValueError, match=r"x has shape .* it must not be empty"):
        kernels.relu_forward(given[:0])
    with pytest.raises(TypeError, match="out must be a device array of dtype float32, got ndarray"):
        kernels.relu_forward(given, out=np.empty(X.shape, np.float32))
