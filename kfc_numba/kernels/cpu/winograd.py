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

from kfc_numba.kernels.cpu.direct import AXIS, Axis, axis_record, inside, margins
from kfc_numba.kernels.cpu.jit import inlined, parallel
from kfc_numba.kernels.cpu.linear_combination import combination
from kfc_numba.kernels.cpu.panels import PANELS, Panels, pack_panel, progression
from kfc_numba.kernels.cpu.panels import TAPS as PANEL_TAPS
from kfc_numba.kernels.cpu.records import IMAGES, ONE, ZERO, images, record, record_array
from kfc_numba.kernels.cpu.tile import tile
from kfc_numba.kernels.cpu.winograd_points import TAPS, points_and_rows, transforms
from kfc_numba.kernels.geometry import Pair

Shape4 = tuple[int, int, int, int]

_combine_input = combination([transforms(taps)[2] for taps in TAPS])
_combine_output = combination([transforms(taps)[0] for taps in TAPS], start=True)
_combine_weight = combination([transforms(taps)[1] for taps in TAPS])

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
BLOCKS = record(
    "points",
    "per_image",
    "rows",  # of a block
    "first_row",  # of the source, under the first block
    "left",  # zeros beside the transformed rows
    "right",
    "case",  # number of the transform
)


def blocks_record(taps: int, length: int, first_row: int, margins: Pair) -> dict[str, int]:
    """`BLOCKS` for `length` output rows under kernels of some taps."""
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
    blocks=BLOCKS,
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
    blocks = blocks_record(len(rows.taps), rows.length, rows.source_first, sides)
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


@inlined
def _first(plans):
    return plans[0]


@inlined
def _packings(plan):
    """Number of tasks that pack the transformed weights."""
    return plan.panels.groups * plan.panels.blocks * plan.points.count * plan.columns.taps.count


@inlined
def _tasks(plan):
    """Number of tasks that convolve."""
    return -(-plan.source.examples * plan.blocks.per_image // plan.per_task)


@inlined
def _pack(transformed, packed, plan, task):
    pack_panel(transformed, packed, ZERO, plan.panels, plan.points, plan.columns.taps, task)


@inlined
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


@inlined
def transform_rows(source, images, blocks, begin, count, capacity, result):
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


@inlined
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
    transform_rows(source, images, blocks, begin, count, count, scratch)
    for panel in range(panels.groups * panels.blocks):
        _multiply(scratch, packed, plan, places, panel)
        _combine_rows(scratch, start, target, plan, places, panel, begin)


@inlined
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


@inlined
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
