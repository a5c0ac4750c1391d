"""Convolution on NHWC images, HWIO weights: forward, and its gradients.

The forward pass and the gradient by the input are the same computation: an output position is a
sum over taps, each a position of a source image times a matrix of weights. For the gradient by the
input the source is the output derivative, and input positions fall into stride x stride classes,
each with the taps that reach it; a class is computed at once. `_Axis` says where taps lie along one
axis.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.image import read_rows
from kfc_numba.kernels.cpu.jit import parallel, serial
from kfc_numba.kernels.cpu.reduce import Jobs, sum_leading, sum_outer_products
from kfc_numba.kernels.cpu.tile import TILE_ROWS, tile, tile_lanes
from kfc_numba.kernels.geometry import Pair, normalize_padding, normalize_pair, output_size

_WEIGHTS = 128 * 1024  # bytes of weights that stay in the L2 cache while a band of rows passes
_NARROW = 8  # channels below which the taps of a kernel row are worth a copy with margins
_TASKS = 32  # least number of tasks that a batch is cut into


class Windows(NamedTuple):
    """Where the windows of a convolution lie: normalised arguments and output size."""

    kernel: Pair
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    size: Pair
    output: Pair

    @classmethod
    def of(cls, size: Pair, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Windows:
        """Normalise and check the arguments of a convolution over an image of `size`."""
        k = normalize_pair("kernel", kernel)
        s, d = normalize_pair("stride", stride), normalize_pair("dilation", dilation)
        p = normalize_padding(padding, k, s, d, size)
        output = tuple(output_size(size[i], k[i], s[i], d[i], *p[i]) for i in range(2))
        return cls(k, s, p, d, size, output)  # type: ignore[arg-type]

    def inside(self, i: int, tap: int) -> range:
        """Windows along axis i whose `tap` lies in the image, not in the padding."""
        first = tap * self.dilation[i] - self.padding[i][0]
        low = max(0, -(first // self.stride[i]))
        high = min(self.output[i], (self.size[i] - 1 - first) // self.stride[i] + 1)
        return range(low, max(low, high))

    def cell(self, i: int, window: int, tap: int) -> int:
        """Cell of the image, along axis i, that lies under a tap of a window."""
        return window * self.stride[i] + tap * self.dilation[i] - self.padding[i][0]

    def margins(self) -> Pair:
        """Pixels beside the image, left and right, that windows reach."""
        last = self.cell(1, self.output[1] - 1, self.kernel[1] - 1)
        return self.padding[1][0], max(0, last + 1 - self.size[1])


class _Axis(NamedTuple):
    """How positions of the target draw on the source, along one axis.

    Position p (0 <= p < length) of the target, at `target_first + p * target_step`, is the sum over
    taps m of the source at `source_first + p * source_step + m * tap_step`, where that lies in the
    image, times the weights of kernel index ``taps[m]``.
    """

    length: int
    target_first: int
    target_step: int
    source_first: int
    source_step: int
    tap_step: int
    taps: tuple[int, ...]


def _forward_axis(windows: Windows, i: int) -> _Axis:
    return _Axis(
        length=windows.output[i],
        target_first=0,
        target_step=1,
        source_first=-windows.padding[i][0],
        source_step=windows.stride[i],
        tap_step=windows.dilation[i],
        taps=tuple(range(windows.kernel[i])),
    )


def _gradient_axes(windows: Windows, i: int) -> list[_Axis]:
    """One axis for each class of input positions modulo the stride that any window reaches."""
    kernel, stride, dilation = windows.kernel[i], windows.stride[i], windows.dilation[i]
    size, before = windows.size[i], windows.padding[i][0]
    axes = []
    for first in range(min(stride, size)):
        # Window t has its tap d at t * stride + d * dilation - before.
        taps = [d for d in reversed(range(kernel)) if (first + before - d * dilation) % stride == 0]
        if taps:
            axes.append(
                _Axis(
                    length=-(-(size - first) // stride),
                    target_first=first,
                    target_step=stride,
                    source_first=(first + before - taps[0] * dilation) // stride,
                    source_step=1,
                    tap_step=dilation // math.gcd(stride, dilation),
                    taps=tuple(taps),
                )
            )
    return axes


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
                f"`bias` has shape {bias.shape}, it must be {weight.shape[3:]}, one a filter"
            )
    _check_groups(groups, x.shape[3], weight)
    windows = Windows.of(x.shape[1:3], weight.shape[:2], stride, padding, dilation)
    out = output_array(out, (len(x), *windows.output, weight.shape[3]), x.dtype)
    _run(x, weight, bias, out, _forward_axis(windows, 0), _forward_axis(windows, 1), groups, False)
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
        raise ValueError(f"`input_shape` (={input_shape}) must have 4 entries")
    _check_groups(groups, input_shape[3], weight)
    size = (input_shape[1], input_shape[2])
    windows = Windows.of(size, weight.shape[:2], stride, padding, dilation)
    _check_derivative(dy, (input_shape[0], *windows.output, weight.shape[3]))
    out = output_array(out, tuple(input_shape), dy.dtype)
    vertical, horizontal = _gradient_axes(windows, 0), _gradient_axes(windows, 1)
    if sum(a.length for a in vertical) < size[0] or sum(a.length for a in horizontal) < size[1]:
        out.fill(0)  # pixels between the windows
    for rows in vertical:
        for columns in horizontal:
            _run(dy, weight, None, out, rows, columns, groups, True)
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
    per_group, out_group = channels // groups, filters // groups
    weight = np.empty((*windows.kernel, per_group, filters), x.dtype)
    _check_groups(groups, channels, weight)
    # Few channels: all taps of a kernel row at once, out of rows with margins.
    merged = groups == 1 and windows.dilation[1] == 1 and channels < _NARROW
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
    bias = sum_outer_products(x, margins, dy, jobs, weight.reshape(-1), filters)
    return weight, bias.astype(x.dtype)


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


def _check_groups(groups: Any, channels: int, weight: np.ndarray) -> None:
    if isinstance(groups, bool) or not isinstance(groups, (int, np.integer)) or groups < 1:
        raise ValueError(f"`groups` (={groups!r}) must be an integer of at least 1")
    if channels % groups or weight.shape[3] % groups:
        raise ValueError(
            f"`groups` (={groups}) must divide the channels (={channels}) and the filters "
            f"(={weight.shape[3]})"
        )
    if weight.shape[2] * groups != channels:
        raise ValueError(
            f"`weight` has shape {weight.shape}, its third axis must be channels / groups "
            f"(={channels // groups})"
        )


def _check_derivative(dy: np.ndarray, shape: tuple[int, ...]) -> None:
    if dy.shape != shape:
        raise ValueError(f"`dy` has shape {dy.shape}, the windows' output has {shape}")


def _pack(weight: np.ndarray, rows: _Axis, columns: _Axis, groups: int, flip: bool) -> np.ndarray:
    """Weights as (groups, blocks of lanes, taps, taps, depth, lanes), zeros in unused lanes."""
    kh, kw, per_group, filters = weight.shape
    split = weight.reshape(kh, kw, per_group, groups, filters // groups)
    if len(rows.taps) < kh or rows.taps[0] != 0:
        split = split[list(rows.taps)]
    if len(columns.taps) < kw or columns.taps[0] != 0:
        split = split[:, list(columns.taps)]
    # To (groups, taps, taps, depth, width).
    split = split.transpose((3, 0, 1, 4, 2) if flip else (3, 0, 1, 2, 4))
    width = split.shape[4]
    lanes = tile_lanes(weight.dtype)
    if width <= lanes // 2:
        lanes //= 2
    blocks = -(-width // lanes)
    packed = np.zeros((groups, blocks, *split.shape[1:4], lanes), weight.dtype)
    for block in range(blocks):
        part = split[..., block * lanes : (block + 1) * lanes]
        packed[:, block, ..., : part.shape[-1]] = part
    return packed


def _run(
    source: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    target: np.ndarray,
    rows: _Axis,
    columns: _Axis,
    groups: int,
    flip: bool,
) -> None:
    packed = _pack(weight, rows, columns, groups, flip)
    start = np.zeros((groups, packed.shape[1], packed.shape[5]), source.dtype)
    if bias is not None:
        per_group = len(bias) // groups
        start.reshape(groups, -1)[:, :per_group] = bias.reshape(groups, per_group)
    bands = min(rows.length, -(-_TASKS // len(source)))
    band = -(-rows.length // bands)
    taps_y, row_bytes = packed.shape[2], packed[0, 0, 0].nbytes
    split = max(1, min(taps_y, _WEIGHTS // row_bytes))
    left = right = 0
    if packed.shape[4] < _NARROW:
        # Few channels: rows with margins, so that all taps of a kernel row are one run.
        last = columns.source_first + (columns.length - 1) * columns.source_step
        last += (len(columns.taps) - 1) * columns.tap_step
        left, right = max(0, -columns.source_first), max(0, last + 1 - source.shape[2])
    _convolve(
        source.reshape(-1),
        source.shape,
        packed.reshape(-1),
        packed.shape,
        start.reshape(-1),
        target.reshape(-1),
        target.shape,
        rows[:-1],
        columns[:-1],
        (band, split, left, right),
    )


@parallel
def _convolve(
    source, source_shape, packed, packed_shape, start, target, target_shape, rows, columns, cut
):
    """Sum over taps for each position; arrays flat, `rows` and `columns` as in `_Axis`."""
    bands = -(-rows[0] // cut[0])
    for task in prange(source_shape[0] * bands):
        _convolve_band(
            source,
            source_shape,
            packed,
            packed_shape,
            start,
            target,
            target_shape,
            rows,
            columns,
            cut,
            task // bands,
            task % bands,
        )


@serial
def _taps_inside(first, tap_step, taps, size):
    """Taps, as a half-open range, that lie in an image: ``0 <= first + m * tap_step < size``."""
    return max(0, -(first // tap_step)), min(taps, (size - 1 - first) // tap_step + 1)


@serial
def _fill(target, place, pitch, height, start, start_at, lanes):
    for x in range(height):
        for v in range(lanes):
            target[place + x * pitch + v] = start[start_at + v]


# A function of its own: Numba 0.68 mistakes an array that is assigned twice in the body of a
# parallel loop for its first value.
@serial
def _convolve_band(
    source, source_shape, packed, packed_shape, start, target, target_shape, rows, columns, cut,
    n, band,
):  # fmt: skip
    _, height, width, channels = source_shape
    groups, blocks, taps_y, taps_x, depth, block_lanes = packed_shape
    _, target_height, target_width, filters = target_shape
    length_y, first_y, step_y, source_first_y, source_y, tap_y = rows
    length_x, first_x, step_x, source_first_x, source_x, tap_x = columns
    band_rows, split, left, right = cut
    out_group = filters // groups
    y_begin = band * band_rows
    y_end = min(length_y, y_begin + band_rows)
    top = source_first_y + y_begin * source_y
    bottom = source_first_y + (y_end - 1) * source_y + (taps_y - 1) * tap_y + 1
    top, bottom = min(max(top, 0), height), max(min(bottom, height), 0)
    image, origin = read_rows(source, source_shape, n, (left, right), top, bottom)
    source_first_x += left
    width += left + right
    pitch = width * channels
    origin -= top * pitch
    # A kernel row is one contiguous run if its taps are neighbours.
    contiguous = groups == 1 and (tap_x == 1 or taps_x == 1)
    run = depth * block_lanes
    tiles_x = -(-length_x // TILE_ROWS)
    a_x, c_x = source_x * channels, step_x * filters
    for group in range(groups):
        for block in range(blocks):
            lanes = min(block_lanes, out_group - block * block_lanes)
            panel = (group * blocks + block) * taps_y * taps_x * run
            bias = (group * blocks + block) * block_lanes
            # No more rows of the kernel at a time than have their weights stay in the cache.
            for slice_begin in range(0, taps_y, split):
                slice_end = min(taps_y, slice_begin + split)
                for y in range(y_begin, y_end):
                    v = source_first_y + y * source_y
                    tap, tap_end = _taps_inside(v, tap_y, taps_y, height)
                    tap, tap_end = max(tap, slice_begin), min(tap_end, slice_end)
                    taps = tap_end - tap
                    a_row = origin + (v + tap * tap_y) * pitch + group * depth
                    b_row = panel + tap * taps_x * run
                    c_row = (n * target_height + first_y + y * step_y) * target_width + first_x
                    c_row = c_row * filters + group * out_group + block * block_lanes
                    for t in range(tiles_x):
                        x = t * length_x // tiles_x
                        x_end = (t + 1) * length_x // tiles_x
                        u = source_first_x + x * source_x
                        u_end = source_first_x + (x_end - 1) * source_x + (taps_x - 1) * tap_x
                        c = c_row + x * c_x
                        fresh = slice_begin == 0
                        if taps > 0 and contiguous and u >= 0 and u_end < width:
                            tile(
                                image, a_row + u * channels, a_x, tap_y * pitch, 1,
                                packed, b_row, taps_x * run, block_lanes,
                                start if fresh else target,
                                bias if fresh else c,
                                0 if fresh else c_x,
                                target, c, c_x,
                                taps, taps_x * depth, x_end - x, lanes,
                            )  # fmt: skip
                            continue
                        # One tap of the kernel row at a time, for the positions that have it in
                        # the image; a middle tap first, which most often all of them have.
                        for k in range(taps_x):
                            m = (taps_x // 2 + k) % taps_x
                            w = source_first_x + m * tap_x
                            z = max(x, -(w // source_x))
                            z_end = min(x_end, (width - 1 - w) // source_x + 1)
                            some = taps > 0 and z < z_end
                            if fresh and not (some and z == x and z_end == x_end):
                                _fill(target, c, c_x, x_end - x, start, bias, lanes)
                                fresh = False
                            if some:
                                place = c_row + z * c_x
                                tile(
                                    image, a_row + (w + z * source_x) * channels, a_x,
                                    tap_y * pitch, 1,
                                    packed, b_row + m * run, taps_x * run, block_lanes,
                                    start if fresh else target,
                                    bias if fresh else place,
                                    0 if fresh else c_x,
                                    target, place, c_x,
                                    taps, depth, z_end - z, lanes,
                                )  # fmt: skip
                                fresh = False
