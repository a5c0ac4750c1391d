"""Pairs of arrays of parameters, one by one: as NumPy has them, to the last bit."""

import numpy as np
import pytest

from kfc_numba.kernels import cpu

SHAPES = [(), (0,), (7,), (300, 70), (40_000,)]  # the last two for threads


def made(shape, dtype, seed=0):
    return np.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_combined(shape, dtype):
    x, y = made(shape, dtype), made(shape, dtype, 1)
    found, other = cpu.many.combined([0.3, 0.8], [x, y], -1.7, [y, x])
    np.testing.assert_array_equal(found, 0.3 * x + -1.7 * y, strict=True)
    np.testing.assert_array_equal(other, 0.8 * y + -1.7 * x, strict=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_averaged(shape, dtype):
    average, value = made(shape, np.float64), abs(made(shape, dtype, 1))
    found, other = cpu.many.averaged([average, average], [value, value], 3.7, [False, True])
    np.testing.assert_array_equal(found, average + (value - average) / 3.7, strict=True)
    root = np.sqrt(value, dtype=np.float64)
    np.testing.assert_array_equal(other, average + (root - average) / 3.7, strict=True)


def test_arrays_that_are_no_plain_blocks_of_memory():
    x, y = made((400, 90), np.float32), made((90, 400), np.float32, 1).T
    (found,) = cpu.many.combined([2.0], [x], 1.0, [y])
    np.testing.assert_array_equal(found, 2 * x + y)
    (found,) = cpu.many.combined([2.0], [x], 1.0, [y[:1]])
    np.testing.assert_array_equal(found, 2 * x + y[:1])
    (found,) = cpu.many.combined([2.0], [x], 1.0, [x.astype(np.float64)])
    np.testing.assert_array_equal(found, 2 * x + x.astype(np.float64), strict=True)


def test_what_is_not_finite_stays_so():
    x = made((40_000,), np.float32)
    x[[3, 39_999]] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        (found,) = cpu.many.combined([1.0], [x], -1.0, [x])
        (average,) = cpu.many.averaged([x.astype(np.float64)], [x], 2.0, [False])
    for result in (found, average):
        assert np.flatnonzero(~np.isfinite(result)).tolist() == [3, 39_999]
