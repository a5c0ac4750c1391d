"""Whole training by device code: the same as on the CPU, to rounding."""

import numpy as np
import pytest
from host_array import HostArray
from stand_in import in_cupys_place

import kfc_numba as kfc
from kfc_numba import devices
from kfc_numba.curvature import parts
from kfc_numba.precision import tensor_cores

SOFTMAX = kfc.SoftmaxCrossEntropy()
SHAPE = (6, 5, 3)


@pytest.fixture(autouse=True)
def card(monkeypatch):
    with in_cupys_place(monkeypatch):
        yield


def small(dtype):
    layers = [
        *(kfc.Conv2d(4, 3, padding="same"), kfc.MaxPool2d(3, stride=2, ceil_mode=True)),
        *(kfc.ReLU(), kfc.Dropout(0.2), kfc.Flatten(), kfc.Dense(10)),
    ]
    return kfc.Sequential(layers, input_shape=SHAPE, dtype=dtype)


def residual(dtype):
    image = kfc.Input(SHAPE)
    stem = kfc.Conv2d(4, 3, padding="same", bias=False)(image)
    branch = kfc.BatchNorm()(kfc.Conv2d(4, 3, padding="same", groups=2)(kfc.ReLU()(stem)))
    joined = kfc.Add()(branch, stem)
    pooled = kfc.GlobalAvgPool2d()(kfc.Concat()(kfc.Tanh()(joined), kfc.AvgPool2d(1)(stem)))
    return kfc.Graph(image, kfc.Dense(10)(pooled), dtype=dtype)


def norms(dtype):
    layers = [
        *(kfc.Conv2d(3, 1), kfc.LocalResponseNorm(3), kfc.LeakyReLU(), kfc.Sigmoid()),
        *(kfc.Flatten(), kfc.Dense(10)),
    ]
    return kfc.Sequential(layers, input_shape=SHAPE, dtype=dtype)


NETWORKS = {"small": small, "residual": residual, "norms": norms}
OPTIMIZERS = {
    "sgd": lambda: kfc.SGD(learning_rate=0.05, l2_reg=1e-3),
    "adam": lambda: kfc.Adam(),
    "kfc": lambda: kfc.KFC(),
    "adaptive": lambda: kfc.KFC(
        use_adaptive_damping=True, use_adaptive_learning_rate=True, use_adaptive_momentum=True
    ),
    "diagonal": lambda: kfc.KFC(structure="diagonal"),
    "lag": lambda: kfc.KFC(decomposition_lag=1),
    "reduce": lambda: kfc.KFC(kfac_approx="reduce", estimation_mode="fisher_exact"),
}


def data(examples=7):
    rng = np.random.default_rng(0)
    return rng.normal(size=(examples, *SHAPE)).astype(np.float32), rng.integers(0, 10, examples)


def trained(device, network, optimizer, steps=3, dtype=np.float64):
    trainer = kfc.Trainer(NETWORKS[network](dtype), SOFTMAX, OPTIMIZERS[optimizer]()).to(device)
    return trainer, [trainer.step(*data()) for _ in range(steps)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_steps_are_those_of_the_cpu(network, optimizer):
    there, losses = trained("cuda", network, optimizer)
    here, expected = trained("cpu", network, optimizer)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    for name, value in here.net.params.items():
        np.testing.assert_allclose(there.net.params[name].get(), value, atol=1e-9)
    for name, value in here.optimizer_state.items():
        other = there.optimizer_state[name]
        assert isinstance(other, HostArray) == (value.ndim > 0), name
        if name == "inverse_steps":  # a card always has inverses
            assert other == 0
        elif "_inverse/" in name:
            expected = inverse(here, name)
            size = abs(expected).max()
            np.testing.assert_allclose(devices.to_host(other), expected, atol=1e-7 * size)
        elif "vectors" not in name:  # those of equal eigenvalues are not unique
            np.testing.assert_allclose(devices.to_host(other), value, atol=1e-7, err_msg=name)


def test_inputs_in_parts(monkeypatch):
    monkeypatch.setattr(parts, "WIDEST", 13)
    there, _ = trained("cuda", "small", "kfc", steps=1)
    assert there.optimizer_state["omega/dense1"].shape == (2, 13, 13)
    test_steps_are_those_of_the_cpu("small", "kfc")


def inverse(trainer, name):
    """An inverse in the state, also where its Cholesky factor takes its place."""
    kind, layer = name.split("/")
    state, blocks = trainer.optimizer_state, trainer.optimizer.curvature(trainer.net).blocks
    block = next(block for block in blocks if block.name == layer)
    factors = dict(zip(("gamma_inverse", "omega_inverse"), block.keep_factors(state), strict=True))
    if not factors[kind]:
        return state[name]
    lower = np.tril(state[name])
    return np.linalg.inv(lower @ np.swapaxes(lower, -1, -2))


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("structure", ["ekfac", "full", "tridiagonal"])
def test_other_structures(structure, lag):
    """More examples than inputs: factors of full rank, whose eigenvectors are unique."""
    if structure == "tridiagonal" and lag:
        return  # refused
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    losses = {}
    for device in ("cpu", "cuda"):
        layers = [kfc.Dense(5), kfc.Tanh(), kfc.Dense(3)]
        net = kfc.Sequential(layers, input_shape=(4,), dtype=np.float64)
        optimizer = kfc.KFC(structure=structure, damping=0.1, decomposition_lag=lag)
        trainer = kfc.Trainer(net, SOFTMAX, optimizer).to(device)
        losses[device] = [trainer.step(x, y) for _ in range(3)]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-8)


