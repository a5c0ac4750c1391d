"""Second moments in device code, against explicit ones and the kernels of the CPU."""

import naive
import numpy as np
import pytest
from host_array import on_device

from kfc_numba.kernels import cpu, cuda
from kfc_numba.kernels.cuda import shared_offsets
from kfc_numba.kernels.cuda.pixel_sums import sum_over_pixels
from kfc_numba.kernels.cuda.tiles import tiles
from kfc_numba.kernels.geometry import Windows
from kfc_numba.kernels.rates import Rates


def units(terms):
    """Rounding error allowed for sums of squares, which are all of one sign.

    What is lost at each addition adds up like the square root of their number.
    """
    return naive.FLOAT32_UNITS + np.sqrt(terms) / 2


def check(shape, kernel, dtype=np.float32, *, ones=False, shared=False, **window):
    """One shape; if `shared`, by regions that share the offsets between taps."""
    rng = np.random.default_rng(0)
    x = np.ones(shape, dtype) if ones else rng.normal(size=shape).astype(dtype)
    expected = naive.patch_second_moment(x.astype(float), kernel, **window)
    if shared:
        windows = Windows.of(shape[1:3], kernel, 1, window.get("padding", 0), 1)
        groups = window.get("groups", 1)
        out = on_device(np.full((groups, *expected.shape[-2:]), np.nan, dtype))
        shared_offsets.patch_moment(on_device(x), windows, groups, out)
        actual = out.get().reshape(expected.shape)
    else:
        actual = cuda.patch_second_moment(on_device(x), kernel, **window).get()
    assert actual.dtype == dtype
    if ones:  # whole numbers: every partial sum is exact
        np.testing.assert_array_equal(actual, expected)
    else:
        magnitudes = naive.patch_second_moment(abs(x.astype(float)), kernel, **window)
        allowed = units(expected[..., -1, -1].max())
        naive.assert_sums(actual, expected, magnitudes, allowed)
        twin = cpu.patch_second_moment(x, kernel, **window)
        naive.assert_sums(actual, twin, magnitudes, 2 * allowed)  # both round
    np.testing.assert_array_equal(actual, np.swapaxes(actual, -1, -2))
    # Examples times output locations.
    np.testing.assert_array_equal(actual[..., -1, -1], expected[..., -1, -1])


PADDINGS = (0, "valid", "same", 2, ((1, 0), (2, 3)))


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 4, (2, 3), (5, 1)], ids=str)
def test_stride_one(kernel, padding):
    """Images both larger and smaller than the kernel."""
    check((2, 7, 9, 3), kernel, padding=padding)
    if padding not in (0, "valid"):
        check((3, 2, 1, 2), kernel if padding == "same" else (3, 2), padding=padding)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 4, (2, 3), (5, 1)], ids=str)
def test_shared_offsets(kernel, padding):
    check((2, 7, 9, 3), kernel, padding=padding, shared=True)
    check((1, 6, 5, 2), kernel, padding=padding, shared=True, ones=True)
    if padding not in (0, "valid"):
        kernel = kernel if padding == "same" else (3, 2)
        check((3, 2, 1, 2), kernel, padding=padding, shared=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shared_offsets_of_groups_and_of_many_channels(dtype):
    check((2, 4, 5, 6), (3, 2), dtype, padding=1, shared=True, groups=3)
    check((2, 4, 5, 36), 3, dtype, padding="same", shared=True)
    check((9, 8, 7, 8), 2, dtype, padding=1, shared=True, groups=2)  # sums that are cut into parts


def test_shared_offsets_where_they_pay():
    def pays(shape, window, *card):
        return shared_offsets.pays(shape, np.dtype(np.float32), window, 1, *card)

    same = Windows.of((32, 32), 3, 1, 1, 1)
    assert pays((128, 32, 32, 64), same)
    assert not pays((1, 32, 32, 64), same)  # launches would take longer
    assert not pays((16, 32, 32, 64), same)
    assert pays((16, 32, 32, 64), same, Rates(4e12, 3e11))  # on a small card they would not
    for stride, dilation in ((2, 1), (1, 2)):
        assert not pays((128, 32, 32, 64), Windows.of((32, 32), 3, stride, 1, dilation))


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize(
    ("stride", "dilation"), [(2, 1), (1, 2), ((1, 3), 1), (2, (2, 3))], ids=str
)
def test_stride_and_dilation(stride, dilation, padding):
    check((2, 7, 9, 3), (2, 3), padding=padding, stride=stride, dilation=dilation)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), ((1, 2), 2)], ids=str)
