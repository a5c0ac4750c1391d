"""Elementwise kernels."""

import inspect

import numba
import numpy as np
import pytest

from kfc_numba.kernels import cpu
from kfc_numba.kernels.cpu.arguments import checked

DTYPES = (np.float32, np.float64)
SHAPES = [(1,), (3, 5), (2, 7, 5, 3), (4, 33, 31, 5)]


def normal(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rectifiers(shape, dtype):
    x, dy = normal(shape, dtype), normal(shape, dtype, 1)
    positive = x > 0
    slope = dtype(0.25)  # a power of two: products are exact
    y = cpu.relu_forward(x)
    np.testing.assert_array_equal(y, np.where(positive, x, 0))
    np.testing.assert_array_equal(cpu.relu_backward(dy, y), np.where(positive, dy, 0))
    leaky = cpu.leaky_relu_forward(x, negative_slope=0.25)
    np.testing.assert_array_equal(leaky, np.where(positive, x, slope * x))
    expected = np.where(positive, dy, slope * dy)
    np.testing.assert_array_equal(cpu.leaky_relu_backward(dy, x, negative_slope=0.25), expected)
    np.testing.assert_array_equal(cpu.leaky_relu_backward(dy, leaky, negative_slope=0.25), expected)
    assert y.dtype == leaky.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "function", [cpu.relu_forward, lambda x: cpu.leaky_relu_forward(x, negative_slope=0.1)]
)
def test_rectifiers_pass_nan_and_infinity_on(function, dtype):
    y = function(np.array([np.nan, np.inf, -1, 0, 2] * 20, dtype)).reshape(20, 5)
    assert np.isnan(y[:, 0]).all()
    assert (y[:, 1] == np.inf).all()
    assert np.isfinite(y[:, 2:]).all()


def test_the_slope_of_a_rectifier_at_zero_is_that_below():
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    assert cpu.relu_backward(one, zero) == 0
    assert cpu.leaky_relu_backward(one, zero, negative_slope=0.25) == 0.25


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_curves(shape, dtype):
    x, dy = normal(shape, dtype), normal(shape, dtype, 1)
    exact, pulled = x.astype(float), dy.astype(float)
    tolerance = {"rtol": 8 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).eps}
    y = cpu.tanh_forward(x)
    np.testing.assert_allclose(y, np.tanh(exact), **tolerance)
    np.testing.assert_allclose(cpu.tanh_backward(dy, y), pulled / np.cosh(exact) ** 2, **tolerance)
    y = cpu.sigmoid_forward(x)
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-exact)), **tolerance)
    slope = 1 / (2 + np.exp(exact) + np.exp(-exact))
    np.testing.assert_allclose(cpu.sigmoid_backward(dy, y), pulled * slope, **tolerance)
    assert y.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_far_from_zero(dtype):
    with np.errstate(all="raise", under="ignore"):
        y = cpu.sigmoid_forward(np.array([-np.inf, -1e4, -80, 0, 40, 1e4, np.inf], dtype))
        assert np.isnan(cpu.sigmoid_forward(np.array([np.nan], dtype))).all()
    assert y[0] == 0
    assert y[3:].tolist() == [0.5, 1, 1, 1]
    # 1 / (1 + e^80): a form that loses it against 1 gives 0.
    np.testing.assert_allclose(y[2], np.exp(-80.0), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_add_and_mask(shape, dtype):
    a, b = normal(shape, dtype), normal(shape, dtype, 1)
    np.testing.assert_array_equal(cpu.add(a, b), a + b)
    mask = (b > 0).astype(np.uint8)
    result = cpu.apply_mask(a, mask, scale=4.0)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, np.where(b > 0, 4 * a, 0))


def test_a_mask_does_not_hide_nan():
    x = np.array([np.nan, np.nan], np.float32)
    assert np.isnan(cpu.apply_mask(x, np.array([0, 1], np.uint8), scale=2.0)).all()


