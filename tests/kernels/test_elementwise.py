"""Elementwise kernels."""

import numpy as np
import pytest

from kfc_numba.kernels import cpu

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
    leaky = cpu.leaky_relu_forward(x, 0.25)
    np.testing.assert_array_equal(leaky, np.where(positive, x, slope * x))
    expected = np.where(positive, dy, slope * dy)
    np.testing.assert_array_equal(cpu.leaky_relu_backward(dy, x, 0.25), expected)
    np.testing.assert_array_equal(cpu.leaky_relu_backward(dy, leaky, 0.25), expected)
    assert y.dtype == leaky.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [cpu.relu_forward, lambda x: cpu.leaky_relu_forward(x, 0.1)])
def test_rectifiers_pass_nan_and_infinity_on(function, dtype):
    y = function(np.array([np.nan, np.inf, -1, 0, 2] * 20, dtype)).reshape(20, 5)
    assert np.isnan(y[:, 0]).all()
    assert (y[:, 1] == np.inf).all()
    assert np.isfinite(y[:, 2:]).all()


def test_the_slope_of_a_rectifier_at_zero_is_that_below():
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    assert cpu.relu_backward(one, zero) == 0
    assert cpu.leaky_relu_backward(one, zero, 0.25) == 0.25


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
    result = cpu.apply_mask(a, mask, 4.0)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, np.where(b > 0, 4 * a, 0))


def test_a_mask_does_not_hide_nan():
    x = np.array([np.nan, np.nan], np.float32)
    assert np.isnan(cpu.apply_mask(x, np.array([0, 1], np.uint8), 2.0)).all()


def test_results_go_where_they_should():
    x, y = normal((3, 4), np.float32), normal((3, 4), np.float32, 1)
    mask = (y > 0).astype(np.uint8)
    for kernel, arguments in [
        (cpu.relu_forward, (x,)),
        (cpu.relu_backward, (x, y)),
        (cpu.leaky_relu_forward, (x, 0.1)),
        (cpu.leaky_relu_backward, (x, y, 0.1)),
        (cpu.tanh_forward, (x,)),
        (cpu.tanh_backward, (x, y)),
        (cpu.sigmoid_forward, (x,)),
        (cpu.sigmoid_backward, (x, y)),
        (cpu.add, (x, y)),
        (cpu.apply_mask, (x, mask, 2.0)),
    ]:
        fresh = kernel(*arguments)
        out = np.full_like(fresh, np.nan)
        assert kernel(*arguments, out=out) is out
        np.testing.assert_array_equal(out, fresh)


def test_an_output_of_a_wrong_kind():
    x = np.zeros((3, 4), np.float32)
    with pytest.raises(TypeError, match=r"out must be .*float32"):
        cpu.relu_forward(x, out=np.zeros((3, 4)))
    with pytest.raises(ValueError, match="out"):
        cpu.relu_forward(x, out=np.zeros((4, 3), np.float32).T)


def test_arrays_of_different_shapes():
    with pytest.raises(ValueError, match=r"one shape, got \(3,\), \(4,\)"):
        cpu.add(np.zeros(3), np.zeros(4))
