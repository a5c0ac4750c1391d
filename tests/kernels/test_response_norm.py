"""Response normalisation against the loop references."""

import naive_layers
import numba
import numpy as np
import pytest

from kfc_numba.kernels import cpu

DTYPES = (np.float32, np.float64)
K = 1.5


def normal(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def across(x, v, *numbers):
    """Values, and products of the Jacobian from both sides, over windows of channels."""
    rows, vectors = x.reshape(-1, x.shape[-1]), v.reshape(-1, x.shape[-1]).astype(float)
    matrices = naive_layers.response_norm_matrices(rows, *numbers, K)
    results = (
        naive_layers.response_norm(rows, *numbers, K),
        np.einsum("rc,rcj->rj", vectors, matrices),
        np.einsum("rcj,rj->rc", matrices, vectors),
    )
    return [result.reshape(x.shape) for result in results]


def within(x, v, *numbers):
    """The same over squares of pixels."""
    examples, height, width, channels = x.shape
    vectors = v.astype(float).transpose(0, 3, 1, 2).reshape(examples, channels, -1)
    matrices = naive_layers.response_norm_within_matrices(x, *numbers, K)
    products = (
        np.einsum("ncs,ncst->nct", vectors, matrices),
        np.einsum("ncst,nct->ncs", matrices, vectors),
    )
    images = [p.reshape(examples, channels, height, width).transpose(0, 2, 3, 1) for p in products]
    return naive_layers.response_norm_within(x, *numbers, K), *images


def check(reference, x, v, size, beta, region):
    numbers = {"size": size, "alpha": 0.8, "beta": beta, "region": region}
    y, d = cpu.response_norm_forward(x, **numbers, k=K)
    results = (
        y,
        cpu.response_norm_backward(v, x, d, **numbers),
        cpu.response_norm_tangent(v, x, d, **numbers),
    )
    tolerance = {"rtol": 50 * np.finfo(x.dtype).eps, "atol": 50 * np.finfo(x.dtype).eps}
    for result, expected in zip(results, reference(x, v, size, 0.8, beta), strict=True):
        assert result.dtype == x.dtype
        np.testing.assert_allclose(result, expected, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.3])
@pytest.mark.parametrize(("channels", "size"), [(7, 5), (7, 4), (1, 3), (3, 9), (6, 1), (20, 2)])
def test_windows_across_channels(channels, size, beta, dtype):
    x, v = normal((2, 3, 2, channels), dtype), normal((2, 3, 2, channels), dtype, 1)
    check(across, x, v, size, beta, "across_channels")


# Of a 37 pixels' height there are three bands, whose borders windows cross.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "size", "beta"),
    [
        ((2, 5, 6, 3), 3, 0.75),
        ((1, 5, 6, 2), 4, 0.75),
        ((1, 6, 3, 17), 2, 0.5),
        ((2, 4, 3, 1), 5, 1.3),
        ((1, 1, 1, 3), 3, 0.75),
        ((1, 3, 2, 2), 20, 0.75),
        ((3, 4, 5, 2), 1, 0.75),
        ((1, 37, 2, 1), 5, 0.75),
        ((2, 17, 1, 2), 4, 0.5),
    ],
    ids=str,
)
def test_windows_within_a_channel(shape, size, beta, dtype):
    check(within, normal(shape, dtype), normal(shape, dtype, 1), size, beta, "within_channel")


def test_ones_count_the_pixels_of_a_window():
    _, d = cpu.response_norm_forward(
        np.ones((1, 3, 4, 2)), size=3, alpha=9.0, beta=0.75, k=1.0, region="within_channel"
    )
    assert d[0, :, :, 1].tolist() == [[5, 7, 7, 5], [7, 10, 10, 7], [5, 7, 7, 5]]


@pytest.mark.parametrize("region", ["across_channels", "within_channel"])
def test_threads_do_not_change_a_bit(region):
    x, v = normal((3, 33, 31, 7), np.float32), normal((3, 33, 31, 7), np.float32, 1)
    numbers = {"size": 3, "alpha": 0.8, "beta": 0.75, "region": region}

    def results():
        y, d = cpu.response_norm_forward(x, **numbers, k=1.0)
        back = cpu.response_norm_backward(v, x, d, **numbers)
        return y, d, back, cpu.response_norm_tangent(v, x, d, **numbers)

    threads = numba.get_num_threads()
    many = results()
    try:
        numba.set_num_threads(1)
        one = results()
    finally:
        numba.set_num_threads(threads)
    for a, b in zip(many, one, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("region", ["across_channels", "within_channel"])
def test_results_go_where_they_should(region):
    x, v = normal((2, 4, 3, 5), np.float32), normal((2, 4, 3, 5), np.float32, 1)
    numbers = {"size": 3, "alpha": 0.1, "beta": 0.75, "region": region}
    out, d = np.full_like(x, np.nan), np.full_like(x, np.nan)
    results = cpu.response_norm_forward(x, **numbers, k=1.0, out=out, denominator=d)
    assert results[0] is out
    assert results[1] is d
    for kernel in (cpu.response_norm_backward, cpu.response_norm_tangent):
        fresh = kernel(v, x, d, **numbers)
        out = np.full_like(fresh, np.nan)
        assert kernel(v, x, d, **numbers, out=out) is out
        np.testing.assert_array_equal(out, fresh)


X = np.ones((2, 3, 4, 5))
NUMBERS = {"size": 3, "alpha": 0.1, "beta": 0.75}
BAD = [
    ("x", X.astype(int), TypeError),
    ("x", X[:, :2], ValueError),
    ("x", X.astype(np.float32), TypeError),
    ("denominator", X[:1], ValueError),
    ("out", np.ones((2, 3)), ValueError),
    ("size", 0, ValueError),
    ("size", 3.0, TypeError),
    ("alpha", -1, ValueError),
    ("beta", -0.5, ValueError),
    ("region", "maps", ValueError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD)
@pytest.mark.parametrize("kernel", [cpu.response_norm_backward, cpu.response_norm_tangent])
def test_bad_arguments(kernel, name, value, error):
    arguments = {"x": X, "denominator": X, **NUMBERS, name: value}
    with pytest.raises(error, match=f"^{name}"):
        kernel(X, **arguments)


def test_bad_arguments_of_the_forward_pass():
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\), windows of pixels take"):
        cpu.response_norm_forward(X[0, :2, :3, 0], **NUMBERS, k=1.0, region="within_channel")
    with pytest.raises(ValueError, match=r"k \(=0\)"):
        cpu.response_norm_forward(X, **NUMBERS, k=0)
