"""Convolution on NHWC images, HWIO weights: forward, and its gradients."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from kfc_numba.checks import check_integer
from kfc_numba.kernels.cpu import direct, winograd, winograd_sums
from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.direct import NARROW, Axis, forward_axis, gradient_axes
from kfc_numba.kernels.cpu.outer_products import Jobs, sum_leading, sum_outer_products
from kfc_numba.kernels.geometry import Pair, Windows


def conv2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolution (cross-correlation) of a batch of images.

    ``out[n, t, i] = bias[i] + sum_{d, j} weight[d, j, i] * x[n, u, j]`` with
    ``u = t * stride + d * dilation - padding``, and zeros outside the image.

    Parameters
    ----------
    x : numpy.ndarray
        Images, (examples, height, width, channels), float32 or float64.
    weight : numpy.ndarray
        (kernel height, kernel width, channels / groups, filters), of the dtype of `x`.
    bias : numpy.ndarray, optional
        (filters,).
    stride, dilation : int or pair of int
        Vertical and horizontal.
    padding : "same", "valid", int, pair of int or pair of pairs of int
        Zeros around the image: on all sides, (vertical, horizontal), or
        ((top, bottom), (left, right)).
    groups : int
        Number of groups of channels and of filters; a filter sees the channels of its group.
    out : numpy.ndarray, optional
        Where to write the result.

    Returns
    -------
    numpy.ndarray
        (examples, output height, output width, filters).

    Raises
    ------
    ValueError, TypeError
        Shapes or dtypes that do not fit, windows larger than the padded image.
    """
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
    out = output_array(out, (len(x), *windows.output, weight.shape[3]), x.dtype)
    axes = ((forward_axis(windows, 0), forward_axis(windows, 1)),)
    _convolve(x, weight, bias, out, axes, groups, False)
    return out


