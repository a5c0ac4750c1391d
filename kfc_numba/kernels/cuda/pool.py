"""Pooling kernels on (examples, height, width, channels) arrays.

A thread takes the channels that 128 bits hold. Derivatives by the input are gathered, a cell's from
the windows that hold it, in the order in which the CPU adds them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from kfc_numba.checks import check_flag
from kfc_numba.kernels.backend import on_device
from kfc_numba.kernels.cpu import pool as cpu
from kfc_numba.kernels.cpu.pool import pool_index_dtype
from kfc_numba.kernels.cuda.arguments import checked, empty, output_array
from kfc_numba.kernels.cuda.grids import volume
from kfc_numba.kernels.cuda.integers import div, mod
from kfc_numba.kernels.cuda.lanes import channel_lanes, load_lanes, store_lanes
from kfc_numba.kernels.cuda.launch import device_kernel
from kfc_numba.kernels.cuda.twin import twin
from kfc_numba.kernels.geometry import Pair, PoolWindows

Shape4 = tuple[int, int, int, int]


@twin(cpu.max_pool_forward)
def max_pool_forward(
    x: Any,
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    out: Any = None,
    index: Any = None,
) -> tuple[Any, Any]:
    x = checked("x", x, 4)
    windows = PoolWindows.of(x.shape[1:3], kernel, stride, padding, ceil_mode)
    shape = _pooled(x.shape, windows)
    out = output_array(out, shape, x.dtype, x)
    if index is None:
        index = empty(shape, pool_index_dtype(windows.kernel), x)
    _check_index(index, shape, windows.kernel)
    _launch(_max_forward, windows, windows.output, [x, out, index])
    return out, index


@twin(cpu.max_pool_backward)
def max_pool_backward(
    dy: Any,
    index: Any,
    input_shape: tuple[int, ...],
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    out: Any = None,
) -> Any:
    dy = checked("dy", dy, 4)
    windows = _windows(input_shape, kernel, stride, padding, ceil_mode)
    _check_derivative(dy, _pooled(input_shape, windows))
    _check_index(index, dy.shape, windows.kernel)
    out = output_array(out, tuple(input_shape), dy.dtype, dy)
    _launch(_max_backward, windows, windows.size, [dy, out, index])
    return out


@twin(cpu.max_pool_tangent)
def max_pool_tangent(
    dx: Any,
    index: Any,
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    out: Any = None,
) -> Any:
    dx = checked("dx", dx, 4)
    windows = PoolWindows.of(dx.shape[1:3], kernel, stride, padding, ceil_mode)
    shape = _pooled(dx.shape, windows)
    _check_index(index, shape, windows.kernel)
    out = output_array(out, shape, dx.dtype, dx)
    _launch(_max_tangent, windows, windows.output, [dx, out, index])
    return out


@twin(cpu.avg_pool_forward)
def avg_pool_forward(
    x: Any,
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    out: Any = None,
) -> Any:
    x = checked("x", x, 4)
    windows = PoolWindows.of(x.shape[1:3], kernel, stride, padding, ceil_mode)
    out = output_array(out, _pooled(x.shape, windows), x.dtype, x)
    padded = check_flag("count_include_pad", count_include_pad)
    _launch(_avg_forward, windows, windows.output, [x, out], *_counted(windows, padded))
    return out


@twin(cpu.avg_pool_backward)
def avg_pool_backward(
    dy: Any,
    input_shape: tuple[int, ...],
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    out: Any = None,
) -> Any:
    dy = checked("dy", dy, 4)
    windows = _windows(input_shape, kernel, stride, padding, ceil_mode)
    _check_derivative(dy, _pooled(input_shape, windows))
    out = output_array(out, tuple(input_shape), dy.dtype, dy)
    padded = check_flag("count_include_pad", count_include_pad)
    _launch(_avg_backward, windows, windows.size, [dy, out], *_counted(windows, padded))
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


def _check_derivative(dy: Any, shape: Shape4) -> None:
    if dy.shape != shape:
        raise ValueError(f"dy has shape {dy.shape}, the windows' output has {shape}")


def _check_index(index: Any, shape: tuple[int, ...], kernel: Pair) -> None:
    dtype = np.dtype(pool_index_dtype(kernel))
    if not on_device(index):
        raise TypeError(f"index must be a device array, got {type(index).__name__}")
    if index.shape != shape or index.dtype != dtype or not index.flags.c_contiguous:
        raise ValueError(
            f"index ({index.dtype}, of shape {index.shape}) must be {dtype}, C-contiguous, of "
            f"shape {shape}"
        )


def _counted(windows: PoolWindows, padded: bool) -> tuple[int, int, int, int]:
    """First and end of the rows, and of the columns, that count in the divisor of a mean."""
    height, width = windows.size
    if not padded:
        return 0, height, 0, width
    (top, bottom), (left, right) = windows.padding
    return -top, height + bottom, -left, width + right


def _launch(
    make: Any, windows: PoolWindows, places: Pair, arrays: list[Any], *settings: int
) -> None:
    """Call a kernel with a thread for each place and some channels."""
    examples, _, _, channels = arrays[0].shape
    lanes = channel_lanes(channels, *arrays)
    groups = channels // lanes
    kernel = make(arrays[0].dtype.type, arrays[-1].dtype.type, lanes)
    kernel(
        *volume(examples * places[0], places[1], groups),
        *arrays, groups, *windows.size, *windows.output, *windows.kernel, *windows.stride,
        windows.padding[0][0], windows.padding[1][0], *settings,
    )  # fmt: skip


# In all kernels a block has one row of an image, or of an output, `h` or `i`, of example `n`; its
# threads take columns `w` or `j`, and groups of channels.


@functools.cache
def _max_forward(kind: Any, index_kind: Any, lanes: int) -> Any:
    least = kind(-np.inf)

    @device_kernel
    def max_forward(
        x, y, index, groups,
        height, width, rows, columns, kernel_h, kernel_w, stride_h, stride_w, top, left,
    ):  # fmt: skip
        values, largest = cuda.local.array(lanes, kind), cuda.local.array(lanes, kind)
        cells = cuda.local.array(lanes, index_kind)
        n, i = div(cuda.blockIdx.x, rows), mod(cuda.blockIdx.x, rows)
        h = i * stride_h - top
        j = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        while j < columns:
            w = j * stride_w - left
            group = cuda.threadIdx.x
            while group < groups:
                p = max(0, -h)
                for k in range(lanes):  # where every number is -inf, too
                    largest[k], cells[k] = least, p * kernel_w + max(0, -w)
                while p < min(kernel_h, height - h):
                    q = max(0, -w)
                    while q < min(kernel_w, width - w):
                        place = (n * height + h + p) * width + w + q
                        load_lanes(x, (place * groups + group) * lanes, values, lanes, True)
                        for k in range(lanes):
                            # A NaN is the largest of all.
                            if values[k] > largest[k] or values[k] != values[k]:
                                largest[k], cells[k] = values[k], p * kernel_w + q
                        q += 1
                    p += 1
                place = ((cuda.blockIdx.x * columns + j) * groups + group) * lanes
                store_lanes(y, place, largest, lanes, True)
                store_lanes(index, place, cells, lanes, True)
                group += cuda.blockDim.x
            j += cuda.gridDim.y * cuda.blockDim.y

    return max_forward


@functools.cache
def _max_backward(kind: Any, index_kind: Any, lanes: int) -> Any:
    @device_kernel
    def max_backward(
        dy, dx, index, groups,
        height, width, rows, columns, kernel_h, kernel_w, stride_h, stride_w, top, left,
    ):  # fmt: skip
        values, total = cuda.local.array(lanes, kind), cuda.local.array(lanes, kind)
        cells = cuda.local.array(lanes, index_kind)
        n, h = div(cuda.blockIdx.x, height), mod(cuda.blockIdx.x, height)
        # The windows that hold row h.
        i_start = 0 if h + top < kernel_h else div(h + top - kernel_h, stride_h) + 1
        i_stop = min(div(h + top, stride_h) + 1, rows)
        w = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        while w < width:
            j_start = 0 if w + left < kernel_w else div(w + left - kernel_w, stride_w) + 1
            j_stop = min(div(w + left, stride_w) + 1, columns)
            group = cuda.threadIdx.x
            while group < groups:
                for k in range(lanes):
                    total[k] = kind(0)
                i = i_start
                while i < i_stop:
                    j = j_start
                    while j < j_stop:
                        cell = (h + top - i * stride_h) * kernel_w + w + left - j * stride_w
                        place = (((n * rows + i) * columns + j) * groups + group) * lanes
                        load_lanes(index, place, cells, lanes, True)
                        load_lanes(dy, place, values, lanes, True)
                        for k in range(lanes):
                            if cells[k] == cell:
                                total[k] += values[k]
                        j += 1
                    i += 1
                place = ((cuda.blockIdx.x * width + w) * groups + group) * lanes
                store_lanes(dx, place, total, lanes, True)
                group += cuda.blockDim.x
            w += cuda.gridDim.y * cuda.blockDim.y

    return max_backward


@functools.cache
def _max_tangent(kind: Any, index_kind: Any, lanes: int) -> Any:
    @device_kernel
    def max_tangent(
        dx, dy, index, groups,
        height, width, rows, columns, kernel_h, kernel_w, stride_h, stride_w, top, left,
    ):  # fmt: skip
        values, cells = cuda.local.array(lanes, kind), cuda.local.array(lanes, index_kind)
        n, i = div(cuda.blockIdx.x, rows), mod(cuda.blockIdx.x, rows)
        j = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        while j < columns:
            group = cuda.threadIdx.x
            while group < groups:
                here = ((cuda.blockIdx.x * columns + j) * groups + group) * lanes
                load_lanes(index, here, cells, lanes, True)
                for k in range(lanes):
                    h = i * stride_h - top + div(cells[k], kernel_w)
                    w = j * stride_w - left + mod(cells[k], kernel_w)
                    place = ((n * height + h) * width + w) * groups + group
                    values[k] = dx[place * lanes + k]
                store_lanes(dy, here, values, lanes, True)
                group += cuda.blockDim.x
            j += cuda.gridDim.y * cuda.blockDim.y

    return max_tangent


@functools.cache
def _avg_forward(kind: Any, _: Any, lanes: int) -> Any:
    @device_kernel
    def avg_forward(
        x, y, groups,
        height, width, rows, columns, kernel_h, kernel_w, stride_h, stride_w, top, left,
        first_h, end_h, first_w, end_w,
    ):  # fmt: skip
        values, total = cuda.local.array(lanes, kind), cuda.local.array(lanes, kind)
        n, i = div(cuda.blockIdx.x, rows), mod(cuda.blockIdx.x, rows)
        h = i * stride_h - top
        count_h = min(h + kernel_h, end_h) - max(h, first_h)
        j = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        while j < columns:
            w = j * stride_w - left
            count = kind(count_h * (min(w + kernel_w, end_w) - max(w, first_w)))
            group = cuda.threadIdx.x
            while group < groups:
                for k in range(lanes):
                    total[k] = kind(0)
                p = max(0, -h)
                while p < min(kernel_h, height - h):
                    q = max(0, -w)
                    while q < min(kernel_w, width - w):
                        place = (n * height + h + p) * width + w + q
                        load_lanes(x, (place * groups + group) * lanes, values, lanes, True)
                        for k in range(lanes):
                            total[k] += values[k]
                        q += 1
                    p += 1
                for k in range(lanes):
                    total[k] /= count
                place = ((cuda.blockIdx.x * columns + j) * groups + group) * lanes
                store_lanes(y, place, total, lanes, True)
                group += cuda.blockDim.x
            j += cuda.gridDim.y * cuda.blockDim.y

    return avg_forward


@functools.cache
def _avg_backward(kind: Any, _: Any, lanes: int) -> Any:
    @device_kernel
    def avg_backward(
        dy, dx, groups,
        height, width, rows, columns, kernel_h, kernel_w, stride_h, stride_w, top, left,
        first_h, end_h, first_w, end_w,
    ):  # fmt: skip
        values, total = cuda.local.array(lanes, kind), cuda.local.array(lanes, kind)
        n, h = div(cuda.blockIdx.x, height), mod(cuda.blockIdx.x, height)
        i_start = 0 if h + top < kernel_h else div(h + top - kernel_h, stride_h) + 1
        i_stop = min(div(h + top, stride_h) + 1, rows)
        w = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        while w < width:
            j_start = 0 if w + left < kernel_w else div(w + left - kernel_w, stride_w) + 1
            j_stop = min(div(w + left, stride_w) + 1, columns)
            group = cuda.threadIdx.x
            while group < groups:
                for k in range(lanes):
                    total[k] = kind(0)
                i = i_start
                while i < i_stop:
                    up = i * stride_h - top
                    count_h = min(up + kernel_h, end_h) - max(up, first_h)
                    j = j_start
                    while j < j_stop:
                        back = j * stride_w - left
                        count_w = min(back + kernel_w, end_w) - max(back, first_w)
                        share = kind(1) / kind(count_h * count_w)
                        place = (((n * rows + i) * columns + j) * groups + group) * lanes
                        load_lanes(dy, place, values, lanes, True)
                        for k in range(lanes):
                            total[k] += values[k] * share
                        j += 1
                    i += 1
                place = ((cuda.blockIdx.x * width + w) * groups + group) * lanes
                store_lanes(dx, place, total, lanes, True)
                group += cuda.blockDim.x
            w += cuda.gridDim.y * cuda.blockDim.y

    return avg_backward
