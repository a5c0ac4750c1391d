"""Convolution on NHWC images, HWIO weights: forward, and its gradients."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from kfc_numba.checks import check_integer
from kfc_numba.kernels.cpu import conv as cpu
from kfc_numba.kernels.cpu.direct import Axis, forward_axis, gradient_axes
from kfc_numba.kernels.cuda import launch, tensor_cores, winograd
from kfc_numba.kernels.cuda.arguments import checked, empty, output_array
from kfc_numba.kernels.cuda.column_sums import sum_columns
from kfc_numba.kernels.cuda.gathered import gather
from kfc_numba.kernels.cuda.pixel_sums import Patches, sum_over_pixels
from kfc_numba.kernels.cuda.twin import twin
from kfc_numba.kernels.geometry import Windows


@twin(cpu.conv2d_forward)
def conv2d_forward(
    x: Any,
    weight: Any,
    bias: Any | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    out: Any | None = None,
) -> Any:
    x = checked("x", x, 4)
    weight = checked("weight", weight, 4, x.dtype)
    if bias is not None:
        bias = checked("bias", bias, 1, x.dtype)
        if bias.shape != weight.shape[3:]:
            raise ValueError(
                f"bias has shape {bias.shape}, it must be {weight.shape[3:]}, one a filter"
            )
    _check_weight(groups, x.shape[3], weight)
    windows = Windows.of(x.shape[1:3], weight.shape[:2], stride, padding, dilation)
    out = output_array(out, (len(x), *windows.output, weight.shape[3]), x.dtype, x)
    _convolve(x, weight, bias, out, _forward_axes(windows), groups)
    return out


@twin(cpu.conv2d_grad_input)
def conv2d_grad_input(
    dy: Any,
    weight: Any,
    input_shape: tuple[int, ...],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    out: Any | None = None,
) -> Any:
    dy = checked("dy", dy, 4)
    weight = checked("weight", weight, 4, dy.dtype)
    if len(input_shape) != 4:
        raise ValueError(f"input_shape (={input_shape}) must have 4 entries")
    _check_weight(groups, input_shape[3], weight)
    size = (input_shape[1], input_shape[2])
    windows = Windows.of(size, weight.shape[:2], stride, padding, dilation)
    _check_derivative(dy, (input_shape[0], *windows.output, weight.shape[3]))
    out = output_array(out, tuple(input_shape), dy.dtype, dy)
    pairs = input_axes(windows)
    others = second_classes(windows)
    if any(others) and not any(filtering(p, dy.shape, out.shape, groups, dy.dtype) for p in pairs):
        gather(dy, weight, None, out, pairs[0], groups, others=others, flip=True)
        return out
    for axes in pairs:
        _convolve(dy, weight, None, out, axes, groups, flip=True)
    return out


@twin(cpu.conv2d_grad_weight)
def conv2d_grad_weight(
    x: Any,
    dy: Any,
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    x = checked("x", x, 4)
    dy = checked("dy", dy, 4, x.dtype)
    windows = Windows.of(x.shape[1:3], kernel, stride, padding, dilation)
    _check_derivative(dy, (len(x), *windows.output, dy.shape[3]))
    channels, filters = x.shape[3], dy.shape[3]
    _check_groups(groups, channels, filters)
    weight = empty((*windows.kernel, channels // groups, filters), x.dtype, x)
    axes = _forward_axes(windows)
    rows = weight.reshape(-1, filters)
    size = filtering_of_sums(axes, x.shape, dy.shape, groups, x.dtype)
    if size:
        winograd.sum_products(x, dy, weight, axes, size)
    else:
        sum_over_pixels(x, dy, rows, groups, patches=Patches.of(windows))
    return weight


@twin(cpu.conv2d_grad_parameters)
def conv2d_grad_parameters(
    x: Any,
    dy: Any,
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, Any]:
    weight = conv2d_grad_weight(
        x, dy, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return weight, conv2d_grad_bias(dy)


@twin(cpu.conv2d_grad_bias)
def conv2d_grad_bias(dy: Any) -> Any:
    dy = checked("dy", dy, None)
    filters = dy.shape[-1]
    out = empty((filters,), dy.dtype, dy)
    sum_columns(dy.reshape(-1, filters), out)
    return out


def _convolve(
    source: Any,
    weight: Any,
    bias: Any,
    target: Any,
    axes: tuple[Axis, Axis],
    groups: int,
    flip: bool = False,
) -> None:
    """`gather`, or the same with fewer multiplications."""
    size = filtering(axes, source.shape, target.shape, groups, source.dtype)
    if size:
        winograd.convolve(source, weight, bias, target, axes, size, flip=flip)
    else:
        gather(source, weight, bias, target, axes, groups, flip=flip)


def filtering(
    axes: tuple[Axis, Axis],
    source: tuple[int, ...],
    target: tuple[int, ...],
    groups: int,
    dtype: np.dtype,
) -> int:
    """`winograd.pays` where it may be used.

    Not on tensor cores: what is rounded after it was transformed is off by more than they are said
    to be.
    """
    positions = source[0] * axes[0].length * axes[1].length
    if tensor_cores.usable(dtype, positions, target[3] // groups):
        return 0
    return winograd.pays(axes, source, target, groups, dtype, card=launch.rates())


def filtering_of_sums(
    axes: tuple[Axis, Axis], x: tuple[int, ...], dy: tuple[int, ...], groups: int, dtype: np.dtype
) -> int:
    """The same for the gradient by the weight."""
    rows = len(axes[0].taps) * len(axes[1].taps) * x[3] // groups
    if tensor_cores.usable(dtype, rows, dy[3] // groups):
        return 0
    return winograd.pays(axes, x, dy, groups, dtype, sums=True, card=launch.rates())


@functools.lru_cache(maxsize=1024)
def _forward_axes(windows: Windows) -> tuple[Axis, Axis]:
    return forward_axis(windows, 0), forward_axis(windows, 1)


@functools.lru_cache(maxsize=1024)
def input_axes(windows: Windows) -> list[tuple[Axis, Axis]]:
    """All pairs of axes of the gradient by the input."""
    return list(itertools.product(_along(windows, 0), _along(windows, 1)))


@functools.lru_cache(maxsize=1024)
def second_classes(windows: Windows) -> tuple[Axis | None, Axis | None]:
    """The second axis of each direction, if one launch computes all pairs: else None and None.

    That is with strides of up to 2 that divide the size, where classes have as many positions.
    """
    both = [_along(windows, i) for i in (0, 1)]
    if any(len(axes) > 2 or len({axis.length for axis in axes}) > 1 for axes in both):
        return None, None
    rows, columns = (axes[1] if len(axes) == 2 else None for axes in both)
    return rows, columns


def _along(windows: Windows, i: int) -> list[Axis]:
    """The axes of the gradient by the input, and those of pixels between the windows: no taps.

    Those with the most taps come first.
    """
    axes = list(gradient_axes(windows, i))
    stride, size = windows.stride[i], windows.size[i]
    reached = {axis.target_first for axis in axes}
    for first in range(min(stride, size)):
        if first not in reached:
            axes.append(Axis(-(-(size - first) // stride), first, stride, 0, 1, 1, ()))
    return sorted(axes, key=lambda axis: -len(axis.taps))


def _check_groups(groups: Any, channels: int, filters: int) -> None:
    groups = check_integer("groups", groups)
    if channels % groups or filters % groups:
        raise ValueError(
            f"groups (={groups}) must divide the channels (={channels}) and the filters "
            f"(={filters})"
        )


def _check_weight(groups: Any, channels: int, weight: Any) -> None:
    _check_groups(groups, channels, weight.shape[3])
    if weight.shape[2] * groups != channels:
        raise ValueError(
            f"weight has shape {weight.shape}, its third axis must be channels / groups "
            f"(={channels // groups})"
        )


def _check_derivative(dy: Any, shape: tuple[int, ...]) -> None:
    if dy.shape != shape:
        raise ValueError(f"dy has shape {dy.shape}, the windows' output has {shape}")
