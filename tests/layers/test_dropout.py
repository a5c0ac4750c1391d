"""Dropout."""

import numpy as np
import pytest
from gradcheck import check_layer

from kfc_numba.layers.base import Context
from kfc_numba.layers.dropout import Dropout
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
