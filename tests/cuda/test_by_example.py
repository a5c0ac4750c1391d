"""Sums by example and over examples, against float64 and the kernels of the CPU."""

import numpy as np
import pytest
from host_array import on_device

from kfc_numba.kernels import cpu, cuda

DTYPES = (np.float32, np.float64)
# One number an example, tails of lanes and blocks, more rows than a block has, several chunks.
SHAPES = [(1, 1), (7, 5), (33, 3, 2, 5), (4,), (3, 1030), (200, 3), (2, 2 * 4096 + 5)]
every_case = pytest.mark.parametrize(
    ("shape", "dtype"), [(shape, dtype) for shape in SHAPES for dtype in DTYPES], ids=str
)


def drawn(shape, dtype):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for _ in range(2)]


@every_case
def test_dots(shape, dtype):
    a, b = drawn(shape, dtype)
    result = cuda.example_dots(on_device(a), on_device(b)).get()
    assert result.dtype == np.float64
    terms = (a.astype(float) * b.astype(float)).reshape(len(a), -1)
    bound = 64 * 2**-53 * np.abs(terms).sum(axis=1)
    assert (np.abs(result - terms.astype(np.longdouble).sum(axis=1)) <= bound).all()
    assert (np.abs(result - cpu.example_dots(a, b)) <= 2 * bound + 1e-13).all()


@every_case
def test_squares(shape, dtype):
    x, _ = drawn(shape, dtype)
    np.testing.assert_array_equal(cuda.square(on_device(x)).get(), x * x)
    result = cuda.square_sum(on_device(x))
    assert result.dtype == dtype
    assert result.shape == shape[1:]
    exact = (x.astype(float) ** 2).sum(axis=0)
    # Rounded once in float32; in float64 the order of the sum differs.
    np.testing.assert_allclose(
        result.get(), exact, rtol=2**-24 if dtype == np.float32 else 64 * 2**-53
    )


def test_products_that_overflow_in_float32():
    x = on_device(np.full((2, 3), 1e30, np.float32))
    np.testing.assert_allclose(cuda.example_dots(x, x).get(), 3e60, rtol=1e-6)


def test_the_order_of_a_sum_does_not_depend_on_the_other_examples():
    a, b = drawn((9, 77), np.float32)
    whole = cuda.example_dots(on_device(a), on_device(b)).get()
    for n in range(9):
        alone = cuda.example_dots(on_device(a[n : n + 1]), on_device(b[n : n + 1])).get()
        assert alone[0] == whole[n]


def test_results_go_where_they_should():
    x, _ = drawn((3, 5), np.float32)
    for kernel, shape in ((cuda.square, (3, 5)), (cuda.square_sum, (5,))):
        out = on_device(np.full(shape, np.nan, np.float32))
        assert kernel(on_device(x), out=out) is out
        np.testing.assert_array_equal(out.get(), kernel(on_device(x)).get())


def test_arrays_that_do_not_fit():
    x, _ = drawn((3, 5), np.float32)
    with pytest.raises(TypeError, match="a must be a device array, got ndarray"):
        cuda.example_dots(x, on_device(x))
    with pytest.raises(ValueError, match=r"b has shape \(5, 3\), it must be that of a, \(3, 5\)"):
        cuda.example_dots(on_device(x), on_device(x.T))
    for kernel in (cuda.square, cuda.square_sum):
        with pytest.raises(TypeError, match="x has dtype int64"):
            kernel(on_device(x.astype(np.int64)))
        with pytest.raises(ValueError, match="out"):
            kernel(on_device(x), out=on_device(x.T))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(5,), (6, 3), (9, 4, 7, 4), (3, 16)])
def test_take_examples(shape, dtype):
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 100, shape).astype(dtype)
    chosen = rng.integers(0, len(batch), 4)
    found = cuda.take_examples(on_device(batch), chosen)
    np.testing.assert_array_equal(found.get(), batch[chosen])
    assert found.dtype == dtype
    out = on_device(np.zeros_like(batch[chosen]))
    assert cuda.take_examples(on_device(batch), on_device(chosen), out=out) is out
    np.testing.assert_array_equal(out.get(), batch[chosen])
    with pytest.raises(ValueError, match="chosen must be from 0 to"):
        cuda.take_examples(on_device(batch), np.array([len(batch)]))
