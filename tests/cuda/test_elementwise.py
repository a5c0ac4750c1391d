"""Kernels that treat every number alike, against float64 and the kernels of the CPU."""

import inspect

import numpy as np
import pytest
from host_array import HostArray, on_device

from kfc_numba.kernels import cpu, cuda

DTYPES = (np.float32, np.float64)
# Of less than the lanes of a thread, of several blocks, with tails of every length.
SHAPES = [(1,), (2,), (7, 3), (5, 4, 3, 17), (257,), (3, 1025)]

#: Each kernel with a result of the shape of its arguments, and its formula.
KERNELS = {
    "relu_forward": (1, {}, lambda x: np.maximum(x, 0)),
    "relu_backward": (2, {}, lambda dy, y: np.where(y <= 0, 0, dy)),
    "leaky_relu_forward": (1, {"negative_slope": 0.3}, lambda x: np.where(x <= 0, 0.3 * x, x)),
    "leaky_relu_backward": (
        *(2, {"negative_slope": 0.3}),
        lambda dy, x: np.where(x <= 0, 0.3 * dy, dy),
    ),
    "tanh_forward": (1, {}, np.tanh),
    "tanh_backward": (2, {}, lambda dy, y: dy * (1 - y * y)),
    "sigmoid_forward": (1, {}, lambda x: 1 / (1 + np.exp(-x))),
    "sigmoid_backward": (2, {}, lambda dy, y: dy * y * (1 - y)),
    "add": (2, {}, lambda a, b: a + b),
    "scale": (1, {"factor": -0.3}, lambda x: -0.3 * x),
    "scaled_add": (2, {"factor": -0.3}, lambda a, b: a - 0.3 * b),
    "apply_mask": (2, {"scale": 1.25}, lambda x, mask: x * mask * 1.25),
}
every_kernel = pytest.mark.parametrize("name", KERNELS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def drawn(name, shape, dtype):
    """Arguments, whose first number is NaN where a mask does not hide it."""
    count = KERNELS[name][0]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(dtype) for _ in range(count)]
    if name == "apply_mask":
        arrays[1] = (arrays[1] > 0).astype(np.uint8)
    arrays[0].flat[-1] = np.nan
    return arrays


@every_kernel
@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(name, shape, dtype):
    _, settings, formula = KERNELS[name]
    arrays = drawn(name, shape, dtype)
    result = getattr(cuda, name)(*map(on_device, arrays), **settings).get()
    assert result.dtype == dtype
    # The CPU's functions round otherwise, and cards contract a product and a sum.
    tolerance = {"rtol": 16 * np.finfo(dtype).eps, "atol": 16 * np.finfo(dtype).eps}
    exact = formula(*(array.astype(np.float64) for array in arrays))
    np.testing.assert_allclose(result, exact, **tolerance)
    np.testing.assert_allclose(result, getattr(cpu, name)(*arrays, **settings), **tolerance)


@every_dtype
def test_rectifiers_are_exact(dtype):
    x = np.array([np.nan, -np.inf, -1.5, -0.0, 0.0, 2.5, np.inf] * 3, dtype)
    dy = np.random.default_rng(0).normal(size=x.shape).astype(dtype)
    for name, arrays, settings in (
        ("relu_forward", (x,), {}),
        ("relu_backward", (dy, x), {}),
        ("leaky_relu_forward", (x,), {"negative_slope": 0.25}),
        ("leaky_relu_backward", (dy, x), {"negative_slope": 0.25}),
    ):
        result = getattr(cuda, name)(*map(on_device, arrays), **settings).get()
        expected = getattr(cpu, name)(*arrays, **settings)
        np.testing.assert_array_equal(result.view(np.uint8), expected.view(np.uint8))


@every_dtype
def test_sigmoid_far_from_zero(dtype):
    x = np.array([-np.inf, -1e4, -80, 0, 40, 1e4, np.inf, np.nan], dtype)
    y = cuda.sigmoid_forward(on_device(x)).get()
    assert y[0] == 0
    assert y[3:-1].tolist() == [0.5, 1, 1, 1]
    assert np.isnan(y[-1])
    np.testing.assert_allclose(y[2], np.exp(-80.0), rtol=1e-5)


def part(array, start):
    """The same numbers in memory that begins elsewhere than a wide load may."""
    whole = np.empty(array.size + start, array.dtype)
    found = HostArray(whole[start:].reshape(array.shape))
    found._values[...] = array
    return found


