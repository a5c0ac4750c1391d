"""Layers that join branches."""

import numpy as np
import pytest
from gradcheck import check_layer, check_network

from kfc_numba.graph import Graph, Input
from kfc_numba.layers.activation import Tanh
from kfc_numba.layers.base import Context
from kfc_numba.layers.merge import Add, Concat
from kfc_numba.layers.norm import BatchNorm
from kfc_numba.losses import SquaredError


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("shape", [(4,), (3, 5, 2)])
def test_derivatives_of_add(shape, count):
    check_layer(Add(), [shape] * count)


@pytest.mark.parametrize("channels", [(2, 3), (1, 4, 2)])
@pytest.mark.parametrize("shape", [(), (3, 5)])
def test_derivatives_of_concat(shape, channels):
    check_layer(Concat(), [(*shape, count) for count in channels])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values(dtype):
    rng = np.random.default_rng(0)
    inputs = tuple(rng.normal(size=(2, 3, 4, 5)).astype(dtype) for _ in range(3))
    y, _ = Add().forward({}, inputs, Context())
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, inputs[0] + inputs[1] + inputs[2])
    y, _ = Concat().forward({}, inputs, Context())
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, np.concatenate(inputs, axis=-1))


def test_a_graph_with_branches_that_meet_again():
    x = Input((3, 2, 4))
    h = BatchNorm()(x)
    branch = BatchNorm()(Tanh()(h))
    both = Concat()(Add()(h, branch, h), BatchNorm()(x), branch, x)
    net = Graph(x, Add()(both, both), dtype=np.float64)
    assert net.output_shape == (3, 2, 16)
    rng = np.random.default_rng(0)
    for name, value in net.params.items():
        net.params[name] = value + 0.3 * rng.normal(size=value.shape)
    data = rng.normal(size=(4, 3, 2, 4)), rng.normal(size=(4, 3, 2, 16))
    check_network(net, *data, SquaredError())


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (2, 4)], [(2, 3), (6,)]])
def test_add_takes_equal_shapes(shapes):
    with pytest.raises(ValueError, match=r"Add\(\) takes two or more inputs of one shape"):
        Add()(*(Input(shape) for shape in shapes))


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (4, 3)], [(2, 3), (3,)]])
def test_concat_takes_shapes_equal_but_for_channels(shapes):
    with pytest.raises(ValueError, match=r"Concat\(\) takes two or more inputs that differ in the"):
        Concat()(*(Input(shape) for shape in shapes))
