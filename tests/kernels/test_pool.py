"""Pooling kernels against the loop references."""

import naive_layers
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfc_numba.kernels import cpu

DTYPES = (np.float32, np.float64)
NONE = ((0, 0), (0, 0))
# (shape, kernel, stride, padding)
CASES = [
    ((2, 7, 6, 3), (3, 3), (2, 2), NONE),
    ((1, 5, 5, 17), (2, 2), (2, 2), NONE),
    ((2, 6, 7, 2), (3, 2), (1, 3), ((1, 1), (1, 0))),
    ((1, 4, 9, 1), (2, 5), (3, 1), ((0, 1), (4, 2))),
    ((2, 1, 1, 4), (1, 1), (1, 1), NONE),
    ((2, 1, 1, 1), (3, 3), (1, 1), ((1, 1), (2, 2))),
    ((1, 8, 8, 2), (2, 2), (3, 3), NONE),
]


def whole_numbers(shape, seed=0):
    """Small whole numbers: many are equal, and their sums are exact in either type."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(float)


def check_max(shape, kernel, stride, padding, ceil_mode):
    window = (kernel, stride, padding)
    given = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    x = whole_numbers(shape)
    expected, cells = naive_layers.max_pool(x, *window, ceil_mode)
    matrix = naive_layers.max_pool_matrix(x, *window, ceil_mode)
    dy, dx = whole_numbers(expected.shape, 1), whole_numbers(shape, 2)
    for dtype in DTYPES:
        y, index = cpu.max_pool_forward(x.astype(dtype), kernel, **given)
        assert y.dtype == dtype
        assert index.dtype == np.uint8
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(index, cells)
        back = cpu.max_pool_backward(dy.astype(dtype), index, shape, kernel, **given)
        np.testing.assert_array_equal(back, (dy.ravel() @ matrix).reshape(shape))
        along = cpu.max_pool_tangent(dx.astype(dtype), index, kernel, **given)
        np.testing.assert_array_equal(along, (matrix @ dx.ravel()).reshape(y.shape))


def check_avg(shape, kernel, stride, padding, ceil_mode, count_include_pad):
    window = (kernel, stride, padding)
    given = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    given |= {"count_include_pad": count_include_pad}
    x = whole_numbers(shape)
    matrix = naive_layers.avg_pool_matrix(shape, *window, ceil_mode, count_include_pad)
    for dtype in DTYPES:
        y = cpu.avg_pool_forward(x.astype(dtype), kernel, **given)
        dy = whole_numbers(y.shape, 1)
        back = cpu.avg_pool_backward(dy.astype(dtype), shape, kernel, **given)
        # Sums of whole numbers are exact; a quotient is rounded once, a share in every term.
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(
            y, (matrix @ x.ravel()).reshape(y.shape), rtol=2 * eps, atol=2 * eps
        )
        pulled = (dy.ravel() @ matrix).reshape(shape)
        scale = (np.abs(dy).ravel() @ matrix).reshape(shape)
        terms = kernel[0] * kernel[1] + 2
        assert np.all(np.abs(back - pulled) <= terms * eps * scale)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CASES)
def test_max_pool(shape, kernel, stride, padding, ceil_mode):
    check_max(shape, kernel, stride, padding, ceil_mode)


@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CASES)
def test_avg_pool(shape, kernel, stride, padding, ceil_mode, count_include_pad):
    check_avg(shape, kernel, stride, padding, ceil_mode, count_include_pad)


@st.composite
def pools(draw):
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    sides = [(draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in kernel]
    height, width = (
        draw(st.integers(max(1, k - sum(s)), 6)) for k, s in zip(kernel, sides, strict=True)
    )
    stride = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = draw(st.integers(1, 2)), height, width, draw(st.integers(1, 3))
    return shape, kernel, stride, tuple(sides), draw(st.booleans())


@settings(max_examples=30, deadline=None)
@given(pools(), st.booleans())
def test_any_window(pool, count_include_pad):
    check_max(*pool)
    check_avg(*pool, count_include_pad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_of_equals_is_taken(dtype):
    x = np.full((1, 4, 4, 2), -1.0, dtype)
    _, index = cpu.max_pool_forward(x, 3, stride=1, padding=1)
    # At the upper left the first cell of the image is the window's middle.
    assert index[0, :, :, 0].tolist() == [[4, 3, 3, 3]] + [[1, 0, 0, 0]] * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_never_wins(dtype):
    x = np.full((1, 3, 3, 1), -np.inf, dtype)
    x[0, 1, 1, 0] = -5
    y, index = cpu.max_pool_forward(x, 2, padding=1)
    assert y[0, :, :, 0].tolist() == [[-np.inf, -np.inf], [-np.inf, -5]]
    # Minus infinity is taken from a cell of the image as well.
    assert index[0, :, :, 0].tolist() == [[3, 2], [1, 0]]


@pytest.mark.parametrize("place", [(0, 0), (1, 1), (2, 2), (0, 2)])
def test_nan_is_the_largest(place):
    x = np.full((1, 3, 3, 1), np.inf, np.float32)
    x[0, *place, 0] = np.nan
    y, index = cpu.max_pool_forward(x, 3)
    assert np.isnan(y).all()
    assert index.item() == 3 * place[0] + place[1]


def test_windows_of_more_than_256_cells():
    x = whole_numbers((1, 17, 18, 1)).astype(np.float32)
    x[0, 16, 16, 0] = 10
    y, index = cpu.max_pool_forward(x, 17, stride=1)
    assert index.dtype == np.int32
    assert y.ravel().tolist() == [10, 10]
    assert index.ravel().tolist() == [288, 287]
    dx = cpu.max_pool_backward(np.ones_like(y), index, x.shape, 17, stride=1)
    assert dx[0, 16, 16, 0] == dx.sum() == 2


def test_results_go_where_they_should():
    x = whole_numbers((2, 6, 6, 3)).astype(np.float32)
    y, index = np.full((2, 3, 3, 3), np.nan, np.float32), np.full((2, 3, 3, 3), 99, np.uint8)
    results = cpu.max_pool_forward(x, 2, out=y, index=index)
    assert results[0] is y
    assert results[1] is index
    for kernel, arguments in [
        (cpu.max_pool_backward, (y, index, x.shape, 2)),
        (cpu.max_pool_tangent, (x, index, 2)),
        (cpu.avg_pool_forward, (x, 2)),
        (cpu.avg_pool_backward, (y, x.shape, 2)),
    ]:
        fresh = kernel(*arguments)
        out = np.full_like(fresh, np.nan)
        assert kernel(*arguments, out=out) is out
        np.testing.assert_array_equal(out, fresh)


def test_threads_do_not_change_a_bit():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 13, 13, 7)).astype(np.float32)
    window = {"stride": 2, "padding": 1}

    def results():
        y, index = cpu.max_pool_forward(x, 3, **window)
        return (
            cpu.max_pool_backward(y, index, x.shape, 3, **window),
            cpu.avg_pool_forward(x, 3, **window),
            cpu.avg_pool_backward(y, x.shape, 3, **window),
        )

    threads = numba.get_num_threads()
    many = results()
    try:
        numba.set_num_threads(1)
        one = results()
    finally:
        numba.set_num_threads(threads)
    for a, b in zip(many, one, strict=True):
        np.testing.assert_array_equal(a, b)


def test_padding_as_large_as_the_window():
    x = np.zeros((1, 4, 4, 1), np.float32)
    for kernel in (cpu.max_pool_forward, cpu.avg_pool_forward):
        with pytest.raises(ValueError, match="padding"):
            kernel(x, 2, padding=((2, 0), (0, 0)))


def test_arguments_as_users_write_them():
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3))
    for kernel in (cpu.max_pool_forward, cpu.avg_pool_forward):

        def value(*arguments, kernel=kernel, **options):
            result = kernel(x, *arguments, **options)
            return result[0] if isinstance(result, tuple) else result

        np.testing.assert_array_equal(value(2), value((2, 2), stride=(2, 2), padding=NONE))
        np.testing.assert_array_equal(value(2, padding="valid"), value(2))
        np.testing.assert_array_equal(
            value(3, stride=2, padding=(1, 0)), value(3, stride=2, padding=((1, 1), (0, 0)))
        )
        same = value(3, stride=2, padding="same")
        np.testing.assert_array_equal(same, value(3, stride=2, padding=((1, 1), (0, 1))))


def test_an_index_of_a_wrong_kind():
    x = np.zeros((1, 4, 4, 1), np.float32)
    y, index = cpu.max_pool_forward(x, 2)
    for wrong in (index.astype(np.int32), index[:, :1]):
        with pytest.raises(ValueError, match="index"):
            cpu.max_pool_forward(x, 2, index=wrong)
        with pytest.raises(ValueError, match="index"):
            cpu.max_pool_backward(y, wrong, x.shape, 2)
    with pytest.raises(ValueError, match="index"):
        cpu.max_pool_tangent(x, index.astype(np.int32), 2)
    with pytest.raises(TypeError, match="index must be a NumPy array, got list"):
        cpu.max_pool_tangent(x, index.tolist(), 2)


X, DY = np.zeros((1, 5, 4, 1)), np.zeros((1, 2, 2, 1))
BAD = [
    ({"kernel": 0}, ValueError, "kernel"),
    ({"kernel": 2.0}, TypeError, "kernel"),
    ({"kernel": 6}, ValueError, "kernel"),
    ({"stride": 0}, ValueError, "stride"),
    ({"stride": True}, TypeError, "stride"),
    ({"padding": "reflect"}, ValueError, "padding"),
    ({"padding": 2}, ValueError, "padding"),
    ({"ceil_mode": 1}, TypeError, "ceil_mode"),
]


@pytest.mark.parametrize(("changed", "error", "name"), BAD, ids=repr)
def test_bad_geometry(changed, error, name):
    index = np.zeros(DY.shape, np.uint8)
    for kernel, *arrays in [
        (cpu.max_pool_forward, X),
        (cpu.avg_pool_forward, X),
        (cpu.max_pool_backward, DY, index, X.shape),
        (cpu.max_pool_tangent, X, index),
        (cpu.avg_pool_backward, DY, X.shape),
    ]:
        with pytest.raises(error, match=rf"{name} \(="):
            kernel(*arrays, **{"kernel": 2, **changed})


def test_arrays_that_do_not_fit():
    index = np.zeros(DY.shape, np.uint8)
    # With partial windows kept there would be three rows.
    for kernel, *arrays in [(cpu.max_pool_backward, index), (cpu.avg_pool_backward,)]:
        with pytest.raises(ValueError, match=r"dy has shape \(1, 2, 2, 1\).*\(1, 3, 2, 1\)"):
            kernel(DY, *arrays, X.shape, 2, ceil_mode=True)
        with pytest.raises(ValueError, match=r"input_shape \(=\(1, 5, 4\)\) must have 4"):
            kernel(DY, *arrays, (1, 5, 4), 2)
        with pytest.raises(TypeError, match="dy has dtype int64"):
            kernel(DY.astype(int), *arrays, X.shape, 2)
    with pytest.raises(ValueError, match="x has shape"):
        cpu.max_pool_forward(X[0], 2)
    with pytest.raises(TypeError, match=r"count_include_pad \(='yes'\)"):
        cpu.avg_pool_forward(X, 2, count_include_pad="yes")
