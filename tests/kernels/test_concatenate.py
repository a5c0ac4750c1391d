"""Channels side by side, and taken apart."""

import numpy as np
import pytest

from kfc_numba.kernels import cpu

DTYPES = (np.float32, np.float64)


def parts_of(shape, sizes, dtype):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(*shape, size)).astype(dtype) for size in sizes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [[3], [1, 1], [2, 17, 1], [33, 5]], ids=str)
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 5, 3)], ids=str)
def test_each_channel_goes_to_its_place_and_back(shape, sizes, dtype):
    parts = parts_of(shape, sizes, dtype)
    whole = cpu.concatenate(parts)
    assert whole.shape == (*shape, sum(sizes))
    assert whole.dtype == dtype
    channel = 0
    for part in parts:
        for c in range(part.shape[-1]):
            np.testing.assert_array_equal(whole[..., channel], part[..., c])
            channel += 1
    for part, again in zip(parts, cpu.split(whole, sizes), strict=True):
        np.testing.assert_array_equal(part, again)
    out = np.full_like(whole, np.nan)
    assert cpu.concatenate(parts, out=out) is out
    np.testing.assert_array_equal(out, whole)
    outs = [np.full_like(part, np.nan) for part in parts]
    for given, result, part in zip(outs, cpu.split(whole, sizes, out=outs), parts, strict=True):
        assert given is result
        np.testing.assert_array_equal(result, part)


def test_views_are_not_misread():
    x = np.random.default_rng(0).normal(size=(6, 4, 5))
    np.testing.assert_array_equal(
        cpu.concatenate([x[::2], x[1::2, :, ::-1]]), np.concatenate([x[::2], x[1::2, :, ::-1]], -1)
    )
    first, second = cpu.split(x.transpose(2, 1, 0), [2, 4])
    np.testing.assert_array_equal(np.concatenate([first, second], -1), x.transpose(2, 1, 0))


X = np.ones((2, 3))


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([], ValueError, "parts must have at least one"),
        ([X, X[:1]], ValueError, r"parts\[1\] has shape \(1, 3\)"),
        ([X, X[0]], ValueError, r"parts\[1\] has shape"),
        ([X, X.astype(np.float32)], TypeError, r"parts\[1\] has dtype"),
        ([X, X.tolist()], TypeError, r"parts\[1\] must be"),
    ],
)
def test_parts_that_do_not_fit(parts, error, message):
    with pytest.raises(error, match=message):
        cpu.concatenate(parts)
    with pytest.raises(ValueError, match=r"^out"):
        cpu.concatenate([X, X], out=np.ones((2, 3)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sizes": [1, 1]}, ValueError, r"sizes \(=\[1, 1\]\) must add up to the 3"),
        ({"sizes": [3, 0]}, ValueError, "sizes"),
        ({"sizes": [1.0, 2]}, TypeError, "sizes"),
        ({"x": X.astype(int)}, TypeError, "x has dtype"),
        ({"out": [X]}, ValueError, "out has 1 arrays, it must have 2"),
        ({"out": [X, X]}, ValueError, "out"),
    ],
)
def test_bad_splits(arguments, error, message):
    with pytest.raises(error, match=message):
        cpu.split(**{"x": X, "sizes": [1, 2], **arguments})