SIZES = (1, 5, 63, 64, 65, 1000, 3 * 16384 + 77)  # of less than a vector, and of several chunks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_scale_and_scaled_add(size, dtype):
    a, b, factor = normal(size, dtype), normal(size, dtype, 1), -0.3
    tolerance = {"rtol": 4 * np.finfo(dtype).eps, "atol": 4 * np.finfo(dtype).eps}
    scaled, total = cpu.scale(a, factor), cpu.scaled_add(a, b, factor)
    assert scaled.dtype == total.dtype == dtype
    np.testing.assert_allclose(scaled, factor * a.astype(float), **tolerance)
    np.testing.assert_allclose(total, a.astype(float) + factor * b.astype(float), **tolerance)
    # In place as well.
    assert cpu.scaled_add(a, b, factor, out=b) is b
    np.testing.assert_array_equal(b, total)
    cpu.scale(a, factor, out=a)
    np.testing.assert_array_equal(a, scaled)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_dot_is_computed_in_float64(size, dtype):
    a, b = normal(size, dtype), normal(size, dtype, 1)
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
    magnitude = float(np.abs(a).astype(float) @ np.abs(b).astype(float))
    result = cpu.dot(a, b)
    assert isinstance(result, float)
    # Each place of 64, then each chunk, adds its share of roundings.
    assert abs(result - float(exact)) <= (300 + size / 16384) * 2**-53 * magnitude
    if dtype == np.float32:
        # Products and sums that float32 does not hold.
        assert cpu.dot(a * 0 + dtype(1e30), b * 0 + dtype(2e30)) == pytest.approx(2e60 * size)


