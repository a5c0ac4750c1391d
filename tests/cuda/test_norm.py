"""Statistics of channels, against float64 and the kernels of the CPU."""

import numpy as np
import pytest
from host_array import on_device

from kfc_numba.kernels import cpu, cuda

DTYPES = (np.float32, np.float64)
# One row, one channel, lanes and their tails, more channels than a block has, several segments.
SHAPES = [(1, 1), (2, 3), (5, 2, 3, 7), (3, 40), (150, 1), (300, 5), (70, 2, 8), (2, 132)]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def normal(shape, dtype, seed=0, offset=0.0):
    return (np.random.default_rng(seed).normal(size=shape) + offset).astype(dtype)


@every_dtype
@pytest.mark.parametrize("offset", [0.0, -1e6])
@every_shape
def test_moments(shape, offset, dtype):
    x = normal(shape, dtype, offset=offset)
    mean, variance = (array.get() for array in cuda.channel_moments(on_device(x)))
    rows = x.astype(np.longdouble).reshape(-1, shape[-1])
    assert mean.dtype == variance.dtype == np.float64
    np.testing.assert_allclose(mean, rows.mean(axis=0).astype(float), rtol=1e-13, atol=1e-13)
    exact = rows.var(axis=0).astype(float)
    np.testing.assert_allclose(variance, exact, rtol=1e-11, atol=1e-14)
    for found, expected in zip((mean, variance), cpu.channel_moments(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


def test_moments_of_what_is_not_finite():
    x = normal((6, 4), np.float32)
    x[2, 0], x[3, 1], x[0, 2] = np.nan, np.inf, np.inf
    mean, variance = (array.get() for array in cuda.channel_moments(on_device(x)))
    assert not np.isfinite(mean[:3]).any()
    assert np.isnan(variance[:3]).all()
    assert np.isfinite([mean[3], variance[3]]).all()


def test_moments_of_constants_are_exact():
    x = on_device(np.full((9, 3), 0.1, np.float32))
    mean, variance = cuda.channel_moments(x)
    assert (mean.get() == np.float32(0.1)).all()
    assert (variance.get() == 0).all()


@every_dtype
@every_shape
def test_products(shape, dtype):
    u, x, mean = normal(shape, dtype, 1), normal(shape, dtype), normal(shape[-1], np.float64, 2)
    du, dx = u.astype(float), x.astype(float) - mean
    arrays = on_device(u), on_device(x), on_device(mean)
    axes = tuple(range(1, len(shape) - 1))
    for name, first, second in (
        ("channel_products", du, du * dx),
        ("channel_squares", du.sum(axis=axes) ** 2, (du * dx).sum(axis=axes) ** 2),
    ):
        results = [array.get() for array in getattr(cuda, name)(*arrays)]
        exact = [terms.reshape(-1, shape[-1]).sum(axis=0) for terms in (first, second)]
        bounds = [np.abs(terms).reshape(-1, shape[-1]).sum(axis=0) for terms in (first, second)]
        for found, expected, bound, other in zip(
            results, exact, bounds, getattr(cpu, name)(u, x, mean), strict=True
        ):
            assert found.shape == shape[-1:]
            assert (np.abs(found - expected) <= 1e-13 * (1 + bound)).all()
            assert (np.abs(found - other) <= 1e-13 * (1 + bound)).all()


@every_dtype
@every_shape
def test_affine_and_combination(shape, dtype):
    u, x = normal(shape, dtype, 1), normal(shape, dtype)
    mean, a, b, c = (normal(shape[-1], np.float64, seed) for seed in range(2, 6))
    vectors = [on_device(vector) for vector in (mean, a, b, c)]
    exact_u, centred = u.astype(float), x.astype(float) - mean
    tolerance = {"rtol": 2**-23 if dtype == np.float32 else 1e-12, "atol": 1e-12}
    y = cuda.channel_affine(on_device(x), *vectors[:3])
    np.testing.assert_allclose(y.get(), a * centred + b, **tolerance)
    np.testing.assert_allclose(y.get(), cpu.channel_affine(x, mean, a, b), **tolerance)
    y = cuda.channel_combination(on_device(u), on_device(x), *vectors)
    np.testing.assert_allclose(y.get(), a * exact_u + b * centred + c, **tolerance)
    assert y.dtype == dtype


def test_results_go_where_they_should():
    for given in ("new", "u", "x"):
        u, x = on_device(normal((5, 8), np.float32)), on_device(normal((5, 8), np.float32, 1))
        vectors = [on_device(normal(8, np.float64, seed)) for seed in range(4)]
        expected = cuda.channel_combination(u, x, *vectors).get()
        out = {"u": u, "x": x, "new": on_device(np.zeros((5, 8), np.float32))}[given]
        assert cuda.channel_combination(u, x, *vectors, out=out) is out
        np.testing.assert_array_equal(out.get(), expected)
    expected = cuda.channel_affine(x, *vectors[:3]).get()
    assert cuda.channel_affine(x, *vectors[:3], out=x) is x
    np.testing.assert_array_equal(x.get(), expected)


@pytest.mark.parametrize("place", range(6))
def test_arrays_that_do_not_fit(place):
    names = ("u", "x", "mean", "a", "b", "c")
    fitting = [normal((5, 4), np.float32)] * 2 + [normal(4, np.float64)] * 4
    wrong = [(TypeError, fitting[place]), (TypeError, on_device(fitting[place].astype(np.int64)))]
    if place:
        wrong.append((ValueError, on_device(np.zeros((4, 5)[place > 1 :], fitting[place].dtype))))
    for error, value in wrong:
        changed = list(map(on_device, fitting))
        changed[place] = value
        with pytest.raises(error, match=f"^{names[place]} "):
            cuda.channel_combination(*changed)
        if place == 2 or (place == 1 and error is TypeError):
            with pytest.raises(error, match=f"^{names[place]} "):
                cuda.channel_affine(*changed[1:5])
        if place < 3:
            with pytest.raises(error, match=f"^{names[place]} "):
                cuda.channel_products(*changed[:3])
            with pytest.raises(error, match=f"^{names[place]} "):
                cuda.channel_squares(*changed[:3])


def vectors_of(channels, dtype):
    """Arguments of the functions of vectors, by name: parameters, statistics, sums."""
    found = {name: normal(channels, dtype, seed) for seed, name in enumerate(PARAMETERS)}
    found |= {name: normal(channels, np.float64, 9 + seed) for seed, name in enumerate(SUMS)}
    for name in ("variance", "running_variance", "inverse"):
        found[name] = np.abs(found[name]) + found[name].dtype.type(0.1)
    return found


PARAMETERS = ("weight", "bias", "dweight", "dbias", "running_mean", "running_variance")
SUMS = ("mean", "variance", "sums", "products", "inverse", "scale")
CALLS = {
    "norm_terms": (("weight", "bias", "mean", "variance"), {"epsilon": 1e-5}),
    "norm_gradients": (("weight", "sums", "products", "inverse", "scale"), {"rows": 7}),
    "norm_slopes": (
        ("dweight", "dbias", "sums", "products", "inverse", "scale"),
        {"rows": 7},
    ),
    "norm_running": (
        ("running_mean", "running_variance", "mean", "variance"),
        {"momentum": 0.9, "rows": 7},
    ),
}


def exact_vectors(name, v):
    """What a function of vectors returns, by its formula."""
    if name == "norm_terms":
        inverse = (v["variance"] + 1e-5) ** -0.5
        return v["mean"], inverse, v["weight"] * inverse, v["bias"]
    if name == "norm_running":
        unbiased = v["variance"] * 7 / 6
        return [
            0.9 * v[f"running_{key}"] + 0.1 * new
            for key, new in (("mean", v["mean"]), ("variance", unbiased))
        ]
    slope = -v["scale"] * v["inverse"] ** 2 * v["products"] / 7
    offset = -v["scale"] * v["sums"] / 7
    if name == "norm_gradients":
        return v["products"] * v["inverse"], v["sums"], slope, offset
    return v["dweight"] * v["inverse"] + slope, v["dbias"] + offset


@every_dtype
@pytest.mark.parametrize("channels", [1, 5, 300])
@pytest.mark.parametrize("name", CALLS)
def test_functions_of_vectors(name, channels, dtype):
    vectors = vectors_of(channels, dtype)
    names, settings = CALLS[name]
    given = [vectors[key] for key in names]
    expected = exact_vectors(name, {key: value.astype(float) for key, value in vectors.items()})
    on_cpu = getattr(cpu, name)(*given, **settings)
    found = getattr(cuda, name)(*map(on_device, given), **settings)
    for one, other, exact in zip(found, on_cpu, expected, strict=True):
        assert one.dtype == other.dtype
        precision = np.finfo(one.dtype).eps
        for array in (one.get(), other):
            np.testing.assert_allclose(array, exact, rtol=8 * precision, atol=8 * precision)


def test_running_statistics_are_made_into_terms_too():
    vectors = vectors_of(6, np.float32)
    given = [vectors[f"running_{key}"] for key in ("mean", "variance")]
    given = [vectors["weight"], vectors["bias"], *given]
    found = cuda.norm_terms(*map(on_device, given), epsilon=1e-3)
    for one, other in zip(found, cpu.norm_terms(*given, epsilon=1e-3), strict=True):
        assert one.dtype == other.dtype == np.float64
        np.testing.assert_allclose(one.get(), other, rtol=1e-15)


@pytest.mark.parametrize("name", CALLS)
def test_vectors_that_do_not_fit(name):
    vectors = vectors_of(5, np.float32)
    names, settings = CALLS[name]
    for place, key in enumerate(names):
        for error, value in (
            (TypeError, vectors[key]),
            (TypeError, on_device(vectors[key].astype(np.int64))),
            (ValueError, on_device(vectors[key].reshape(1, 5))),
        ):
            given = [on_device(vectors[other]) for other in names]
            given[place] = value
            with pytest.raises(error, match=f"^{key} "):
                getattr(cuda, name)(*given, **settings)
