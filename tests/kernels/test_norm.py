"""Statistics of channels against NumPy in float64."""

import numba
import numpy as np
import pytest

from kfc_numba.kernels import cpu

DTYPES = (np.float32, np.float64)
SHAPES = [(2, 1), (7, 5), (3, 5, 4, 3), (2, 33, 32, 17), (1030, 3)]


def normal(shape, dtype, seed=0, offset=0.0):
    return (np.random.default_rng(seed).normal(size=shape) + offset).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
@pytest.mark.parametrize("shape", SHAPES)
def test_moments(shape, offset, dtype):
    x = normal(shape, dtype, offset=offset)
    rows = x.astype(float).reshape(-1, shape[-1])
    mean, variance = cpu.channel_moments(x)
    assert mean.dtype == variance.dtype == np.float64
    # The input is rounded to its type, the moments of what it then is are not.
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(variance, rows.var(axis=0), rtol=1e-9, atol=1e-18)


def test_moments_when_the_first_row_is_far_out():
    x = normal((5000, 2), np.float32)
    x[0] = 1e6
    mean, variance = cpu.channel_moments(x)
    np.testing.assert_allclose(mean, x.astype(float).mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(variance, x.astype(float).var(axis=0), rtol=1e-10)


def test_moments_of_constants_are_exact():
    x = np.full((1000, 3), 0.1, np.float32)
    mean, variance = cpu.channel_moments(x)
    assert (mean == np.float32(0.1)).all()
    assert (variance == 0).all()


def test_moments_of_what_is_not_finite():
    x = normal((10, 4), np.float32)
    x[3, 0], x[0, 1], x[5, 2] = np.nan, np.inf, np.inf
    mean, variance = cpu.channel_moments(x)
    assert not np.isfinite(mean[:3]).any()
    assert not np.isfinite(variance[:3]).any()
    assert np.isfinite([mean[3], variance[3]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape, dtype):
    x, u = normal(shape, dtype), normal(shape, dtype, 1)
    mean = normal(shape[-1], np.float64, 2)
    pairs = (u.astype(float), u.astype(float) * (x.astype(float) - mean))
    axes = tuple(range(x.ndim - 1))
    for result, terms in zip(cpu.channel_products(u, x, mean), pairs, strict=True):
        np.testing.assert_allclose(result, terms.sum(axis=axes), rtol=1e-12, atol=1e-11)
    for result, terms in zip(cpu.channel_squares(u, x, mean), pairs, strict=True):
        expected = np.zeros(shape[-1])
        for example in terms:
            expected += example.reshape(-1, shape[-1]).sum(axis=0) ** 2
        assert result.dtype == np.float64
        np.testing.assert_allclose(result, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_affine_and_combination(shape, dtype):
    x, u = normal(shape, dtype, offset=1e4), normal(shape, dtype, 1)
    mean = normal(shape[-1], np.float64, 2, 1e4)
    a, b, c = (normal(shape[-1], np.float64, seed) for seed in (3, 4, 5))
    tolerance = {"rtol": np.finfo(dtype).eps, "atol": 1e-11}
    centred = x.astype(float) - mean
    np.testing.assert_allclose(cpu.channel_affine(x, mean, a, b), a * centred + b, **tolerance)
    result = cpu.channel_combination(u, x, mean, a, b, c)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, a * u.astype(float) + b * centred + c, **tolerance)


def test_threads_do_not_change_a_bit():
    x, u = normal((5, 33, 31, 7), np.float32), normal((5, 33, 31, 7), np.float32, 1)
    mean = normal(7, np.float64)

    def results():
        return (*cpu.channel_moments(x), *cpu.channel_products(u, x, mean))

    threads = numba.get_num_threads()
    many = results()
    try:
        numba.set_num_threads(1)
        one = results()
    finally:
        numba.set_num_threads(threads)
    for a, b in zip(many, one, strict=True):
        np.testing.assert_array_equal(a, b)


def test_results_go_where_they_should():
    x, u = normal((4, 3, 5), np.float32), normal((4, 3, 5), np.float32, 1)
    a = normal(5, np.float64)
    for kernel, arguments in [
        (cpu.channel_affine, (x, a, a, a)),
        (cpu.channel_combination, (u, x, a, a, a, a)),
    ]:
        fresh = kernel(*arguments)
        out = np.full_like(fresh, np.nan)
        assert kernel(*arguments, out=out) is out
        np.testing.assert_array_equal(out, fresh)


X, V = np.ones((3, 5, 2)), np.ones(2)


@pytest.mark.parametrize("kernel", [cpu.channel_products, cpu.channel_squares])
def test_arrays_that_do_not_fit_for_sums(kernel):
    with pytest.raises(ValueError, match=r"x has shape \(6, 2\), it must be that of u, \(3, 2\)"):
        kernel(X[:, 0], np.zeros((6, 2)), V)
    with pytest.raises(TypeError, match="x has dtype float32"):
        kernel(X, X.astype(np.float32), V)
    for wrong in (V[:1], X[0]):
        with pytest.raises(ValueError, match="mean has shape"):
            kernel(X, X, wrong)


@pytest.mark.parametrize("place", range(6))
def test_arrays_that_do_not_fit(place):
    names = ("u", "x", "mean", "a", "b", "c")
    arguments = [X, X, V, V, V, V]
    arguments[place] = arguments[place][:1] if place > 1 else arguments[place].astype(int)
    with pytest.raises((ValueError, TypeError), match=f"^{names[place]} has"):
        cpu.channel_combination(*arguments)
    if place > 2:
        names, arguments = ("x", "mean", "scale", "offset"), arguments[:1] + arguments[3:]
        with pytest.raises(ValueError, match=f"^{names[place - 2]} has shape"):
            cpu.channel_affine(*arguments)
    with pytest.raises(TypeError, match="mean has dtype float32"):
        cpu.channel_affine(X, V.astype(np.float32), V, V)
    with pytest.raises(TypeError, match="x has dtype int64"):
        cpu.channel_moments(X.astype(int))