def test_ones_are_exact(stride, dilation, padding):
    check((2, 6, 5, 2), (3, 2), stride=stride, dilation=dilation, padding=padding, ones=True)


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("window", [{"padding": "same"}, {"stride": 2, "padding": 1}], ids=str)
def test_groups(groups, window):
    check((2, 5, 4, 6), (3, 2), groups=groups, **window)
    check((2, 5, 4, 24), 2, groups=groups, **window)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 16, 37])
def test_channels(channels, dtype):
    check((2, 3, 4, channels), (2, 1), dtype, padding="same")
    check((2, 4, 3, channels), (1, 2), dtype, padding="same", stride=2)


def test_one_pixel_and_long_sums():
    check((1, 1, 1, 1), 1)
    check((1, 1, 1, 1), 5, padding=2)
    check((1, 1, 1, 3), (1, 2), padding=((2, 1), (1, 3)))
    # Windows that lie in the padding alone.
    check((1, 2, 3, 9), 1, padding=((1, 0), (1, 2)), stride=(4, 1))
    check((67, 5, 4, 2), 2)
    check((67, 5, 4, 4), 2, stride=2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 36), (300, 2), (20, 4, 9, 3)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_outputs(shape, groups, dtype):
    shape = (*shape[:-1], shape[-1] * groups)
    ds = np.random.default_rng(3).normal(size=shape).astype(dtype)
    actual = cuda.output_second_moment(on_device(ds), groups=groups).get()
    assert actual.dtype == dtype
    expected = naive.output_second_moment(ds.astype(float), groups)
    magnitudes = naive.output_second_moment(abs(ds.astype(float)), groups)
    naive.assert_sums(actual, expected, magnitudes, units(np.prod(shape[:-1])))
    np.testing.assert_array_equal(actual, np.swapaxes(actual, -1, -2))
    ones = cuda.output_second_moment(on_device(np.ones(shape, dtype)), groups=groups).get()
    np.testing.assert_array_equal(ones, np.full(ones.shape, np.prod(shape[:-1])))


def test_each_square_tile_over_its_edges():
    for tile in tiles(np.dtype(np.float32), square=True):
        ds = np.random.default_rng(3).normal(size=(21, 2 * tile.rows + 5)).astype(np.float32)
        out = on_device(np.full((1, ds.shape[1], ds.shape[1]), np.nan, np.float32))
        images = on_device(ds).reshape(21, 1, 1, -1)
        sum_over_pixels(images, None, out, by_group=True, tile=tile)
        expected = naive.output_second_moment(ds.astype(float), 1)
        magnitudes = naive.output_second_moment(abs(ds.astype(float)), 1)
        naive.assert_sums(out.get()[0], expected, magnitudes)


def test_non_finite_values_show():
    x = np.random.default_rng(5).normal(size=(2, 4, 5, 3)).astype(np.float32)
    x[1, 2, 2, 1] = np.nan
    for window in ({"padding": 1}, {"stride": 2, "padding": 1}):
        finite = np.isfinite(cuda.patch_second_moment(on_device(x), 3, **window).get())
        expected = np.isfinite(naive.patch_second_moment(x, 3, **window))
        # Products of the value with zeros of the padding count in the reference alone.
        assert finite[expected].all()
        np.testing.assert_array_equal(finite.diagonal(), expected.diagonal())
        np.testing.assert_array_equal(finite[-1], expected[-1])
    assert np.isnan(cuda.output_second_moment(on_device(x)).get()[1]).all()


X = np.ones((2, 5, 6, 4))
PATCHES = [
    ("x", X[0]),
    ("x", X.astype(int)),
    ("x", X[:0]),
    ("kernel", 0),
    ("kernel", (2, 2, 2)),
    ("kernel", 6),
    ("stride", 0),
    ("dilation", 3),
    ("padding", "full"),
    ("groups", 3),
    ("groups", 0),
]
OUTPUTS = [
    ("ds", X.astype(int)),
    ("ds", np.ones(4)),
    ("ds", X[:, :0]),
    ("groups", 3),
    ("groups", 0),
]
BAD = [("patch_second_moment", {"x": X, "kernel": (3, 3)}, bad) for bad in PATCHES]
BAD += [("output_second_moment", {"ds": X}, bad) for bad in OUTPUTS]


@pytest.mark.parametrize(
    ("kernel", "good", "bad"), BAD, ids=lambda v: v[0] if isinstance(v, tuple) else ""
)
def test_errors_are_those_of_the_cpu(kernel, good, bad):
    given = {**good, bad[0]: bad[1]}
    errors = []
    for package, convert in ((cpu, lambda array: array), (cuda, on_device)):
        arguments = {k: convert(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
        with pytest.raises((ValueError, TypeError)) as caught:
            getattr(package, kernel)(**arguments)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]
