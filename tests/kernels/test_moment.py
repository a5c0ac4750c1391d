"""Second moments of patches and of output derivatives against explicit ones."""

import naive
import numpy as np
import pytest

from kfc_numba.kernels.cpu import moment

DTYPES = (np.float32, np.float64)
CHANNELS = (1, 3, 15, 16, 17, 31, 32, 33, 48, 64)


def check(shape, kernel, *, ones=False, **window):
    """One shape in both dtypes; also the properties that any input has."""
    rng = np.random.default_rng(0)
    x = np.ones(shape) if ones else rng.normal(size=shape).astype(np.float32).astype(float)
    expected = naive.patch_second_moment(x, kernel, **window)
    magnitudes = naive.patch_second_moment(np.abs(x), kernel, **window)
    for dtype in DTYPES:
        actual = moment.patch_second_moment(x.astype(dtype), kernel, **window)
        assert actual.dtype == dtype
        if ones:  # whole numbers: every partial sum is exact
            np.testing.assert_array_equal(actual, expected)
        else:
            naive.assert_sums(actual, expected, magnitudes)
        np.testing.assert_array_equal(actual, np.swapaxes(actual, -1, -2))
        # Examples times output locations.
        np.testing.assert_array_equal(actual[..., -1, -1], expected[..., -1, -1])


PADDINGS = (0, "valid", "same", 2, ((1, 0), (2, 3)))


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 4, (2, 3), (5, 1)], ids=str)
def test_stride_one(kernel, padding):
    """The way that shares offsets; images both larger and smaller than the kernel."""
    check((2, 7, 9, 3), kernel, padding=padding)
    check((2, 5, 4, 2), kernel, padding=padding)
    if padding not in (0, "valid"):
        check((3, 2, 1, 2), kernel if padding == "same" else (3, 2), padding=padding)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("kernel", [1, 3, (2, 3)], ids=str)
@pytest.mark.parametrize(
    ("stride", "dilation"), [(2, 1), (1, 2), ((1, 3), 1), (2, (2, 3)), ((3, 1), (1, 2))], ids=str
)
def test_stride_and_dilation(kernel, stride, dilation, padding):
    """The direct way."""
    check((2, 7, 9, 3), kernel, padding=padding, stride=stride, dilation=dilation)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), ((1, 2), 1)], ids=str)
def test_ones_are_exact(stride, dilation, padding):
    check((2, 6, 5, 2), (3, 2), stride=stride, dilation=dilation, padding=padding, ones=True)


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("window", [{"padding": "same"}, {"stride": 2, "padding": 1}], ids=str)
def test_groups(groups, window):
    check((2, 5, 4, 6), (3, 2), groups=groups, **window)


@pytest.mark.parametrize("channels", CHANNELS)
def test_channel_tails(channels):
    check((2, 3, 4, channels), (2, 1), padding="same")
    check((2, 4, 3, channels), (1, 2), padding="same", stride=2)
    check((1, 3, 5, channels), (1, 2), padding=1, dilation=2)


@pytest.mark.parametrize("width", range(1, 18))
def test_widths(width):
    check((1, 2, width, 3), 3, padding=1)
    check((1, 2, width, 2), 3, padding=1, stride=(1, 2))


def test_one_pixel_one_channel_and_many_examples():
    check((1, 1, 1, 1), 1)
    check((1, 1, 1, 1), 5, padding=2)
    check((1, 1, 1, 3), (1, 2), padding=((2, 1), (1, 3)))
    # Windows that lie in the padding alone.
    check((1, 2, 3, 9), 1, padding=((1, 0), (1, 2)), stride=(4, 1))
    check((2, 2, 1, 2), 1, padding=((1, 0), (1, 0)), stride=4)
    check((67, 2, 3, 2), 2)
    check((67, 3, 3, 2), 2, stride=2)


@pytest.mark.parametrize("window", [{"padding": 1}, {"padding": 1, "stride": 2}], ids=str)
def test_sums_add_up_over_parts_of_a_batch(window):
    x = np.random.default_rng(1).normal(size=(7, 5, 6, 4))
    whole = moment.patch_second_moment(x, 3, **window)
    magnitudes = naive.patch_second_moment(np.abs(x), 3, **window)
    for cut in (1, 3):
        parts = [moment.patch_second_moment(part, 3, **window) for part in (x[:cut], x[cut:])]
        naive.assert_sums(sum(parts), whole, magnitudes)


