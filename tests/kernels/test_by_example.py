"""Sums over the numbers of each example, and over examples."""

import numpy as np
import pytest

from kfc_numba.kernels import cpu


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 3, 2, 5), (4,)])
def test_sums(shape, dtype):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(dtype) for _ in range(2))
    wide = a.astype(float), b.astype(float)
    expected = (wide[0] * wide[1]).reshape(len(a), -1).sum(axis=1)
    found = cpu.example_dots(a, b)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(cpu.square(a), a * a)
    squares = cpu.square_sum(a)
    assert squares.dtype == dtype
    assert squares.shape == shape[1:]
    np.testing.assert_allclose(squares, np.sum(wide[0] ** 2, axis=0), rtol=2 * np.finfo(dtype).eps)


def test_products_that_overflow_in_float32():
    a = np.full((2, 3), 1e30, np.float32)
    np.testing.assert_allclose(cpu.example_dots(a, a), np.full(2, 3e60), rtol=1e-6)


def test_shapes_that_differ():
    with pytest.raises(ValueError, match="b has shape"):
        cpu.example_dots(np.ones((2, 3)), np.ones((3, 2)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int16])
@pytest.mark.parametrize("shape", [(5,), (6, 3), (9, 4, 7, 2)])
def test_take_examples(shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 100, shape).astype(dtype)
    chosen = rng.integers(0, len(x), 4)
    found = cpu.take_examples(x, chosen)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, x[chosen])
    out = np.zeros_like(found)
    assert cpu.take_examples(x, chosen, out=out) is out
    np.testing.assert_array_equal(out, found)


def test_examples_that_do_not_exist():
    x = np.zeros((3, 2), np.float32)
    for wrong in ([-1], [0, 3]):
        with pytest.raises(ValueError, match="chosen must be from 0 to 2"):
            cpu.take_examples(x, np.array(wrong))
    with pytest.raises(TypeError, match="chosen has dtype"):
        cpu.take_examples(x, np.array([0.0]))
