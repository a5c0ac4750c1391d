"""Losses of categorical distributions, against formulas in float64 and the kernels of the CPU."""

import numpy as np
import pytest
from host_array import on_device

from kfc_numba.kernels import cpu, cuda

DTYPES = (np.float32, np.float64)
# Fewer classes than threads, as many, more with tails; one row, and more than a block has.
SHAPES = [(1, 2), (7, 10), (3, 2, 5, 4), (5, 33), (9, 64), (2, 1003), (130, 3), (3, 1)]

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def drawn(shape, dtype):
    """Logits, classes, uniform numbers and directions."""
    rng = np.random.default_rng(0)
    outputs = (3 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.integers(0, shape[-1], shape[:-1])
    return outputs, labels, rng.random(shape[:-1]), rng.standard_normal(shape).astype(dtype)


def probabilities(outputs):
    exact = outputs.astype(float)
    terms = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return terms / terms.sum(axis=-1, keepdims=True)


def close(found, *expected, dtype, units=16):
    assert found.dtype == dtype
    eps = np.finfo(dtype).eps
    for values in expected:
        np.testing.assert_allclose(found.get(), values, rtol=units * eps, atol=units * eps)


@every_dtype
@every_shape
def test_softmax(shape, dtype):
    outputs, *_ = drawn(shape, dtype)
    x = on_device(outputs)
    close(cuda.softmax(x), probabilities(outputs), cpu.softmax(outputs), dtype=dtype)
    assert cuda.softmax(x, out=x) is x
    close(x, probabilities(outputs), dtype=dtype)


@every_dtype
@every_shape
def test_softmax_loss(shape, dtype):
    outputs, labels, *_ = drawn(shape, dtype)
    x = on_device(outputs)
    values, derivative = cuda.softmax_loss(x, on_device(labels))
    p = probabilities(outputs)
    own = np.take_along_axis(p, labels[..., None], axis=-1)
    expected = cpu.softmax_loss(outputs, labels)
    unit = np.arange(shape[-1]) == labels[..., None]
    close(derivative, p - unit, expected[1], dtype=dtype)
    # Where the probability is nearly one, its rounding is what is left of the logarithm.
    tolerance = 16 * np.finfo(dtype).eps
    for sums in (-np.log(own).reshape(shape[0], -1).sum(axis=1), expected[0]):
        assert values.shape == sums.shape
        np.testing.assert_allclose(values.get(), sums, rtol=tolerance, atol=tolerance)
    assert values.dtype == np.float64
    again, moved = cuda.softmax_loss(x, on_device(labels), out=x)
    assert moved is x
    np.testing.assert_array_equal(again.get(), values.get())
    np.testing.assert_array_equal(moved.get(), derivative.get())


@pytest.mark.parametrize("bad", [-1, 4, 2**33])
def test_a_target_that_is_no_class(bad):
    outputs, labels, *_ = drawn((5, 4), np.float32)
    expected = cpu.softmax_loss(outputs, labels)
    labels[2] = bad
    values, derivative = (
        array.get() for array in cuda.softmax_loss(on_device(outputs), on_device(labels))
    )
    assert np.isnan(values[2])
    assert np.isnan(derivative[2]).all()
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(values[others], expected[0][others], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=f"targets must be from 0 to 3, got .*{bad}"):
        cuda.softmax_error(on_device(outputs), on_device(labels))


@every_dtype
@every_shape
def test_softmax_fisher_product(shape, dtype):
    outputs, _, _, v = drawn(shape, dtype)
    p = probabilities(outputs)
    expected = p * v - p * (p * v).sum(axis=-1, keepdims=True)
    x = on_device(outputs)
    found = cuda.softmax_fisher_product(x, on_device(v))
    close(found, expected, cpu.softmax_fisher_product(outputs, v), dtype=dtype)
    assert cuda.softmax_fisher_product(x, on_device(v), out=x) is x
    np.testing.assert_array_equal(x.get(), found.get())


@every_dtype
def test_softmax_fisher_columns(dtype):
    p = probabilities(drawn((4, 2, 3), dtype)[0]).astype(dtype)
    for index in range(6):
        found = cuda.softmax_fisher_column(on_device(p), index=index)
        close(found, cpu.softmax_fisher_column(p, index=index), dtype=dtype, units=2)
    wide = probabilities(drawn((2, 300), dtype)[0]).astype(dtype)
    found = cuda.softmax_fisher_column(on_device(wide), index=299)
    close(found, cpu.softmax_fisher_column(wide, index=299), dtype=dtype, units=2)


@every_dtype
@every_shape
def test_softmax_samples_by_the_cumulative_distribution(shape, dtype):
    outputs, _, uniform, _ = drawn(shape, dtype)
    found = cuda.softmax_sample(on_device(outputs), on_device(uniform))
    assert found.dtype == np.int64
    assert found.shape == shape[:-1]
    cumulative = probabilities(outputs).cumsum(axis=-1)
    # A number within rounding of a boundary may fall on either side.
    sure = np.abs(cumulative - uniform[..., None]).min(axis=-1) > 1e-5
    expected = (cumulative[..., :-1] <= uniform[..., None]).sum(axis=-1)
    np.testing.assert_array_equal(found.get()[sure], expected[sure])
    np.testing.assert_array_equal(found.get()[sure], cpu.softmax_sample(outputs, uniform)[sure])
    lowest = cuda.softmax_sample(on_device(outputs), on_device(np.zeros(shape[:-1])))
    assert (lowest.get() == 0).all()
    highest = cuda.softmax_sample(on_device(outputs), on_device(np.full(shape[:-1], 1 - 2**-53)))
    assert (highest.get() <= shape[-1] - 1).all()


@every_dtype
@every_shape
def test_softmax_error(shape, dtype):
    outputs, labels, *_ = drawn(shape, dtype)
    outputs = np.round(outputs)  # some are equal
    labels[..., 0] = outputs[..., 0, :].argmax(axis=-1) if labels.ndim > 1 else outputs[0].argmax()
    error = cuda.softmax_error(on_device(outputs), on_device(labels))
    assert isinstance(error, float)
    assert error == cpu.softmax_error(outputs, labels)


def test_softmax_error_is_by_the_first_of_the_largest():
    outputs = np.array([[0.0, 1, 1], [2, 1, 0], [0, np.nan, 3], [0, 1, 3], [np.nan, 9, np.nan]])
    targets = np.array([[1, 0, 1, 2, 0], [2, 0, 2, 2, 2]])
    x = on_device(outputs)
    assert cuda.softmax_error(x, on_device(targets[0])) == 0
    assert cuda.softmax_error(x, on_device(targets[1])) == 0.6
    # Threads of a row meet the later of two classes first.
    for value in (np.nan, 9):
        row = np.zeros((1, 70))
        row[0, [64, 33, 32, 1]] = value
        assert cuda.softmax_error(on_device(row), on_device(np.array([1]))) == 0
    infinite = on_device(np.full((2, 40), -np.inf))
    assert cuda.softmax_error(infinite, on_device(np.array([0, 1]))) == 0.5


@every_dtype
@pytest.mark.parametrize("classes", [3, 70])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_output_that_is_not_finite_stays_in_its_row(dtype, classes, bad):
    outputs, labels, uniform, v = drawn((5, classes), dtype)
    good = [0, 1, 3, 4]
    arrays = {"targets": labels, "uniform": uniform, "v": v}
    for name, other in (
        ("softmax", None),
        ("softmax_loss", "targets"),
        ("softmax_fisher_product", "v"),
        ("softmax_sample", "uniform"),
    ):
        others = [] if other is None else [arrays[other]]
        results = []
        for place in (None, -1):
            changed = outputs.copy()
            if place is not None:
                changed[2, place] = bad
            found = getattr(cuda, name)(*map(on_device, [changed, *others]))
            results.append([r.get() for r in (found if isinstance(found, tuple) else (found,))])
        for clean, dirty in zip(*results, strict=True):
            np.testing.assert_array_equal(clean[good], dirty[good])
            assert (dirty[2] == 0 if name == "softmax_sample" else np.isnan(dirty[2])).all()


def test_arguments_that_do_not_fit():
    outputs, labels, uniform, v = drawn((5, 4), np.float32)
    x, targets = on_device(outputs), on_device(labels)
    with pytest.raises(TypeError, match="x must be a device array"):
        cuda.softmax(outputs)
    with pytest.raises(ValueError, match="x must have classes as its last axis"):
        cuda.softmax(on_device(np.zeros(3)))
    for kernel in (cuda.softmax_loss, cuda.softmax_error):
        with pytest.raises(TypeError, match="targets has dtype int32, it must be int64"):
            kernel(x, on_device(labels.astype(np.int32)))
        with pytest.raises(ValueError, match=r"targets must have shape \(5,\), got \(4,\)"):
            kernel(x, on_device(labels[:4]))
        with pytest.raises(TypeError, match="targets must be a device array"):
            kernel(x, labels)
    with pytest.raises(TypeError, match="uniform has dtype float32"):
        cuda.softmax_sample(x, on_device(uniform.astype(np.float32)))
    direction = on_device(v)
    with pytest.raises(ValueError, match="out must not share memory with v"):
        cuda.softmax_fisher_product(x, direction, out=direction)
    with pytest.raises(ValueError, match=r"index \(=4\) must be below 4"):
        cuda.softmax_fisher_column(x, index=4)
    with pytest.raises(ValueError, match="out"):
        cuda.softmax_loss(x, targets, out=on_device(outputs.T))
