"""Convolutions by minimal filtering against the loop references, and when they are chosen."""

from fractions import Fraction

import naive
import numpy as np
import pytest

from kfc_numba.kernels.cpu import conv, direct, winograd, winograd_points, winograd_sums
from kfc_numba.kernels.geometry import Windows

# Units of float32 rounding of the sum of magnitudes; by the definition it is six. Interpolation
# multiplies every input row of a block with every row of the kernel, pairs that cancel in the end
# included: where a sum has few terms, errors belong to the magnitudes of the whole column, and a
# few pairs outweigh the rest.
UNITS = 12
UNITS_OF_SHORT_SUMS = 24


@pytest.fixture
def always(monkeypatch):
    """Minimal filtering wherever there are transforms, whatever it costs."""
    used = []

    def possible(rows, columns, images, depth, filters):
        used.append(winograd.possible(rows, images[1]))
        return used[-1]

    monkeypatch.setattr(winograd, "pays", possible)
    return used


def check(shape, filters, kernel, *, groups=1, seed=0, short=True, **window):
    rng = np.random.default_rng(seed)

    def array(*size):
        return rng.normal(size=size).astype(np.float32).astype(float)

    window["groups"] = groups
    kernel = naive.pair(kernel)
    x, bias = array(*shape), array(filters)
    weight = array(*kernel, shape[3] // groups, filters)
    dy = array(*naive.conv2d(x, weight, bias, **window).shape)
    cases = [
        (
            lambda x, w, b, dy: conv.conv2d_forward(x, w, b, **window),
            lambda x, w, b, dy: naive.conv2d(x, w, b, **window),
        ),
        (
            lambda x, w, b, dy: conv.conv2d_grad_input(dy, w, shape, **window),
            lambda x, w, b, dy: naive.conv2d_grad_input(dy, w, shape, **window),
        ),
        (
            lambda x, w, b, dy: conv.conv2d_grad_parameters(x, dy, kernel, **window)[0],
            lambda x, w, b, dy: naive.conv2d_grad_weight(x, dy, kernel, **window),
        ),
        (
            lambda x, w, b, dy: conv.conv2d_grad_parameters(x, dy, kernel, **window)[1],
            lambda x, w, b, dy: naive.conv2d_grad_bias(dy),
        ),
    ]
    arrays = (x, weight, bias, dy)
    for (function, reference), axis in zip(cases, (1, 1, 0, 0), strict=True):
        expected, magnitudes = reference(*arrays), reference(*map(np.abs, arrays))
        for dtype in (np.float32, np.float64):
            actual = function(*(a.astype(dtype) for a in arrays))
            assert actual.dtype == dtype
            if short:
                column = magnitudes.max(axis=axis, keepdims=True)
                magnitudes = np.broadcast_to(column, actual.shape)
            units = UNITS_OF_SHORT_SUMS if short else UNITS
            naive.assert_sums(actual, expected, magnitudes, units)


@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_transforms_are_exact(kernel):
    """In rational numbers the three matrices give the sums of the definition."""
    a, g, b = (
        [[Fraction(entry).limit_denominator(1000) for entry in line] for line in matrix]
        for matrix in winograd_points.transforms(kernel)
    )
    rng = np.random.default_rng(0)
    points, block = winograd_points.points_and_rows(kernel)
    rows = [Fraction(int(v)) for v in rng.integers(-9, 10, points)]
    weights = [Fraction(int(v)) for v in rng.integers(-9, 10, kernel)]

    def times(matrix, vector):
        return [sum(m * v for m, v in zip(line, vector, strict=True)) for line in matrix]

    products = [p * q for p, q in zip(times(g, weights), times(b, rows), strict=True)]
    expected = [sum(rows[i + j] * weights[j] for j in range(kernel)) for i in range(block)]
    assert times(a, products) == expected


@pytest.mark.parametrize("padding", [0, "same", 2, ((1, 0), (2, 3))], ids=str)
@pytest.mark.parametrize("kernel", [3, (4, 1), (5, 3), (3, 2)], ids=str)
def test_kernels_and_paddings(always, kernel, padding):
    check((2, 7, 9, 3), 2, kernel, padding=padding)
    check((1, 8, 5, 18), 9, kernel, padding=padding)  # many channels are read without margins
    assert any(always)


@pytest.mark.parametrize("height", range(3, 14))
def test_heights(always, height):
    check((2, height, 4, 5), 3, 3, padding="same", seed=height)
    check((1, height, 3, 9), 3, 3, seed=height)
    assert all(always)


@pytest.mark.parametrize(
    "window",
    [
        {"stride": (1, 2), "padding": "same"},
        {"dilation": (1, 2), "padding": 2},
        {"stride": (1, 3), "dilation": (1, 2), "padding": ((1, 1), (0, 4))},
    ],
    ids=str,
)
def test_horizontal_strides_and_dilations(always, window):
    check((2, 6, 9, 4), 5, 3, **window)
    check((2, 6, 9, 12), 17, 3, **window)
    assert all(always)


def test_classes_of_the_input_gradient_of_a_stride(always):
    check((2, 9, 8, 9), 4, 5, stride=2, padding=2)
    assert any(always)  # of five taps two or three reach a class
    assert not all(always)


@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_rounding_at_the_depth_of_real_layers(always, kernel):
    """Relative to each sum's own magnitudes, as for the kernels by the definition."""
    check((2, 8, 8, 32), 16, kernel, padding=kernel // 2, short=False)
    assert all(always)


def correlate(x, weight, padding):
    """Convolution by Fourier transforms in float64: another way to the same numbers."""
    size = [n + 2 * padding for n in x.shape[1:3]]
    x_hat = np.fft.rfft2(np.pad(x, [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)]), axes=(1, 2))
    weight_hat = np.fft.rfft2(weight, s=size, axes=(0, 1))
    y = np.fft.irfft2(np.einsum("nhwc,hwcf->nhwf", x_hat, weight_hat.conj()), s=size, axes=(1, 2))
    rows, columns = (n - k + 1 for n, k in zip(size, weight.shape[:2], strict=True))
    return y[:, :rows, :columns]


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("channels", [16, 64])
def test_rounding_of_layers_of_real_size(always, kernel, channels):
    """What docs/kernels.md states: errors by the sum of magnitudes, in units of 2^-24."""
    rng = np.random.default_rng(0)
    padding = kernel // 2
    x = rng.standard_normal((8, 16, 16, channels), np.float32)
    weight = rng.standard_normal((kernel, kernel, channels, 64), np.float32)
    dy = rng.standard_normal((8, 16, 16, 64), np.float32)
    turned = weight[::-1, ::-1].swapaxes(2, 3)

    def check_units(actual, expected, magnitudes):
        units = np.abs(actual - expected) / magnitudes * 2.0**24
        assert units.max() < 24
        assert np.sqrt(np.mean(units**2)) < 1.5

    y = conv.conv2d_forward(x, weight, padding=padding)
    check_units(y, correlate(x, weight, padding), correlate(abs(x), abs(weight), padding))
    dx = conv.conv2d_grad_input(dy, weight, x.shape, padding=padding)
    check_units(dx, correlate(dy, turned, padding), correlate(abs(dy), abs(turned), padding))

    # The gradient by the weights correlates images with derivatives, over examples.
    def by_weight(x, dy):
        result = correlate(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), padding)
        return result.transpose(1, 2, 0, 3)

    dw = conv.conv2d_grad_weight(x, dy, kernel, padding=padding)
    check_units(dw, by_weight(x, dy), by_weight(abs(x), abs(dy)))
    assert all(always)


