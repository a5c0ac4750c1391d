"""Kernels of losses, against loops over single numbers in float64."""

import inspect
import math

import numba
import numpy as np
import pytest

from kfc_numba.kernels import cpu
from kfc_numba.kernels.cpu import exponential, jit

DTYPES = (np.float32, np.float64)
# Few classes and many, of less than a vector and of more; one chunk of rows and several.
SHAPES = [(1, 2), (7, 10), (3, 2, 5, 4), (5, 63), (5, 64), (9, 1000), (3000, 3)]

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def drawn(shape, dtype):
    """Logits, classes, probabilities and directions."""
    rng = np.random.default_rng(0)
    outputs = (3 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.integers(0, shape[-1], shape[:-1])
    return (
        outputs,
        labels,
        rng.random(shape).astype(dtype),
        rng.standard_normal(shape).astype(dtype),
    )


def probabilities(row):
    greatest = max(row)
    terms = [math.exp(z - greatest) for z in row]
    return np.array([t / math.fsum(terms) for t in terms])


def softmax_rows(outputs):
    rows = outputs.astype(float).reshape(-1, outputs.shape[-1]).tolist()
    return np.array([probabilities(row) for row in rows]).reshape(outputs.shape)


def sigmoids(outputs):
    found = [1 / (1 + math.exp(-z)) for z in outputs.astype(float).ravel().tolist()]
    return np.reshape(found, outputs.shape)


def close(found, expected, dtype, units=16):
    assert found.dtype == dtype
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found, expected, rtol=units * eps, atol=units * eps)


# The exponential.


@jit.serial
def exponentials(values):
    """As kernels call it: Python cannot."""
    exponential.exponentials(values)


@every_dtype
@pytest.mark.parametrize("least", [-1e-6, -2, -80, -800])
def test_exponentials_are_within_two_units_in_the_last_place(dtype, least):
    x = np.linspace(least, 0, 100_003).astype(dtype)
    y = x.copy()
    exponentials(y)
    exact = np.exp(x.astype(np.longdouble))
    with np.errstate(under="ignore"):
        unit = np.spacing(exact.astype(dtype))
    assert np.max(np.abs(y - exact) / unit) <= 2
    assert y[-1] == 1


@every_dtype
def test_exponentials_of_the_ends(dtype):
    y = np.array([np.nan, -np.inf, -0.0, 0.0, np.finfo(dtype).min, -1e4] * 9, dtype)
    exponentials(y)
    np.testing.assert_array_equal(y, np.array([np.nan, 0, 1, 1, 0, 0] * 9))


# Categorical distributions.


@every_dtype
@every_shape
def test_softmax(shape, dtype):
    outputs, *_ = drawn(shape, dtype)
    close(cpu.softmax(outputs), softmax_rows(outputs), dtype)


@every_dtype
@every_shape
def test_softmax_loss(shape, dtype):
    outputs, labels, *_ = drawn(shape, dtype)
    values, derivative = cpu.softmax_loss(outputs, labels)
    expected = softmax_rows(outputs)
    own = np.take_along_axis(expected, labels[..., None], axis=-1)
    close(derivative, expected - (np.arange(shape[-1]) == labels[..., None]), dtype)
    assert values.dtype == np.float64
    sums = -np.log(own).reshape(shape[0], -1).sum(axis=1)
    # Where the probability is nearly one, its rounding is what is left of the logarithm.
    tolerance = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(values, sums, rtol=tolerance, atol=tolerance)


@every_dtype
@every_shape
def test_softmax_fisher_product(shape, dtype):
    outputs, _, _, v = drawn(shape, dtype)
    p = softmax_rows(outputs)
    expected = p * v - p * (p * v).sum(axis=-1, keepdims=True)
    close(cpu.softmax_fisher_product(outputs, v), expected, dtype)


@every_dtype
def test_softmax_fisher_columns(dtype):
    p = softmax_rows(drawn((4, 2, 3), dtype)[0])
    for index in range(6):
        expected = np.zeros((4, 2, 3))
        for m in range(4):
            row, k = divmod(index, 3)
            unit = np.eye(3)[k]
            expected[m, row] = math.sqrt(p[m, row, k]) * (unit - p[m, row])
        close(cpu.softmax_fisher_column(p.astype(dtype), index=index), expected, dtype)


@every_dtype
@every_shape
def test_softmax_samples_by_the_cumulative_distribution(shape, dtype):
    outputs, *_ = drawn(shape, dtype)
    uniform = np.random.default_rng(1).random(shape[:-1])
    found = cpu.softmax_sample(outputs, uniform)
    cumulative = softmax_rows(outputs).cumsum(axis=-1)
    expected = (cumulative[..., :-1] <= uniform[..., None]).sum(axis=-1)
    assert found.dtype == np.int64
    # A number within rounding of a boundary may fall on either side.
    sure = np.abs(cumulative - uniform[..., None]).min(axis=-1) > 1e-5
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(found[sure], expected[sure])
    assert np.all(cpu.softmax_sample(outputs, np.zeros(shape[:-1])) == 0)