def test_dot_of_arrays_with_axes_and_of_infinite_numbers():
    a, b = normal((3, 4, 5), np.float32), normal((3, 4, 5), np.float32, 1)
    assert cpu.dot(a, b) == cpu.dot(a.ravel(), b.ravel())
    assert cpu.dot(a[:, ::2], b[:, ::2]) == cpu.dot(a[:, ::2].copy(), b[:, ::2].copy())
    a[0, 0, 0], b[0, 0, 0] = np.inf, 1
    assert cpu.dot(a, b) == np.inf
    b[1, 0, 0] = np.nan
    assert np.isnan(cpu.dot(a, b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_all_finite_finds_a_number_at_any_place(size, dtype):
    x = normal(size, dtype)
    x[0] = np.finfo(dtype).max
    x[-1] = np.finfo(dtype).tiny / 2
    assert cpu.all_finite(x) is True
    for place in {0, size // 2, size - 1, *range(max(0, size - 70), size, 7)}:
        for bad in (np.nan, -np.nan, np.inf, -np.inf):
            before, x[place] = x[place], bad
            assert cpu.all_finite(x) is False
            x[place] = before
    assert cpu.all_finite(x)
    assert cpu.all_finite(np.array(1.0, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_do_not_depend_on_the_number_of_threads(dtype):
    a, b = normal(7 * 16384 + 5, dtype), normal(7 * 16384 + 5, dtype, 1)
    threads = numba.get_num_threads()
    results = set()
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            results.add((cpu.dot(a, b), cpu.scaled_add(a, b, 0.1).tobytes()))
    finally:
        numba.set_num_threads(threads)
    assert len(results) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_thread_and_many_give_the_same(dtype):
    # Small arrays are computed by one thread, with code of its own.
    x, y = normal(40_000, dtype), normal(40_000, dtype, 1)
    for kernel, arrays, options in KERNELS:
        arrays = arrays(x, y)
        whole = kernel(*arrays, **options)
        parts = [
            kernel(*(a[i : i + 999] for a in arrays), **options) for i in range(0, 40_000, 999)
        ]
        np.testing.assert_array_equal(whole, np.concatenate(parts))


#: Each kernel with a result of the shape of its arguments.
KERNELS = [
    (cpu.relu_forward, lambda x, y: (x,), {}),
    (cpu.relu_backward, lambda x, y: (x, y), {}),
    (cpu.leaky_relu_forward, lambda x, y: (x,), {"negative_slope": 0.1}),
    (cpu.leaky_relu_backward, lambda x, y: (x, y), {"negative_slope": 0.1}),
    (cpu.tanh_forward, lambda x, y: (x,), {}),
    (cpu.tanh_backward, lambda x, y: (x, y), {}),
    (cpu.sigmoid_forward, lambda x, y: (x,), {}),
    (cpu.sigmoid_backward, lambda x, y: (x, y), {}),
    (cpu.add, lambda x, y: (x, y), {}),
    (cpu.scale, lambda x, y: (x,), {"factor": 0.1}),
    (cpu.scaled_add, lambda x, y: (x, y), {"factor": 0.1}),
    (cpu.apply_mask, lambda x, y: (x, (y > 0).astype(np.uint8)), {"scale": 2.0}),
]


@pytest.mark.parametrize(("kernel", "arrays", "options"), KERNELS)
def test_results_go_where_they_should(kernel, arrays, options):
    arrays = arrays(normal((3, 4), np.float32), normal((3, 4), np.float32, 1))
    fresh = kernel(*arrays, **options)
    out = np.full_like(fresh, np.nan)
    assert kernel(*arrays, **options, out=out) is out
    np.testing.assert_array_equal(out, fresh)


@pytest.mark.parametrize(("kernel", "arrays", "options"), KERNELS)
def test_memory_order_and_views_do_not_matter(kernel, arrays, options):
    whole = normal((6, 8), np.float32), normal((6, 8), np.float32, 1)
    parts = arrays(*(array[::2, 1::2] for array in whole))
    parts[0].flags.writeable = False
    before = [part.copy() for part in parts]
    copies = [np.asfortranarray(part) for part in parts]
    np.testing.assert_array_equal(kernel(*parts, **options), kernel(*before, **options))
    np.testing.assert_array_equal(kernel(*copies, **options), kernel(*before, **options))
    for part, old in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part, old)


@pytest.mark.parametrize(("kernel", "arrays", "options"), KERNELS)
def test_arrays_that_do_not_fit(kernel, arrays, options):
    fitting = list(arrays(normal((3, 4), np.float32), normal((3, 4), np.float32, 1)))
    for index in range(len(fitting)):
        name = list(inspect.signature(kernel).parameters)[index]
        wrong = {
            TypeError: [fitting[index].astype(np.int16), fitting[index].tolist()],
            ValueError: [np.zeros((0, 4), fitting[index].dtype)],
        }
        if len(fitting) > 1:
            other = list(inspect.signature(kernel).parameters)[1]
            changed = fitting.copy()
            changed[index] = np.zeros((4, 3), fitting[index].dtype)
            with pytest.raises(ValueError, match=rf"^{other} has shape .*\(3, 4\)"):
                kernel(*changed, **options)
        for error, values in wrong.items():
            for value in values:
                changed = fitting.copy()
                changed[index] = value
                with pytest.raises(error, match=f"^{name} "):
                    kernel(*changed, **options)


def test_numbers_that_do_not_fit():
    x = np.zeros((3, 4), np.float32)
    for kernel, arrays, name in ((cpu.scale, (x,), "factor"), (cpu.scaled_add, (x, x), "factor")):
        for factor in ("1", None, [1.0], x):
            with pytest.raises(TypeError, match=f"{name} must be a number, got"):
                kernel(*arrays, factor)
        assert np.isnan(kernel(*arrays, np.float32(np.nan))).all()
    with pytest.raises(TypeError, match="scale must be a number, got str"):
        cpu.apply_mask(x, x.astype(np.uint8), scale="2")
    for slope in (-0.1, np.nan):
        with pytest.raises(
            ValueError, match=r"negative_slope \(=.*\) must be a number in \[0, inf"
        ):
            cpu.leaky_relu_forward(x, negative_slope=slope)
        with pytest.raises(ValueError, match="negative_slope"):
            cpu.leaky_relu_backward(x, x, negative_slope=slope)


def test_a_sigmoid_is_not_computed_in_place():
    x = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        cpu.sigmoid_forward(x, out=x)


def test_an_output_of_a_wrong_kind():
    x = np.zeros((3, 4), np.float32)
    with pytest.raises(TypeError, match=r"out must be .*float32"):
        cpu.relu_forward(x, out=np.zeros((3, 4)))
    with pytest.raises(ValueError, match="out"):
        cpu.relu_forward(x, out=np.zeros((4, 3), np.float32).T)


def test_arrays_of_other_classes_come_to_kernels_as_plain_ones():
    """They share the memory, as of a file that is mapped; Numba knows no subclass."""
    given = np.arange(6.0).view(np.recarray).reshape(2, 3)
    assert type(given) is not np.ndarray
    found = checked("x", given, 2)
    assert type(found) is np.ndarray
    assert np.shares_memory(found, given)
