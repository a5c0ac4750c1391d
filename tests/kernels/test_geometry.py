"""Where windows lie: argument forms, padding, output sizes."""

import math

import naive_layers
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfc_numba.kernels.geometry import (
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
