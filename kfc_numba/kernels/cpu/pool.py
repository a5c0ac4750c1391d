"""Pooling kernels on (examples, height, width, channels) arrays.

Windows are cut at the edges of the image, so that padding is never a candidate for a maximum and
adds nothing to a sum. `padding` is ``((top, bottom), (left, right))``; cells are counted row by
row from the upper left corner of the whole window, padding included.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.jit import parallel
from kfc_numba.kernels.cpu.pool_window import window_largest, window_mean
from kfc_numba.kernels.geometry import Padding, Pair, pooled_size

Shape4 = tuple[int, int, int, int]


def pool_index_dtype(kernel: Pair) -> type:
    """Type that numbers the cells of a window.

    Parameters
    ----------
    kernel : (int, int)
        Height and width of the window.

    Returns
    -------
    type
        uint8, or int32 for more than 256 cells.
    """
    return np.uint8 if kernel[0] * kernel[1] <= 256 else np.int32


def max_pool_forward(
    x: np.ndarray,
    kernel: Pair,
    stride: Pair,
    padding: Padding,
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
    kernel, stride : (int, int)
    padding : ((int, int), (int, int))
        Smaller than `kernel` on every side.
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
    ValueError
        No window fits, or one could lie in the padding alone.
    """
    x = checked("x", x, 4)
    shape = _pooled_shape(x.shape, kernel, stride, padding, ceil_mode)
    out = output_array(out, shape, x.dtype)
    if index is None:
        index = np.empty(shape, pool_index_dtype(kernel))
    _check_index(index, shape, kernel)
    origin = padding[0][0], padding[1][0]
    flat = out.reshape(-1), index.reshape(-1)
    _max_forward(x.reshape(-1), x.shape, *flat, shape[1:3], *kernel, *stride, *origin)
    return out, index


def max_pool_backward(
    dy: np.ndarray,
    index: np.ndarray,
    input_shape: Shape4,
    kernel: Pair,
    stride: Pair,
    padding: Padding,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Derivative by the input: each derivative goes to the cell that was the largest.

    Parameters
    ----------
    dy : numpy.ndarray
        (examples, rows, columns, channels).
    index : numpy.ndarray
        From `max_pool_forward`.
    input_shape : tuple of int
        (examples, height, width, channels).
    kernel, stride, padding
        As in `max_pool_forward`.
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        Of `input_shape`.
    """
    dy = checked("dy", dy, 4)
    _check_index(index, dy.shape, kernel)
    out = output_array(out, input_shape, dy.dtype)
    offsets = _offsets(kernel, out.shape)
    _max_backward(dy, index, out, offsets, *stride, padding[0][0], padding[1][0])
    return out


def max_pool_tangent(
    dx: np.ndarray,
    index: np.ndarray,
    kernel: Pair,
    stride: Pair,
    padding: Padding,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Derivative along a direction of the input: its value in the cell that was the largest.

    Parameters
    ----------
    dx : numpy.ndarray
        (examples, height, width, channels).
    index : numpy.ndarray
        (examples, rows, columns, channels), from `max_pool_forward`.
    kernel, stride, padding
        As in `max_pool_forward`.
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        Of the shape of `index`.
    """
    dx = checked("dx", dx, 4)
    _check_index(index, index.shape, kernel)
    out = output_array(out, index.shape, dx.dtype)
    offsets = _offsets(kernel, dx.shape)
    _max_tangent(dx, index, out, offsets, *stride, padding[0][0], padding[1][0])
    return out


def avg_pool_forward(
    x: np.ndarray,
    kernel: Pair,
    stride: Pair,
    padding: Padding,
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
    ValueError
        No window fits, or one could lie in the padding alone.
    """
    x = checked("x", x, 4)
    shape = _pooled_shape(x.shape, kernel, stride, padding, ceil_mode)
    out = output_array(out, shape, x.dtype)
    vertical, horizontal = _divisors(x.shape, shape, kernel, stride, padding, count_include_pad)
    origin = padding[0][0], padding[1][0]
    flat = out.reshape(-1)
    _avg_forward(x.reshape(-1), x.shape, flat, vertical, horizontal, *kernel, *stride, *origin)
    return out


def avg_pool_backward(
    dy: np.ndarray,
    input_shape: Shape4,
    kernel: Pair,
    stride: Pair,
    padding: Padding,
    count_include_pad: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Derivative by the input: each derivative is shared out among the cells of its window.

    Parameters
    ----------
    dy : numpy.ndarray
        (examples, rows, columns, channels).
    input_shape : tuple of int
        (examples, height, width, channels).
    kernel, stride, padding, count_include_pad
        As in `avg_pool_forward`.
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        Of `input_shape`.
    """
    dy = checked("dy", dy, 4)
    out = output_array(out, input_shape, dy.dtype)
    vertical, horizontal = _divisors(
        out.shape, dy.shape, kernel, stride, padding, count_include_pad
    )
    origin = padding[0][0], padding[1][0]
    _avg_backward(dy, out, vertical, horizontal, *kernel, *stride, *origin)
    return out


def image_mean(x: np.ndarray) -> np.ndarray:
    """Mean of each channel over the image, summed in float64.

    Parameters
    ----------
    x : numpy.ndarray
        (examples, height, width, channels), float32 or float64.

    Returns
    -------
    numpy.ndarray
        (examples, channels), of the type of `x`.
    """
    x = checked("x", x, 4)
    examples, height, width, channels = x.shape
    sums = np.zeros((examples, channels))
    _image_sums(x.reshape(examples, height * width, channels), sums)
    sums /= height * width
    return sums.astype(x.dtype)


def _pooled_shape(
    shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Padding, ceil_mode: bool
) -> Shape4:
    examples, height, width, channels = shape
    rows, columns = pooled_size((height, width), kernel, stride, padding, ceil_mode)
    return examples, rows, columns, channels


def _check_index(index: np.ndarray, shape: tuple[int, ...], kernel: Pair) -> None:
    dtype = np.dtype(pool_index_dtype(kernel))
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


def _divisors(
    shape: tuple[int, ...],
    pooled: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Padding,
    count_include_pad: bool,
) -> list[np.ndarray]:
    """Cells that count in a window, as factors by axis (int64)."""
    counts = []
    for axis in (0, 1):
        size, (before, after) = shape[1 + axis], padding[axis]
        start = np.arange(pooled[1 + axis]) * stride[axis] - before
        if count_include_pad:
            counts.append(np.minimum(start + kernel[axis], size + after) - start)
        else:
            counts.append(np.minimum(start + kernel[axis], size) - np.maximum(start, 0))
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


@parallel
def _image_sums(x, sums):
    for n in prange(x.shape[0]):
        for pixel in range(x.shape[1]):
            for c in range(x.shape[2]):
                sums[n, c] += x[n, pixel, c]
