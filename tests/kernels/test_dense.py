"""Matrix products against scalar products, in float32 and float64."""

import naive
import numpy as np
import pytest

from kfc_numba.kernels.cpu import dense, gram

DTYPES = (np.float32, np.float64)
SIZES = (1, 2, 3, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 65)


def check(rows, inner, columns, *, ones=False):
    """All four forms of one product in both dtypes."""
    rng = np.random.default_rng(0)
    a, b = (
        np.ones(size) if ones else rng.normal(size=size).astype(np.float32).astype(float)
        for size in ((rows, inner), (inner, columns))
    )
    expected, magnitudes = naive.matmul(a, b), naive.matmul(np.abs(a), np.abs(b))
    for dtype in DTYPES:
        for transpose_a in (False, True):
            for transpose_b in (False, True):
                left = np.ascontiguousarray(a.T if transpose_a else a, dtype)
                right = np.ascontiguousarray(b.T if transpose_b else b, dtype)
                actual = dense.matmul(left, right, transpose_a=transpose_a, transpose_b=transpose_b)
                assert actual.dtype == dtype
                if ones:  # whole numbers: every partial sum is exact
                    np.testing.assert_array_equal(actual, expected)
                else:
                    naive.assert_sums(actual, expected, magnitudes)


@pytest.mark.parametrize("size", SIZES)
def test_tails(size):
    check(size, 5, 7)
    check(4, size, 18)
    check(3, 6, size)


@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 17, 65), (9, 70, 2), (64, 64, 64)], ids=str)
def test_shapes(shape):
    check(*shape)
    check(*shape, ones=True)


@pytest.mark.parametrize("shape", [(3, 3000, 4), (500, 3, 2), (2, 3, 500)], ids=str)
def test_long_axes(shape):
    check(*shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (9, 33), (40, 64), (1300, 35), (70, 300)], ids=str)
def test_product_with_itself(shape, dtype):
    """Half of it computed: the bits of the whole product, and its symmetry."""
    rows = np.random.default_rng(1).normal(size=shape).astype(dtype)
    found = gram.gram(rows)
    np.testing.assert_array_equal(found, dense.matmul(rows, rows, transpose_a=True))
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 20, 35), (7, 1300, 33), (40, 3, 64)], ids=str)
def test_bias_and_accumulation(shape, dtype):
    rows, inner, columns = shape
    rng = np.random.default_rng(4)
    a, b, bias, before = (
        rng.normal(size=size).astype(dtype)
        for size in ((rows, inner), (inner, columns), (columns,), (rows, columns))
    )
    expected, magnitudes = naive.matmul(a, b), naive.matmul(np.abs(a), np.abs(b))
    for transpose_a in (False, True):
        left = np.ascontiguousarray(a.T) if transpose_a else a
        biased = dense.matmul(left, b, bias, transpose_a=transpose_a)
        naive.assert_sums(biased, expected + bias, magnitudes + np.abs(bias))
        out = before.copy()
        options = {"transpose_a": transpose_a, "transpose_b": True, "accumulate": True}
        assert dense.matmul(left, np.ascontiguousarray(b.T), **options, out=out) is out
        naive.assert_sums(out, expected + before, magnitudes + np.abs(before))
    zeros = np.zeros((rows, columns), dtype)
    dense.matmul(a, b, accumulate=True, out=zeros)
    np.testing.assert_array_equal(zeros, dense.matmul(a, b))


@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_into_out_and_nowhere_else(dtype):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(9, 20)).astype(dtype), rng.normal(size=(20, 35)).astype(dtype)
    copies = a.copy(), b.copy()
    outer = np.full((11, 35), np.nan, dtype)
    outer[0] = outer[-1] = 7
    out = outer[1:-1]
    assert dense.matmul(a, b, out=out) is out
    np.testing.assert_array_equal(out, dense.matmul(a, b))
    assert (outer[0] == 7).all()
    assert (outer[-1] == 7).all()
    np.testing.assert_array_equal(a, copies[0])
    np.testing.assert_array_equal(b, copies[1])


def test_views_with_strides_are_not_misread():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(12, 10))[::2, ::-1], rng.normal(size=(7, 20)).T[::2]
    expected, magnitudes = naive.matmul(a, b), naive.matmul(np.abs(a), np.abs(b))
    naive.assert_sums(dense.matmul(a, b), expected, magnitudes)
    naive.assert_sums(dense.matmul(a.T, b, transpose_a=True), expected, magnitudes)
    naive.assert_sums(dense.matmul(a, b.T, transpose_b=True), expected, magnitudes)


def test_non_finite_values_stay_in_their_row_and_column():
    a, b = np.ones((9, 6), np.float32), np.ones((6, 20), np.float32)
    a[3, 2], b[5, 17] = np.nan, np.inf
    finite = np.isfinite(dense.matmul(a, b))
    expected = np.ones((9, 20), bool)
    expected[3] = expected[:, 17] = False
    np.testing.assert_array_equal(finite, expected)


def test_row_does_not_depend_on_the_others():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(40, 300)).astype(np.float32)
    b = rng.normal(size=(300, 21)).astype(np.float32)
    whole = dense.matmul(a, b)
    for count in (1, 13):
        np.testing.assert_array_equal(dense.matmul(a[:count], b), whole[:count])


A, B = np.ones((3, 4)), np.ones((4, 5))
BAD = [
    ("a", A[0]),
    ("a", A[None]),
    ("a", A.astype(int)),
    ("a", A.astype(np.float16)),
    ("b", B[0]),
    ("b", B[:3]),
    ("b", B.astype(np.float32)),
    ("out", np.ones((3, 4))),
    ("out", np.ones((3, 5), np.float32)),
    ("out", np.ones((3, 10))[:, ::2]),
    ("a", A[:0]),
    ("b", B[:, :0]),
    ("a", A.tolist()),
    ("b", B.tolist()),
    ("bias", np.ones(4)),
    ("bias", np.ones((1, 5))),
    ("bias", np.ones(5, np.float32)),
    ("accumulate", True),
]


@pytest.mark.parametrize(
    ("name", "value"), BAD, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BAD)]
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises((ValueError, TypeError), match=f"^{name}"):
        dense.matmul(**{"a": A, "b": B, name: value})


def test_accumulation_with_a_bias():
    with pytest.raises(ValueError, match=r"^accumulate \(=True\)"):
        dense.matmul(A, B, np.ones(5), accumulate=True, out=np.ones((3, 5)))


def test_sums_over_nothing_are_refused():
    with pytest.raises(ValueError, match=r"^a"):
        dense.matmul(A[:, :0], B[:0])
