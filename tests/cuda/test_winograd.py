"""Convolutions by minimal filtering in device code, and when they are chosen."""

import math
from fractions import Fraction

import machine_code
import naive
import numpy as np
import pytest
from device_traffic import traffic
from host_array import HostArray, on_device, untouched
from machine_code import recorded

from kfc_numba.kernels import cpu, cuda
from kfc_numba.kernels.cpu.direct import forward_axis, gradient_axes
from kfc_numba.kernels.cpu.winograd_points import interpolation
from kfc_numba.kernels.cuda import conv, squares, winograd
from kfc_numba.kernels.geometry import Windows
from kfc_numba.kernels.rates import H200, Rates

SIZES = tuple(winograd.POINTS)
SINGLE = np.dtype(np.float32)
#: Roundings between a number that is given and the result, besides those of the sum over channels:
#: in each direction one for each term of a line of the matrices, whose numbers, too, are rounded.
ROUNDINGS = {
    size: 2 * sum(max(np.count_nonzero(m, axis=1)) + 1 for m in squares.matrices(size)) + 2
    for size in SIZES
}


def axes_of(shape, **window):
    windows = Windows.of(shape[1:3], 3, window.get("stride", 1), window.get("padding", 0),
                         window.get("dilation", 1))  # fmt: skip
    gradient = [gradient_axes(windows, i)[0] for i in (0, 1)]
    return (forward_axis(windows, 0), forward_axis(windows, 1)), tuple(gradient)


def convolved(size, x, weight, bias, padding):
    """Forward, by `winograd.convolve`, into memory that nobody filled."""
    x, weight = on_device(x), on_device(weight)
    axes, _ = axes_of(x.shape, padding=padding)
    out = cuda.arguments.empty((len(x), axes[0].length, axes[1].length, weight.shape[3]), SINGLE, x)
    bias = None if bias is None else on_device(bias)
    winograd.convolve(x, weight, bias, out, axes, size)
    return out.get()


def returned(size, dy, weight, shape, padding):
    """The gradient by the input."""
    dy, weight = on_device(dy), on_device(weight)
    _, axes = axes_of(shape, padding=padding)
    out = cuda.arguments.empty(shape, SINGLE, dy)
    winograd.convolve(dy, weight, None, out, axes, size, flip=True)
    return out.get()


def derived(size, x, dy, padding):
    """The gradient by the weight."""
    x, dy = on_device(x), on_device(dy)
    axes, _ = axes_of(x.shape, padding=padding)
    out = cuda.arguments.empty((3, 3, x.shape[3], dy.shape[3]), SINGLE, x)
    winograd.sum_products(x, dy, out, axes, size)
    return out.get()


def both_sides(matrix, images, side, size):
    """M d M' of all squares, (lines, columns, squares, channels), every `size` pixels."""
    found = []
    for v in range(0, images.shape[1] - side + 1, size):
        for u in range(0, images.shape[2] - side + 1, size):
            square = images[:, v : v + side, u : u + side]
            found.append(np.einsum("ip,jq,npqc->ijnc", matrix, matrix, square))
    return np.stack(found, axis=2).reshape(*found[0].shape[:2], -1, images.shape[3])


