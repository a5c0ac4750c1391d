"""Pooling, against the loop references and the kernels of the CPU."""

import naive_layers
import numpy as np
import pytest
from host_array import HostArray, on_device

from kfc_numba.kernels import cpu, cuda

DTYPES = (np.float32, np.float64)
NONE = ((0, 0), (0, 0))
# (shape, kernel, stride, padding, ceil_mode): channels that fill lanes and that do not, windows
# that overlap, that touch, and that leave cells out, that hang over; one cell.
CASES = [
    ((2, 7, 6, 3), (3, 3), (2, 2), NONE, True),
    ((2, 7, 6, 8), (3, 3), (2, 2), ((1, 1), (1, 1)), False),
    ((1, 5, 5, 17), (2, 2), (2, 2), NONE, False),
    ((2, 6, 7, 2), (3, 2), (1, 3), ((1, 1), (1, 0)), False),
    ((1, 4, 9, 1), (2, 5), (3, 1), ((0, 1), (4, 2)), True),
    ((2, 1, 1, 4), (1, 1), (1, 1), NONE, False),
    ((2, 1, 1, 1), (3, 3), (1, 1), ((1, 1), (2, 2)), True),
    ((1, 8, 8, 4), (2, 2), (3, 3), NONE, True),
]
every_case = pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "ceil_mode"), CASES, ids=str
)


