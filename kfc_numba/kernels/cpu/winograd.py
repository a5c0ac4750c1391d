"""Convolution with fewer multiplications: Winograd's minimal filtering, along the vertical axis.

A block of m output rows under a kernel of r rows takes m * r products of an image row with a kernel
row when done by the definition, and m + r - 1 by interpolation,

    y = A' [(G g) * (B' d)],

where d are the m + r - 1 input rows under the block, g the rows of the kernel, and * multiplies
point by point (`winograd_points.py` has the matrices). Each "multiplication" is itself a
convolution along the row, over all channels, done by the register tile. The derivatives are
transposes: by the input a convolution again, by the kernel ``G' sum [(A dy) * (B' d)]``, so that
the sum over images runs in the transformed domain.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.direct import NARROW, Axis, inside, margins
from kfc_numba.kernels.cpu.jit import parallel, serial
from kfc_numba.kernels.cpu.linear_combination import combination
from kfc_numba.kernels.cpu.outer_products import (
    CHUNKS,
    PARTS_BYTES,
    PIXELS,
    Jobs,
    sum_block,
    sum_columns,
)
from kfc_numba.kernels.cpu.panels import Panels, pack_panel, progression
from kfc_numba.kernels.cpu.tile import tile, tile_lanes
from kfc_numba.kernels.cpu.winograd_points import TAPS, points_and_rows, transforms, transposed
from kfc_numba.kernels.geometry import Pair, Windows

Shape4 = tuple[int, int, int, int]

_combine_input = combination([transforms(taps)[2] for taps in TAPS])
_combine_output = combination([transforms(taps)[0] for taps in TAPS], start=True)
_combine_derivative = combination([transposed(transforms(taps)[0]) for taps in TAPS])
_combine_weight = combination([transforms(taps)[1] for taps in TAPS])
_combine_weight_derivative = combination([transposed(transforms(taps)[1]) for taps in TAPS])

# What parts of the work cost beside a multiply-add of vectors, measured on AVX-512.
_TILE = 4  # a vector of results of a tile
_PRODUCT = 10  # the same, of one point, with its part in the transform that follows
_TRANSFORM = 5  # an input row of a block, for a vector of channels
_WEIGHT = 200  # a number of the weights, transformed and packed
_MARGIN = 0.95  # of the time, that is to be gained

_SCRATCH = 128 * 1024  # bytes of transformed input rows that a task makes at a time
_TASKS = 32  # least number of tasks that a batch is cut into


def possible(rows: Axis, height: int) -> bool:
    """Whether there are transforms for an axis along images of some height."""
    # And no rows that draw on padding alone.
    return (
        len(rows.taps) in TAPS
        and rows.source_step == rows.tap_step == 1
        and -len(rows.taps) < rows.source_first <= height - rows.length
    )


@functools.lru_cache(maxsize=1024)
def pays(rows: Axis, columns: Axis, images: Shape4, depth: int, filters: int) -> bool:
    """Whether a convolution takes less time this way; all its derivatives then do.

    Parameters
    ----------
    rows, columns : Axis
    images : tuple of int
        Shape of the source: (examples, height, width, channels).
    depth : int
        Channels of the source that a sum runs over.
    filters : int
        Channels of the target.

    Returns
    -------
    bool
    """
    examples, height, width, channels = images
    if not possible(rows, height):
        return False
    taps, taps_x = len(rows.taps), len(columns.taps)
    # Multiply-adds of vectors for each vector of filters, and what else takes as long as one.
    positions = rows.length * columns.length
    direct = depth * inside(rows, height) * inside(columns, width) + _TILE * positions
    points, block_rows = points_and_rows(taps)
    blocks = -(-rows.length // block_rows)
    product = (depth * taps_x + _PRODUCT) * columns.length
    transform = _TRANSFORM * points * width * channels / filters
    weights = _WEIGHT * depth * taps * taps_x / examples
    return points * blocks * product + blocks * transform + weights < _MARGIN * direct


def convolve(
    source: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    target: np.ndarray,
    rows: Axis,
    columns: Axis,
    groups: int,
    flip: bool,
) -> None:
    """`direct.convolve`, for rows that are `possible`."""
    panels = Panels.of(weight.shape, groups, flip, weight.dtype)
    sizes, cut, taps = _plan(rows, columns, source.shape, target.shape, panels, weight.itemsize)
    _convolve(
        source.reshape(-1),
        weight.reshape(-1),
        panels,
        taps,
        np.empty(cut[0] * weight[0].size, weight.dtype),
        np.empty(panels.size(range(cut[0]), columns.taps), weight.dtype),
        panels.bias(bias, weight.dtype),
        target.reshape(-1),
        sizes,
        cut,
    )


@functools.lru_cache(maxsize=1024)
def _plan(
    rows: Axis,
    columns: Axis,
    source: Shape4,
    target: Shape4,
    panels: Panels,
    itemsize: int,
) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """Sizes of the arrays and both axes but for their taps; how the work is cut; and the taps."""
    taps = len(rows.taps)
    points, block_rows = points_and_rows(taps)
    blocks_y = -(-rows.length // block_rows)
    left, right = margins(columns, source[2])
    row_bytes = points * (left + source[2] + right) * source[3] * itemsize
    blocks = source[0] * blocks_y
    per_task = max(1, min(_SCRATCH // row_bytes, -(-blocks // _TASKS)))
    cut = (points, blocks_y, block_rows, per_task, left, right, taps - TAPS[0], 0, 0, 1)
    sizes = np.array((*source, *target[1:], *rows[:-1], *columns[:-1]))
    return sizes, cut, (*progression(rows.taps), *progression(columns.taps))


@parallel
def _convolve(source, weight, panels, taps, transformed, packed, start, target, sizes, cut):
    for x in prange(panels[0]):
        _transform_weight(weight, panels, taps, cut, transformed, np.int64(x))
    for task in prange(panels[3] * panels[5] * cut[0] * taps[5]):
        pack_panel(transformed, packed, 0, panels, (0, 1, cut[0]), taps[3:], np.int64(task))
    for task in prange(-(-sizes[0] * cut[1] // cut[3])):
        _convolve_blocks(source, packed, panels, taps[5], start, target, sizes, cut, np.int64(task))


@serial
def _transform_weight(weight, panels, taps, cut, transformed, x):
    """G g for one column of the kernel."""
    points, case, none, one = cut[0], cut[6], cut[8], cut[9]
    run = panels[1] * panels[2]
    row = panels[0] * run
    _combine_weight(
        weight, taps[0] * row + x * run, taps[1] * row, none, none, taps[2], weight, none,
        transformed, x * run, row, none, points, one, run, case,
    )  # fmt: skip


@serial
def _transform_rows(source, source_shape, first_row, cut, begin, count, capacity, result):
    """B' d for `count` blocks of rows: (points, capacity, left + width + right, channels), flat."""
    _, height, width, channels = source_shape
    points, blocks_y, block_rows, _, left, right, case, _, none, one = cut
    row, before, after = width * channels, left * channels, right * channels
    pitch = before + row + after
    for k in range(points):
        for r in range(count):
            place = (k * capacity + r) * pitch
            result[place : place + before] = 0
            result[place + before + row : place + pitch] = 0
    for r in range(count):
        n = (begin + r) // blocks_y
        y = (begin + r - n * blocks_y) * block_rows + first_row
        _combine_input(
            source, (n * height + y) * row, row, none, max(none, -y), min(points, height - y),
            source, none,
            result, r * pitch + before, capacity * pitch, none, points, one, row, case,
        )  # fmt: skip