def surrounded(size, images, axes):
    """Images with zeros where squares reach beyond them, in float64."""
    down, across = (-(-axis.length // size) * size + 2 for axis in axes)
    top, left = (axis.source_first for axis in axes)
    n, height, width, channels = images.shape
    padded = np.zeros((n, down, across, channels))
    for v in range(max(0, -top), min(down, height - top)):
        for u in range(max(0, -left), min(across, width - left)):
            padded[:, v, u] = images[:, v + top, u + left]
    return padded


def magnitudes(size, source, weight, axes, flip):
    """The steps of the filtering on absolute values, of the matrices too, in float64.

    What is rounded on the way is a part of these sums.
    """
    a, g, b = (abs(np.array(matrix)) for matrix in squares.matrices(size))
    if flip:
        weight = weight[::-1, ::-1].swapaxes(2, 3)
    points = np.einsum("ip,jq,pqcf->ijcf", g, g, abs(weight.astype(float)))
    images = both_sides(b, surrounded(size, abs(source), axes), size + 2, size)
    products = np.einsum("ijsc,ijcf->ijsf", images, points)
    results = np.einsum("ip,jq,pqsf->sijf", a, a, products)
    down, across = (-(-axis.length // size) for axis in axes)
    results = results.reshape(down, across, len(source), size, size, -1)
    results = results.transpose(2, 0, 3, 1, 4, 5)
    results = results.reshape(len(source), down * size, across * size, -1)
    return results[:, : axes[0].length, : axes[1].length]


def magnitudes_of_weights(size, x, dy, axes):
    a, g, b = (abs(np.array(matrix)) for matrix in squares.matrices(size))
    images = both_sides(b, surrounded(size, abs(x), axes), size + 2, size)
    whole = [(0, 0), *((0, -axis.length % size) for axis in axes), (0, 0)]
    outputs = both_sides(a.T, np.pad(abs(dy.astype(float)), whole), size, size)
    sums = np.einsum("ijsc,ijsf->ijcf", images, outputs)
    return np.einsum("ip,jq,ijcf->pqcf", g, g, sums), images.shape[2]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check(size, shape, filters, padding, *, seed=0):
    x, weight, bias = normal(*shape, seed=seed), normal(3, 3, shape[3], filters), normal(filters)
    forward, gradient = axes_of(shape, padding=padding)
    y = convolved(size, x, weight, bias, padding)
    expected = naive.conv2d(*(v.astype(float) for v in (x, weight, bias)), padding=padding)
    allowed = magnitudes(size, x, weight, forward, False) + abs(bias)
    units = ROUNDINGS[size] + shape[3]
    naive.assert_sums(y, expected, allowed, units)
    twin = cpu.conv2d_forward(x, weight, bias, padding=padding)
    naive.assert_sums(y, twin, allowed, units + naive.FLOAT32_UNITS)
    dy = normal(*y.shape, seed=1)
    dx = returned(size, dy, weight, shape, padding)
    expected = naive.conv2d_grad_input(dy.astype(float), weight.astype(float), shape,
                                       padding=padding)  # fmt: skip
    allowed = magnitudes(size, dy, weight, gradient, True)
    naive.assert_sums(dx, expected, allowed, ROUNDINGS[size] + filters)
    dw = derived(size, x, dy, padding)
    expected = naive.conv2d_grad_weight(x.astype(float), dy.astype(float), 3, padding=padding)
    allowed, terms = magnitudes_of_weights(size, x, dy, forward)
    naive.assert_sums(dw, expected, allowed, ROUNDINGS[size] + terms)
    twin = cpu.conv2d_grad_weight(x, dy, 3, padding=padding)
    naive.assert_sums(dw, twin, allowed, ROUNDINGS[size] + terms + naive.FLOAT32_UNITS)


@pytest.mark.parametrize("size", SIZES)
def test_transforms_are_exact(size):
    """In rational numbers the three matrices give the sums of the definition."""
    a, g, b = (
        [[Fraction(entry).limit_denominator(1000) for entry in line] for line in matrix]
        for matrix in interpolation(tuple(map(Fraction, winograd.POINTS[size])), 3)
    )
    rng = np.random.default_rng(0)
    pixels = [Fraction(int(v)) for v in rng.integers(-9, 10, size + 2)]
    weights = [Fraction(int(v)) for v in rng.integers(-9, 10, 3)]

    def times(matrix, vector):
        return [sum(m * v for m, v in zip(line, vector, strict=True)) for line in matrix]

    products = [p * q for p, q in zip(times(g, weights), times(b, pixels), strict=True)]
    expected = [sum(pixels[i + j] * weights[j] for j in range(3)) for i in range(size)]
    assert times(a, products) == expected


@pytest.mark.parametrize("padding", [0, 1, 2, ((1, 0), (2, 3)), ((0, 4), (3, 0))], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_paddings(size, padding):
    check(size, (2, 5, 8, 4), 8, padding)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 4), (3, 6), (4, 4), (7, 9)], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size, shape):
    check(size, (2, *shape, 4), 4, 1, seed=shape[0])


@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (3, 8), (8, 5), (6, 6), (20, 36)])
@pytest.mark.parametrize("size", SIZES)
def test_channels(size, channels, filters):
    check(size, (2, 3, 5, channels), filters, 1)