@every_kernel
@every_dtype
def test_arrays_that_begin_anywhere(name, dtype):
    _, settings, _ = KERNELS[name]
    arrays = drawn(name, (3, 7), dtype)
    kernel = getattr(cuda, name)
    expected = kernel(*map(on_device, arrays), **settings).get()
    for starts in ((1, 0, 0), (0, 3, 0), (0, 0, 2 if dtype == np.float32 else 1)):
        parts = [part(array, start) for array, start in zip(arrays, starts, strict=False)]
        out = part(np.zeros_like(arrays[0]), starts[2])
        assert kernel(*parts, **settings, out=out) is out
        np.testing.assert_array_equal(out.get(), expected)


@every_kernel
def test_results_go_where_they_should(name):
    _, settings, _ = KERNELS[name]
    arrays = [on_device(array) for array in drawn(name, (3, 7), np.float32)]
    kernel = getattr(cuda, name)
    fresh = kernel(*arrays, **settings)
    if name == "sigmoid_forward":
        with pytest.raises(ValueError, match="out must not share memory with x"):
            kernel(*arrays, out=arrays[0])
        return
    assert kernel(*arrays, **settings, out=arrays[0]) is arrays[0]
    np.testing.assert_array_equal(arrays[0].get(), fresh.get())


def test_arrays_that_share_a_part_of_their_memory():
    whole = np.zeros(20, np.float32)
    x = HostArray(whole[5:15])
    for start in (0, 4, 6, 10):
        with pytest.raises(ValueError, match="out must not share memory with x"):
            cuda.sigmoid_forward(x, out=HostArray(whole[start : start + 10]))
    x, out = HostArray(whole[:10]), HostArray(whole[10:])
    assert (cuda.sigmoid_forward(x, out=out).get() == 0.5).all()
    assert (cuda.sigmoid_forward(out, out=x).get() != 0.5).all()


@every_kernel
def test_arrays_that_do_not_fit(name):
    _, settings, _ = KERNELS[name]
    kernel = getattr(cuda, name)
    fitting = drawn(name, (3, 4), np.float32)
    names = list(inspect.signature(kernel).parameters)
    for place, array in enumerate(fitting):
        wrong = [
            (TypeError, array),  # in the memory of the host
            (TypeError, on_device(array.astype(np.float16))),
            (ValueError, on_device(np.zeros((0, 4), array.dtype))),
        ]
        if place:
            wrong.append((ValueError, on_device(np.zeros((4, 3), array.dtype))))
        for error, value in wrong:
            changed = [on_device(array) for array in fitting]
            changed[place] = value
            with pytest.raises(error, match=f"^{names[place]} "):
                kernel(*changed, **settings)
    with pytest.raises(TypeError, match="out must be a device array of dtype float32"):
        kernel(*map(on_device, fitting), **settings, out=on_device(np.zeros((3, 4))))


def test_numbers_that_do_not_fit():
    x = on_device(np.zeros((3, 4), np.float32))
    for kernel, arrays, name in ((cuda.scale, (x,), "factor"), (cuda.scaled_add, (x, x), "factor")):
        with pytest.raises(TypeError, match=f"{name} must be a number, got str"):
            kernel(*arrays, "1")
    with pytest.raises(ValueError, match=r"negative_slope \(=-0.1\) must be a number in \[0, inf"):
        cuda.leaky_relu_forward(x, negative_slope=-0.1)


SIZES = (1, 5, 65, 1000, 3 * 4096 + 77)  # of less than a block, and of several


@every_dtype
@pytest.mark.parametrize("size", SIZES)
def test_dot_is_computed_in_float64(size, dtype):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=size).astype(dtype) for _ in range(2))
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
    magnitude = float(np.abs(a).astype(float) @ np.abs(b).astype(float))
    result = cuda.dot(on_device(a), on_device(b))
    assert isinstance(result, float)
    assert abs(result - float(exact)) <= 64 * 2**-53 * magnitude
    # The order of the sum does not depend on where arrays begin.
    assert cuda.dot(part(a, 1), part(b, 1)) == result
    if dtype == np.float32:
        huge = on_device(a * 0 + dtype(1e30))
        assert cuda.dot(huge, huge) == pytest.approx(1e60 * size)


@every_dtype
@pytest.mark.parametrize("size", SIZES)
def test_all_finite_finds_a_number_at_any_place(size, dtype):
    x = np.random.default_rng(0).normal(size=size).astype(dtype)
    x[0] = np.finfo(dtype).max
    x[-1] = np.finfo(dtype).tiny / 2
    assert cuda.all_finite(on_device(x)) is True
    for place in {0, size // 2, size - 1}:
        for bad in (np.nan, np.inf, -np.inf):
            before, x[place] = x[place], bad
            assert cuda.all_finite(on_device(x)) is False
            x[place] = before
