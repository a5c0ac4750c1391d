"""Response normalisation, against the loop references and the kernels of the CPU."""

import naive_layers
import numpy as np
import pytest
from host_array import on_device

from kfc_numba.kernels import cpu, cuda

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
    found = []
    for kernels, arrays in ((cuda, (on_device(x), on_device(v))), (cpu, (x, v))):
        image, direction = arrays
        y, d = kernels.response_norm_forward(image, **numbers, k=K)
        found.append(
            [
                y,
                kernels.response_norm_backward(direction, image, d, **numbers),
                kernels.response_norm_tangent(direction, image, d, **numbers),
                d,
            ]
        )
    tolerance = {"rtol": 50 * np.finfo(x.dtype).eps, "atol": 50 * np.finfo(x.dtype).eps}
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == x.dtype
        np.testing.assert_allclose(ours.get(), theirs, **tolerance)
    for ours, exact in zip(found[0], reference(x, v, size, 0.8, beta), strict=False):
        np.testing.assert_allclose(ours.get(), exact, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.3])
@pytest.mark.parametrize(("channels", "size"), [(7, 5), (7, 4), (1, 3), (3, 9), (6, 1), (20, 2)])
def test_windows_across_channels(channels, size, beta, dtype):
    x, v = normal((2, 3, 2, channels), dtype), normal((2, 3, 2, channels), dtype, 1)
    check(across, x, v, size, beta, "across_channels")


def test_more_channels_than_a_block_has_threads():
    x, v = normal((2, 300), np.float32), normal((2, 300), np.float32, 1)
    check(across, x, v, 5, 0.75, "across_channels")


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
    ],
    ids=str,
)
def test_windows_within_a_channel(shape, size, beta, dtype):
    check(within, normal(shape, dtype), normal(shape, dtype, 1), size, beta, "within_channel")


def test_ones_count_the_pixels_of_a_window():
    x = on_device(np.ones((1, 3, 4, 2)))
    _, d = cuda.response_norm_forward(
        x, size=3, alpha=9.0, beta=0.75, k=1.0, region="within_channel"
    )
    assert d.get()[0, :, :, 1].tolist() == [[5, 7, 7, 5], [7, 10, 10, 7], [5, 7, 7, 5]]


@pytest.mark.parametrize("region", ["across_channels", "within_channel"])
def test_results_go_where_they_should(region):
    x, v = (on_device(normal((2, 3, 3, 5), np.float32, seed)) for seed in range(2))
    numbers = {"size": 3, "alpha": 0.8, "beta": 0.75, "region": region}
    y, d = (on_device(np.full(x.shape, np.nan, np.float32)) for _ in range(2))
    results = cuda.response_norm_forward(x, **numbers, k=1.0, out=y, denominator=d)
    assert results[0] is y
    assert results[1] is d
    for kernel in (cuda.response_norm_backward, cuda.response_norm_tangent):
        fresh = kernel(v, x, d, **numbers)
        out = on_device(np.full(x.shape, np.nan, np.float32))
        assert kernel(v, x, d, **numbers, out=out) is out
        np.testing.assert_array_equal(out.get(), fresh.get())


BAD = [
    ("size", 0, ValueError),
    ("size", 2.0, TypeError),
    ("alpha", -1.0, ValueError),
    ("beta", np.nan, ValueError),
    ("region", "across", ValueError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD)
def test_bad_arguments(name, value, error):
    x = on_device(np.ones((2, 3)))
    numbers = {"size": 3, "alpha": 1.0, "beta": 0.75, name: value}
    for kernel in (cuda.response_norm_backward, cuda.response_norm_tangent):
        with pytest.raises(error, match=rf"{name} \(="):
            kernel(x, x, x, **numbers)
    with pytest.raises(error, match=rf"{name} \(="):
        cuda.response_norm_forward(x, **numbers, k=1.0)


def test_arrays_that_do_not_fit():
    x, numbers = on_device(np.ones((2, 3))), {"size": 3, "alpha": 1.0, "beta": 0.75}
    with pytest.raises(ValueError, match=r"k \(=0\)"):
        cuda.response_norm_forward(x, **numbers, k=0)
    with pytest.raises(TypeError, match="x must be a device array"):
        cuda.response_norm_forward(np.ones((2, 3)), **numbers, k=1.0)
    with pytest.raises(ValueError, match="windows of pixels take"):
        cuda.response_norm_forward(x, **numbers, k=1.0, region="within_channel")
    with pytest.raises(ValueError, match="denominator has shape"):
        cuda.response_norm_tangent(x, x, on_device(np.ones((3, 2))), **numbers)
    with pytest.raises(ValueError, match="out"):
        cuda.response_norm_backward(x, x, x, **numbers, out=on_device(np.ones((3, 2))))