@pytest.mark.parametrize("size", SIZES)
def test_ones_without_a_bias(size):
    """Whole numbers and halves are exact, and thirds nearly."""
    x, weight = np.ones((2, 5, 6, 4), SINGLE), np.ones((3, 3, 4, 4), SINGLE)
    y = convolved(size, x, weight, None, 1)
    expected = naive.conv2d(x.astype(float), weight.astype(float), padding=1)
    if size == 2:
        np.testing.assert_array_equal(y, expected)
    else:
        np.testing.assert_allclose(y, expected, rtol=1e-5)


#: What docs/cuda.md says of errors, in units of 2^-24 of the sum of magnitudes by the definition:
#: the root of the mean square, and the largest.
ERRORS = {2: (1, 6), 4: (2, 24)}


@pytest.mark.parametrize("size", SIZES)
def test_errors_of_a_layer(size):
    x, weight, dy = normal(2, 8, 8, 128), normal(3, 3, 128, 32), normal(2, 8, 8, 32, seed=1)
    cases = [
        (convolved(size, x, weight, None, 1), naive.conv2d, (x, weight), ()),
        (returned(size, dy, weight, x.shape, 1), naive.conv2d_grad_input, (dy, weight), (x.shape,)),
        (derived(size, x, dy, 1), naive.conv2d_grad_weight, (x, dy), (3,)),
    ]
    typical, largest = ERRORS[size]
    for found, reference, arrays, others in cases:
        exact = reference(*(array.astype(float) for array in arrays), *others, padding=1)
        sums = reference(*(abs(array.astype(float)) for array in arrays), *others, padding=1)
        errors = abs(found - exact) / sums * 2**24
        assert math.sqrt((errors**2).mean()) < typical
        assert errors.max() < largest


@pytest.mark.parametrize("size", SIZES)
def test_squares_that_come_in_several_runs(size, monkeypatch):
    """Of images that runs divide anywhere; the last has fewer: the same bits.

    But for sums over squares, which are added in another order.
    """
    x, weight, bias = normal(3, 5, 9, 4), normal(3, 3, 4, 8), normal(8)
    whole = convolved(size, x, weight, bias, 1)
    gradient = returned(size, whole, weight, x.shape, 1)
    by_weight = derived(size, x, whole, 1)
    forward, _ = axes_of(x.shape, padding=1)
    allowed, terms = magnitudes_of_weights(size, x, whole, forward)
    one = (size + 2) ** 2 * (4 + 8) * 4
    for room in (7, 4, 1, 0):
        monkeypatch.setattr(winograd, "ROOM", room * one)
        np.testing.assert_array_equal(convolved(size, x, weight, bias, 1), whole)
        np.testing.assert_array_equal(returned(size, whole, weight, x.shape, 1), gradient)
        naive.assert_sums(derived(size, x, whole, 1), by_weight, allowed, 2 * terms)