def test_in_float32():
    there, losses = trained("cuda", "small", "kfc", dtype=np.float32)
    _, expected = trained("cpu", "small", "kfc", dtype=np.float32)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert all(value.dtype == np.float32 for value in there.net.params.values())


@pytest.mark.parametrize("optimizer", ["sgd", "kfc"])
def test_on_tensor_cores(optimizer):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 36)), rng.integers(0, 33, 40)
    losses = {}
    for tensor in (False, True):
        net = kfc.Sequential([kfc.Dense(34), kfc.Tanh(), kfc.Dense(33)], input_shape=(36,))
        trainer = kfc.Trainer(net, SOFTMAX, OPTIMIZERS[optimizer]()).to("cuda")
        with tensor_cores(tensor):
            losses[tensor] = [trainer.step(x, y) for _ in range(3)]
    assert losses[True] != losses[False]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-3)


@pytest.mark.parametrize("loss", [kfc.SquaredError(), kfc.SigmoidCrossEntropy()])
def test_other_losses(loss):
    x, _ = data()
    y = np.random.default_rng(1).random((7, 10))
    losses = {}
    for device in ("cpu", "cuda"):
        trainer = kfc.Trainer(small(np.float64), loss, kfc.KFC()).to(device)
        losses[device] = [trainer.step(x, y) for _ in range(3)]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-10)


@pytest.mark.parametrize("free", [1 << 30, 0], ids=["on the card", "batch by batch"])
def test_fit_and_predict(monkeypatch, free):
    x, y = data(20)
    found = {}
    with in_cupys_place(monkeypatch, free):
        for device in ("cpu", "cuda"):
            net = small(np.float64).to(device)
            trainer = kfc.Trainer(net, SOFTMAX, kfc.SGD(learning_rate=0.05))
            history = trainer.fit(x, y, batch_size=8, epochs=2, validation=(x, y), progress=False)
            losses = [row["validation_loss"] for row in history.rows]
            found[device] = losses, net.predict(x), net.predict_proba(x, SOFTMAX)
    for one, other in zip(found["cuda"], found["cpu"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("ways", [("cuda", "cpu"), ("cpu", "cuda")])
def test_saving_here_and_going_on_there(tmp_path, ways):
    trainer, _ = trained(ways[0], "small", "kfc")
    trainer.save(tmp_path / "run.safetensors")
    net = small(np.float64).to(ways[1])
    other = kfc.Trainer.load(tmp_path / "run.safetensors", net, SOFTMAX, kfc.KFC())
    assert other.net.device == ways[1]
    np.testing.assert_allclose(other.step(*data()), trainer.step(*data()), rtol=1e-10)
    for name, value in trainer.net.params.items():
        gap = devices.to_host(value) - devices.to_host(other.net.params[name])
        assert abs(gap).max() < 1e-9


def test_mixed_places():
    trainer, _ = trained("cpu", "small", "sgd", steps=1)
    trainer.net.to("cuda")
    with pytest.raises(ValueError, match=r"Trainer\.to"):
        trainer.step(*data())
    trainer.to("cuda").step(*data())
    trainer.net.params["dense1.bias"] = np.zeros(10)
    with pytest.raises(ValueError, match=r"dense1.bias.*on the device 'cuda'"):
        trainer.step(*data())


def test_bad_arrays():
    net = small(np.float32).to("cuda")
    x = devices.upload(data()[0])
    assert isinstance(net.predict(x), HostArray)
    assert isinstance(net.predict(x.get()), np.ndarray)
    with pytest.raises(ValueError, match="x has no examples"):
        net.predict(x[:0])
    with pytest.raises(ValueError, match="x has shape"):
        net.predict(x[:, 1:])
    # Not contiguous, or of another kind of number: copied, as on the CPU.
    turned = devices.upload(data()[0].transpose(0, 2, 1, 3)).get().transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(net.predict(turned), net.predict(x.get()))


def test_too_little_memory(monkeypatch):
    net = small(np.float32).to("cuda")

    def none_left(shape, dtype):
        raise MemoryError

    monkeypatch.setattr(devices.cupy(), "empty", none_left)
    with pytest.raises(MemoryError, match=r"batch of 7 examples needs .* bytes on the card"):
        net.predict(data()[0])