def conv2d_grad_input(
    dy: np.ndarray,
    weight: np.ndarray,
    input_shape: tuple[int, ...],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Derivative of ``sum(dy * conv2d_forward(x, weight))`` by `x`.

    Parameters
    ----------
    dy : numpy.ndarray
        Derivatives of the output, (examples, output height, output width, filters).
    weight : numpy.ndarray
        (kernel height, kernel width, channels / groups, filters), of the dtype of `dy`.
    input_shape : tuple of int
        Shape of `x`.
    stride, padding, dilation, groups
        As in `conv2d_forward`.
    out : numpy.ndarray, optional
        Where to write the result.

    Returns
    -------
    numpy.ndarray
        Of shape `input_shape`.

    Raises
    ------
    ValueError, TypeError
        As in `conv2d_forward`.
    """
    dy = checked("dy", dy, 4)
    weight = checked("weight", weight, 4, dy.dtype)
    if len(input_shape) != 4:
        raise ValueError(f"input_shape (={input_shape}) must have 4 entries")
    _check_weight(groups, input_shape[3], weight)
    size = (input_shape[1], input_shape[2])
    windows = Windows.of(size, weight.shape[:2], stride, padding, dilation)
    _check_derivative(dy, (input_shape[0], *windows.output, weight.shape[3]))
    out = output_array(out, tuple(input_shape), dy.dtype)
    vertical, horizontal = gradient_axes(windows, 0), gradient_axes(windows, 1)
    if sum(a.length for a in vertical) < size[0] or sum(a.length for a in horizontal) < size[1]:
        out.fill(0)  # pixels between the windows
    axes = tuple(itertools.product(vertical, horizontal))
    _convolve(dy, weight, None, out, axes, groups, True)
    return out


def conv2d_grad_weight(
    x: np.ndarray,
    dy: np.ndarray,
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> np.ndarray:
    """Derivative of ``sum(dy * conv2d_forward(x, weight))`` by `weight`.

    Parameters
    ----------
    x : numpy.ndarray
        Images, (examples, height, width, channels).
    dy : numpy.ndarray
        Derivatives of the output, (examples, output height, output width, filters).
    kernel : int or pair of int
        Height and width of the kernel.
    stride, padding, dilation, groups
        As in `conv2d_forward`.

    Returns
    -------
    numpy.ndarray
        (kernel height, kernel width, channels / groups, filters).

    Raises
    ------
    ValueError, TypeError
        As in `conv2d_forward`.
    """
    return conv2d_grad_parameters(
        x, dy, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )[0]


def conv2d_grad_parameters(
    x: np.ndarray,
    dy: np.ndarray,
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of ``sum(dy * conv2d_forward(x, weight, bias))`` by `weight` and `bias`.

    Parameters
    ----------
    x : numpy.ndarray
        Images, (examples, height, width, channels).
    dy : numpy.ndarray
        Derivatives of the output, (examples, output height, output width, filters).
    kernel : int or pair of int
        Height and width of the kernel.
    stride, padding, dilation, groups
        As in `conv2d_forward`.

    Returns
    -------
    weight : numpy.ndarray
        (kernel height, kernel width, channels / groups, filters).
    bias : numpy.ndarray
        (filters,).

    Raises
    ------
    ValueError, TypeError
        As in `conv2d_forward`.
    """
    x = checked("x", x, 4)
    dy = checked("dy", dy, 4, x.dtype)
    windows = Windows.of(x.shape[1:3], kernel, stride, padding, dilation)
    _check_derivative(dy, (len(x), *windows.output, dy.shape[3]))
    channels, filters = x.shape[3], dy.shape[3]
    _check_groups(groups, channels, filters)
    per_group = channels // groups
    axes = forward_axis(windows, 0), forward_axis(windows, 1)
    if winograd.pays(*axes, x.shape, per_group, filters):
        weight, bias = winograd_sums.sum_outer_products(x, dy, windows, groups)
        return weight, bias.astype(x.dtype)
    weight = np.empty((*windows.kernel, per_group, filters), x.dtype)
    jobs, margins = _weight_jobs(windows, channels, filters, groups)
    bias = sum_outer_products(x, margins, dy, jobs, weight.reshape(-1), filters)
    return weight, bias.astype(x.dtype)


@functools.lru_cache(maxsize=1024)
def _weight_jobs(windows: Windows, channels: int, filters: int, groups: int) -> tuple[Jobs, Pair]:
    """Products to sum for a weight gradient, and the margins that rows of the image need."""
    per_group, out_group = channels // groups, filters // groups
    # Few channels: all taps of a kernel row at once, out of rows with margins.
    merged = groups == 1 and windows.dilation[1] == 1 and channels < NARROW
    margins = windows.margins() if merged else (0, 0)
    pitch = (margins[0] + windows.size[1] + margins[1]) * channels
    jobs = Jobs(
        a_strides=(windows.stride[0] * pitch, windows.stride[1] * channels),
        b_strides=(windows.output[1] * filters, filters),
    )
    for ky, kx in np.ndindex(windows.kernel[0], 1 if merged else windows.kernel[1]):
        rows = windows.inside(0, ky)
        columns = range(windows.output[1]) if merged else windows.inside(1, kx)
        if not rows or not columns:
            continue
        left = columns[0] * windows.stride[1] if merged else windows.cell(1, columns[0], kx)
        for group in range(groups):
            jobs.add(
                a=windows.cell(0, rows[0], ky) * pitch + left * channels + group * per_group,
                height=windows.kernel[1] * channels if merged else per_group,
                b=(rows[0] * windows.output[1] + columns[0]) * filters + group * out_group,
                lanes=out_group,
                c=(ky * windows.kernel[1] + kx) * per_group * filters + group * out_group,
                c_pitch=filters,
                extent=(len(rows), len(columns)),
            )
    return jobs, margins


def conv2d_grad_bias(dy: np.ndarray) -> np.ndarray:
    """Sum of the output derivatives over all axes but the last.

    Parameters
    ----------
    dy : numpy.ndarray
        (..., filters), float32 or float64.

    Returns
    -------
    numpy.ndarray
        (filters,), summed in float64 and rounded once.
    """
    dy = checked("dy", dy, None)
    total = sum_leading(dy.reshape(len(dy), -1))
    return total.reshape(-1, dy.shape[-1]).sum(axis=0).astype(dy.dtype)


def _convolve(
    source: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    target: np.ndarray,
    axes: tuple[tuple[Axis, Axis], ...],
    groups: int,
    flip: bool,
) -> None:
    """`direct.convolve`, or what takes less time."""
    others = []
    for rows, columns in axes:
        depth = source.shape[3] // groups
        if winograd.pays(rows, columns, source.shape, depth, target.shape[3]):
            winograd.convolve(source, weight, bias, target, rows, columns, groups, flip)
        else:
            others.append((rows, columns))
    if others:
        direct.convolve(source, weight, bias, target, tuple(others), groups, flip)


def _check_groups(groups: Any, channels: int, filters: int) -> None:
    groups = check_integer("groups", groups)
    if channels % groups or filters % groups:
        raise ValueError(
            f"groups (={groups}) must divide the channels (={channels}) and the filters "
            f"(={filters})"
        )


def _check_weight(groups: Any, channels: int, weight: np.ndarray) -> None:
    _check_groups(groups, channels, weight.shape[3])
    if weight.shape[2] * groups != channels:
        raise ValueError(
            f"weight has shape {weight.shape}, its third axis must be channels / groups "
            f"(={channels // groups})"
        )


def _check_derivative(dy: np.ndarray, shape: tuple[int, ...]) -> None:
    if dy.shape != shape:
        raise ValueError(f"dy has shape {dy.shape}, the windows' output has {shape}")