def test_what_lies_there_for_a_moment_fits_into_the_room():
    x, weight = untouched((128, 56, 56, 64)), untouched((3, 3, 64, 64))
    axes, _ = axes_of(x.shape, padding=1)
    for size in SIZES:
        launches = recorded(lambda s=size: winograd.convolve(x, weight, None, x, axes, s))
        used = {}
        for kernel, *_, arguments in launches:
            if kernel.__name__ == "product_of_gathered":
                images, kept, _, products, *_ = arguments
                used[images.data.ptr, products.data.ptr] = images.nbytes + products.nbytes
                assert kept.nbytes < winograd.ROOM
        assert len(launches) > 4
        assert 0.4 * winograd.ROOM < max(used.values()) <= winograd.ROOM


@pytest.mark.parametrize("size", SIZES)
def test_arrays_that_begin_anywhere(size):
    x, weight = normal(2, 4, 5, 4), normal(3, 3, 4, 8)
    shifted = []
    for array in (x, weight):
        flat = on_device(np.concatenate([[0], array.ravel()]).astype(np.float32))
        shifted.append(flat[1:].reshape(array.shape))
    axes, _ = axes_of(x.shape, padding=1)
    out = on_device(np.empty((2 * 4 * 5 * 8 + 1), np.float32))[1:].reshape((2, 4, 5, 8))
    winograd.convolve(*shifted, None, out, axes, size)
    np.testing.assert_array_equal(out.get(), convolved(size, x, weight, None, 1))


@pytest.mark.parametrize("size", SIZES)
def test_non_finite_values_stay_in_their_example(size):
    x, weight = normal(3, 5, 5, 4), normal(3, 3, 4, 4)
    x[1, 2, 2, 1] = np.nan
    y = convolved(size, x, weight, None, 1)
    assert np.isfinite(y[[0, 2]]).all()
    assert np.isnan(y[1, 1:4, 1:4]).all()
    dw = derived(size, x, np.ones_like(y), 1)
    assert np.isnan(dw[:, :, 1]).all()
    assert np.isfinite(dw[:, :, [0, 2, 3]]).all()


# When it is chosen.


def chosen(shape, filters, dtype=SINGLE, groups=1, sums=False, card=H200, **window):
    window = {"padding": 1} | window
    axes, _ = axes_of(shape, **window)
    target = (shape[0], axes[0].length, axes[1].length, filters)
    return winograd.pays(axes, shape, target, groups, dtype, sums, card)


@pytest.mark.parametrize("shape", [(256, 16, 16, 128), (256, 8, 8, 256), (256, 4, 4, 512)])
def test_many_channels_pay(shape):
    assert chosen(shape, shape[3]) in SIZES
    assert chosen(shape, shape[3], sums=True) in SIZES
    assert chosen(shape, shape[3], np.dtype(float)) == 0
    assert chosen(shape, shape[3], groups=2) == 0
    for window in ({"stride": 2}, {"dilation": 2}, {"stride": (1, 2)}, {"dilation": (2, 1)}):
        assert chosen(shape, shape[3], **window) == 0


@pytest.mark.parametrize(
    ("shape", "filters"),
    [((512, 32, 32, 3), 64), ((512, 32, 32, 32), 32), ((256, 32, 32, 256), 4),
     ((1, 16, 16, 256), 256), ((16, 4, 4, 512), 512), ((256, 1, 1, 128), 128),
     ((1, 5000, 5000, 128), 64), ((1, 5000, 5000, 64), 128), ((4096, 16, 16, 8192), 8192)],
)  # fmt: skip
def test_few_channels_or_positions_do_not(shape, filters):
    """Nor images and weights that 32 bits do not count."""
    assert chosen(shape, filters) == 0
    assert chosen((1, 3000, 3000, 128), 64) in SIZES


@pytest.mark.parametrize(
    ("shape", "sums", "size"),
    [((32, 56, 56, 64), False, 4), ((16, 56, 56, 64), False, 0), ((64, 16, 16, 128), False, 4),
     ((32, 16, 16, 128), False, 0), ((512, 32, 32, 32), False, 0), ((512, 32, 32, 32), True, 4),
     ((16, 28, 28, 128), True, 0), ((32, 28, 28, 128), True, 4)],
)  # fmt: skip
def test_what_an_h200_measured(shape, sums, size):
    """Where one way was faster, also by launches that the host needs longer for than the card."""
    assert chosen(shape, shape[3], sums=sums) == size


