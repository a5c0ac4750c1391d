"""Activation layers."""

import numpy as np
import pytest
from gradcheck import check_layer

from kfc_numba.layers.activation import LeakyReLU, ReLU, Sigmoid, Tanh
from kfc_numba.layers.base import Context

LAYERS = [ReLU(), LeakyReLU(), LeakyReLU(0.3), LeakyReLU(0), LeakyReLU(1), Tanh(), Sigmoid()]


def run(layer, x):
    return layer.forward({}, (np.asarray(x, float),), Context())[0]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize("shape", [(1,), (4, 5, 3)])
def test_derivatives(layer, shape):
    check_layer(layer, [shape])


def test_values():
    x = [-2.0, 0.0, 3.0]
    np.testing.assert_array_equal(run(ReLU(), x), [0, 0, 3])
    np.testing.assert_allclose(run(LeakyReLU(), x), [-0.02, 0, 3], rtol=1e-15)
    np.testing.assert_allclose(run(LeakyReLU(0.5), x), [-1, 0, 3], rtol=1e-15)
    np.testing.assert_allclose(run(Tanh(), x), np.tanh(x), rtol=1e-14)
    np.testing.assert_allclose(run(Sigmoid(), x), [1 / (1 + np.exp(2)), 0.5, 1 / (1 + np.exp(-3))])


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_nan_passes(layer):
    assert np.isnan(run(layer, [np.nan, 1.0])).tolist() == [True, False]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_nothing_is_kept_but_the_output(layer):
    y, saved = layer.forward({}, (np.ones((2, 3)),), Context())
    assert len(saved) == 1
    assert saved[0] is y


@pytest.mark.parametrize(
    ("slope", "error"), [(-0.1, ValueError), (np.inf, ValueError), ("0.1", TypeError)]
)
def test_bad_slopes(slope, error):
    with pytest.raises(error, match="slope"):
        LeakyReLU(slope)
