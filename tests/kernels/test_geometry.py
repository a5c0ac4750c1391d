"""Where windows lie: argument forms, padding, output sizes."""

import math

import naive_layers
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfc_numba.kernels import geometry
from kfc_numba.kernels.geometry import (
    PoolWindows,
    Windows,
    canonical_padding,
    normalize_padding,
    normalize_pair,
    output_size,
    pooled_size,
)

small = st.integers(1, 6)


@pytest.mark.parametrize(
    ("value", "pair"), [(3, (3, 3)), ((2, 5), (2, 5)), ([4, 1], (4, 1)), (np.int32(7), (7, 7))]
)
def test_pairs(value, pair):
    result = normalize_pair("kernel", value)
    assert result == pair
    assert all(type(entry) is int for entry in result)


@pytest.mark.parametrize("value", [1.0, "3", None, True, (1, 2.0), ("a", 1), (), {1: 2}])
def test_a_pair_of_a_wrong_type(value):
    with pytest.raises(TypeError, match=r"stride.*must be an integer or a pair of integers"):
        normalize_pair("stride", value)


@pytest.mark.parametrize("value", [0, -1, (2, 0)])
def test_a_pair_that_is_too_small(value):
    with pytest.raises(ValueError, match=r"stride.*must be at least 1"):
        normalize_pair("stride", value)


def test_a_pair_of_three():
    with pytest.raises(ValueError, match=r"kernel.*must have two entries, got 3"):
        normalize_pair("kernel", (1, 2, 3))


@pytest.mark.parametrize(
    ("padding", "sides"),
    [
        ("valid", ((0, 0), (0, 0))),
        (2, ((2, 2), (2, 2))),
        ((1, 3), ((1, 1), (3, 3))),
        (((1, 2), (0, 4)), ((1, 2), (0, 4))),
        ([[1, 2], [0, 4]], ((1, 2), (0, 4))),
        ("same", ((1, 2), (0, 1))),
    ],
)
def test_paddings(padding, sides):
    assert normalize_padding(padding, (5, 2), (2, 1), (1, 1), (6, 6)) == sides


@given(size=small, kernel=small, stride=small, dilation=st.integers(1, 3))
def test_same_padding_keeps_the_size(size, kernel, stride, dilation):
    sides, _ = normalize_padding("same", (kernel, 1), (stride, 1), (dilation, 1), (size, 1))
    before, after = sides
    assert output_size(size, kernel, stride, dilation, before, after) == math.ceil(size / stride)
    assert after - before in (0, 1)
    if before + after:  # and with one cell less there would be fewer windows
        span = (kernel - 1) * dilation + 1
        room = size + before + after - 1 - span
        assert room < 0 or room // stride + 1 < math.ceil(size / stride)


@pytest.mark.parametrize("padding", ["SAME", "full", -1, (0, -2), ((0, 1), (-1, 0)), (1, 2, 3)])
def test_bad_paddings(padding):
    with pytest.raises(ValueError, match="padding"):
        canonical_padding(padding)


@pytest.mark.parametrize("padding", [1.5, None, True, (1.0, 2), ((1, 2), 3), ((1, 2), (1, "x"))])
def test_paddings_of_a_wrong_type(padding):
    with pytest.raises(TypeError, match="padding"):
        canonical_padding(padding)


@given(
    size=st.integers(1, 12),
    kernel=small,
    stride=small,
    before=st.integers(0, 5),
    after=st.integers(0, 5),
    ceil_mode=st.booleans(),
)
def test_windows_are_those_of_a_loop(size, kernel, stride, before, after, ceil_mode):
    if kernel > size + before + after:
        return
    expected = len(naive_layers.starts(size, kernel, stride, before, after, ceil_mode))
    assert output_size(size, kernel, stride, 1, before, after, ceil_mode) == expected


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after", "count"),
    [
        (2, 3, 2, 0, 0, 1),  # a window larger than the image, kept in part
        (5, 2, 3, 0, 0, 2),
        (4, 1, 3, 1, 1, 2),  # a third window would start in the padding behind the image
        (32, 3, 2, 0, 0, 16),
    ],
)
def test_partial_windows(size, kernel, stride, before, after, count):
    assert output_size(size, kernel, stride, 1, before, after, ceil_mode=True) == count


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_a_window_larger_than_the_image(ceil_mode):
    with pytest.raises(ValueError, match=r"kernel \(=7\) must be at most the 4 cells"):
        output_size(2, 7, 1, 1, 1, 1, ceil_mode)