@serial
def _convolve_blocks(source, packed, panels, taps_x, start, target, sizes, cut, task):
    """Output rows of some blocks."""
    n_images, height, width, channels = sizes[0], sizes[1], sizes[2], sizes[3]
    target_height, target_width, filters = sizes[4], sizes[5], sizes[6]
    length_y, first_y, step_y, source_first_y = sizes[7], sizes[8], sizes[9], sizes[10]
    length_x, first_x, step_x = sizes[13], sizes[14], sizes[15]
    source_first_x, source_x, tap_x = sizes[16], sizes[17], sizes[18]
    _, _, _, groups, _, blocks, depth, block_lanes = panels
    points, blocks_y, block_rows, per_task, left, right, case, _, none, one = cut
    source_shape = n_images, height, width, channels
    begin = task * per_task
    count = min(per_task, n_images * blocks_y - begin)
    out_group = filters // groups
    pitch = (left + width + right) * channels
    plane = count * pitch
    positions = count * length_x
    products = points * plane
    nothing = products + points * positions * block_lanes  # zeros that the tiles start from
    scratch = np.empty(nothing + block_lanes, source.dtype)
    scratch[nothing:] = 0
    _transform_rows(source, source_shape, source_first_y, cut, begin, count, count, scratch)
    contiguous = groups == 1 and tap_x == 1
    tile_rows = one if contiguous else taps_x
    tile_columns = taps_x * depth if contiguous else depth
    run = depth * block_lanes
    a_x, a_i = source_x * channels, tap_x * channels
    for group in range(groups):
        for block in range(blocks):
            lanes = min(block_lanes, out_group - block * block_lanes)
            for k in range(points):
                panel = ((group * blocks + block) * points + k) * taps_x * run
                for r in range(count):
                    a = k * plane + r * pitch + (left + source_first_x) * channels + group * depth
                    c = products + (k * positions + r * length_x) * block_lanes
                    tile(
                        scratch, a, a_x, a_i, one,
                        packed, panel, run, block_lanes,
                        scratch, nothing, none,
                        scratch, c, block_lanes,
                        tile_rows, tile_columns, length_x, lanes,
                    )  # fmt: skip
            for r in range(count):
                n = (begin + r) // blocks_y
                y = (begin + r - n * blocks_y) * block_rows
                place = (n * target_height + first_y + y * step_y) * target_width + first_x
                _combine_output(
                    scratch, products + r * length_x * block_lanes, positions * block_lanes,
                    block_lanes, none, points, start, (group * blocks + block) * block_lanes,
                    target, place * filters + group * out_group + block * block_lanes,
                    step_y * target_width * filters, step_x * filters,
                    min(block_rows, length_y - y), length_x, lanes, case,
                )  # fmt: skip


