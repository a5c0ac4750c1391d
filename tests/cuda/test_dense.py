"""Matrix products in device code, against scalar products and the kernel of the CPU."""

import itertools

import naive
import numpy as np
import pytest
from host_array import on_device

from kfc_numba.kernels import cpu, cuda
from kfc_numba.kernels.cpu.direct import Axis
from kfc_numba.kernels.cuda.gathered import gather
from kfc_numba.kernels.cuda.pixel_sums import sum_over_pixels
from kfc_numba.kernels.cuda.tiles import PROCESSORS, choose, tiles

FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]


def matrices(rows, inner, columns, dtype, transpose_a=False, transpose_b=False):
    """Operands as they are given, and the product and the sums of magnitudes."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(rows, inner)).astype(dtype)
    b = rng.normal(size=(inner, columns)).astype(dtype)
    expected, magnitudes = (
        naive.matmul(*(f(m.astype(float)) for m in (a, b))) for f in (_as_is, abs)
    )
    given = (np.ascontiguousarray(m.T if t else m) for m, t in ((a, transpose_a), (b, transpose_b)))
    return *given, expected, magnitudes


def _as_is(matrix):
    return matrix


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("transposed", list(itertools.product((False, True), repeat=2)), ids=str)
def test_forms(transposed, dtype):
    options = dict(zip(("transpose_a", "transpose_b"), transposed, strict=True))
    shapes = [(4, 600, 8), (8, 12, 36)]
    if dtype == np.float32:  # in float64 where numbers are read at once: kernels take long to make
        shapes += [(1, 1, 1), (33, 17, 5), (9, 70, 35)]
    for shape in shapes:
        a, b, expected, magnitudes = matrices(*shape, dtype, *transposed)
        actual = cuda.matmul(on_device(a), on_device(b), **options).get()
        assert actual.dtype == dtype
        naive.assert_sums(actual, expected, magnitudes)
        bias = np.random.default_rng(1).normal(size=shape[2]).astype(dtype)
        actual = cuda.matmul(on_device(a), on_device(b), on_device(bias), **options).get()
        naive.assert_sums(actual, expected + bias, magnitudes + abs(bias))
        before = np.random.default_rng(2).normal(size=(shape[0], shape[2])).astype(dtype)
        out = on_device(before)
        assert cuda.matmul(on_device(a), on_device(b), **options, accumulate=True, out=out) is out
        naive.assert_sums(out.get(), expected + before, magnitudes + abs(before))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_each_tile_over_its_edges(dtype):
    for tile in tiles(dtype):
        rows, columns = tile.rows + 3, tile.columns + 8
        a, b, expected, magnitudes = matrices(rows, 20, columns, dtype)
        pixel = Axis(1, 0, 1, 0, 1, 1, (0,))
        source = on_device(a).reshape(rows, 1, 1, 20)
        weight = on_device(b).reshape(1, 1, 20, columns)
        out = on_device(np.full((rows, 1, 1, columns), np.nan, dtype))
        gather(source, weight, None, out, (pixel, pixel), 1, tile=tile)
        naive.assert_sums(out.get().reshape(rows, columns), expected, magnitudes)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_each_tile_over_its_edges_transposed(dtype):
    for tile in tiles(dtype):
        rows, columns = tile.rows + 4, tile.columns + 8
        a, b, expected, magnitudes = matrices(rows, 20, columns, dtype, transpose_a=True)
        out = on_device(np.full((rows, columns), np.nan, dtype))
        left = on_device(a).reshape(20, 1, 1, rows)
        sum_over_pixels(left, on_device(b), out, tile=tile)
        naive.assert_sums(out.get(), expected, magnitudes)


def test_tiles_fit_the_shape():
    """Large ones for much work, small ones where the processors would have nothing to do."""
    single = tiles(np.dtype(np.float32))
    assert choose(single, 10**5, 512)[:2] == (128, 128)
    assert choose(single, 10**5, 64)[:2] == (128, 64)
    assert choose(single, 10**5, 32)[:2] == (128, 32)
    assert choose(single, 10**5, 10)[:2] == (64, 16)
    small = choose(single, 512, 512)
    assert small.blocks(512, 512) >= PROCESSORS
    assert choose(single, 512, 512, batch=100)[:2] == (128, 128)


def test_one_row_does_not_depend_on_the_others():
    a, b, *_ = matrices(40, 300, 21, np.float32)
    whole = cuda.matmul(on_device(a), on_device(b)).get()
    for count in (1, 13):
        part = cuda.matmul(on_device(a[:count]), on_device(b)).get()
        np.testing.assert_array_equal(part, whole[:count])


def test_non_finite_values_stay_in_their_row_and_column():
    a, b = np.ones((9, 6), np.float32), np.ones((6, 20), np.float32)
    a[3, 2], b[5, 17] = np.nan, np.inf
    expected = np.ones((9, 20), bool)
    expected[3] = expected[:, 17] = False
    for options in ({}, {"transpose_a": True}):
        left = np.ascontiguousarray(a.T) if options else a
        finite = np.isfinite(cuda.matmul(on_device(left), on_device(b), **options).get())
        np.testing.assert_array_equal(finite, expected)


A, B = np.ones((3, 4)), np.ones((4, 5))
BAD = [
    ("a", A[0]),
    ("a", A.astype(int)),
    ("a", A[:0]),
    ("b", B[0]),
    ("b", B[:3]),
    ("b", B.astype(np.float32)),
    ("b", B[:, :0]),
    ("bias", np.ones(4)),
    ("bias", np.ones((1, 5))),
    ("bias", np.ones(5, np.float32)),
    ("accumulate", True),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{n}-{i}" for i, (n, _) in enumerate(BAD)])
def test_errors_are_those_of_the_cpu(name, value):
    given = {"a": A, "b": B, name: value}
    errors = []
    for package, convert in ((cpu, lambda array: array), (cuda, on_device)):
        arguments = {k: convert(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
        with pytest.raises((ValueError, TypeError), match=f"^{name}") as caught:
            package.matmul(**arguments)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "out", [np.ones((3, 4)), np.ones((3, 5), np.float32)], ids=["shape", "dtype"]
)
def test_out_that_does_not_fit(out):
    with pytest.raises((ValueError, TypeError), match=r"^out"):
        cuda.matmul(on_device(A), on_device(B), out=on_device(out))
