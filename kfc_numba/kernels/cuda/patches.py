"""Patches of images in full, and their means: for small layers and checks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from kfc_numba.checks import check_flag, check_integer
from kfc_numba.kernels.cpu import patches as cpu
from kfc_numba.kernels.cuda.arguments import checked, empty, output_array
from kfc_numba.kernels.cuda.grids import volume
from kfc_numba.kernels.cuda.integers import div, mod
from kfc_numba.kernels.cuda.launch import device_kernel
from kfc_numba.kernels.cuda.sums import DOUBLE
from kfc_numba.kernels.cuda.twin import twin
from kfc_numba.kernels.geometry import Windows


@twin(cpu.extract_patches)
def extract_patches(
    x: Any,
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    bias: bool = False,
    out: Any = None,
) -> Any:
    x, windows, groups, length = _checked(x, kernel, stride, padding, dilation, groups, bias)
    rows, columns = windows.output
    shape = (len(x), rows * columns, length)
    out = output_array(out, (groups, *shape) if groups > 1 else shape, x.dtype, x)
    _patches(x.dtype.type)(
        *volume(len(x) * rows, columns, groups * length), x, out, len(x), x.shape[3], *windows.size,
        rows, columns, *windows.kernel, *windows.stride, *windows.dilation, *_origin(windows),
        groups, length,
    )  # fmt: skip
    return out


@twin(cpu.patch_means)
def patch_means(
    x: Any,
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    bias: bool = False,
    out: Any = None,
) -> Any:
    x, windows, groups, length = _checked(x, kernel, stride, padding, dilation, groups, bias)
    out = output_array(
        out, (groups, len(x), length) if groups > 1 else (len(x), length), x.dtype, x
    )
    examples, height, width, channels = x.shape
    (kernel_h, kernel_w), (rows, columns) = windows.kernel, windows.output
    (top, left), (stride_h, stride_w), (down, across) = (
        *(_origin(windows), windows.stride, windows.dilation),
    )
    # Sums over the windows of a row of pixels, for each tap of a row of the kernel, are what all
    # rows of the kernel have in common.
    sums = empty((examples, height, kernel_w, channels), DOUBLE, x)
    _sum_rows(
        *volume(examples * height, kernel_w, channels), x, sums,
        width, channels, columns, kernel_w, stride_w, across, left,
    )  # fmt: skip
    _sum_columns(
        *volume(examples, kernel_h * kernel_w, channels), sums, out,
        height, channels, rows, kernel_h, kernel_w, stride_h, down, top,
        groups, length, np.float64(rows * columns),
    )  # fmt: skip
    return out


def _checked(
    x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: Any, bias: Any
) -> tuple[Any, Windows, int, int]:
    """Images, where windows lie, groups, and the length of a row."""
    x = checked("x", x, 4)
    windows = Windows.of(x.shape[1:3], kernel, stride, padding, dilation)
    groups = check_integer("groups", groups)
    channels = x.shape[3]
    if channels % groups:
        raise ValueError(f"groups (={groups}) must divide the channels (={channels})")
    size = windows.kernel[0] * windows.kernel[1] * channels // groups
    return x, windows, groups, size + check_flag("bias", bias)


def _origin(windows: Windows) -> tuple[int, int]:
    return windows.padding[0][0], windows.padding[1][0]


@functools.cache
def _patches(kind: Any) -> Any:
    @device_kernel
    def patches(
        x, out, examples, channels, height, width, rows, columns, kernel_h, kernel_w,
        stride_h, stride_w, dilation_h, dilation_w, top, left, groups, length,
    ):  # fmt: skip
        depth = div(channels, groups)
        n, i = div(cuda.blockIdx.x, rows), mod(cuda.blockIdx.x, rows)
        j = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        while j < columns:
            entry = cuda.threadIdx.x  # of the rows of all groups
            while entry < groups * length:
                group, d = div(entry, length), mod(entry, length)
                tap, c = div(d, depth), mod(d, depth)
                p, q = div(tap, kernel_w), mod(tap, kernel_w)
                h = i * stride_h + p * dilation_h - top
                w = j * stride_w + q * dilation_w - left
                value = kind(0)
                if p == kernel_h:
                    value = kind(1)
                elif 0 <= h < height and 0 <= w < width:
                    value = x[((n * height + h) * width + w) * channels + group * depth + c]
                location = ((group * examples + n) * rows + i) * columns + j
                out[location * length + d] = value
                entry += cuda.blockDim.x
            j += cuda.gridDim.y * cuda.blockDim.y

    return patches


@device_kernel
def _sum_rows(x, sums, width, channels, columns, kernel_w, stride, dilation, left):
    line = cuda.blockIdx.x
    q = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    while q < kernel_w:
        c = cuda.threadIdx.x
        while c < channels:
            total = np.float64(0)
            for j in range(columns):
                w = j * stride + q * dilation - left
                if 0 <= w < width:
                    total += np.float64(x[(line * width + w) * channels + c])
            sums[(line * kernel_w + q) * channels + c] = total
            c += cuda.blockDim.x
        q += cuda.gridDim.y * cuda.blockDim.y


@device_kernel
def _sum_columns(
    sums, out, height, channels, rows, kernel_h, kernel_w, stride, dilation, top,
    groups, length, locations,
):  # fmt: skip
    n, depth = cuda.blockIdx.x, div(channels, groups)
    tap = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    while tap < kernel_h * kernel_w:
        p, q = div(tap, kernel_w), mod(tap, kernel_w)
        c = cuda.threadIdx.x
        while c < channels:
            total = np.float64(0)
            for i in range(rows):
                h = i * stride + p * dilation - top
                if 0 <= h < height:
                    total += sums[((n * height + h) * kernel_w + q) * channels + c]
            row = (div(c, depth) * cuda.gridDim.x + n) * length
            out[row + tap * depth + mod(c, depth)] = total / locations
            if tap == 0 and mod(c, depth) == 0 and length > kernel_h * kernel_w * depth:
                out[row + length - 1] = 1
            c += cuda.blockDim.x
        tap += cuda.gridDim.y * cuda.blockDim.y