@pytest.mark.parametrize("groups", [2, 4])
def test_groups(always, groups):
    check((2, 5, 6, 8), 12, 3, groups=groups, padding=1)
    assert all(always)


@pytest.mark.parametrize(("channels", "filters"), [(1, 64), (15, 33), (17, 16), (33, 31), (40, 1)])
def test_channel_tails(always, channels, filters):
    check((2, 4, 3, channels), filters, 3, padding=1)
    assert all(always)


def test_many_examples_and_wide_rows(always):
    check((67, 3, 2, 2), 3, 3, padding=1)  # more blocks than any division of the work
    check((3, 9, 3, 20), 5, 5, padding=2)  # bands that end in the middle of an image
    check((2, 5, 70, 20), 3, 3, padding=1)  # bands of one block
    assert all(always)


def test_large_weights_have_few_partial_sums(always, monkeypatch):
    monkeypatch.setattr(winograd_sums, "PARTS_BYTES", 20_000)
    check((9, 4, 3, 6), 7, 3, padding=1)
    assert all(always)


def axes(size, kernel, **window):
    windows = Windows.of(size, (kernel, kernel), **{"stride": 1, "dilation": 1, **window})
    return direct.forward_axis(windows, 0), direct.forward_axis(windows, 1)


def test_choice():
    """Where many channels meet small kernels, and not where transforms would take the time."""
    inner = axes((16, 16), 3, padding=1)
    assert winograd.pays(*inner, (128, 16, 16, 64), 64, 64)
    assert not winograd.pays(*inner, (128, 16, 16, 64), 1, 64)  # one channel a filter
    assert not winograd.pays(*inner, (1, 16, 16, 256), 256, 256)  # many weights for few pixels
    assert not winograd.pays(*axes((16, 16), 3, padding=1, stride=2), (128, 16, 16, 64), 64, 64)
    assert not winograd.pays(*axes((16, 16), 3, padding=2, dilation=2), (128, 16, 16, 64), 64, 64)
    assert not winograd.pays(*axes((16, 16), 1, padding=0), (128, 16, 16, 64), 64, 64)
    assert not winograd.pays(*axes((16, 16), 7, padding=3), (128, 16, 16, 64), 64, 64)
    # Windows that lie in the padding alone.
    assert not winograd.possible(axes((16, 16), 3, padding=3)[0], 16)
    assert winograd.possible(axes((16, 16), 3, padding=2)[0], 16)
    assert winograd.possible(axes((16, 16), 3, padding=1)[0], 16)