def sum_outer_products(
    x: np.ndarray, dy: np.ndarray, windows: Windows, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives by the kernel and by the bias, for windows whose rows are `possible`.

    Parameters
    ----------
    x : numpy.ndarray
        (examples, height, width, channels).
    dy : numpy.ndarray
        (examples, output height, output width, filters).
    windows : Windows
    groups : int

    Returns
    -------
    weight : numpy.ndarray
        (kernel height, kernel width, channels / groups, filters).
    bias : numpy.ndarray
        (filters,), float64.
    """
    taps, taps_x = windows.kernel
    filters = dy.shape[3]
    points, block_rows = points_and_rows(taps)
    blocks_y = -(-windows.output[0] // block_rows)
    band = max(1, PIXELS // windows.output[1])
    jobs, (left, right) = _jobs(windows, band, x.shape[3], filters, groups)
    row, case = taps_x * (x.shape[3] // groups) * filters, taps - TAPS[0]
    chunks = min(CHUNKS, len(x) * blocks_y)
    while chunks > 1 and chunks * points * row * x.itemsize > PARTS_BYTES:
        chunks //= 2
    parts = np.zeros((chunks, points * row), x.dtype)
    sums = np.zeros((chunks, filters), x.dtype)
    _sum_outer(
        x.reshape(-1),
        x.shape,
        dy.reshape(-1),
        dy.shape,
        jobs.table,
        jobs.strides,
        parts.reshape(-1),
        sums,
        -windows.padding[0][0],
        (points, blocks_y, block_rows, band, left, right, case, tile_lanes(x.dtype), 0, 1),
    )
    weight = np.empty((taps, taps_x, x.shape[3] // groups, filters), x.dtype)
    total = parts.sum(axis=0)
    _transform_weight_derivative(total, 0, row, weight.reshape(-1), taps, points, case)
    return weight, sums.sum(axis=0, dtype=np.float64)


@functools.lru_cache(maxsize=1024)
def _jobs(
    windows: Windows, band: int, channels: int, filters: int, groups: int
) -> tuple[Jobs, Pair]:
    """Products to sum over a band of blocks of rows, and the margins of the transformed rows."""
    points, _ = points_and_rows(windows.kernel[0])
    taps_x, output_x = windows.kernel[1], windows.output[1]
    per_group, out_group = channels // groups, filters // groups
    # Few channels: all taps of a kernel row at once, out of rows with margins.
    merged = groups == 1 and windows.dilation[1] == 1 and channels < NARROW
    left, right = windows.margins() if merged else (0, 0)
    pitch = (left + windows.size[1] + right) * channels
    jobs = Jobs((pitch, windows.stride[1] * channels), (output_x * filters, filters))
    for k, kx in np.ndindex(points, 1 if merged else taps_x):
        columns = range(output_x) if merged else windows.inside(1, kx)
        if not columns:
            continue
        first = 0 if merged else windows.cell(1, columns[0], kx)
        for group in range(groups):
            jobs.add(
                a=k * band * pitch + first * channels + group * per_group,
                height=taps_x * channels if merged else per_group,
                b=(k * band * output_x + columns[0]) * filters + group * out_group,
                lanes=out_group,
                c=(k * taps_x + kx) * per_group * filters + group * out_group,
                c_pitch=filters,
                extent=(band, len(columns)),
            )
    return jobs, (left, right)


@serial
def _transform_weight_derivative(total, none, row, weight, taps, points, case):
    """G' of the sums."""
    _combine_weight_derivative(
        total, none, row, none, none, points, total, none,
        weight, none, row, none, taps, none + 1, row, case,
    )  # fmt: skip


@parallel
def _sum_outer(x, x_shape, dy, dy_shape, table, strides, parts, sums, first_row, cut):
    for chunk in prange(sums.shape[0]):
        _sum_blocks(
            x, x_shape, dy, dy_shape, table, strides, parts, sums, first_row, cut, np.int64(chunk)
        )


@serial
def _sum_blocks(x, x_shape, dy, dy_shape, table, strides, parts, sums, first_row, cut, chunk):
    """Products of transformed rows, summed over one chunk of the blocks."""
    examples, output_y, output_x, filters = dy_shape
    a_i, a_j, b_i, b_j = strides
    points, blocks_y, block_rows, band, _, _, case, block_lanes, none, one = cut
    chunks = sums.shape[0]
    blocks, size = examples * blocks_y, parts.size // chunks
    end = (chunk + 1) * blocks // chunks
    row = output_x * filters
    a, b = np.empty(points * band * a_i, x.dtype), np.empty(points * band * b_i, x.dtype)
    for begin in range(chunk * blocks // chunks, end, band):
        count = min(band, end - begin)
        _transform_rows(x, x_shape, first_row, cut, begin, count, band, a)
        for r in range(count):
            n = (begin + r) // blocks_y
            y = (begin + r - n * blocks_y) * block_rows
            height = min(block_rows, output_y - y)
            place = (n * output_y + y) * row
            sum_columns(dy, place, place + height * row, sums, chunk, block_lanes)
            _combine_derivative(
                dy, place, row, none, none, height, dy, none,
                b, r * row, band * row, none, points, one, row, case,
            )  # fmt: skip
        for job in range(table.shape[0]):
            sum_block(
                a, none, none, a_i, a_j, b, none, none, b_i, b_j, table, job, parts, chunk * size,
                count, table[job, 7], block_lanes, one,
            )  # fmt: skip
