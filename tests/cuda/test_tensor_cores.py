"""Products on tensor cores against loops in float64, and where there are none.

A tensor core ignores the last 13 bits of a factor. What it should be given is known, so that
results are compared with sums of factors that NumPy rounded: as closely as those in float32.
"""

import functools

import naive
import numpy as np
import pytest
from device_code import DeviceError, Processor
from host_array import on_device, untouched
from llvmlite import ir
from machine_code import Recorder, recorded
from numba import cuda as device
from numba import float32, types
from numba.cuda.extending import intrinsic

from kfc_numba.kernels import cuda
from kfc_numba.kernels.cpu.direct import Axis
from kfc_numba.kernels.cuda import tensor_cores
from kfc_numba.kernels.cuda.gathered import gather
from kfc_numba.kernels.cuda.launch import device_kernel, executed_by
from kfc_numba.kernels.cuda.pixel_sums import sum_over_pixels
from kfc_numba.kernels.cuda.tiles import TENSOR_TILES, choose
from kfc_numba.kernels.cuda.vector import pointer
from kfc_numba.precision import tensor_cores as allowed

SINGLE = np.dtype(np.float32)
ERROR = 2 * 2.0**-11 + 2.0**-22  # of a product of two rounded factors, relative


def rounded(array):
    """To 10 bits behind the leading one, halves away from zero."""
    mantissa, exponent = np.frexp(array.astype(float))
    whole = np.trunc(np.abs(mantissa) * 2**11 + 0.5)
    return np.copysign(np.ldexp(whole, exponent - 11), array)


def uses_tensor_tile(function):
    """Whether all products that a function launches are on tensor cores; there are some."""
    return {
        kernel.settings[1].tensor
        for kernel, *_ in recorded(function)
        if kernel.__name__ in ("product_of_gathered", "sum_of_outer_products")
    } == {True}


def compare(function, reference, arrays):
    """Arrays of float32, on which both compute; tensor cores are used, or this fails."""
    with allowed():
        result = function(*map(on_device, arrays)).get()
        assert uses_tensor_tile(lambda: function(*(untouched(a.shape, SINGLE) for a in arrays)))
    factors = [rounded(array) for array in arrays]
    magnitudes = reference(*map(np.abs, factors))
    naive.assert_sums(result, reference(*factors), magnitudes, 2 * naive.FLOAT32_UNITS)
    # And so as near to the products of what was given as is stated.
    given = [array.astype(float) for array in arrays]
    magnitudes = reference(*map(np.abs, given))
    naive.assert_sums(result, reference(*given), magnitudes, ERROR * 2**24 + naive.FLOAT32_UNITS)


