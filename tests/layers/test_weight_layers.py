"""Convolution and dense layers: derivatives, and what their Kronecker factors are made of."""

import naive
import numpy as np
import pytest
from gradcheck import check_layer

from kfc_numba.layers.base import Context
from kfc_numba.layers.conv import Conv2d
from kfc_numba.layers.dense import Dense

CONVOLUTIONS = [
    (Conv2d(4, 3, padding="same"), (5, 4, 3)),
    (Conv2d(2, (2, 3), stride=(2, 1), padding=1, bias=False), (5, 6, 1)),
    (Conv2d(6, 2, dilation=(1, 2), padding=((0, 1), (2, 0)), groups=2), (4, 5, 4)),
]
DENSE = [
    (Dense(4), (7,)),
    (Dense(3, bias=False), (5,)),
    (Dense(2), (3, 2, 4)),
    (Dense(3, bias=False), (4, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS + DENSE, ids=repr)
def test_derivatives(layer, shape):
    check_layer(layer, [shape])


def run(layer, shape, examples=3):
    """Inputs as float32 of a forward pass, what it saved, and derivatives of its outputs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, *shape)).astype(np.float32)
    parameters = layer.parameters(rng, shape)
    arrays = {name: value.astype(np.float32) for name, value in parameters.items()}
    y, saved = layer.forward(arrays, (x,), Context())
    return x, saved, rng.normal(size=y.shape).astype(np.float32)


def rows_of(layer, x):
    """The patch matrix by loops, (groups, examples, locations, columns)."""
    if isinstance(layer, Dense):
        rows = x.reshape(1, len(x), -1, x.shape[-1]).astype(float)
        ones = np.ones((*rows.shape[:3], 1))
        return np.concatenate([rows, ones], axis=3) if layer.bias else rows
    size = x.shape[3] // layer.groups
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    parts = [x[..., g * size : (g + 1) * size] for g in range(layer.groups)]
    rows = np.stack([naive.patches(part, layer.kernel, **options) for part in parts])
    rows = rows.reshape(layer.groups, len(x), -1, rows.shape[-1])
    return rows if layer.bias else rows[..., :-1]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS + DENSE, ids=repr)
def test_patches_in_full(layer, shape):
    x, saved, _ = run(layer, shape)
    expected = rows_of(layer, x)
    found = layer.homogeneous(saved)
    np.testing.assert_array_equal(found, expected[0] if len(expected) == 1 else expected)
    assert found.dtype == x.dtype


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS + DENSE, ids=repr)
def test_moments(layer, shape, approx):
    x, saved, dy = run(layer, shape)
    groups = getattr(layer, "groups", 1)
    rows = rows_of(layer, x)
    outputs = dy.reshape(len(dy), -1, groups, dy.shape[-1] // groups).transpose(2, 0, 1, 3)
    outputs = outputs.astype(float)
    if approx == "reduce":
        rows, outputs = rows.mean(axis=2), outputs.sum(axis=2)
    for found, terms in [
        (layer.input_moment(saved, approx), rows),
        (layer.output_moment(dy, approx), outputs),
    ]:
        expected = np.stack([naive.output_second_moment(part) for part in terms])
        expected = expected[0] if groups == 1 else expected
        size = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=4 * 2.0**-24 * size)
