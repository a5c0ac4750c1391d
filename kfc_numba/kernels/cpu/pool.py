"""Pooling kernels on (examples, height, width, channels) arrays.

Windows are cut at the edges of the image, so that padding is never a candidate for a maximum and
adds nothing to a sum. Cells are counted row by row from the upper left corner of the whole window,
padding included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from kfc_numba.checks import check_flag
from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.jit import parallel
from kfc_numba.kernels.cpu.pool_window import window_largest, window_mean
from kfc_numba.kernels.geometry import Pair, PoolWindows, normalize_pair

Shape4 = tuple[int, int, int, int]


def pool_index_dtype(kernel: Any) -> type:
    """Type that numbers the cells of a window.

    Parameters
    ----------
    kernel : int or pair of int
        Height and width of the window.

    Returns
    -------
    type
        uint8, or int32 for more than 256 cells.
    """
    height, width = normalize_pair("kernel", kernel)
    return np.uint8 if height * width <= 256 else np.int32


def max_pool_forward(
    x: np.ndarray,
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    out: np.ndarray | None = None,
    index: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Largest value of each window and the cell it came from.

    Of equal values the first cell is taken; a NaN is the largest of all.

    Parameters
    ----------
    x : numpy.ndarray
        (examples, height, width, channels), float32 or float64.
    kernel : int or pair of int
        Height and width of the window.
    stride : int or pair of int, optional
        Distance between windows; `kernel` if None.
    padding : "same", "valid", int, pair of int or pair of pairs of int
        Cells around the image: on all sides, (vertical, horizontal), or
        ((top, bottom), (left, right)); smaller than `kernel` on every side.
    ceil_mode : bool
        Whether last windows that do not fit are kept.
    out, index : numpy.ndarray, optional
        Where the results go.

    Returns
    -------
    y : numpy.ndarray
        (examples, rows, columns, channels), of the type of `x`.
    index : numpy.ndarray
        Cell of the window, of the shape of `y`; type as in `pool_index_dtype`.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit; no window fits, or one could lie in the padding alone.
    """
    x = checked("x", x, 4)
    windows = PoolWindows.of(x.shape[1:3], kernel, stride, padding, ceil_mode)
    shape = _pooled(x.shape, windows)
    out = output_array(out, shape, x.dtype)
    if index is None:
        index = np.empty(shape, pool_index_dtype(windows.kernel))
    _check_index(index, shape, windows.kernel)
    flat = out.reshape(-1), index.reshape(-1)
    place = *windows.kernel, *windows.stride, *_origin(windows)
    launch = _max_forward.for_numbers(x.size)
    launch(x.reshape(-1), x.shape, *flat, windows.output, *place)
    return out, index