def numbers(*shapes, whole=False):
    rng = np.random.default_rng(3)
    if whole:  # exact in TF32, and so is every sum of products
        return [rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


# Matrix products.


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("shape", [(33, 17, 34), (70, 40, 64), (131, 9, 36)], ids=str)
def test_matrix_products(shape, transposed):
    m, k, n = shape
    a, b = numbers((k, m) if transposed[0] else (m, k), (n, k) if transposed[1] else (k, n))

    def product(a, b):
        return cuda.matmul(a, b, transpose_a=bool(transposed[0]), transpose_b=bool(transposed[1]))

    def reference(a, b):
        return naive.matmul(a.T if transposed[0] else a, b.T if transposed[1] else b)

    compare(product, reference, (a, b))


def test_what_sums_start_from_is_not_rounded():
    a, b = numbers((40, 24), (24, 36), whole=True)
    bias = np.full(36, 1 + 2.0**-16, np.float32)
    before = np.full((40, 36), 1 + 2.0**-16, np.float32)
    with allowed():
        for transpose_a in (False, True):
            left = on_device(np.ascontiguousarray(a.T if transpose_a else a))
            result = cuda.matmul(left, on_device(b), on_device(bias), transpose_a=transpose_a).get()
            np.testing.assert_array_equal(result, a.astype(float) @ b + bias)
            out = on_device(before.copy())
            cuda.matmul(left, on_device(b), transpose_a=transpose_a, accumulate=True, out=out)
            np.testing.assert_array_equal(out.get(), a.astype(float) @ b + before)


def test_non_finite_values_stay_in_their_row_and_column():
    a, b = np.ones((40, 20), np.float32), np.ones((20, 36), np.float32)
    a[3, 2], b[5, 17] = np.array(0x7FFFFFFF, np.uint32).view(np.float32), -np.inf  # a card's NaN
    a[7, 1] = np.finfo(np.float32).max  # rounded up: infinite
    expected = np.ones((40, 36), bool)
    expected[3] = expected[:, 17] = expected[7] = False
    with allowed():
        for transpose_a in (False, True):
            left = np.ascontiguousarray(a.T if transpose_a else a)
            result = cuda.matmul(on_device(left), on_device(b), transpose_a=transpose_a).get()
            np.testing.assert_array_equal(np.isfinite(result), expected)
            assert np.isnan(result[3]).all()
            assert (result[:3, 17] == -np.inf).all()


@pytest.mark.parametrize("tile", TENSOR_TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
@pytest.mark.parametrize("odd", [False, True], ids=["read at once", "one by one"])
def test_each_tile_over_its_edges(tile, odd):
    """All places of a tile, of whole numbers: a fragment that is elsewhere is seen."""
    rows, columns, depth = tile.rows + 3, tile.columns + (5 if odd else 8), 37 if odd else 36
    a, b = numbers((rows, depth), (depth, columns), whole=True)
    pixel = Axis(1, 0, 1, 0, 1, 1, (0,))
    for flip in (False, True):
        source = on_device(a).reshape(rows, 1, 1, depth)
        weight = on_device(np.ascontiguousarray(b.T) if flip else b)
        weight = weight.reshape(1, 1, *weight.shape)
        out = on_device(np.full((rows, 1, 1, columns), np.nan, np.float32))
        gather(source, weight, None, out, (pixel, pixel), 1, flip=flip, tile=tile)
        np.testing.assert_array_equal(out.get().reshape(rows, columns), a @ b)
    out = on_device(np.full((rows, columns), np.nan, np.float32))
    left = on_device(np.ascontiguousarray(a.T)).reshape(depth, 1, 1, rows)
    sum_over_pixels(left, on_device(b), out, tile=tile)
    np.testing.assert_array_equal(out.get(), a @ b)


# Convolutions.

WINDOWS = [
    {},
    {"padding": "same", "stride": 2},
    {"padding": ((1, 0), (2, 3)), "dilation": (1, 2)},
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(("channels", "filters"), [(32, 36), (33, 34)])
def test_convolutions(channels, filters, window):
    check((2, 9, 9, channels), filters, (3, 2), **window)


def test_groups():
    check((1, 6, 7, 64), 72, 2, groups=2, padding=1)


def check(shape, filters, kernel, **window):
    kernel = naive.pair(kernel)
    weights = (*kernel, shape[3] // window.get("groups", 1), filters)
    x, weight = numbers(shape, weights)
    dy = numbers(naive.conv2d(x, weight, **window).shape)[0]
    forward = functools.partial(cuda.conv2d_forward, **window)
    compare(forward, functools.partial(naive.conv2d, **window), (x, weight))
    compare(
        lambda dy, weight: cuda.conv2d_grad_input(dy, weight, shape, **window),
        lambda dy, weight: naive.conv2d_grad_input(dy, weight, shape, **window),
        (dy, weight),
    )
    compare(
        lambda x, dy: cuda.conv2d_grad_weight(x, dy, kernel, **window),
        lambda x, dy: naive.conv2d_grad_weight(x, dy, kernel, **window),
        (x, dy),
    )


def test_parts_of_weight_gradients_are_added():
    x, dy = numbers((3, 14, 15, 32), (3, 14, 15, 36))
    compare(
        lambda x, dy: cuda.conv2d_grad_weight(x, dy, 1),
        lambda x, dy: naive.conv2d_grad_weight(x, dy, (1, 1)),
        (x, dy),
    )


def test_same_bits_whatever_the_order_of_threads():
    a, b = map(on_device, numbers((70, 50), (50, 40)))
    found = []
    for seed in (1, 2):
        with executed_by(Processor(seed)), allowed():
            found.append(cuda.matmul(a, b).get())
    np.testing.assert_array_equal(*found)


# Where they are not used.


def forward(dtype=np.float32, channels=64, filters=64):
    x = untouched((8, 16, 16, channels), dtype)
    return cuda.conv2d_forward(x, untouched((3, 3, channels, filters), dtype), padding=1)


def test_kernels_are_the_same_without_the_option():
    def launched():
        return [(kernel, kinds, grid) for kernel, kinds, grid, *_ in recorded(forward)]

    before = launched()
    with allowed():
        inside = launched()
    assert launched() == before != inside
    names = [kernel._file(kinds, (9, 0)) for kernel, kinds, _ in (*before, *inside)]
    assert len(set(names)) == 2


@pytest.mark.parametrize(
    "call",
    [
        functools.partial(forward, np.float64),
        functools.partial(forward, filters=31),
        lambda: cuda.patch_second_moment(untouched((8, 9, 9, 64), SINGLE), 3),
        lambda: cuda.patch_second_moment(untouched((8, 9, 9, 64), SINGLE), 3, stride=2),
        lambda: cuda.output_second_moment(untouched((8, 9, 9, 64), SINGLE)),
    ],
    ids=["float64", "few filters", "shared offsets", "patches", "outputs"],
)
def test_products_that_stay_as_they_are(call):
    before = [(kernel, grid) for kernel, _, grid, *_ in recorded(call)]
    with allowed():
        assert [(kernel, grid) for kernel, _, grid, *_ in recorded(call)] == before


def test_cards_without_them(monkeypatch):
    with allowed():
        assert uses_tensor_tile(forward)
        monkeypatch.setattr(Recorder, "capability", lambda self: (7, 5))
        assert not uses_tensor_tile(forward)


def test_no_minimal_filtering():
    """It would multiply errors of which a bound is stated."""
    x, weight = untouched((64, 32, 32, 128), SINGLE), untouched((3, 3, 128, 128), SINGLE)

    def filters(call):
        return any(kernel.__name__.startswith("transform_") for kernel, *_ in recorded(call))

    for call in (
        lambda: cuda.conv2d_forward(x, weight, padding=1),
        lambda: cuda.conv2d_grad_input(x, weight, x.shape, padding=1),
        lambda: cuda.conv2d_grad_weight(x, x, 3, padding=1),
    ):
        assert filters(call)
        with allowed():
            assert not filters(call)
            assert uses_tensor_tile(call)


def test_large_tiles_for_large_products():
    assert choose(TENSOR_TILES, 10**5, 512)[:2] == (128, 128)
    assert choose(TENSOR_TILES, 10**5, 64)[:2] == (128, 64)
    assert choose(TENSOR_TILES, 10**5, 32)[:2] == (128, 32)
    assert choose(TENSOR_TILES, 500, 500)[:2] == (64, 64)  # for more of the multiprocessors


# The stand-in for a card's instruction, by the figures under "mma.m16n8k8" in NVIDIA's "PTX ISA".


@intrinsic
def multiply(typingctx, sums, factors):
    def codegen(context, builder, signature, args):
        kept, given = (
            pointer(context, builder, k, a) for k, a in zip((sums, factors), args, strict=True)
        )
        places = [[builder.gep(p, [ir.IntType(64)(i)]) for i in range(6)] for p in (kept, given)]
        bits = [builder.bitcast(builder.load(place), ir.IntType(32)) for place in places[1]]
        totals = [builder.load(place) for place in places[0][:4]]
        for value, place in zip(tensor_cores._add(builder, totals, bits), places[0], strict=False):
            builder.store(value, place)
        return context.get_dummy_value()

    return types.void(sums, factors), codegen


def product_of(fewer):
    """A kernel of one warp; of `fewer` threads, without a barrier for the others."""

    @device_kernel(settings=(fewer,))
    def product(a, b, c):
        sums, factors = device.local.array(4, float32), device.local.array(6, float32)
        lane = device.threadIdx.x
        group, member = lane // 4, lane % 4
        for i in range(4):
            row, column = group + i // 2 * 8, member * 2 + i % 2
            sums[i] = c[row * 8 + column]
            factors[i] = a[(group + i % 2 * 8) * 8 + member + i // 2 * 4]
        for i in range(2):
            factors[4 + i] = b[(member + i * 4) * 8 + group]
        if lane < 32 - fewer:
            multiply(sums, factors)
        for i in range(4):
            row, column = group + i // 2 * 8, member * 2 + i % 2
            c[row * 8 + column] = sums[i]

    return product


def test_an_instruction():
    a, b, c = numbers((16, 8), (8, 8), (16, 8))
    out = on_device(c.copy())
    product_of(0)(1, 32, on_device(a), on_device(b), out)
    # What is not rounded is cut off.
    factors = [(m.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(float) for m in (a, b)]
    expected = (c + factors[0] @ factors[1]).astype(np.float32)
    np.testing.assert_allclose(out.get(), expected, rtol=0, atol=1e-6)


def test_an_instruction_takes_the_whole_warp():
    a, b, c = map(on_device, numbers((16, 8), (8, 8), (16, 8)))
    with pytest.raises(DeviceError, match="asks for a value of thread"):
        product_of(4)(1, 32, a, b, c)
    with pytest.raises(DeviceError, match="asks for a value of thread"):
        product_of(0)(1, 28, a, b, c)
