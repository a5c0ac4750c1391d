"""Where theory says that a Kronecker factorisation is the Fisher block itself.

The five cases of Grosse and Martens (2016) and of Eschenhagen et al. (2023), in float64, against
Fisher matrices from differences of predictions.
"""

import curvature_reference as reference
import naive
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature.structures import curvature_of

LOSSES = [kfc.SquaredError(), kfc.SoftmaxCrossEntropy(), kfc.SigmoidCrossEntropy()]
# The references are differences of eighth order, accurate to some 1e-13 of the largest entry.
CLOSE = 1e-10


def build(layers, shape, seed=0):
    net = kfc.Sequential(layers, input_shape=shape, seed=seed, dtype=np.float64)
    rng = np.random.default_rng(seed + 7)
    for name, value in net.params.items():
        if name.endswith("bias"):
            value += rng.normal(size=value.shape) / 4
    return net


def factors(net, x, loss, approx, name, **how):
    state = curvature_of(net, approx=approx).compute(
        net.forward(x), loss, mode="fisher_exact", **how
    )
    return state[f"omega/{name}"], state[f"gamma/{name}"]


def block(omega, gamma):
    """Kronecker products of the factors, one a group, in the order of the layer's matrix."""
    if omega.ndim == 2:
        omega, gamma = omega[None], gamma[None]
    return np.stack([naive.kronecker_block(o, g) for o, g in zip(omega, gamma, strict=True)])


def assert_exact(net, x, loss, approx, name, scale=1.0):
    fisher = reference.exact_fisher(net, x, loss)
    part = reference.slices(net)[name]
    expected = reference.matrix_block(net, fisher[part, part], name)
    actual = scale * block(*factors(net, x, loss, approx, name))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(actual, expected, atol=CLOSE * np.abs(expected).max(), rtol=0)


CONVOLUTIONS = {
    "plain": {"kernel": (2, 3), "padding": 1},
    "no bias": {"kernel": 3, "padding": "same", "bias": False},
    "stride": {"kernel": 3, "stride": 2, "padding": 1},
    "dilation": {"kernel": 2, "dilation": 2, "padding": ((1, 0), (0, 1))},
    "groups": {"kernel": 2, "groups": 2},
    "depthwise": {"kernel": (2, 1), "groups": 4, "stride": (1, 2), "bias": False},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_and_linear_map_at_each_location(name):
    # Derivatives of different locations are independent: "expand" is exact.
    net = build([kfc.Conv2d(4, **CONVOLUTIONS[name]), kfc.Dense(2)], (4, 5, 4))
    x = np.random.default_rng(1).normal(size=(3, 4, 5, 4))
    assert_exact(net, x, kfc.SquaredError(), "expand", "conv1")
    assert_exact(net, x, kfc.SquaredError(), "expand", "dense1")


@pytest.mark.parametrize("bias", [True, False])
def test_dense_layers_at_each_location(bias):
    net = build([kfc.Dense(3, bias), kfc.Dense(2, bias)], (2, 3, 2))
    x = np.random.default_rng(1).normal(size=(4, 2, 3, 2))
    assert_exact(net, x, kfc.SquaredError(), "expand", "dense1")
    assert_exact(net, x, kfc.SquaredError(), "expand", "dense2")


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_last_layer_with_one_prediction_for_all_locations(loss):
    # Zero weights: the predictive distribution is that of the bias, everywhere.
    net = build([kfc.Conv2d(3, 2, padding=1)], (3, 3, 2))
    net.params["conv1.weight"][:] = 0
    x = np.random.default_rng(1).normal(size=(3, 3, 3, 2))
    assert_exact(net, x, loss, "expand", "conv1")


POOLS = {
    "global": [kfc.GlobalAvgPool2d()],
    "window": [kfc.AvgPool2d((3, 4)), kfc.Flatten()],
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_and_average_over_all_locations(name):
    # All locations have the same derivative: "reduce" is exact.
    net = build(
        [kfc.Conv2d(4, **CONVOLUTIONS[name]), kfc.GlobalAvgPool2d(), kfc.Dense(3)], (4, 5, 4)
    )
    x = np.random.default_rng(1).normal(size=(3, 4, 5, 4))
    assert_exact(net, x, kfc.SquaredError(), "reduce", "conv1")


@pytest.mark.parametrize("bias", [True, False])
def test_dense_layer_and_average_over_all_locations(bias):
    net = build([kfc.Dense(3, bias), *POOLS["window"], kfc.Dense(2)], (3, 4, 2))
    x = np.random.default_rng(1).normal(size=(3, 3, 4, 2))
    assert_exact(net, x, kfc.SquaredError(), "reduce", "dense1")


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_one_example_and_average_over_all_locations(loss):
    # One example has one Fisher matrix of predictions, whatever the loss.
    net = build([kfc.Conv2d(2, 2, padding=1), kfc.GlobalAvgPool2d(), kfc.Dense(3)], (3, 3, 2))
    x = np.random.default_rng(1).normal(size=(1, 3, 3, 2))
    assert_exact(net, x, loss, "reduce", "conv1")


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_one_example_and_a_dense_network(loss, approx):
    layers = [kfc.Dense(3), kfc.Tanh(), kfc.Dense(3, bias=False), kfc.Sigmoid(), kfc.Dense(3)]
    net = build(layers, (4,))
    x = np.random.default_rng(1).normal(size=(1, 4))
    for name in ("dense1", "dense2", "dense3"):
        assert_exact(net, x, loss, approx, name)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("bias", [True, False])
def test_constant_input_and_average_over_all_locations(loss, bias):
    # Every location says the same: the block is |T| times what independent ones would make it.
    net = build([kfc.Conv2d(2, 2, bias=bias), kfc.GlobalAvgPool2d(), kfc.Dense(3)], (3, 4, 2))
    x = np.ones((3, 3, 4, 2)) * [0.5, -1.5]
    assert_exact(net, x, loss, "expand", "conv1", scale=2 * 3)


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_splits_and_repeats_of_the_batch(loss, approx):
    net = build(
        [kfc.Conv2d(2, 2, padding=1), kfc.Tanh(), kfc.AvgPool2d(2), kfc.Flatten(), kfc.Dense(3)],
        (3, 4, 2),
    )
    x = np.random.default_rng(1).normal(size=(5, 3, 4, 2))
    for name in ("conv1", "dense1"):
        whole, first, rest, repeated = (
            factors(net, part, loss, approx, name)
            for part in (x, x[:2], x[2:], np.tile(x, (3, 1, 1, 1)))
        )
        for one, a, b, three in zip(whole, first, rest, repeated, strict=True):
            np.testing.assert_allclose(one, (2 * a + 3 * b) / 5, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(one, three, rtol=1e-12, atol=1e-14)


def test_a_wrong_scale_is_noticed():
    net = build([kfc.Conv2d(2, 2), kfc.Dense(2)], (3, 3, 2))
    x = np.random.default_rng(1).normal(size=(3, 3, 3, 2))
    with pytest.raises(AssertionError):
        assert_exact(net, x, kfc.SquaredError(), "expand", "conv1", scale=1.001)
    with pytest.raises(AssertionError):
        assert_exact(net, x, kfc.SquaredError(), "reduce", "conv1")
