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
from typing import NamedTuple

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.direct import AXIS, NARROW, Axis, axis_record, inside, margins
from kfc_numba.kernels.cpu.jit import parallel, serial
from kfc_numba.kernels.cpu.linear_combination import combination
from kfc_numba.kernels.cpu.outer_products import (
    CHUNKS,
    PARTS_BYTES,
    PIXELS,
    STRIDES,
    Jobs,
    Places,
    sum_block,
    sum_columns,
)
from kfc_numba.kernels.cpu.panels import PANELS, Panels, pack_panel, progression
from kfc_numba.kernels.cpu.panels import TAPS as PANEL_TAPS
from kfc_numba.kernels.cpu.records import IMAGES, ONE, ZERO, images, record, record_array
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
    plan = _plan(rows, columns, source.shape, target.shape, panels, weight.itemsize)
    points = int(plan[0]["blocks"]["points"])
    _convolve(
        source.reshape(-1),
        weight.reshape(-1),
        np.empty(points * weight[0].size, weight.dtype),
        np.empty(panels.size(range(points), columns.taps), weight.dtype),
        panels.bias(bias, weight.dtype),
        target.reshape(-1),
        plan,
    )


#: Blocks of output rows that are transformed at once.
_BLOCKS = record(
    "points",
    "per_image",
    "rows",  # of a block
    "first_row",  # of the source, under the first block
    "left",  # zeros beside the transformed rows
    "right",
    "case",  # number of the transform
)