def test_a_dilated_window_larger_than_the_image():
    with pytest.raises(ValueError, match=r"kernel \(=3\), 9 cells with dilation \(=4\)"):
        output_size(8, 3, 1, 4, 0, 0)


@pytest.mark.parametrize("padding", [((2, 0), (0, 0)), ((0, 0), (0, 3))])
def test_pooling_windows_in_the_padding_alone(padding):
    with pytest.raises(ValueError, match=r"padding.*must be smaller than kernel \(=\(2, 3\)\)"):
        pooled_size((8, 8), (2, 3), (1, 1), padding)


@pytest.mark.parametrize("wrong", [True, 1.0, (True, 1), (1, 1.0), [1.0, 1]], ids=repr)
def test_what_is_equal_to_a_known_argument_is_checked_all_the_same(wrong):
    known = Windows.of((5, 5), 3, (1, 1), 1, 1)
    assert Windows.of((5, 5), 3, 1, 1, 1) == Windows.of((5, 5), [3, 3], [1, 1], 1, 1) == known
    with pytest.raises(TypeError, match="stride"):
        Windows.of((5, 5), 3, wrong, 1, 1)


def test_messages_name_the_argument():
    for name in ("kernel", "stride", "dilation"):
        arguments = {"kernel": 3, "stride": 1, "padding": 1, "dilation": 1} | {name: 0}
        with pytest.raises(ValueError, match=rf"^{name} \(=0\) must be at least 1"):
            Windows.of((5, 5), **arguments)
    for name in ("size", "kernel", "stride"):
        arguments = {"size": (5, 5), "kernel": 3, "stride": 1} | {name: (2, 0)}
        with pytest.raises(ValueError, match=rf"^{name} \(=\(2, 0\)\) must be at least 1"):
            PoolWindows.of(**arguments, padding=1, ceil_mode=False)
    with pytest.raises(TypeError, match=r"^ceil_mode"):
        PoolWindows.of((5, 5), 3, 1, 0, "yes")
    for padding in (-1, (0, -1), ((-1, 0), (0, 0)), ((0, 0), (0, -1))):
        with pytest.raises(ValueError, match=r"^padding \(="):
            canonical_padding(padding)
    with pytest.raises(TypeError, match=r"\(vertical, horizontal\), or \(\(top, bottom\), \(lef"):
        canonical_padding(1.5)


def test_dilation_of_two_is_named_where_no_window_fits():
    with pytest.raises(ValueError, match=r"kernel \(=3\), 5 cells with dilation \(=2\), must be"):
        output_size(4, 3, 1, 2, 0, 0)
    with pytest.raises(ValueError, match=r"kernel \(=5\) must be at most the 4 cells"):
        output_size(4, 5, 1, 1, 0, 0)


AXES = st.tuples(st.integers(1, 9), small, st.integers(1, 4), st.integers(0, 3), st.integers(0, 3))


@given(vertical=AXES, horizontal=AXES, ceil_mode=st.booleans())
def test_windows_of_a_pool(vertical, horizontal, ceil_mode):
    size, kernel, stride, before, after = zip(vertical, horizontal, strict=True)
    padding = tuple(zip(before, after, strict=True))
    if ceil_mode and any(kernel[i] > size[i] + sum(padding[i]) for i in (0, 1)):
        return  # see `test_partial_windows`
    starts = [
        naive_layers.starts(size[i], kernel[i], stride[i], *padding[i], ceil_mode) for i in (0, 1)
    ]
    alone = any(max(padding[i]) >= kernel[i] for i in (0, 1))
    if alone or not all(starts):
        with pytest.raises(ValueError, match="padding" if alone else "kernel"):
            PoolWindows.of(size, kernel, stride, padding, ceil_mode)
        return
    windows = PoolWindows.of(size, kernel, stride, padding, ceil_mode)
    counts = (len(starts[0]), len(starts[1]))
    assert windows == PoolWindows(kernel, stride, padding, size, counts)
    assert pooled_size(size, kernel, stride, padding, ceil_mode) == counts
    if not ceil_mode:  # which is what is meant where nothing is said
        assert pooled_size(size, kernel, stride, padding) == counts
        assert [output_size(size[i], kernel[i], stride[i], 1, *padding[i]) for i in (0, 1)] == list(
            counts
        )