@pytest.mark.parametrize("window", [{"padding": 2}, {"padding": 2, "stride": 2}], ids=str)
def test_sum_is_positive_semidefinite(window):
    """In float32, up to rounding: the eigenvalue solver clips what lies below zero."""
    x = np.random.default_rng(2).normal(size=(1, 4, 4, 5)).astype(np.float32)
    matrix = moment.patch_second_moment(x, 3, **window)
    values = np.linalg.eigvalsh(matrix.astype(float))
    assert values[0] > -(2.0**-20) * values[-1]


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4, 20), (2, 5, 33), (300, 2), (20, 4, 5, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_outputs(shape, groups):
    shape = (*shape[:-1], shape[-1] * groups)
    ds = np.random.default_rng(3).normal(size=shape).astype(np.float32).astype(float)
    expected = naive.output_second_moment(ds, groups)
    magnitudes = naive.output_second_moment(np.abs(ds), groups)
    for dtype in DTYPES:
        actual = moment.output_second_moment(ds.astype(dtype), groups=groups)
        assert actual.dtype == dtype
        naive.assert_sums(actual, expected, magnitudes)
        np.testing.assert_array_equal(actual, np.swapaxes(actual, -1, -2))
        ones = moment.output_second_moment(np.ones(shape, dtype), groups=groups)
        np.testing.assert_array_equal(ones, np.full(ones.shape, np.prod(shape[:-1])))


@pytest.mark.parametrize("channels", CHANNELS)
def test_output_tails(channels):
    test_outputs((2, 3, channels), 1)


def test_inputs_stay_and_views_are_not_misread():
    x = np.random.default_rng(4).normal(size=(2, 6, 5, 8))
    copy = x.copy()
    for window in ({"padding": 1}, {"stride": 2}):
        moment.patch_second_moment(x, 2, **window)
        view = x[:, ::2, :, 1::2]
        actual = moment.patch_second_moment(view, 2, **window)
        expected = naive.patch_second_moment(view, 2, **window)
        naive.assert_sums(actual, expected, naive.patch_second_moment(np.abs(view), 2, **window))
    actual = moment.output_second_moment(view)
    expected = naive.output_second_moment(view)
    naive.assert_sums(actual, expected, naive.output_second_moment(np.abs(view)))
    np.testing.assert_array_equal(x, copy)


def test_inputs_may_be_read_only():
    """As those mapped from a file are."""
    x = np.random.default_rng(5).normal(size=(2, 6, 5, 8))
    frozen = x.copy()
    frozen.flags.writeable = False
    for window in ({"padding": 1}, {"padding": 1, "stride": 2}):
        np.testing.assert_array_equal(
            moment.patch_second_moment(frozen, 2, **window),
            moment.patch_second_moment(x, 2, **window),
        )
    np.testing.assert_array_equal(
        moment.output_second_moment(frozen), moment.output_second_moment(x)
    )


def test_non_finite_values_show():
    x = np.random.default_rng(5).normal(size=(2, 4, 5, 3)).astype(np.float32)
    x[1, 2, 2, 1] = np.nan
    for window in ({"padding": 1}, {"stride": 2, "padding": 1}):
        finite = np.isfinite(moment.patch_second_moment(x, 3, **window))
        expected = np.isfinite(naive.patch_second_moment(x, 3, **window))
        # Products of the value with zeros of the padding count in the reference alone.
        assert finite[expected].all()
        np.testing.assert_array_equal(finite.diagonal(), expected.diagonal())
        np.testing.assert_array_equal(finite[-1], expected[-1])
    assert np.isnan(moment.output_second_moment(x)[1]).all()


X = np.ones((2, 5, 6, 4))
BAD = [
    ("x", X[0]),
    ("x", X.astype(int)),
    ("x", X.astype(np.float16)),
    ("x", X[:0]),
    ("x", X.tolist()),
    ("kernel", 0),
    ("kernel", (2, 2, 2)),
    ("kernel", 6),
    ("stride", 0),
    ("dilation", 0),
    ("dilation", 3),
    ("padding", "full"),
    ("padding", -1),
    ("groups", 3),
    ("groups", 0),
]


@pytest.mark.parametrize(
    ("name", "value"), BAD, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BAD)]
)
def test_bad_arguments_are_named(name, value):
    other = "kernel" if name == "dilation" else name  # a spread kernel may be too large
    with pytest.raises((ValueError, TypeError), match=f"^({name}|{other})"):
        moment.patch_second_moment(**{"x": X, "kernel": (3, 3), name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ds", X.astype(int)),
        ("ds", np.ones(4)),
        ("ds", X[:0]),
        ("ds", X[:, :0]),
        ("groups", 3),
        ("groups", 0),
    ],
)
def test_bad_arguments_of_output_moments_are_named(name, value):
    with pytest.raises((ValueError, TypeError), match=f"^{name}"):
        moment.output_second_moment(**{"ds": X, name: value})
