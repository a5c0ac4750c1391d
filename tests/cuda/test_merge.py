"""Channels put side by side and taken apart, against NumPy."""

import numpy as np
import pytest
from host_array import HostArray, on_device

from kfc_numba.kernels import cuda


def parts_of(shape, sizes, dtype):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(*shape, size)).astype(dtype) for size in sizes]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [[3], [1, 1], [2, 17, 1], [4, 8], [300, 5], [2, 4, 6]], ids=str)
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 5, 3)], ids=str)
def test_each_channel_goes_to_its_place_and_back(shape, sizes, dtype):
    parts = parts_of(shape, sizes, dtype)
    whole = cuda.concatenate(list(map(on_device, parts)))
    np.testing.assert_array_equal(whole.get(), np.concatenate(parts, axis=-1))
    for part, found in zip(parts, cuda.split(whole, sizes), strict=True):
        np.testing.assert_array_equal(found.get(), part)


def test_arrays_that_begin_anywhere():
    parts = parts_of((5,), [4, 8], np.float32)
    moved = []
    for part in parts:
        values = np.empty(part.size + 1, np.float32)
        values[1:] = part.ravel()
        moved.append(HostArray(values[1:].reshape(part.shape)))
    np.testing.assert_array_equal(cuda.concatenate(moved).get(), np.concatenate(parts, axis=-1))


def test_results_go_where_they_should():
    parts = list(map(on_device, parts_of((2, 3), [2, 5], np.float32)))
    out = on_device(np.zeros((2, 3, 7), np.float32))
    assert cuda.concatenate(parts, out=out) is out
    results = [on_device(np.zeros_like(part.get())) for part in parts]
    found = cuda.split(out, [2, 5], out=results)
    for part, result, given in zip(parts, results, found, strict=True):
        assert given is result
        np.testing.assert_array_equal(result.get(), part.get())


def test_bad_arguments():
    x = on_device(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="parts must have at least one array"):
        cuda.concatenate([])
    with pytest.raises(TypeError, match=r"parts\[1\] has dtype float64, it must be float32"):
        cuda.concatenate([x, on_device(np.zeros((2, 3)))])
    with pytest.raises(ValueError, match=r"parts\[1\] has shape \(3, 3\)"):
        cuda.concatenate([x, on_device(np.zeros((3, 3), np.float32))])
    with pytest.raises(ValueError, match="must add up to the 3 channels of x"):
        cuda.split(x, [1, 1])
    with pytest.raises(ValueError, match="out has 1 arrays, it must have 2"):
        cuda.split(x, [1, 2], out=[x])
    with pytest.raises(TypeError, match="x must be a device array"):
        cuda.split(np.zeros((2, 3)), [1, 2])
