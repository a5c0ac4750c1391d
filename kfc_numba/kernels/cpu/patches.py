"""Patches of images in full: the matrix [[A]] of Grosse and Martens (2016), and its means.

Convolutions and moments never make this matrix. It is for small layers and checks, and its means
over locations are the inputs of the approximation "reduce".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from kfc_numba.checks import check_flag, check_integer
from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.jit import inlined, parallel
from kfc_numba.kernels.geometry import Windows


def extract_patches(
    x: np.ndarray,
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    bias: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The pixels under the window of each output location, as rows.

    Parameters
    ----------
    x : numpy.ndarray
        Images, (examples, height, width, channels), float32 or float64.
    kernel : int or pair of int
        Height and width of the window.
    stride, padding, dilation
        Of the convolution, as in `conv2d_forward`.
    groups : int
        Number of groups of channels; each has rows of its own.
    bias : bool
        Whether a row ends with a 1.
    out : numpy.ndarray, optional
        Where to write the result.

    Returns
    -------
    numpy.ndarray
        (examples, locations, D [+ 1]) with D = kernel height * kernel width * channels, in this
        order; with groups > 1 (groups, examples, locations, D [+ 1]) with channels / groups in D.

    Raises
    ------
    ValueError, TypeError
        Shapes or dtypes that do not fit, windows larger than the padded image.
    """
    x, place, groups, columns = _checked(x, kernel, stride, padding, dilation, groups, bias)
    shape = (len(x), place.rows * place.columns, columns)
    out = output_array(out, (groups, *shape) if groups > 1 else shape, x.dtype)
    if groups == 1 and place == _Place(1, 1, 1, 1, 1, 1, 0, 0, *x.shape[1:3]):
        _pixels(x.reshape(-1, x.shape[3]), out.reshape(-1, columns))
    else:
        _patches(x, place, out.reshape(groups, *shape), bias)
    return out


def patch_means(
    x: np.ndarray,
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    bias: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Mean over locations of what `extract_patches` gives, without making them; summed in float64.

    Parameters
    ----------
    x : numpy.ndarray
        Images, (examples, height, width, channels), float32 or float64.
    kernel, stride, padding, dilation, groups, bias
        As in `extract_patches`.
    out : numpy.ndarray, optional
        Where to write the result.

    Returns
    -------
    numpy.ndarray
        (examples, D [+ 1]), with groups > 1 (groups, examples, D [+ 1]).

    Raises
    ------
    ValueError, TypeError
        As in `extract_patches`.
    """
    x, place, groups, columns = _checked(x, kernel, stride, padding, dilation, groups, bias)
    shape = (len(x), columns)
    out = output_array(out, (groups, *shape) if groups > 1 else shape, x.dtype)
    _patch_means(x, place, out.reshape(groups, *shape), bias)
    return out


class _Place(NamedTuple):
    """Where windows lie, as Numba takes it into threads: without pairs."""

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    top: int
    left: int
    rows: int
    columns: int


def _checked(
    x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: Any, bias: Any
) -> tuple[np.ndarray, _Place, int, int]:
    """Images, where windows lie, groups, and the length of a row."""
    x = checked("x", x, 4)
    windows = Windows.of(x.shape[1:3], kernel, stride, padding, dilation)
    groups = check_integer("groups", groups)
    channels = x.shape[3]
    if channels % groups:
        raise ValueError(f"groups (={groups}) must divide the channels (={channels})")
    before = windows.padding[0][0], windows.padding[1][0]
    place = _Place(*windows.kernel, *windows.stride, *windows.dilation, *before, *windows.output)
    size = place.kernel_h * place.kernel_w * channels // groups
    return x, place, groups, size + check_flag("bias", bias)


@parallel
def _pixels(pixels, out):
    """Patches of one pixel each, all of them."""
    channels, columns = pixels.shape[1], out.shape[1]
    for r in prange(out.shape[0]):
        source, row = pixels[r], out[r]
        for c in range(channels):
            row[c] = source[c]
        if columns > channels:
            row[channels] = 1


@inlined
def _copy_patch(image, top, left, place, first, row):
    """The channels from `first` on under a window whose upper left corner is given."""
    height, width, _ = image.shape
    depth = row.size // (place.kernel_h * place.kernel_w)
    for p in range(place.kernel_h):
        y = top + p * place.dilation_h
        for q in range(place.kernel_w):
            x = left + q * place.dilation_w
            tap = p * place.kernel_w + q
            target = row[tap * depth : (tap + 1) * depth]
            if 0 <= y < height and 0 <= x < width:
                source = image[y, x, first : first + depth]
                for c in range(depth):
                    target[c] = source[c]
            else:
                for c in range(depth):
                    target[c] = 0


@parallel
def _patches(x, place, out, bias):
    groups, examples, _, columns = out.shape
    depth = x.shape[3] // groups
    for number in prange(examples * place.rows):
        task = np.int64(number)
        n = task // place.rows
        i = task - n * place.rows
        top = i * place.stride_h - place.top
        for j in range(place.columns):
            left = j * place.stride_w - place.left
            for group in range(groups):
                row = out[group, n, i * place.columns + j]
                _copy_patch(x[n], top, left, place, group * depth, row[: columns - bias])
                if bias:
                    row[columns - 1] = 1


@inlined
def _sum_row(line, place, sums):
    """Sums over the windows of a row of pixels, for each tap of a kernel row."""
    width, channels = line.shape
    for q in range(place.kernel_w):
        total = sums[q]
        total[:] = 0
        for j in range(place.columns):
            x = j * place.stride_w + q * place.dilation_w - place.left
            if 0 <= x < width:
                pixel = line[x]
                for c in range(channels):
                    total[c] += pixel[c]


@parallel
def _patch_means(x, place, out, bias):
    groups, examples, columns = out.shape
    _, height, _, channels = x.shape
    depth = channels // groups
    locations = place.rows * place.columns
    for number in prange(examples):
        n = np.int64(number)
        sums = np.empty((place.kernel_w, channels))
        totals = np.zeros((place.kernel_h, place.kernel_w, channels))
        for y in range(height):
            _sum_row(x[n, y], place, sums)
            for p in range(place.kernel_h):
                # The window, if there is one, whose tap p lies on row y.
                above = y + place.top - p * place.dilation_h
                i = above // place.stride_h
                if i * place.stride_h == above and 0 <= i < place.rows:
                    totals[p] += sums
        for group in range(groups):
            row = out[group, n]
            for p in range(place.kernel_h):
                for q in range(place.kernel_w):
                    tap = (p * place.kernel_w + q) * depth
                    for c in range(depth):
                        row[tap + c] = totals[p, q, group * depth + c] / locations
            if bias:
                row[columns - 1] = 1