@pytest.mark.parametrize("sums", [False, True])
def test_a_card_with_less_memory_for_its_products_filters_less(sums):
    little = Rates(41.3e12, 1.01e12)  # of an RTX 4090's data sheet
    assert [chosen((256, n, n, 2048 // n), 2048 // n, sums=sums, card=little) for n in (32, 4)] == [
        *(0, 4)
    ]
    assert chosen((256, 32, 32, 64), 64, sums=sums) == 4


def test_convolutions_go_by_the_card_that_runs_them(monkeypatch):
    x, weight = untouched((256, 32, 32, 64)), untouched((3, 3, 64, 64))
    calls = (
        lambda: cuda.conv2d_forward(x, weight, padding=1),
        lambda: cuda.conv2d_grad_input(x, weight, x.shape, padding=1),
        lambda: cuda.conv2d_grad_weight(x, x, 3, padding=1),
    )

    def ways():
        return ["transform_images" in {k.__name__ for k, *_ in recorded(call)} for call in calls]

    assert ways() == [True] * 3
    monkeypatch.setattr(machine_code.Recorder, "rates", lambda self: Rates(41.3e12, 1.01e12))
    assert ways() == [False] * 3


def test_the_choice_is_what_convolutions_do(monkeypatch):
    x, weight, bias = normal(2, 5, 6, 4), normal(3, 3, 4, 8), normal(8)
    asked = []

    def two(axes, source, target, groups, dtype, sums=False, **card):
        asked.append((source, target, sums))
        return 2 if winograd.possible(axes, groups, dtype) else 0

    monkeypatch.setattr(winograd, "pays", two)
    given = [on_device(array) for array in (x, weight, bias)]
    y = cuda.conv2d_forward(*given, padding=1).get()
    np.testing.assert_array_equal(y, convolved(2, x, weight, bias, 1))
    dx = cuda.conv2d_grad_input(on_device(y), given[1], x.shape, padding=1).get()
    np.testing.assert_array_equal(dx, returned(2, y, weight, x.shape, 1))
    dw = cuda.conv2d_grad_weight(given[0], on_device(y), 3, padding=1).get()
    np.testing.assert_array_equal(dw, derived(2, x, y, 1))
    there, back = (x.shape, y.shape), (y.shape, x.shape)
    assert asked == [(*there, False), (*back, False), (*there, True)]
    names = {k.__name__ for k, *_ in recorded(lambda: conv.conv2d_forward(*given[:2], stride=2))}
    assert names == {"product_of_gathered"}
    names = {k.__name__ for k, *_ in recorded(lambda: conv.conv2d_forward(*given[:2]))}
    assert names == {
        *("transform_weight", "transform_images", "product_of_gathered", "transform_products")
    }


@pytest.mark.parametrize("size", SIZES)
def test_transforms_move_whole_sectors_at_once(size):
    x, weight = HostArray(normal(2, 8, 8, 64)), untouched((3, 3, 64, 64))
    axes, _ = axes_of(x.shape, padding=1)
    launches = recorded(lambda: winograd.convolve(x, weight, None, untouched(x.shape), axes, size))
    launches += recorded(lambda: winograd.sum_products(x, x, weight, axes, size))
    seen = set()
    for kernel, _, grid, block, arguments in launches:
        if kernel.__name__.startswith("transform_"):
            sites = traffic(kernel, grid, block, arguments)
            assert {site.kind for site in sites} == {"read", "write"}
            assert all(site.factor == 1 for site in sites)
            assert {site.bytes for site in sites} == {4 * squares.LANES[size]}
            seen.add(kernel.__name__.removeprefix("transform_"))
    assert seen == {"weight", "images", "products", "sums"}