def _blocks(taps: int, length: int, first_row: int, margins: Pair) -> dict[str, int]:
    """`_BLOCKS` for `length` output rows under kernels of some taps."""
    points, rows = points_and_rows(taps)
    return {
        "points": points,
        "per_image": -(-length // rows),
        "rows": rows,
        "first_row": first_row,
        "left": margins[0],
        "right": margins[1],
        "case": taps - TAPS[0],
    }


#: What a kernel knows of a convolution.
_PLAN = record(
    "per_task",  # blocks of a task
    source=IMAGES,
    target=IMAGES,
    rows=AXIS,
    columns=AXIS,
    panels=PANELS,
    points=PANEL_TAPS,  # that are packed: all of them
    blocks=_BLOCKS,
)


@functools.lru_cache(maxsize=1024)
def _plan(
    rows: Axis,
    columns: Axis,
    source: Shape4,
    target: Shape4,
    panels: Panels,
    itemsize: int,
) -> np.ndarray:
    """How the work is cut: a record `_PLAN`."""
    sides = margins(columns, source[2])
    blocks = _blocks(len(rows.taps), rows.length, rows.source_first, sides)
    row_bytes = blocks["points"] * (sum(sides) + source[2]) * source[3] * itemsize
    total = source[0] * blocks["per_image"]
    plan = {
        "per_task": max(1, min(_SCRATCH // row_bytes, -(-total // _TASKS))),
        "source": images(source),
        "target": images(target),
        "rows": axis_record(rows),
        "columns": axis_record(columns),
        "panels": panels._asdict(),
        "points": progression(range(blocks["points"])),
        "blocks": blocks,
    }
    return record_array(_PLAN, [plan])


@parallel
def _convolve(source, weight, transformed, packed, start, target, plans):
    for x in prange(_first(plans).panels.kernel_width):
        _transform_weight(weight, _first(plans), transformed, np.int64(x))
    for task in prange(_packings(_first(plans))):
        _pack(transformed, packed, _first(plans), np.int64(task))
    for task in prange(_tasks(_first(plans))):
        _convolve_blocks(source, packed, start, target, _first(plans), np.int64(task))


@serial
def _first(plans):
    return plans[0]


@serial
def _packings(plan):
    """Number of tasks that pack the transformed weights."""
    return plan.panels.groups * plan.panels.blocks * plan.points.count * plan.columns.taps.count


@serial
def _tasks(plan):
    """Number of tasks that convolve."""
    return -(-plan.source.examples * plan.blocks.per_image // plan.per_task)


@serial
def _pack(transformed, packed, plan, task):
    pack_panel(transformed, packed, ZERO, plan.panels, plan.points, plan.columns.taps, task)


@serial
def _transform_weight(weight, plan, transformed, x):
    """G g for one column of the kernel."""
    taps = plan.rows.taps
    run = plan.panels.channels * plan.panels.filters
    row = plan.panels.kernel_width * run
    _combine_weight(
        weight, taps.first * row + x * run, taps.distance * row, ZERO, ZERO, taps.count,
        weight, ZERO,
        transformed, x * run, row, ZERO, plan.blocks.points, ONE, run, plan.blocks.case,
    )  # fmt: skip


@serial
def _transform_rows(source, images, blocks, begin, count, capacity, result):
    """B' d for `count` blocks of rows: (points, capacity, left + width + right, channels), flat."""
    row = images.width * images.channels
    before, after = blocks.left * images.channels, blocks.right * images.channels
    pitch = before + row + after
    for k in range(blocks.points):
        for r in range(count):
            place = (k * capacity + r) * pitch
            result[place : place + before] = 0
            result[place + before + row : place + pitch] = 0
    for r in range(count):
        n = (begin + r) // blocks.per_image
        y = (begin + r - n * blocks.per_image) * blocks.rows + blocks.first_row
        _combine_input(
            source, (n * images.height + y) * row, row, ZERO,
            max(ZERO, -y), min(blocks.points, images.height - y),
            source, ZERO,
            result, r * pitch + before, capacity * pitch, ZERO, blocks.points, ONE, row,
            blocks.case,
        )  # fmt: skip


class _Scratch(NamedTuple):
    """Places in the memory of a task: transformed rows, then their products, then zeros."""

    blocks: int  # of rows
    pitch: int  # from row to row
    plane: int  # from point to point
    products: int  # place of the products
    positions: int  # of them, for each point
    nothing: int  # place of zeros that the tiles start from


@serial
def _convolve_blocks(source, packed, start, target, plan, task):
    """Output rows of some blocks."""
    images, blocks, panels = plan.source, plan.blocks, plan.panels
    begin = task * plan.per_task
    count = min(plan.per_task, images.examples * blocks.per_image - begin)
    pitch = (blocks.left + images.width + blocks.right) * images.channels
    positions = count * plan.columns.length
    products = blocks.points * count * pitch
    nothing = products + blocks.points * positions * panels.lanes
    places = _Scratch(count, pitch, count * pitch, products, positions, nothing)
    scratch = np.empty(nothing + panels.lanes, source.dtype)
    scratch[nothing:] = 0
    _transform_rows(source, images, blocks, begin, count, count, scratch)
    for panel in range(panels.groups * panels.blocks):
        _multiply(scratch, packed, plan, places, panel)
        _combine_rows(scratch, start, target, plan, places, panel, begin)


@serial
def _multiply(scratch, packed, plan, places, panel):
    """Convolutions along the rows, point by point, for one block of lanes."""
    columns, panels, blocks = plan.columns, plan.panels, plan.blocks
    group, block = panel // panels.blocks, panel % panels.blocks
    lanes = min(panels.lanes, plan.target.channels // panels.groups - block * panels.lanes)
    contiguous = panels.groups == 1 and columns.tap_step == 1
    tile_rows = ONE if contiguous else columns.taps.count
    tile_columns = columns.taps.count * panels.depth if contiguous else panels.depth
    run, channels = panels.depth * panels.lanes, plan.source.channels
    first = (blocks.left + columns.source_first) * channels + group * panels.depth
    for k in range(blocks.points):
        weight_at = (panel * blocks.points + k) * columns.taps.count * run
        for r in range(places.blocks):
            position = k * places.positions + r * columns.length
            tile(
                scratch, k * places.plane + r * places.pitch + first,
                columns.source_step * channels, columns.tap_step * channels, ONE,
                packed, weight_at, run, panels.lanes,
                scratch, places.nothing, ZERO,
                scratch, places.products + position * panels.lanes, panels.lanes,
                tile_rows, tile_columns, columns.length, lanes,
            )  # fmt: skip


@serial
def _combine_rows(scratch, start, target, plan, places, panel, begin):
    """A' of the products: rows of the target, for one block of lanes."""
    rows, columns, panels, blocks = plan.rows, plan.columns, plan.panels, plan.blocks
    images = plan.target
    group, block = panel // panels.blocks, panel % panels.blocks
    out_group = images.channels // panels.groups
    lanes = min(panels.lanes, out_group - block * panels.lanes)
    lane = group * out_group + block * panels.lanes
    for r in range(places.blocks):
        n = (begin + r) // blocks.per_image
        y = (begin + r - n * blocks.per_image) * blocks.rows
        row = n * images.height + rows.target_first + y * rows.target_step
        place = row * images.width + columns.target_first
        _combine_output(
            scratch, places.products + r * columns.length * panels.lanes,
            places.positions * panels.lanes, panels.lanes, ZERO, blocks.points,
            start, panel * panels.lanes,
            target, place * images.channels + lane,
            rows.target_step * images.width * images.channels,
            columns.target_step * images.channels,
            min(blocks.rows, rows.length - y), columns.length, lanes, blocks.case,
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
    jobs, plan = _sum_plan(windows, x.shape, filters, groups, x.itemsize)
    points = int(plan[0]["blocks"]["points"])
    row = taps_x * (x.shape[3] // groups) * filters
    chunks = min(CHUNKS, len(x) * int(plan[0]["blocks"]["per_image"]))
    while chunks > 1 and chunks * points * row * x.itemsize > PARTS_BYTES:
        chunks //= 2
    parts = np.zeros((chunks, points * row), x.dtype)
    sums = np.zeros((chunks, filters), x.dtype)
    _sum_outer(x.reshape(-1), dy.reshape(-1), plan, jobs.table, parts.reshape(-1), sums)
    weight = np.empty((taps, taps_x, x.shape[3] // groups, filters), x.dtype)
    total = parts.sum(axis=0)
    _transform_weight_derivative(total, row, weight.reshape(-1), taps, plan)
    return weight, sums.sum(axis=0, dtype=np.float64)


#: What a kernel knows of the sums for a weight gradient.
_SUM_PLAN = record(
    "band",  # blocks of rows whose products are summed at a time
    "lanes",
    source=IMAGES,
    derivative=IMAGES,
    blocks=_BLOCKS,
    strides=STRIDES,
)


@functools.lru_cache(maxsize=1024)
def _sum_plan(
    windows: Windows, source: Shape4, filters: int, groups: int, itemsize: int
) -> tuple[Jobs, np.ndarray]:
    """Products to sum over a band of blocks of rows, and a record `_SUM_PLAN`."""
    band = max(1, PIXELS // windows.output[1])
    jobs, sides = _jobs(windows, band, source[3], filters, groups)
    plan = {
        "band": band,
        "lanes": tile_lanes(np.dtype(f"f{itemsize}")),
        "source": images(source),
        "derivative": images((source[0], *windows.output, filters)),
        "blocks": _blocks(windows.kernel[0], windows.output[0], -windows.padding[0][0], sides),
        "strides": dict(zip(STRIDES.names or (), jobs.strides[0], strict=True)),
    }
    return jobs, record_array(_SUM_PLAN, [plan])


def _jobs(
    windows: Windows, band: int, channels: int, filters: int, groups: int
) -> tuple[Jobs, Pair]:
    """Products to sum over a band of blocks, and the margins of the transformed rows."""
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
def _transform_weight_derivative(total, row, weight, taps, plans):
    """G' of the sums."""
    blocks = plans[0].blocks
    _combine_weight_derivative(
        total, ZERO, row, ZERO, ZERO, blocks.points, total, ZERO,
        weight, ZERO, row, ZERO, taps, ONE, row, blocks.case,
    )  # fmt: skip


@parallel
def _sum_outer(x, dy, plans, jobs, parts, sums):
    for chunk in prange(sums.shape[0]):
        _sum_blocks(x, dy, plans[0], jobs, parts, sums, np.int64(chunk))


@serial
def _sum_blocks(x, dy, plan, jobs, parts, sums, chunk):
    """Products of transformed rows, summed over one chunk of the blocks."""
    blocks, strides, band = plan.blocks, plan.strides, plan.band
    chunks = sums.shape[0]
    total = plan.source.examples * blocks.per_image
    end = (chunk + 1) * total // chunks
    a = np.empty(blocks.points * band * strides.a_row, x.dtype)
    b = np.empty(blocks.points * band * strides.b_row, x.dtype)
    for begin in range(chunk * total // chunks, end, band):
        count = min(band, end - begin)
        _transform_rows(x, plan.source, blocks, begin, count, band, a)
        _transform_derivatives(dy, plan, begin, count, b, sums, chunk)
        for number in range(jobs.size):
            job = jobs[number]
            place = Places(ZERO, ZERO, strides.a_row, strides.a_pixel,
                           ZERO, ZERO, strides.b_row, strides.b_pixel)  # fmt: skip
            sum_block(
                a, b, place, job, parts, chunk * (parts.size // chunks), count, job.columns,
                plan.lanes, ONE,
            )  # fmt: skip


@serial
def _transform_derivatives(dy, plan, begin, count, result, sums, chunk):
    """A dy for `count` blocks of rows, and their column sums while they are in the cache."""
    images, blocks = plan.derivative, plan.blocks
    row = images.width * images.channels
    for r in range(count):
        n = (begin + r) // blocks.per_image
        y = (begin + r - n * blocks.per_image) * blocks.rows
        height = min(blocks.rows, images.height - y)
        place = (n * images.height + y) * row
        sum_columns(dy, place, place + height * row, sums, chunk, plan.lanes)
        _combine_derivative(
            dy, place, row, ZERO, ZERO, height, dy, ZERO,
            result, r * row, plan.band * row, ZERO, blocks.points, ONE, row, blocks.case,
        )  # fmt: skip
