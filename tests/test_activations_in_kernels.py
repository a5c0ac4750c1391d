"""Nothing but kernels computes on arrays with a batch axis.

Kernels are replaced by ones that hand out arrays which refuse NumPy's arithmetic, and take them
back. Views (reshaping, slices, transposes) are allowed.
"""

import inspect
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import fisher
from kfc_numba.kernels import backend, cpu
from kfc_numba.workspace import Workspace

BATCH = 7  # no other axis is as long


class Guarded(np.ndarray):
    """An array that can be looked at, and given to kernels."""

    def __array_ufunc__(self, function, method, *arguments, **named):
        raise AssertionError(f"NumPy's {function.__name__} on activations")

    def __array_function__(self, function, types, arguments, named):
        raise AssertionError(f"NumPy's {function.__name__} on activations")

    def __setitem__(self, index, value):
        raise AssertionError("activations are written to")

    def astype(self, *arguments, **named):
        raise AssertionError("activations are cast")


def guard(value):
    if isinstance(value, (tuple, list)):
        return type(value)(guard(entry) for entry in value)
    # One number for each example, such as its loss, is the host's.
    if isinstance(value, np.ndarray) and value.ndim > 1 and len(value) == BATCH:
        return value.view(Guarded)
    return value


def plain(value):
    if isinstance(value, (tuple, list)):
        return type(value)(plain(entry) for entry in value)
    return value.view(np.ndarray) if isinstance(value, np.ndarray) else value


@pytest.fixture
def guarded(monkeypatch):
    """Kernels, and the memory of networks, with guarded arrays."""

    def wrapped(function):
        def call(*arguments, **named):
            named = {name: plain(value) for name, value in named.items()}
            return guard(function(*plain(arguments), **named))

        return call

    names = {n: wrapped(f) if inspect.isfunction(f) else f for n, f in vars(cpu).items()}
    package, chosen = SimpleNamespace(**names), backend.kernels
    for name, module in list(sys.modules.items()):
        if name.startswith("kfc_numba.") and getattr(module, "kernels", None) is chosen:
            monkeypatch.setattr(module, "kernels", lambda array: package)
    usual = Workspace.empty
    monkeypatch.setattr(Workspace, "empty", lambda self, *shape: guard(usual(self, *shape)))
    check = kfc.Graph.check_inputs
    monkeypatch.setattr(kfc.Graph, "check_inputs", lambda self, x: guard(check(self, plain(x))))


def images(*layers):
    return kfc.Sequential([*layers, kfc.Flatten(), kfc.Dense(3)], input_shape=(6, 5, 4))


def residual():
    image = kfc.Input((6, 5, 4))
    one = kfc.Conv2d(4, 3, padding="same")(image)
    both = kfc.Add()(one, image)
    joined = kfc.Concat()(both, kfc.ReLU()(both), one)
    return kfc.Graph(image, kfc.Dense(3)(kfc.GlobalAvgPool2d()(joined)))


NETWORKS = {
    "conv": lambda: images(kfc.Conv2d(6, 3, padding=1, stride=2)),
    "groups": lambda: images(kfc.Conv2d(6, 3, groups=2, dilation=2, bias=False, padding="same")),
    "dense on images": lambda: images(kfc.Dense(5)),
    "max pool": lambda: images(kfc.Conv2d(3, 1), kfc.MaxPool2d(2, ceil_mode=True)),
    "average pool": lambda: images(kfc.Conv2d(3, 1), kfc.AvgPool2d(3, stride=2, padding=1)),
    "global pool": lambda: kfc.Sequential(
        [kfc.Conv2d(3, 3), kfc.GlobalAvgPool2d(), kfc.Dense(3)], input_shape=(6, 5, 4)
    ),
    "activations": lambda: images(
        kfc.Conv2d(3, 3), kfc.ReLU(), kfc.LeakyReLU(), kfc.Tanh(), kfc.Sigmoid()
    ),
    "batch norm": lambda: images(kfc.Conv2d(3, 3), kfc.BatchNorm()),
    "response norm": lambda: images(kfc.Conv2d(3, 3), kfc.LocalResponseNorm(3)),
    "within maps": lambda: images(
        kfc.Conv2d(3, 3), kfc.LocalResponseNorm(3, region="within_channel")
    ),
    "dropout": lambda: images(kfc.Conv2d(3, 3), kfc.Dropout(0.5)),
    "graph": residual,
}


def batch(loss):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, 6, 5, 4)).astype(np.float32)
    if isinstance(loss, kfc.SoftmaxCrossEntropy):
        return x, rng.integers(0, 3, BATCH)
    return x, rng.random((BATCH, 3)).astype(np.float32)


SOFTMAX = kfc.SoftmaxCrossEntropy()


@pytest.mark.parametrize("name", NETWORKS)
def test_passes(guarded, name):
    net = NETWORKS[name]()
    x, y = batch(SOFTMAX)
    assert isinstance(net.forward(x).outputs, Guarded)  # so that the guard is on
    for settings in ({}, {"kfac_approx": "reduce"}, {"structure": "ekfac"}):
        optimizer = kfc.KFC(num_burnin_steps=0, **settings)
        state = optimizer.init(net)
        for _ in range(2):
            optimizer.step(net, SOFTMAX, x, y, state)
    trace = net.forward(x)
    fisher.fisher_vector_product(net, trace, SOFTMAX, net.params)


@pytest.mark.parametrize("mode", ["fisher_gradients", "fisher_exact", "fisher_empirical"])
@pytest.mark.parametrize("loss", [SOFTMAX, kfc.SquaredError(), kfc.SigmoidCrossEntropy()])
def test_losses(guarded, loss, mode):
    net = NETWORKS["conv"]()
    x, y = batch(loss)
    optimizer = kfc.KFC(num_burnin_steps=0, estimation_mode=mode, use_adaptive_damping=True)
    state = optimizer.init(net)
    for _ in range(2):
        optimizer.step(net, loss, x, y, state)
    outputs = net.forward(x).outputs
    loss.error(outputs, y)
    loss.predictive_mean(outputs)


@pytest.mark.parametrize("optimizer", [kfc.SGD(l2_reg=0.1), kfc.Adam()])
def test_optimizers(guarded, optimizer):
    net = NETWORKS["conv"]()
    optimizer.step(net, SOFTMAX, *batch(SOFTMAX), optimizer.init(net))


def test_the_guard_refuses():
    array = guard(np.ones((BATCH, 2)))
    for compute in (
        lambda: array + 1,
        lambda: array.sum(),
        lambda: np.concatenate([array, array]),
        lambda: array.__setitem__(0, 1),
        lambda: array.astype(float),
    ):
        with pytest.raises(AssertionError):
            compute()
    assert array.reshape(-1)[:3].shape == (3,)