def test_stride_of_a_pool_is_its_kernel():
    windows = PoolWindows.of((7, 9), (2, 3), None, 0, False)
    assert windows == PoolWindows((2, 3), (2, 3), ((0, 0), (0, 0)), (7, 9), (3, 3))
    assert PoolWindows.of((7, 9), (2, 3), None, "same", False).output == (4, 3)


def taps_in_the_image(size, kernel, stride, dilation, before, after):
    """Cells under each tap of each window, None in the padding: rows of windows."""
    first, last = -before, size + after - (kernel - 1) * dilation
    return [
        [cell if 0 <= cell < size else None for cell in range(start, size + after, dilation)]
        for start in range(first, last, stride)
    ]


@given(vertical=AXES, horizontal=AXES, dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_windows_of_a_convolution(vertical, horizontal, dilation):
    size, kernel, stride, before, after = zip(vertical, horizontal, strict=True)
    padding = tuple(zip(before, after, strict=True))
    cells = [
        taps_in_the_image(size[i], kernel[i], stride[i], dilation[i], *padding[i]) for i in (0, 1)
    ]
    if not all(cells):
        with pytest.raises(ValueError, match="kernel"):
            Windows.of(size, kernel, stride, padding, dilation)
        return
    windows = Windows.of(size, kernel, stride, padding, dilation)
    counts = (len(cells[0]), len(cells[1]))
    assert windows == Windows(kernel, stride, padding, dilation, size, counts)
    for i in (0, 1):
        for tap in range(kernel[i]):
            inside = [w for w, row in enumerate(cells[i]) if row[tap] is not None]
            assert list(windows.inside(i, tap)) == inside
            for window in inside:
                assert windows.cell(i, window, tap) == cells[i][window][tap]
    reached = padding[1][0] + size[1] + windows.margins()[1]
    span = (kernel[1] - 1) * dilation[1] + 1
    assert windows.margins()[0] == padding[1][0]
    assert reached == max((counts[1] - 1) * stride[1] + span, padding[1][0] + size[1])


def test_same_windows_of_a_convolution():
    windows = Windows.of((6, 7), (5, 2), (2, 1), "same", (1, 3))
    assert windows == Windows((5, 2), (2, 1), ((1, 2), (1, 2)), (1, 3), (6, 7), (3, 7))


def test_geometry_is_made_once_for_the_same_arguments():
    first = Windows.of((61, 5), 3, 1, 1, 1)
    assert Windows.of((61, 5), 3, 1, 1, 1) is first
    assert PoolWindows.of((61, 5), 3, 1, 1, False) is PoolWindows.of((61, 5), 3, 1, 1, False)
    # And forgotten before the memory of them grows without end.
    for height in range(geometry._MOST_KNOWN + 1):
        Windows.of((height + 1, 5), 1, 1, 0, 1)
        assert len(geometry._known) <= geometry._MOST_KNOWN
    assert Windows.of((61, 5), 3, 1, 1, 1) is not first


@pytest.mark.parametrize(
    ("arguments", "margins"),
    [
        # Columns -2, ..., 3 + 4 = 7 of 7 are read: two before, one after.
        (((5, 7), 3, 1, ((0, 0), (2, 1)), (1, 2)), (2, 1)),
        # Stride 3: windows start at 0 and 3, the last column read is 4 of 7.
        (((5, 7), 2, 3, 0, 1), (0, 0)),
        # A window that reaches the last column, and no more.
        (((5, 7), 3, 2, 0, 1), (0, 0)),
        # Windows start at -1, 1, 3, 5: to column 7, the first after the image.
        (((5, 7), 3, 2, 1, 1), (1, 1)),
    ],
)
def test_margins_by_hand(arguments, margins):
    assert Windows.of(*arguments).margins() == margins


def test_same_padding_of_a_pool():
    # 4 windows of 3 at stride 2 over 7 rows need 9, 3 over 6 columns 7: an odd one comes last.
    windows = PoolWindows.of((7, 6), 3, 2, "same", False)
    assert windows == PoolWindows((3, 3), (2, 2), ((1, 1), (0, 1)), (7, 6), (4, 3))
