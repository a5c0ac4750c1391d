"""Pooling layers."""

import naive_layers
import numpy as np
import pytest
from gradcheck import check_layer

from kfc_numba.layers.base import Context
from kfc_numba.layers.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from kfc_numba.sequential import Sequential

WINDOWS = [
    (2, {}),
    (3, {"stride": 2}),
    (3, {"stride": 2, "ceil_mode": True}),
    ((3, 2), {"stride": (1, 2), "padding": "same"}),
    ((2, 3), {"stride": 2, "padding": ((1, 0), (0, 2)), "ceil_mode": True}),
]


def run(layer, x):
    return layer.forward({}, (x,), Context())[0]


@pytest.mark.parametrize("kind", [MaxPool2d, AvgPool2d])
@pytest.mark.parametrize(("kernel", "options"), WINDOWS)
def test_derivatives(kind, kernel, options):
    check_layer(kind(kernel, **options), [(7, 6, 3)])


def test_derivatives_with_padding_in_the_divisor():
    check_layer(AvgPool2d(3, stride=2, padding=1, count_include_pad=True), [(7, 6, 3)])


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 5, 3)])
def test_derivatives_of_the_mean_over_the_image(shape):
    check_layer(GlobalAvgPool2d(), [shape])


@pytest.mark.parametrize(
    ("padding", "sides"),
    [("same", ((1, 1), (0, 1))), ("valid", ((0, 0), (0, 0))), ((1, 0), ((1, 1), (0, 0)))],
)
def test_values(padding, sides):
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3))
    window = ((3, 2), (2, 3), sides)
    y = run(MaxPool2d((3, 2), stride=(2, 3), padding=padding), x)
    np.testing.assert_array_equal(y, naive_layers.max_pool(x, *window)[0])
    y = run(AvgPool2d((3, 2), stride=(2, 3), padding=padding), x)
    matrix = naive_layers.avg_pool_matrix(x.shape, *window)
    np.testing.assert_allclose(y.ravel(), matrix @ x.ravel(), rtol=1e-13, atol=1e-15)


def test_partial_windows_average_the_cells_in_the_image():
    x = np.arange(16.0).reshape(1, 4, 4, 1)
    y = run(AvgPool2d(3, stride=2, ceil_mode=True), x)[0, :, :, 0]
    np.testing.assert_allclose(y, [[5, 6.5], [11, 12.5]])


def test_divisors_with_padding():
    x = np.ones((1, 4, 4, 1))
    options = {"stride": 2, "padding": 1, "ceil_mode": True}
    without = run(AvgPool2d(3, **options), x)[0, :, :, 0]
    np.testing.assert_allclose(without, np.ones((3, 3)))
    # The last window starts at row 3 and reaches row 4, the padding; row 5 hangs over.
    edge = np.array([2 / 3, 1, 1 / 2])
    counted = run(AvgPool2d(3, **options, count_include_pad=True), x)[0, :, :, 0]
    np.testing.assert_allclose(counted, np.outer(edge, edge))


def test_the_mean_over_the_image():
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3))
    np.testing.assert_allclose(run(GlobalAvgPool2d(), x), x.mean(axis=(1, 2)), rtol=1e-13)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (MaxPool2d(3, stride=2), (15, 15, 4)),
        (MaxPool2d(3, stride=2, ceil_mode=True), (16, 16, 4)),
        (AvgPool2d(2), (16, 16, 4)),
        (MaxPool2d(2, stride=1, padding=((1, 0), (0, 1))), (32, 32, 4)),
        (AvgPool2d(5, stride=3, padding="same"), (11, 11, 4)),
        (GlobalAvgPool2d(), (4,)),
    ],
    ids=repr,
)
def test_output_shapes(layer, shape):
    assert layer.output_shape((32, 32, 4)) == shape
    assert run(layer, np.zeros((2, 32, 32, 4), np.float32)).shape == (2, *shape)


def test_what_is_kept_is_small_and_can_be_cut():
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
    layer = MaxPool2d(2)
    y, saved = layer.forward({}, (x,), Context())
    assert saved[0].nbytes == y.size
    assert all(array.base is not x and array.strides[0] == 0 for array in saved[1:])
    dy = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    (whole,), _ = layer.backward({}, saved, dy, Context())
    part = tuple(array[:2] for array in saved)
    (cut,), _ = layer.backward({}, part, dy[:2], Context())
    np.testing.assert_array_equal(cut, whole[:2])


@pytest.mark.parametrize("layer", [MaxPool2d(2), AvgPool2d(2), GlobalAvgPool2d()], ids=repr)
def test_a_flat_input(layer):
    with pytest.raises(ValueError, match=rf"^{type(layer).__name__} takes .*got \(12,\)$"):
        layer.output_shape((12,))


def test_a_window_larger_than_the_image():
    with pytest.raises(ValueError, match=r"MaxPool2d\(kernel=\(5, 5\).*\(4, 6, 1\).*at most the 4"):
        Sequential([MaxPool2d(5)], input_shape=(4, 6, 1))


@pytest.mark.parametrize("kind", [MaxPool2d, AvgPool2d])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel": 0}, ValueError, "kernel"),
        ({"kernel": 2.0}, TypeError, "kernel"),
        ({"kernel": 2, "stride": (1, 0)}, ValueError, "stride"),
        ({"kernel": 2, "padding": "reflect"}, ValueError, "padding"),
        (
            {"kernel": 2, "padding": 2},
            ValueError,
            r"padding \(=2\) must be smaller than kernel",
        ),
        ({"kernel": (2, 4), "padding": ((0, 2), (0, 0))}, ValueError, "padding"),
        ({"kernel": 2, "ceil_mode": 1}, TypeError, "ceil_mode"),
    ],
)
def test_bad_arguments(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        kind(**arguments)


def test_a_bad_divisor():
    with pytest.raises(TypeError, match="count_include_pad"):
        AvgPool2d(2, count_include_pad="yes")