def whole_numbers(shape, seed=0):
    """Small whole numbers: many are equal, and their sums are exact in either type."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(float)


@every_case
def test_max_pool(shape, kernel, stride, padding, ceil_mode):
    window = kernel, stride, padding, ceil_mode
    given = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    x = whole_numbers(shape)
    expected, cells = naive_layers.max_pool(x, *window)
    matrix = naive_layers.max_pool_matrix(x, *window)
    dy, dx = whole_numbers(expected.shape, 1), whole_numbers(shape, 2)
    for dtype in DTYPES:
        y, index = cuda.max_pool_forward(on_device(x.astype(dtype)), kernel, **given)
        assert y.dtype == dtype
        assert index.dtype == np.uint8
        np.testing.assert_array_equal(y.get(), expected)
        np.testing.assert_array_equal(index.get(), cells)
        back = cuda.max_pool_backward(on_device(dy.astype(dtype)), index, shape, kernel, **given)
        np.testing.assert_array_equal(back.get(), (dy.ravel() @ matrix).reshape(shape))
        along = cuda.max_pool_tangent(on_device(dx.astype(dtype)), index, kernel, **given)
        np.testing.assert_array_equal(along.get(), (matrix @ dx.ravel()).reshape(y.shape))


@every_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_max_pool_of_real_numbers_has_the_bits_of_the_cpu(
    shape, kernel, stride, padding, ceil_mode, dtype
):
    given = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    y, index = cpu.max_pool_forward(x, kernel, **given)
    dy = rng.normal(size=y.shape).astype(dtype)
    back = cuda.max_pool_backward(on_device(dy), on_device(index), shape, kernel, **given)
    np.testing.assert_array_equal(
        back.get(), cpu.max_pool_backward(dy, index, shape, kernel, **given)
    )


@every_case
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_avg_pool(shape, kernel, stride, padding, ceil_mode, count_include_pad):
    given = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    given |= {"count_include_pad": count_include_pad}
    matrix = naive_layers.avg_pool_matrix(
        shape, kernel, stride, padding, ceil_mode, count_include_pad
    )
    x = whole_numbers(shape)
    for dtype in DTYPES:
        y = cuda.avg_pool_forward(on_device(x.astype(dtype)), kernel, **given)
        # Sums of whole numbers are exact; a quotient is rounded once, a share in every term.
        eps = np.finfo(dtype).eps
        for exact in ((matrix @ x.ravel()).reshape(y.shape),):
            np.testing.assert_allclose(y.get(), exact, rtol=2 * eps, atol=2 * eps)
        np.testing.assert_array_equal(
            y.get(), cpu.avg_pool_forward(x.astype(dtype), kernel, **given)
        )
        dy = whole_numbers(y.shape, 1)
        back = cuda.avg_pool_backward(on_device(dy.astype(dtype)), shape, kernel, **given).get()
        scale = (np.abs(dy).ravel() @ matrix).reshape(shape)
        terms = kernel[0] * kernel[1] + 2
        for exact in (
            (dy.ravel() @ matrix).reshape(shape),
            cpu.avg_pool_backward(dy.astype(dtype), shape, kernel, **given),
        ):
            assert (np.abs(back - exact) <= terms * eps * scale).all()


def test_more_channels_than_a_block_has_threads():
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 301)).astype(np.float32)
    y, index = cuda.max_pool_forward(on_device(x), 2, stride=1)
    expected = cpu.max_pool_forward(x, 2, stride=1)
    np.testing.assert_array_equal(y.get(), expected[0])
    np.testing.assert_array_equal(index.get(), expected[1])
    for name in ("avg_pool_backward",):
        result = getattr(cuda, name)(y, x.shape, 2, stride=1).get()
        np.testing.assert_allclose(result, getattr(cpu, name)(expected[0], x.shape, 2, stride=1))


def test_the_first_of_equals_is_taken():
    x = on_device(np.full((1, 4, 4, 4), -1.0, np.float32))
    _, index = cuda.max_pool_forward(x, 3, stride=1, padding=1)
    # At the upper left the first cell of the image is the window's middle.
    assert index.get()[0, :, :, 0].tolist() == [[4, 3, 3, 3]] + [[1, 0, 0, 0]] * 3


def test_padding_never_wins():
    x = np.full((1, 3, 3, 1), -np.inf, np.float32)
    x[0, 1, 1, 0] = -5
    y, index = (array.get() for array in cuda.max_pool_forward(on_device(x), 2, padding=1))
    assert y[0, :, :, 0].tolist() == [[-np.inf, -np.inf], [-np.inf, -5]]
    # Minus infinity is taken from a cell of the image as well.
    assert index[0, :, :, 0].tolist() == [[3, 2], [1, 0]]


@pytest.mark.parametrize("places", [[(0, 0)], [(1, 1)], [(2, 2)], [(0, 2), (1, 0)]])
def test_the_last_nan_is_the_largest(places):
    x = np.full((1, 3, 3, 1), np.inf, np.float32)
    for place in places:
        x[0, *place, 0] = np.nan
    y, index = (array.get() for array in cuda.max_pool_forward(on_device(x), 3))
    assert np.isnan(y).all()
    assert index.item() == cpu.max_pool_forward(x, 3)[1].item()


def test_windows_of_more_than_256_cells():
    x = whole_numbers((1, 17, 18, 1)).astype(np.float32)
    x[0, 16, 16, 0] = 10
    y, index = cuda.max_pool_forward(on_device(x), 17, stride=1)
    assert index.dtype == np.int32
    assert y.get().ravel().tolist() == [10, 10]
    assert index.get().ravel().tolist() == [288, 287]
    dx = cuda.max_pool_backward(y, index, x.shape, 17, stride=1).get()
    assert dx[0, 16, 16, 0] == dx.sum() == 20
    dy = cuda.max_pool_tangent(on_device(x), index, 17, stride=1).get()
    assert dy.ravel().tolist() == [10, 10]


def test_results_go_where_they_should():
    x = on_device(whole_numbers((2, 6, 6, 3)).astype(np.float32))
    y = on_device(np.full((2, 3, 3, 3), np.nan, np.float32))
    index = on_device(np.full((2, 3, 3, 3), 99, np.uint8))
    results = cuda.max_pool_forward(x, 2, out=y, index=index)
    assert results[0] is y
    assert results[1] is index
    for kernel, arguments in [
        (cuda.max_pool_backward, (y, index, x.shape, 2)),
        (cuda.max_pool_tangent, (x, index, 2)),
        (cuda.avg_pool_forward, (x, 2)),
        (cuda.avg_pool_backward, (y, x.shape, 2)),
    ]:
        fresh = kernel(*arguments)
        out = on_device(np.full(fresh.shape, np.nan, np.float32))
        assert kernel(*arguments, out=out) is out
        np.testing.assert_array_equal(out.get(), fresh.get())


def test_arrays_that_begin_anywhere():
    values = np.random.default_rng(0).normal(size=4 * 4 * 4 + 1).astype(np.float32)
    x = HostArray(values[1:].reshape(1, 4, 4, 4))
    expected = cpu.max_pool_forward(x.get(), 2)
    y, index = cuda.max_pool_forward(x, 2)
    np.testing.assert_array_equal(y.get(), expected[0])
    np.testing.assert_array_equal(index.get(), expected[1])


def test_an_index_of_a_wrong_kind():
    x = on_device(np.zeros((1, 4, 4, 1), np.float32))
    y, index = cuda.max_pool_forward(x, 2)
    for wrong in (on_device(index.get().astype(np.int32)), on_device(index.get()[:, :1])):
        with pytest.raises(ValueError, match="index"):
            cuda.max_pool_forward(x, 2, index=wrong)
        with pytest.raises(ValueError, match="index"):
            cuda.max_pool_backward(y, wrong, x.shape, 2)
        with pytest.raises(ValueError, match="index"):
            cuda.max_pool_tangent(x, wrong, 2)
    with pytest.raises(TypeError, match="index must be a device array, got ndarray"):
        cuda.max_pool_tangent(x, index.get(), 2)


X, DY = np.zeros((1, 5, 4, 1)), np.zeros((1, 2, 2, 1))
BAD = [
    ({"kernel": 0}, ValueError, "kernel"),
    ({"kernel": 6}, ValueError, "kernel"),
    ({"stride": True}, TypeError, "stride"),
    ({"padding": 2}, ValueError, "padding"),
    ({"ceil_mode": 1}, TypeError, "ceil_mode"),
]


@pytest.mark.parametrize(("changed", "error", "name"), BAD, ids=repr)
def test_bad_geometry(changed, error, name):
    x, dy, index = map(on_device, (X, DY, np.zeros(DY.shape, np.uint8)))
    for kernel, *arguments in [
        (cuda.max_pool_forward, x),
        (cuda.avg_pool_forward, x),
        (cuda.max_pool_backward, dy, index, X.shape),
        (cuda.max_pool_tangent, x, index),
        (cuda.avg_pool_backward, dy, X.shape),
    ]:
        with pytest.raises(error, match=rf"{name} \(="):
            kernel(*arguments, **{"kernel": 2, **changed})


def test_arrays_that_do_not_fit():
    x, dy, index = map(on_device, (X, DY, np.zeros(DY.shape, np.uint8)))
    with pytest.raises(ValueError, match="dy has shape"):
        cuda.max_pool_backward(dy, index, X.shape, 2, ceil_mode=True)
    with pytest.raises(ValueError, match="dy has shape"):
        cuda.avg_pool_backward(dy, X.shape, 2, ceil_mode=True)
    with pytest.raises(ValueError, match=r"input_shape .* must have 4 entries"):
        cuda.avg_pool_backward(dy, (5, 4, 1), 2)
    with pytest.raises(TypeError, match="x must be a device array"):
        cuda.max_pool_forward(X, 2)
    with pytest.raises(TypeError, match="count_include_pad"):
        cuda.avg_pool_forward(x, 2, count_include_pad=1)
    with pytest.raises(TypeError, match="out must be a device array of dtype float64"):
        cuda.avg_pool_forward(x, 2, out=DY)
