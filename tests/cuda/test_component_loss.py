"""Losses of independent outputs, against formulas in float64 and the kernels of the CPU."""

import numpy as np
import pytest
from host_array import on_device

from kfc_numba.kernels import cpu, cuda

DTYPES = (np.float32, np.float64)
SHAPES = [(1, 2), (7,), (3, 2, 5, 4), (5, 63), (2, 1003), (300, 3)]

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_target = pytest.mark.parametrize("target_dtype", DTYPES)


def drawn(shape, dtype, target_dtype=np.float64):
    rng = np.random.default_rng(0)
    outputs = (3 * rng.standard_normal(shape)).astype(dtype)
    return outputs, rng.random(shape).astype(target_dtype), rng.normal(size=shape).astype(dtype)


def close(found, *expected, dtype, units=16):
    assert found.dtype == dtype
    eps = np.finfo(dtype).eps
    for values in expected:
        np.testing.assert_allclose(found.get(), values, rtol=units * eps, atol=units * eps)


@every_dtype
@every_target
@every_shape
def test_squared_loss(shape, dtype, target_dtype):
    outputs, targets, _ = drawn(shape, dtype, target_dtype)
    x, t = on_device(outputs), on_device(targets)
    values, derivative = cuda.squared_loss(x, t)
    difference = outputs.astype(float) - targets.astype(float)
    expected = cpu.squared_loss(outputs, targets)
    close(derivative, difference, expected[1], dtype=dtype, units=1)
    assert values.dtype == np.float64
    for sums in ((difference**2).reshape(shape[0], -1).sum(axis=1) / 2, expected[0]):
        np.testing.assert_allclose(values.get(), sums, rtol=1e-12)
    error = cuda.squared_error(x, t)
    assert isinstance(error, float)
    assert error == pytest.approx((difference**2).mean(), rel=1e-12)
    again, moved = cuda.squared_loss(x, t, out=x)
    assert moved is x
    np.testing.assert_array_equal(again.get(), values.get())
    np.testing.assert_array_equal(moved.get(), derivative.get())


@every_dtype
@every_target
@every_shape
def test_sigmoid_loss(shape, dtype, target_dtype):
    outputs, targets, v = drawn(shape, dtype, target_dtype)
    x, t = on_device(outputs), on_device(targets)
    values, derivative = cuda.sigmoid_loss(x, t)
    expected = cpu.sigmoid_loss(outputs, targets)
    z = outputs.astype(float)
    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    close(derivative, p - targets, expected[1], dtype=dtype)
    terms = targets * np.log1p(np.exp(-z)) + (1 - targets.astype(float)) * np.log1p(np.exp(z))
    for sums in (terms.reshape(shape[0], -1).sum(axis=1), expected[0]):
        np.testing.assert_allclose(values.get(), sums, rtol=16 * np.finfo(dtype).eps)
    product = cuda.sigmoid_fisher_product(x, on_device(v))
    close(product, p * q * v, cpu.sigmoid_fisher_product(outputs, v), dtype=dtype)
    deviation = cuda.sigmoid_deviation(x)
    close(deviation, np.sqrt(p * q), cpu.sigmoid_deviation(outputs), dtype=dtype)


def test_large_logits():
    outputs = np.array([[-1e4, 1e4, -1e4, 1e4]], np.float32)
    targets = np.array([[0, 1, 1, 0.25]], np.float32)
    values, derivative = cuda.sigmoid_loss(on_device(outputs), on_device(targets))
    assert values.get() == 1e4 + 0.75e4
    np.testing.assert_array_equal(derivative.get(), [[0, 0, -1, 0.75]])


@every_dtype
def test_sigmoid_samples(dtype):
    outputs, uniform, _ = drawn((300, 3), dtype)
    p = 1 / (1 + np.exp(-outputs.astype(float)))
    sure = np.abs(p - uniform) > 1e-6  # beyond rounding
    x = on_device(outputs)
    found = cuda.sigmoid_sample(x, on_device(uniform), out=x)
    assert found is x
    np.testing.assert_array_equal(found.get()[sure], (uniform < p)[sure])
    nan = on_device(np.full(3, np.nan, dtype))
    assert (cuda.sigmoid_sample(nan, on_device(np.zeros(3))).get() == 0).all()


@every_dtype
@every_target
@every_shape
def test_sigmoid_error(shape, dtype, target_dtype):
    outputs, targets, _ = drawn(shape, dtype, target_dtype)
    outputs.flat[0], targets.flat[-1] = 0, 0.5
    error = cuda.sigmoid_error(on_device(outputs), on_device(targets))
    assert isinstance(error, float)
    assert error == cpu.sigmoid_error(outputs, targets)


@every_dtype
@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 300), (5, 1)])
def test_single_component(shape, dtype):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    for index in {0, np.prod(shape[1:]) // 2, np.prod(shape[1:]) - 1}:
        found = cuda.single_component(on_device(x), index=int(index))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.get(), cpu.single_component(x, index=int(index)))


@pytest.mark.parametrize("name", ["squared_loss", "squared_error", "sigmoid_loss", "sigmoid_error"])
def test_targets_that_do_not_fit(name):
    outputs, targets, _ = drawn((5, 4), np.float32)
    kernel = getattr(cuda, name)
    with pytest.raises(TypeError, match="outputs must be a device array"):
        kernel(outputs, on_device(targets))
    with pytest.raises(TypeError, match="targets must be a device array"):
        kernel(on_device(outputs), targets)
    with pytest.raises(TypeError, match="targets has dtype int64"):
        kernel(on_device(outputs), on_device(targets.astype(np.int64)))
    with pytest.raises(ValueError, match=r"targets must have shape \(5, 4\), got \(4, 5\)"):
        kernel(on_device(outputs), on_device(targets.T))


def test_other_arguments_that_do_not_fit():
    outputs, uniform, v = map(on_device, drawn((5, 4), np.float32))
    with pytest.raises(TypeError, match="uniform has dtype float32"):
        cuda.sigmoid_sample(outputs, v)
    with pytest.raises(ValueError, match="out must not share memory with v"):
        cuda.sigmoid_fisher_product(outputs, v, out=v)
    with pytest.raises(ValueError, match=r"index \(=4\) must be below 4"):
        cuda.single_component(outputs, index=4)
    with pytest.raises(TypeError, match="out must be a device array of dtype float32"):
        cuda.sigmoid_deviation(outputs, out=uniform)
