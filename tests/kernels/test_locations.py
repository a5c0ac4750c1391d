"""Sums and means over locations against NumPy in float64."""

import numba
import numpy as np
import pytest

from kfc_numba.kernels import cpu

DTYPES = (np.float32, np.float64)
SHAPES = [(1, 1), (5, 3), (3, 40, 50, 2), (4, 7, 17), (2, 1, 1, 33)]


def normal(shape, dtype, offset=0.0):
    return (np.random.default_rng(0).normal(size=shape) + offset).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_means(shape, dtype):
    x = normal(shape, dtype, 1000)
    rows = x.astype(float).reshape(shape[0], -1, shape[-1])
    for kernel, expected in [
        (cpu.location_sum, rows.sum(axis=1)),
        (cpu.location_mean, rows.mean(axis=1)),
    ]:
        result = kernel(x)
        assert result.dtype == dtype
        np.testing.assert_allclose(result, expected, rtol=2 * np.finfo(dtype).eps)
        out = np.full_like(result, np.nan)
        assert kernel(x, out=out) is out
        np.testing.assert_array_equal(out, result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_backward_pass_spreads_the_mean(shape, dtype):
    dy = normal((shape[0], shape[-1]), dtype)
    locations = int(np.prod(shape[1:-1]))
    expected = np.empty(shape)
    for place in np.ndindex(shape):
        expected[place] = dy[place[0], place[-1]] / locations
    out = np.full(shape, np.nan, dtype)
    assert cpu.location_mean_backward(dy, shape, out=out) is out
    np.testing.assert_allclose(out, expected, rtol=np.finfo(dtype).eps)
    np.testing.assert_array_equal(cpu.location_mean_backward(dy, shape), out)


def test_threads_do_not_change_a_bit():
    x = normal((5, 13, 13, 7), np.float32)
    threads = numba.get_num_threads()
    many = cpu.location_sum(x)
    try:
        numba.set_num_threads(1)
        one = cpu.location_sum(x)
    finally:
        numba.set_num_threads(threads)
    np.testing.assert_array_equal(many, one)


def test_bad_arguments():
    for kernel in (cpu.location_sum, cpu.location_mean):
        with pytest.raises(ValueError, match="x has shape"):
            kernel(np.ones(3))
        with pytest.raises(TypeError, match="x has dtype"):
            kernel(np.ones((3, 2), int))
        with pytest.raises(ValueError, match="out"):
            kernel(np.ones((3, 4, 2)), out=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"dy has shape \(3, 2\).*input_shape \(=\(3, 5, 4\)\)"):
        cpu.location_mean_backward(np.ones((3, 2)), (3, 5, 4))
    with pytest.raises(ValueError, match="input_shape"):
        cpu.location_mean_backward(np.ones((3, 2)), (3, 0, 2))