def test_softmax_error_is_by_the_first_of_the_largest():
    outputs = np.array([[0.0, 1, 1], [2, 1, 0], [0, np.nan, 3], [0, 1, 3]])
    assert cpu.softmax_error(outputs, np.array([1, 0, 1, 2])) == 0
    assert cpu.softmax_error(outputs, np.array([2, 0, 2, 2])) == 0.5


# Distributions of each output.


@every_dtype
@every_shape
@pytest.mark.parametrize("target_dtype", DTYPES)
def test_squared_loss(shape, dtype, target_dtype):
    outputs, _, _, v = drawn(shape, dtype)
    targets = v.astype(target_dtype)
    values, derivative = cpu.squared_loss(outputs, targets)
    difference = outputs.astype(float) - targets.astype(float)
    close(derivative, difference, dtype, units=1)
    expected = (difference**2).reshape(shape[0], -1).sum(axis=1) / 2
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    error = cpu.squared_error(outputs, targets)
    assert error == pytest.approx((difference**2).mean(), rel=1e-12)


@every_dtype
@every_shape
def test_sigmoid_loss(shape, dtype):
    outputs, _, targets, v = drawn(shape, dtype)
    values, derivative = cpu.sigmoid_loss(outputs, targets)
    z, t = outputs.astype(float), targets.astype(float)
    p, q = sigmoids(z), sigmoids(-z)  # 1 - p has lost digits where p is nearly one
    close(derivative, p - t, dtype)
    terms = t * np.log1p(np.exp(-z)) + (1 - t) * np.log1p(np.exp(z))
    expected = terms.reshape(shape[0], -1).sum(axis=1)
    np.testing.assert_allclose(values, expected, rtol=16 * np.finfo(dtype).eps)
    close(cpu.sigmoid_fisher_product(outputs, v), p * q * v, dtype)
    close(cpu.sigmoid_deviation(outputs), np.sqrt(p * q), dtype)


@every_dtype
def test_sigmoid_samples(dtype):
    outputs, *_ = drawn((3000, 3), dtype)
    uniform = np.random.default_rng(1).random((3000, 3))
    found = cpu.sigmoid_sample(outputs, uniform)
    sure = np.abs(sigmoids(outputs) - uniform) > 1e-6  # beyond rounding
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[sure], (uniform < sigmoids(outputs))[sure])


def test_sigmoid_error():
    outputs = np.array([[0.0, 1.0, -1.0, 2.0]], np.float32)
    assert cpu.sigmoid_error(outputs, np.array([[0.5, 0.4, 0.0, 1.0]])) == 0.25


@every_dtype
def test_single_component(dtype):
    x = np.arange(1, 25).reshape(2, 3, 4).astype(dtype)
    for index in range(12):
        found = cpu.single_component(x, index=index)
        assert found.dtype == dtype
        assert np.count_nonzero(found) == 2
        np.testing.assert_array_equal(found.reshape(2, 12)[:, index], x.reshape(2, 12)[:, index])


# All of them.

#: Each kernel with arguments that fit it.
KERNELS = {
    cpu.softmax: lambda z, t, p, v: (z,),
    cpu.softmax_loss: lambda z, t, p, v: (z, t),
    cpu.softmax_sample: lambda z, t, p, v: (z, p[..., 0].astype(np.float64)),
    cpu.softmax_fisher_product: lambda z, t, p, v: (z, v),
    cpu.softmax_fisher_column: lambda z, t, p, v: (p,),
    cpu.softmax_error: lambda z, t, p, v: (z, t),
    cpu.squared_loss: lambda z, t, p, v: (z, v),
    cpu.squared_error: lambda z, t, p, v: (z, v),
    cpu.sigmoid_loss: lambda z, t, p, v: (z, p),
    cpu.sigmoid_sample: lambda z, t, p, v: (z, p.astype(np.float64)),
    cpu.sigmoid_fisher_product: lambda z, t, p, v: (z, v),
    cpu.sigmoid_deviation: lambda z, t, p, v: (z,),
    cpu.sigmoid_error: lambda z, t, p, v: (z, p),
    cpu.single_component: lambda z, t, p, v: (z,),
}
OPTIONS = {cpu.softmax_fisher_column: {"index": 1}, cpu.single_component: {"index": 1}}

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)


def results(kernel, *arrays, **options):
    found = kernel(*arrays, **OPTIONS.get(kernel, {}), **options)
    return found if isinstance(found, tuple) else (found,)


