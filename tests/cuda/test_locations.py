"""Sums and means over locations, against float64 and the kernels of the CPU."""

import numpy as np
import pytest
from host_array import on_device

from kfc_numba.kernels import cpu, cuda

# Tails of the channels of a block and of lanes, many locations, none.
SHAPES = [(1, 1), (3, 5), (2, 7, 5, 3), (2, 3, 2, 40), (1, 300, 3), (3, 4, 1, 8), (70, 2, 1)]
every_case = pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, dtype) for shape in SHAPES for dtype in (np.float32, np.float64)],
    ids=str,
)


@every_case
def test_sums_and_means(shape, dtype):
    x = (np.random.default_rng(0).normal(size=shape) + 100).astype(dtype)
    exact = x.astype(float).reshape(len(x), -1, shape[-1])
    tolerance = {"rtol": 2**-24 if dtype == np.float32 else 64 * 2**-53}
    for name, expected in (
        ("location_sum", exact.sum(axis=1)),
        ("location_mean", exact.mean(axis=1)),
    ):
        result = getattr(cuda, name)(on_device(x))
        assert result.dtype == dtype
        np.testing.assert_allclose(result.get(), expected, **tolerance)
        np.testing.assert_allclose(result.get(), getattr(cpu, name)(x), rtol=2 * tolerance["rtol"])


@every_case
def test_the_backward_pass_spreads_the_mean(shape, dtype):
    dy = np.random.default_rng(0).normal(size=(shape[0], shape[-1])).astype(dtype)
    result = cuda.location_mean_backward(on_device(dy), shape).get()
    np.testing.assert_array_equal(result, cpu.location_mean_backward(dy, shape))


def test_results_go_where_they_should():
    x = on_device(np.random.default_rng(0).normal(size=(2, 3, 4)))
    out = on_device(np.zeros((2, 4)))
    for kernel in (cuda.location_sum, cuda.location_mean):
        assert kernel(x, out=out) is out
        np.testing.assert_array_equal(out.get(), kernel(x).get())
    spread = on_device(np.zeros((2, 3, 4)))
    assert cuda.location_mean_backward(out, (2, 3, 4), out=spread) is spread


def test_bad_arguments():
    x = on_device(np.zeros((2, 3, 4), np.float32))
    with pytest.raises(ValueError, match=r"x has shape \(4,\), it must have at least 2"):
        cuda.location_sum(on_device(np.zeros(4)))
    with pytest.raises(TypeError, match="x must be a device array"):
        cuda.location_mean(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"dy has shape \(2, 3, 4\), it must have 2 dimensions"):
        cuda.location_mean_backward(x, (2, 3, 4))
    with pytest.raises(ValueError, match="must be the first and the last of input_shape"):
        cuda.location_mean_backward(on_device(np.zeros((2, 3))), (2, 3, 4))
    with pytest.raises(ValueError, match="out"):
        cuda.location_mean(x, out=on_device(np.zeros((2, 3), np.float32)))
