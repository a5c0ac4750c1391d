"""Sums over the taps of a window: the computation under forward convolution and its transpose.

An output position is a sum over taps, each a position of a source image times a matrix of weights.
For the gradient by the input the source is the output derivative, and input positions fall into
stride x stride classes, each with the taps that reach it; a class is computed at once. Taps that
lie in the padding are skipped, not multiplied by zeros, and nothing is copied, but for images of
few channels.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.image_rows import read_rows
from kfc_numba.kernels.cpu.jit import parallel, serial
from kfc_numba.kernels.cpu.panels import Panels, pack_panel, progression
from kfc_numba.kernels.cpu.tile import TILE_ROWS, tile
from kfc_numba.kernels.geometry import Pair, Windows

_WEIGHTS = 128 * 1024  # bytes of weights that stay in the L2 cache while a band of rows passes
_PIXELS = 256  # that a part of the weights should serve at least
_FEW_PIXELS = 256  # for which weights are read where they are: packing would take longer
_TASKS = 32  # least number of tasks that a batch is cut into
#: Channels below which the taps of a kernel row are worth a copy of the image with margins.
NARROW = 8


class Axis(NamedTuple):
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


@functools.lru_cache(maxsize=1024)
def forward_axis(windows: Windows, i: int) -> Axis:
    return Axis(
        length=windows.output[i],
        target_first=0,
        target_step=1,
        source_first=-windows.padding[i][0],
        source_step=windows.stride[i],
        tap_step=windows.dilation[i],
        taps=tuple(range(windows.kernel[i])),
    )


@functools.lru_cache(maxsize=1024)
def gradient_axes(windows: Windows, i: int) -> tuple[Axis, ...]:
    """One axis for each class of input positions modulo the stride that any window reaches."""
    kernel, stride, dilation = windows.kernel[i], windows.stride[i], windows.dilation[i]
    size, before = windows.size[i], windows.padding[i][0]
    axes = []
    for first in range(min(stride, size)):
        # Window t has its tap d at t * stride + d * dilation - before.
        taps = [d for d in reversed(range(kernel)) if (first + before - d * dilation) % stride == 0]
        if taps:
            axes.append(
                Axis(
                    length=-(-(size - first) // stride),
                    target_first=first,
                    target_step=stride,
                    source_first=(first + before - taps[0] * dilation) // stride,
                    source_step=1,
                    tap_step=dilation // math.gcd(stride, dilation),
                    taps=tuple(taps),
                )
            )
    return tuple(axes)


def inside(axis: Axis, size: int) -> int:
    """Number of pairs of a position and a tap that lie in an image of some size."""
    count = 0
    for m in range(len(axis.taps)):
        first = axis.source_first + m * axis.tap_step
        low = max(0, -(first // axis.source_step))
        high = min(axis.length, (size - 1 - first) // axis.source_step + 1)
        count += max(0, high - low)
    return count


def convolve(
    source: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    target: np.ndarray,
    axes: tuple[tuple[Axis, Axis], ...],
    groups: int,
    flip: bool,
) -> None:
    """Sum over taps for all positions of some pairs of axes, into `target`.

    Parameters
    ----------
    source : numpy.ndarray
        (examples, height, width, channels).
    weight : numpy.ndarray
        (kernel height, kernel width, channels / groups, filters).
    bias : numpy.ndarray or None
        What the sums start from, one a channel of the target.
    target : numpy.ndarray
        (examples, height, width, channels); positions outside the axes are left as they are.
    axes : tuple of (Axis, Axis)
        Vertical and horizontal; pairs have no position in common.
    groups : int
    flip : bool
        Whether the sum runs over filters, for the gradient by the input, and not over channels.
    """
    if len(source) >= _TASKS and all(_is_pixelwise(*pair, source.shape) for pair in axes):
        # Images as single rows, which are longer.
        n, height, width, _ = source.shape
        source = source.reshape(n, 1, height * width, source.shape[3])
        target = target.reshape(n, 1, height * width, target.shape[3])
        ((rows, columns),) = axes
        axes = ((rows._replace(length=1), columns._replace(length=height * width)),)
    panels = Panels.of(weight.shape, groups, flip, weight.dtype)
    sizes, table = _plan(axes, source.shape, target.shape, panels, weight.itemsize)
    size = sizes[_PACKED]
    _convolve(
        source.reshape(-1),
        weight.reshape(-1),
        panels,
        np.empty(size, weight.dtype) if size else weight.reshape(-1),
        panels.bias(bias, weight.dtype),
        target.reshape(-1),
        sizes,
        table,
    )


def _is_pixelwise(rows: Axis, columns: Axis, source: tuple[int, ...]) -> bool:
    """Whether every pixel of the source makes the pixel at its place, by a single tap."""
    return all(
        len(axis.taps) == axis.source_step == axis.target_step == 1
        and axis.source_first == axis.target_first == 0
        and axis.length == size
        for axis, size in ((rows, source[1]), (columns, source[2]))
    )


_PACKED = -1  # place in the sizes of `_plan`


@functools.lru_cache(maxsize=1024)
def _plan(
    axes: tuple[tuple[Axis, Axis], ...],
    source: tuple[int, ...],
    target: tuple[int, ...],
    panels: Panels,
    itemsize: int,
) -> tuple[np.ndarray, np.ndarray]:
    """How the work is cut: sizes of the arrays, and for each pair of axes a row of numbers.

    A row holds the first task, the place of the weights, both axes but for their taps, the cut
    (images and rows of a task, kernel rows at a time, margins), the first task of packing, the taps
    of both axes, and distances in the weights: of groups, blocks of lanes, taps, and terms of the
    sum.
    """
    table = []
    tasks = place = packing = 0
    for rows, columns in axes:
        taps_y, taps_x = len(rows.taps), len(columns.taps)
        bands = min(rows.length, -(-_TASKS // source[0]))
        band = -(-rows.length // bands)
        row_bytes = taps_x * panels.depth * panels.lanes * itemsize
        split = max(1, min(taps_y, _WEIGHTS // row_bytes))
        left = right = 0
        if panels.depth < NARROW:
            # Few channels: rows with margins, so that all taps of a kernel row are one run.
            left, right = margins(columns, source[2])
        images = 1
        size = panels.size(rows.taps, columns.taps)
        if bands == 1 and left + right == 0 and size * itemsize > _WEIGHTS:
            # Small images, many weights: a part of the weights is fetched once for some images.
            images = max(1, min(source[0] // 8, _PIXELS // (rows.length * columns.length)))
        cut = (images, band, split, left, right)
        taps = *progression(rows.taps), *progression(columns.taps)
        run = panels.depth * panels.lanes
        block = taps_y * taps_x * run
        steps = (panels.blocks * block, block, run, panels.lanes)
        in_place = not panels.flip and source[0] * rows.length * columns.length <= _FEW_PIXELS
        if in_place:
            out_group = panels.filters // panels.groups
            steps = (out_group, panels.lanes, panels.depth * panels.filters, panels.filters)
        table.append((tasks, place, *rows[:-1], *columns[:-1], *cut, packing, *taps, *steps))
        tasks += -(-source[0] // images) * -(-rows.length // band)
        if not in_place:
            packing += panels.tasks(rows.taps, columns.taps)
            place += size
    return np.array((*source, *target[1:], tasks, packing, 1, place)), np.array(table)


def margins(columns: Axis, width: int) -> Pair:
    """Pixels beside an image of some width, left and right, that an axis draws on."""
    last = columns.source_first + (columns.length - 1) * columns.source_step
    last += (len(columns.taps) - 1) * columns.tap_step
    return max(0, -columns.source_first), max(0, last + 1 - width)


@parallel
def _convolve(source, weight, panels, packed, start, target, sizes, table):
    """Sum over taps for each position; arrays flat, `sizes` and `table` as from `_plan`."""
    for task in prange(sizes[8]):
        _pack(weight, packed, panels, table, np.int64(task))
    for task in prange(sizes[7]):
        _convolve_band(source, packed, panels, start, target, sizes, table, np.int64(task))


@serial
def _pack(weight, packed, panels, table, task):
    """Pack the panel of a task of packing."""
    c = table.shape[0] - 1
    while table[c, 19] > task:
        c -= 1
    taps = table[c, 20], table[c, 21], table[c, 22]
    taps_x = table[c, 23], table[c, 24], table[c, 25]
    pack_panel(weight, packed, table[c, 1], panels, taps, taps_x, task - table[c, 19])


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
def _convolve_band(source, packed, panels, start, target, sizes, table, task):
    """Sum over taps for some rows of some images."""
    n_images, height, width, channels = sizes[0], sizes[1], sizes[2], sizes[3]
    target_height, target_width, filters, one = sizes[4], sizes[5], sizes[6], sizes[9]
    _, _, _, groups, _, blocks, depth, block_lanes = panels
    c = table.shape[0] - 1
    while table[c, 0] > task:
        c -= 1
    packed_at = table[c, 1]
    length_y, first_y, step_y = table[c, 2], table[c, 3], table[c, 4]
    source_first_y, source_y, tap_y = table[c, 5], table[c, 6], table[c, 7]
    length_x, first_x, step_x = table[c, 8], table[c, 9], table[c, 10]
    source_first_x, source_x, tap_x = table[c, 11], table[c, 12], table[c, 13]
    images, band_rows, split = table[c, 14], table[c, 15], table[c, 16]
    left, right = table[c, 17], table[c, 18]
    taps_y, taps_x = table[c, 22], table[c, 25]
    b_group, b_block, b_tap, b_term = table[c, 26], table[c, 27], table[c, 28], table[c, 29]
    bands = -(-length_y // band_rows)
    task -= table[c, 0]
    first = task // bands * images
    band = task % bands
    out_group = filters // groups
    y_begin = band * band_rows
    y_end = min(length_y, y_begin + band_rows)
    top = source_first_y + y_begin * source_y
    bottom = source_first_y + (y_end - 1) * source_y + (taps_y - 1) * tap_y + 1
    top, bottom = min(max(top, 0), height), max(min(bottom, height), 0)
    shape = n_images, height, width, channels
    image, origin = read_rows(source, shape, first, (left, right), top, bottom)
    image_size = height * width * channels
    source_first_x += left
    width += left + right
    pitch = width * channels
    origin -= top * pitch
    # A kernel row is one contiguous run if its taps are neighbours.
    contiguous = groups == 1 and (tap_x == 1 or taps_x == 1)
    tiles_x = -(-length_x // TILE_ROWS)
    a_x, c_x = source_x * channels, step_x * filters
    last_x = source_first_x + (length_x - 1) * source_x + (taps_x - 1) * tap_x
    inside_x = source_first_x >= 0 and last_x < width
    for group in range(groups):
        for block in range(blocks):
            lanes = min(block_lanes, out_group - block * block_lanes)
            panel = packed_at + group * b_group + block * b_block
            bias = (group * blocks + block) * block_lanes
            # No more rows of the kernel at a time than have their weights stay in the cache.
            for slice_begin in range(0, taps_y, split):
                slice_end = min(taps_y, slice_begin + split)
                for n in range(first, min(first + images, n_images)):
                    for y in range(y_begin, y_end):
                        v = source_first_y + y * source_y
                        tap, tap_end = _taps_inside(v, tap_y, taps_y, height)
                        tap, tap_end = max(tap, slice_begin), min(tap_end, slice_end)
                        taps = tap_end - tap
                        a_row = origin + (v + tap * tap_y) * pitch + group * depth
                        a_row += (n - first) * image_size
                        b_row = panel + tap * taps_x * b_tap
                        c_row = (n * target_height + first_y + y * step_y) * target_width + first_x
                        c_row = c_row * filters + group * out_group + block * block_lanes
                        # A row that nowhere touches the border is one call, others one a tile.
                        whole = taps > 0 and contiguous and inside_x
                        pieces = 1 if whole else tiles_x
                        for t in range(pieces):
                            x = t * length_x // pieces
                            x_end = (t + 1) * length_x // pieces
                            u = source_first_x + x * source_x
                            u_end = source_first_x + (x_end - 1) * source_x + (taps_x - 1) * tap_x
                            c = c_row + x * c_x
                            fresh = slice_begin == 0
                            if taps > 0 and contiguous and u >= 0 and u_end < width:
                                tile(
                                    image, a_row + u * channels, a_x, tap_y * pitch, one,
                                    packed, b_row, taps_x * b_tap, b_term,
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
                                        tap_y * pitch, one,
                                        packed, b_row + m * b_tap, taps_x * b_tap, b_term,
                                        start if fresh else target,
                                        bias if fresh else place,
                                        0 if fresh else c_x,
                                        target, place, c_x,
                                        taps, depth, z_end - z, lanes,
                                    )  # fmt: skip
                                    fresh = False