@every_kernel
@every_dtype
def test_bits_do_not_depend_on_threads_nor_on_the_other_examples(kernel, dtype):
    arrays = KERNELS[kernel](*drawn((4000, 7), dtype))
    threads, found = numba.get_num_threads(), set()
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            found.add(b"".join(np.asarray(r).tobytes() for r in results(kernel, *arrays)))
    finally:
        numba.set_num_threads(threads)
    assert len(found) == 1
    if kernel not in (cpu.softmax_error, cpu.squared_error, cpu.sigmoid_error):
        # Few examples are computed by one thread, with code of its own.
        few = results(kernel, *(array[5:8] for array in arrays))
        for part, whole in zip(few, results(kernel, *arrays), strict=True):
            np.testing.assert_array_equal(part, whole[5:8])


@every_kernel
def test_views_and_read_only_arrays_are_taken_and_kept(kernel):
    arrays = KERNELS[kernel](*drawn((8, 6), np.float32))
    views = [np.repeat(array, 2, axis=0)[::2] for array in arrays]
    for view in views:
        view.flags.writeable = False
    before = [view.copy() for view in views]
    for part, whole in zip(results(kernel, *views), results(kernel, *arrays), strict=True):
        np.testing.assert_array_equal(part, whole)
    for view, old in zip(views, before, strict=True):
        np.testing.assert_array_equal(view, old)


@every_kernel
def test_results_go_where_they_should(kernel):
    if "out" not in inspect.signature(kernel).parameters:
        return
    arrays = KERNELS[kernel](*drawn((8, 6), np.float32))
    fresh = results(kernel, *arrays)[-1]
    out = np.full_like(fresh, np.nan)
    assert results(kernel, *arrays, out=out)[-1] is out
    np.testing.assert_array_equal(out, fresh)
    for wrong, error in ((out.astype(np.float64), TypeError), (out[:3], ValueError)):
        with pytest.raises(error, match=r"^out "):
            results(kernel, *arrays, out=wrong)


@every_kernel
def test_arguments_that_do_not_fit(kernel):
    fitting = list(KERNELS[kernel](*drawn((8, 6), np.float32)))
    names = list(inspect.signature(kernel).parameters)[: len(fitting)]
    for index, name in enumerate(names):
        wrong = [
            (TypeError, fitting[index].tolist()),
            (TypeError, fitting[index].astype(np.int16)),
            (ValueError, fitting[index][:0]),
        ]
        if index:
            wrong.append((ValueError, fitting[index][:-1].copy()))
        for error, value in wrong:
            changed = fitting.copy()
            changed[index] = value
            with pytest.raises(error, match=rf"^{name} "):
                results(kernel, *changed)


def test_numbers_that_do_not_fit():
    outputs, labels, *_ = drawn((8, 6), np.float32)
    for label in (-1, 6):
        labels[3] = label
        for kernel in (cpu.softmax_loss, cpu.softmax_error):
            with pytest.raises(ValueError, match=f"targets must be from 0 to 5, got .*{label}"):
                kernel(outputs, labels)
    for kernel in (cpu.softmax_fisher_column, cpu.single_component):
        with pytest.raises(ValueError, match=r"index \(=6\) must be below 6"):
            kernel(outputs, index=6)
        with pytest.raises(ValueError, match=r"index \(=-1\)"):
            kernel(outputs, index=-1)
    with pytest.raises(ValueError, match="must have classes as its last axis"):
        cpu.softmax(np.zeros(3))
    for kernel in (cpu.softmax_fisher_product, cpu.sigmoid_fisher_product):
        with pytest.raises(ValueError, match="out must not share memory with v"):
            kernel(outputs, outputs, out=outputs)


@every_dtype
@pytest.mark.parametrize("classes", [3, 200])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_an_output_that_is_not_finite_stays_in_its_example(dtype, classes, place):
    outputs, labels, p, v = drawn((5, classes), dtype)
    whole = {k: results(k, *KERNELS[k](outputs, labels, p, v)) for k in KERNELS}
    for bad in (np.nan, np.inf):
        spoilt = outputs.copy()
        spoilt[2, place] = bad
        for kernel in (cpu.softmax, cpu.softmax_loss, cpu.softmax_fisher_product):
            found = results(kernel, *KERNELS[kernel](spoilt, labels, p, v))
            for array, old in zip(found, whole[kernel], strict=True):
                assert np.isnan(array[2]).all()
                np.testing.assert_array_equal(np.delete(array, 2, 0), np.delete(old, 2, 0))
        for kernel in (cpu.squared_loss, cpu.sigmoid_loss):
            values, derivative = kernel(*KERNELS[kernel](spoilt, labels, p, v))
            assert not np.isfinite(values[2])
            assert np.isfinite(np.delete(values, 2)).all()
            assert np.isfinite(np.delete(derivative, 2, 0)).all()