def max_pool_backward(
    dy: np.ndarray,
    index: np.ndarray,
    input_shape: tuple[int, ...],
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Derivative by the input: each derivative goes to the cell that was the largest.

    Parameters
    ----------
    dy : numpy.ndarray
        (examples, rows, columns, channels), float32 or float64.
    index : numpy.ndarray
        From `max_pool_forward`, of the shape of `dy`.
    input_shape : tuple of int
        (examples, height, width, channels).
    kernel, stride, padding, ceil_mode
        As in `max_pool_forward`.
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        Of `input_shape`.

    Raises
    ------
    ValueError, TypeError
        As in `max_pool_forward`.
    """
    dy = checked("dy", dy, 4)
    windows = _windows(input_shape, kernel, stride, padding, ceil_mode)
    _check_derivative(dy, _pooled(input_shape, windows))
    _check_index(index, dy.shape, windows.kernel)
    out = output_array(out, tuple(input_shape), dy.dtype)
    offsets = _offsets(windows.kernel, out.shape)
    _max_backward.for_numbers(out.size)(dy, index, out, offsets, *windows.stride, *_origin(windows))
    return out


def max_pool_tangent(
    dx: np.ndarray,
    index: np.ndarray,
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Derivative along a direction of the input: its value in the cell that was the largest.

    Parameters
    ----------
    dx : numpy.ndarray
        (examples, height, width, channels), float32 or float64.
    index : numpy.ndarray
        (examples, rows, columns, channels), from `max_pool_forward`.
    kernel, stride, padding, ceil_mode
        As in `max_pool_forward`.
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        Of the shape of `index`.

    Raises
    ------
    ValueError, TypeError
        As in `max_pool_forward`.
    """
    dx = checked("dx", dx, 4)
    windows = PoolWindows.of(dx.shape[1:3], kernel, stride, padding, ceil_mode)
    shape = _pooled(dx.shape, windows)
    _check_index(index, shape, windows.kernel)
    out = output_array(out, shape, dx.dtype)
    offsets = _offsets(windows.kernel, dx.shape)
    _max_tangent(dx, index, out, offsets, *windows.stride, *_origin(windows))
    return out


def avg_pool_forward(
    x: np.ndarray,
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Mean of each window.

    The sum over the cells that lie in the image is divided by their number, or, with
    `count_include_pad`, by the number of cells that lie in the padded image (what hangs over in
    `ceil_mode` counts in neither: PyTorch's rule).

    Parameters
    ----------
    x : numpy.ndarray
        (examples, height, width, channels), float32 or float64.
    kernel, stride, padding, ceil_mode
        As in `max_pool_forward`.
    count_include_pad : bool
        Whether padding counts in the divisor.
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        (examples, rows, columns, channels).

    Raises
    ------
    ValueError, TypeError
        As in `max_pool_forward`.
    """
    x = checked("x", x, 4)
    windows = PoolWindows.of(x.shape[1:3], kernel, stride, padding, ceil_mode)
    out = output_array(out, _pooled(x.shape, windows), x.dtype)
    divisors = _divisors(windows, count_include_pad)
    place = *windows.kernel, *windows.stride, *_origin(windows)
    _avg_forward(x.reshape(-1), x.shape, out.reshape(-1), *divisors, *place)
    return out


def avg_pool_backward(
    dy: np.ndarray,
    input_shape: tuple[int, ...],
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Derivative by the input: each derivative is shared out among the cells of its window.

    Parameters
    ----------
    dy : numpy.ndarray
        (examples, rows, columns, channels), float32 or float64.
    input_shape : tuple of int
        (examples, height, width, channels).
    kernel, stride, padding, ceil_mode, count_include_pad
        As in `avg_pool_forward`.
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        Of `input_shape`.

    Raises
    ------
    ValueError, TypeError
        As in `max_pool_forward`.
    """
    dy = checked("dy", dy, 4)
    windows = _windows(input_shape, kernel, stride, padding, ceil_mode)
    _check_derivative(dy, _pooled(input_shape, windows))
    out = output_array(out, tuple(input_shape), dy.dtype)
    divisors = _divisors(windows, count_include_pad)
    place = *windows.kernel, *windows.stride, *_origin(windows)
    _avg_backward(dy, out, *divisors, *place)
    return out


def _windows(
    shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any, ceil_mode: Any
) -> PoolWindows:
    """Windows over images of the shape that a user gave."""
    if len(shape) != 4:
        raise ValueError(f"input_shape (={shape}) must have 4 entries")
    return PoolWindows.of((shape[1], shape[2]), kernel, stride, padding, ceil_mode)


def _pooled(shape: tuple[int, ...], windows: PoolWindows) -> Shape4:
    """Shape of the output for images of a shape."""
    return (shape[0], *windows.output, shape[3])


def _origin(windows: PoolWindows) -> Pair:
    """Cells by which the first window starts before the image: above, and to the left."""
    return windows.padding[0][0], windows.padding[1][0]


def _check_derivative(dy: np.ndarray, shape: Shape4) -> None:
    if dy.shape != shape:
        raise ValueError(f"dy has shape {dy.shape}, the windows' output has {shape}")


def _check_index(index: Any, shape: tuple[int, ...], kernel: Pair) -> None:
    dtype = np.dtype(pool_index_dtype(kernel))
    if not isinstance(index, np.ndarray):
        raise TypeError(f"index must be a NumPy array, got {type(index).__name__}")
    if index.shape != shape or index.dtype != dtype or not index.flags.c_contiguous:
        raise ValueError(
            f"index ({index.dtype}, of shape {index.shape}) must be {dtype}, C-contiguous, of "
            f"shape {shape}"
        )


def _offsets(kernel: Pair, shape: tuple[int, ...]) -> np.ndarray:
    """Distance in memory from the first cell of a window to each cell."""
    _, _, width, channels = shape
    rows, columns = np.arange(kernel[0])[:, None], np.arange(kernel[1])
    return ((rows * width + columns) * channels).ravel()


def _divisors(windows: PoolWindows, count_include_pad: Any) -> list[np.ndarray]:
    """Cells that count in a window, as factors by axis (int64)."""
    with_padding = check_flag("count_include_pad", count_include_pad)
    counts = []
    for axis in (0, 1):
        size, (before, after) = windows.size[axis], windows.padding[axis]
        start = np.arange(windows.output[axis]) * windows.stride[axis] - before
        stop = start + windows.kernel[axis]
        if with_padding:
            counts.append(np.minimum(stop, size + after) - start)
        else:
            counts.append(np.minimum(stop, size) - np.maximum(start, 0))
    return counts


@parallel
def _max_forward(x, shape, y, index, pooled, kernel_h, kernel_w, stride_h, stride_w, top, left):
    examples, height, width, channels = shape
    rows, columns = pooled
    for number in prange(examples * rows):
        task = np.int64(number)
        n = task // rows
        h = (task - n * rows) * stride_h - top
        p_start, p_stop = max(0, -h), min(kernel_h, height - h)
        for j in range(columns):
            w = j * stride_w - left
            window_largest(
                x, ((n * height + h) * width + w) * channels, width * channels, channels,
                p_start, p_stop, max(0, -w), min(kernel_w, width - w),
                y, (task * columns + j) * channels, channels, index, kernel_w,
            )  # fmt: skip


@parallel
def _max_backward(dy, index, dx, offsets, stride_h, stride_w, top, left):
    # Windows overlap, so a task is a whole example: no two add to the same cell.
    examples, _, width, channels = dx.shape
    rows, columns = dy.shape[1], dy.shape[2]
    for task in prange(examples):
        flat = dx[task].reshape(-1)
        flat[:] = 0
        for i in range(rows):
            for j in range(columns):
                first = ((i * stride_h - top) * width + j * stride_w - left) * channels
                for c in range(channels):
                    flat[first + offsets[index[task, i, j, c]] + c] += dy[task, i, j, c]


@parallel
def _max_tangent(dx, index, dy, offsets, stride_h, stride_w, top, left):
    examples, _, width, channels = dx.shape
    rows, columns = dy.shape[1], dy.shape[2]
    for task in prange(examples):
        flat = dx[task].reshape(-1)
        for i in range(rows):
            for j in range(columns):
                first = ((i * stride_h - top) * width + j * stride_w - left) * channels
                for c in range(channels):
                    dy[task, i, j, c] = flat[first + offsets[index[task, i, j, c]] + c]


@parallel
def _avg_forward(
    x, shape, y, vertical, horizontal, kernel_h, kernel_w, stride_h, stride_w, top, left
):
    examples, height, width, channels = shape
    rows, columns = vertical.size, horizontal.size
    for number in prange(examples * rows):
        task = np.int64(number)
        n = task // rows
        i = task - n * rows
        h = i * stride_h - top
        p_start, p_stop = max(0, -h), min(kernel_h, height - h)
        for j in range(columns):
            w = j * stride_w - left
            window_mean(
                x, ((n * height + h) * width + w) * channels, width * channels, channels,
                p_start, p_stop, max(0, -w), min(kernel_w, width - w),
                y, (task * columns + j) * channels, channels,
                x.dtype.type(vertical[i] * horizontal[j]),
            )  # fmt: skip


@parallel
def _avg_backward(dy, dx, vertical, horizontal, kernel_h, kernel_w, stride_h, stride_w, top, left):
    examples, height, width, channels = dx.shape
    rows, columns = dy.shape[1], dy.shape[2]
    for task in prange(examples * height):
        n = task // height
        h = task - n * height
        for w in range(width):
            for c in range(channels):
                dx[n, h, w, c] = 0
        # The windows that hold row h.
        i_start = max((h + top - kernel_h) // stride_h + 1, 0)
        i_stop = min((h + top) // stride_h + 1, rows)
        for i in range(i_start, i_stop):
            for j in range(columns):
                w = j * stride_w - left
                share = dx.dtype.type(1) / dx.dtype.type(vertical[i] * horizontal[j])
                for q in range(max(0, -w), min(kernel_w, width - w)):
                    for c in range(channels):
                        dx[n, h, w + q, c] += dy[n, i, j, c] * share
