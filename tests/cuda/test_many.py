"""What is done to many arrays at once, as NumPy does it to each."""

import machine_code
import numpy as np
import pytest
from host_array import HostArray, on_device, untouched

from kfc_numba.kernels.cuda import many

RNG = np.random.default_rng(0)
#: More than one launch takes, of one block and of several.
SHAPES = [(3,), (1,), (5, 7), (300,), (2, 2, 3, 5), (5000,), *[(k,) for k in range(2, 16)]]


def arrays(dtype=np.float32, shapes=SHAPES):
    return [RNG.normal(size=shape).astype(dtype) for shape in shapes]


def moved(values):
    return [on_device(value) for value in values]


@pytest.mark.parametrize("count", [1, many.SLOTS, many.SLOTS + 1, len(SHAPES)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_combined(count, dtype):
    xs, ys = arrays(dtype, SHAPES[:count]), arrays(dtype, SHAPES[:count])
    factors = RNG.normal(size=count).tolist()
    found = many.combined(factors, moved(xs), -1.7, moved(ys))
    assert len(found) == count
    for one, a, x, y in zip(found, factors, xs, ys, strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one.get(), dtype(a) * x + dtype(-1.7) * y)


def test_dtypes_that_alternate():
    xs = [x.astype(kind) for x, kind in zip(arrays(), [np.float32, np.float64] * 10, strict=True)]
    ys = arrays()
    found = many.combined([2.0] * len(xs), moved(xs), 1.0, moved(ys))
    for one, x, y in zip(found, xs, ys, strict=True):
        assert one.dtype == x.dtype
        np.testing.assert_array_equal(one.get(), 2 * x + y)
    total = sum(float(x.reshape(-1).astype(float) @ x.reshape(-1)) for x in xs)
    assert many.inners(moved(xs), moved(xs)).sum() == pytest.approx(total, rel=1e-14)
    xs[7][...] = np.nan
    assert many.finite(moved(xs))[0] == [i != 7 for i in range(len(xs))]


def test_arrays_that_are_not_contiguous():
    x = RNG.normal(size=(4, 6)).astype(np.float32)
    (found,) = many.combined([1.0], [on_device(x).T], 1.0, [on_device(x).T])
    np.testing.assert_array_equal(found.get(), 2 * x.T)


@pytest.mark.parametrize("count", [1, many.SLOTS + 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaled(count, dtype):
    xs, factors = arrays(dtype, SHAPES[:count]), RNG.normal(size=count).tolist()
    found = many.scaled(moved(xs), factors)
    for one, x, factor in zip(found, xs, factors, strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one.get(), dtype(factor) * x)


def test_averaged():
    averages, values = arrays(np.float64), [abs(value) for value in arrays()]
    roots = [i % 3 == 1 for i in range(len(values))]
    found = many.averaged(moved(averages), moved(values), 7.3, roots)
    for one, average, value, root in zip(found, averages, values, roots, strict=True):
        new = np.sqrt(value, dtype=np.float64) if root else value
        np.testing.assert_array_equal(one.get(), average + (new - average) / 7.3)


def test_copy():
    sources, targets = arrays(), moved(arrays())
    many.copy(moved(sources), targets)
    for source, target in zip(sources, targets, strict=True):
        np.testing.assert_array_equal(target.get(), source)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 5, 19])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_finite(bad, which, dtype):
    xs = arrays(dtype)
    xs[2][...] = np.finfo(dtype).max  # whose sum is not
    xs[which].reshape(-1)[-1] = bad
    waits = HostArray.waits
    assert many.finite(moved(xs))[0] == [i != which for i in range(len(xs))]
    assert HostArray.waits == waits + 1


def test_finite_and_other_numbers():
    xs, others = arrays(), RNG.normal(size=(4, 2))
    xs[3][0] = np.nan
    waits = HostArray.waits
    good, found = many.finite(moved(xs), besides=on_device(others))
    assert HostArray.waits == waits + 1
    assert good == [i != 3 for i in range(len(xs))]
    np.testing.assert_array_equal(found, others)


def test_inners():
    xs, ys = arrays(), arrays()
    expected = [
        float(x.reshape(-1).astype(float) @ y.reshape(-1)) for x, y in zip(xs, ys, strict=True)
    ]
    waits = HostArray.waits
    assert many.inners(moved(xs), moved(ys)) == pytest.approx(expected, rel=1e-13)
    assert HostArray.waits == waits + 1
    ys[3][0] = np.nan
    assert np.flatnonzero(np.isnan(many.inners(moved(xs), moved(ys)))).tolist() == [3]


def test_shapes_that_do_not_match():
    with pytest.raises(ValueError, match="shapes"):
        many.combined(1.0, moved(arrays()), 1.0, moved(arrays())[::-1])


def test_what_the_compiler_makes_of_them():
    xs = [untouched((1000,)) for _ in range(3)]
    wide = [untouched((1000,), np.float64) for _ in range(3)]
    calls = {
        "combine": lambda: many.combined([1.0] * 3, xs, 2.0, xs),
        "copy": lambda: many.copy(xs, xs),
        "finite": lambda: many._sums(many._zero_if_finite, xs, xs, np.dtype(np.float32)),
        "average": lambda: many.averaged(wide, xs, 2.0, [True] * 3),
    }
    for name, call in calls.items():
        for kernel, kinds, *_ in machine_code.recorded(call):
            code = machine_code.report(kernel, kinds, (9, 0))
            assert code.whole.local == code.stack == 0, name
            assert code.whole.float64 == 0 or name == "average"
