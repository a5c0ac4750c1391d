"""Patches in full, and their means, against the loop references and the kernels of the CPU."""

import naive
import numpy as np
import pytest
from host_array import on_device

from kfc_numba.kernels import cpu, cuda

# (shape, kernel, options)
CASES = [
    ((2, 5, 4, 3), 1, {}),
    ((2, 6, 7, 2), 3, {"padding": "same"}),
    ((1, 7, 5, 4), (3, 2), {"stride": (2, 1), "padding": 1, "groups": 2}),
    ((2, 8, 9, 1), (2, 3), {"stride": 3, "padding": ((0, 1), (2, 0))}),
    ((1, 9, 8, 6), 3, {"dilation": (2, 1), "padding": (2, 0), "groups": 3}),
    ((3, 4, 4, 17), (4, 3), {"stride": (1, 2), "padding": "same"}),
    ((1, 2, 2, 2), 5, {"padding": 4, "stride": 2, "dilation": (1, 2)}),
    ((1, 2, 3, 300), 2, {"groups": 3}),
]


def expected_rows(x, kernel, groups=1, **options):
    """(groups, examples, locations, D + 1)."""
    size = x.shape[3] // groups
    parts = [x[..., g * size : (g + 1) * size] for g in range(groups)]
    rows = [naive.patches(part, kernel, **options) for part in parts]
    return np.stack([r.reshape(len(x), -1, r.shape[1]) for r in rows])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shape", "kernel", "options"), CASES, ids=str)
def test_patches_and_their_means(shape, kernel, options, bias, dtype):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    expected = expected_rows(x, kernel, **options)
    expected = expected if bias else expected[..., :-1]
    if options.get("groups", 1) == 1:
        expected = expected[0]
    given = on_device(x)
    result = cuda.extract_patches(given, kernel, **options, bias=bias)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result.get(), expected)
    means = cuda.patch_means(given, kernel, **options, bias=bias)
    assert means.dtype == dtype
    tolerance = {"rtol": 0, "atol": 2 * np.finfo(dtype).eps * np.abs(expected).max()}
    np.testing.assert_allclose(means.get(), expected.mean(axis=-2), **tolerance)
    # Added up in the order of the CPU.
    np.testing.assert_array_equal(means.get(), cpu.patch_means(x, kernel, **options, bias=bias))
    for function, fresh in [(cuda.extract_patches, result), (cuda.patch_means, means)]:
        out = on_device(np.full(fresh.shape, np.nan, dtype))
        assert function(given, kernel, **options, bias=bias, out=out) is out
        np.testing.assert_array_equal(out.get(), fresh.get())


X = np.zeros((1, 4, 4, 3))
BAD = [
    ({"x": X}, TypeError, "x must be a device array"),
    ({"x": on_device(X[0])}, ValueError, "x has shape"),
    ({"x": on_device(X.astype(int))}, TypeError, "x has dtype"),
    ({"kernel": 5}, ValueError, "kernel"),
    ({"kernel": 2.0}, TypeError, "kernel"),
    ({"stride": 0}, ValueError, "stride"),
    ({"padding": -1}, ValueError, "padding"),
    ({"dilation": 4}, ValueError, "kernel"),
    ({"groups": 2}, ValueError, r"groups \(=2\) must divide the channels \(=3\)"),
    ({"groups": 1.0}, TypeError, "groups"),
    ({"bias": 1}, TypeError, "bias"),
    ({"out": on_device(np.zeros((1, 9, 11)))}, ValueError, "out"),
]


@pytest.mark.parametrize("function", [cuda.extract_patches, cuda.patch_means])
@pytest.mark.parametrize(("changed", "error", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_arguments(function, changed, error, message):
    with pytest.raises(error, match=message):
        function(**{"x": on_device(X), "kernel": 2, **changed})
