"""Dropout."""

import numpy as np
import pytest
from gradcheck import check_layer

from kfc_numba.layers.base import Context
from kfc_numba.layers.conv import Conv2d
from kfc_numba.layers.dense import Dense
from kfc_numba.layers.dropout import Dropout
from kfc_numba.layers.norm import BatchNorm
from kfc_numba.layers.shape import Flatten
from kfc_numba.sequential import Sequential


def kept(layer, shape=(20, 10, 10, 5), dtype=np.float64, **key):
    """Which units pass, and the values of those."""
    y, _ = layer.forward({}, (np.ones(shape, dtype),), Context(training=True, **key))
    return y != 0, y[y != 0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rate", [0, 0.4])
def test_derivatives(rate, training):
    check_layer(Dropout(rate), [(4, 5, 3)], training=training)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_scale(rate):
    mask, values = kept(Dropout(rate))
    np.testing.assert_allclose(values, 1 / (1 - rate), rtol=1e-15)
    # Within five deviations of a binomial count.
    deviation = np.sqrt(rate * (1 - rate) / mask.size)
    assert abs(mask.mean() - (1 - rate)) < 5 * deviation
    # Neighbours are independent, along every axis.
    for axis in range(mask.ndim):
        pairs = mask & np.roll(mask, 1, axis)
        assert abs(pairs.mean() - (1 - rate) ** 2) < 5 * np.sqrt(2) * deviation


@pytest.mark.parametrize("other", [{"seed": 2}, {"step": 6}, {"node": 4}])
def test_the_key_decides(other):
    key = {"seed": 1, "step": 5, "node": 3}
    mask, _ = kept(Dropout(0.5), **key)
    again, _ = kept(Dropout(0.5), dtype=np.float32, **key)
    np.testing.assert_array_equal(mask, again)
    different, _ = kept(Dropout(0.5), **{**key, **other})
    # Half of the units differ.
    assert abs(np.mean(mask != different) - 0.5) < 5 * 0.5 / np.sqrt(mask.size)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0, True)])
def test_without_dropping_nothing_is_copied(rate, training):
    layer, context, x = Dropout(rate), Context(training=training), np.ones((2, 3))
    y, saved = layer.forward({}, (x,), context)
    assert y is x
    assert layer.backward({}, saved, x, context)[0][0] is x
    assert layer.tangent({}, saved, (x,), {}, context) is x


def test_two_layers_of_a_network_drop_different_units():
    net = Sequential([Dropout(0.5), Dropout(0.5)], input_shape=(10_000,))
    x = np.ones((1, 10_000), np.float32)
    passed = np.count_nonzero(net.forward(x, training=True, seed=3).outputs)
    assert abs(passed - 2500) < 5 * np.sqrt(10_000 * 0.25 * 0.75)
    np.testing.assert_array_equal(net.predict(x), x)


@pytest.mark.parametrize(
    ("rate", "error"), [(1, ValueError), (-0.1, ValueError), (np.nan, ValueError), ("x", TypeError)]
)
def test_bad_rates(rate, error):
    with pytest.raises(error, match="rate"):
        Dropout(rate)


def network(*layers):
    layers = (Conv2d(4, 3), *layers, Dropout(0.4), Flatten(), Dropout(0.2), Dense(3))
    return Sequential(layers, input_shape=(6, 5, 2), seed=0)


def test_a_pass_that_drops_what_an_earlier_one_did():
    net, x = network(), np.random.default_rng(0).standard_normal((20, 6, 5, 2), np.float32)
    earlier = net.forward(x, training=True, seed=1, step=7)
    np.testing.assert_array_equal(net.forward(x, like=earlier).outputs, earlier.outputs)
    chosen = np.array([11, 2, 3])
    again = net.forward(x[chosen], like=earlier.taken(chosen))
    np.testing.assert_allclose(again.outputs, earlier.outputs[chosen], rtol=1e-5, atol=1e-6)
    fresh = net.forward(x[chosen], training=True, seed=1, step=7).outputs
    assert np.abs(fresh - again.outputs).max() > 0.1
    net.params["conv1.weight"] = 2 * net.params["conv1.weight"]
    net.params["conv1.bias"] = 2 * net.params["conv1.bias"]
    np.testing.assert_allclose(
        net.forward(x[chosen], like=again).outputs - net.params["dense1.bias"],
        2 * (again.outputs - net.params["dense1.bias"]),
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_pass_like_one_of_other_examples():
    net, x = network(), np.ones((5, 6, 5, 2), np.float32)
    earlier = net.forward(x, training=True)
    with pytest.raises(ValueError, match=r"x must have the 5 examples .*like, got 4"):
        net.forward(x[:4], like=earlier)


def test_a_pass_like_one_in_evaluation_drops_nothing():
    net, x = network(BatchNorm()), np.ones((4, 6, 5, 2), np.float32)
    earlier = net.forward(x, seed=1)
    np.testing.assert_array_equal(net.forward(x, like=earlier).outputs, earlier.outputs)
