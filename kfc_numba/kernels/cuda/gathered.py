"""Convolution as a matrix product whose left operand is gathered from images while it is computed.

A row of the product is a position of the target, a column one of its channels. The terms of a sum
are (tap, channel of the source), so that a row of the left operand is what the window of a position
sees, and the right operand is the weight. The gradient by the input is the same with the output
derivative as source and the transpose of the weight of each tap.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, int32, int64

from kfc_numba.kernels.cpu.direct import Axis
from kfc_numba.kernels.cuda import anew, tensor_cores
from kfc_numba.kernels.cuda.integers import div, divide, divider, mod, within
from kfc_numba.kernels.cuda.launch import DeviceKernel, device_kernel, inlined
from kfc_numba.kernels.cuda.product import (
    Operand,
    Reading,
    number_type,
    row_chunk,
    row_writing,
    summation,
    thread_places,
)
from kfc_numba.kernels.cuda.taps import Classes, Taps, classes_of, count, finding, taps_of
from kfc_numba.kernels.cuda.tiles import TENSOR_TILES, Tile, choose, tiles
from kfc_numba.kernels.cuda.vector import (
    aligned,
    clearing,
    guarded_read,
    lanes,
    moved,
    written_out,
)

_OUTSIDE = -(2**30)  # a row of the image that no tap brings into it


class Form(NamedTuple):
    """What is fixed when a kernel is compiled."""

    flip: bool  # whether the sum runs over filters: the weight of a tap is transposed
    wide_source: bool  # whether channels of the source are read several at once
    wide_target: bool  # whether channels of the target are written several at once
    start: str  # what the sums are added to: "zero", "bias", or "target"
    classes: bool = False  # whether there are several classes of positions (`taps.Classes`)


class Gathering(NamedTuple):
    """Where everything lies. Factors and shifts are those of `divider`."""

    rows: int
    columns: int  # channels of the target, of one group
    positions: int  # of an image
    positions_factor: int
    positions_shift: int
    width: int  # positions beside each other
    width_factor: int
    width_shift: int
    channels: int  # of the source, of one group
    channels_factor: int
    channels_shift: int
    source_height: int
    source_width: int
    source_channels: int
    step_y: int  # of the source, from a position to the next
    step_x: int
    tap_y: int  # of the source, from a tap to the next
    tap_x: int
    target_height: int
    target_width: int
    target_channels: int
    target_step_y: int
    target_step_x: int
    weight_tap_y: int  # taps of the kernel from a tap to the next
    weight_tap_x: int
    weight_row: int  # numbers from a channel of x to the next
    weight_size: int  # numbers of a tap
    weight_group: int  # numbers from a group to the next


def gather(
    source: Any,
    weight: Any,
    bias: Any,
    target: Any,
    axes: tuple[Axis, Axis],
    groups: int,
    *,
    others: tuple[Axis | None, Axis | None] = (None, None),
    flip: bool = False,
    accumulate: bool = False,
    tile: Tile | None = None,
) -> None:
    """Sum over taps for all positions of a pair of axes, into `target`.

    Parameters
    ----------
    source : cupy.ndarray
        (examples, height, width, channels).
    weight : cupy.ndarray
        (kernel height, kernel width, channels / groups, filters).
    bias : cupy.ndarray or None
        What the sums start from, one a channel of the target.
    target : cupy.ndarray
        (examples, height, width, channels); positions outside the axes are left as they are.
    axes : (Axis, Axis)
        Vertical and horizontal.
    groups : int
    others : (Axis or None, Axis or None), optional
        Other classes of positions, as many as of the first, and with taps as far apart: all pairs
        of one of the vertical axes and one of the horizontal are computed. `axes` have the most
        taps.
    flip : bool
        Whether the sum runs over filters, for the gradient by the input, and not over channels.
    accumulate : bool
        Whether the sums are added to what `target` holds.
    tile : Tile, optional
        Chosen by the shape if None.
    """
    dtype = source.dtype
    usable = tile is None and tensor_cores.enabled(dtype)
    start = "target" if accumulate else "zero" if bias is None else "bias"
    how = _how(
        dtype, source.shape, weight.shape, target.shape, axes, others, groups, flip,
        aligned(source), aligned(weight), aligned(target), start, usable, tile,
    )  # fmt: skip
    start_of = weight if bias is None else bias
    how.multiply(how.grid, how.threads, source, weight, start_of, target, how.plan, how.taps)


class _How(NamedTuple):
    """What is launched for arrays of some shapes."""

    multiply: DeviceKernel
    grid: tuple[int, int, int]
    threads: int
    plan: Gathering
    taps: Taps | Classes


@functools.lru_cache(maxsize=1024)
def _how(
    dtype: np.dtype,
    source: tuple[int, ...],
    weight: tuple[int, ...],
    target: tuple[int, ...],
    axes: tuple[Axis, Axis],
    others: tuple[Axis | None, Axis | None],
    groups: int,
    flip: bool,
    source_aligned: bool,
    weight_aligned: bool,
    target_aligned: bool,
    start: str,
    tensor: bool,
    tile: Tile | None,
) -> _How:
    plan = _plan(source, weight, target, axes, groups, flip)
    chunk = lanes(dtype)
    form = Form(
        flip,
        plan.channels % chunk == 0 and source_aligned and (weight_aligned or not flip),
        plan.columns % chunk == 0 and target_aligned and (weight_aligned or flip),
        start,
        any(others),
    )
    taps: Taps | Classes = taps_of(axes, weight[1], plan.channels)
    classes = 1
    if form.classes:
        taps = classes_of(axes, others, weight[1], plan.channels)
        classes = count(taps)
    if tile is None:
        tensor = tensor and tensor_cores.fits(plan.rows, plan.columns)
        candidates = TENSOR_TILES if tensor else tiles(dtype)
        tile = choose(candidates, plan.rows, plan.columns, groups * classes)
    image = math.prod(source[1:])
    if (tile.rows // plan.positions + 2) * image >= 2**31:
        raise ValueError(f"images of {image} numbers are too large for device code")
    if math.prod(weight) >= 2**31:
        raise ValueError(f"weights of {math.prod(weight)} numbers are too large for device code")
    grid = (-(-plan.rows // tile.rows) * classes, -(-plan.columns // tile.columns), groups)
    return _How(kernel(dtype, tile, form), grid, tile.threads, plan, taps)


def _plan(
    source: tuple[int, ...],
    weight: tuple[int, ...],
    target: tuple[int, ...],
    axes: tuple[Axis, Axis],
    groups: int,
    flip: bool,
) -> Gathering:
    rows, columns = axes
    channels, filters = weight[2], weight[3] // groups
    depth_channels, target_channels = (filters, channels) if flip else (channels, filters)
    apart = [axis.taps[1] - axis.taps[0] if len(axis.taps) > 1 else 0 for axis in axes]
    positions = rows.length * columns.length
    return Gathering(  # type: ignore[call-arg]
        source[0] * positions,
        target_channels,
        positions,
        *divider(positions),
        columns.length,
        *divider(columns.length),
        depth_channels,
        *divider(depth_channels),
        *source[1:],
        rows.source_step,
        columns.source_step,
        rows.tap_step,
        columns.tap_step,
        *target[1:],
        rows.target_step,
        columns.target_step,
        apart[0] * weight[1],
        apart[1],
        weight[3],
        weight[2] * weight[3],
        filters,
    )


@functools.cache
def kernel(dtype: np.dtype, tile: Tile, form: Form) -> DeviceKernel:
    number = number_type(dtype)
    chunk = lanes(dtype)
    wide_right = form.wide_source if form.flip else form.wide_target
    left = Reading.of(tile.rows, tile, chunk if form.wide_source else 1, True)
    right = Reading.of(tile.columns, tile, chunk if wide_right else 1, form.flip)
    read_right = _read_transposed(right) if form.flip else _read_weight(right)
    sum_products = summation(
        tile, dtype, Operand(left, _read_source(left)), Operand(right, read_right)
    )
    row_of, column_of = thread_places(tile, dtype)
    locate, write = _locate(left), _write(tile, dtype, form)
    windows, left_across, right_across = left.loads, left.across, right.across
    tile_rows, tile_columns = tile.rows, tile.columns
    results = tile.thread_rows * tile.thread_columns
    clear, begin, biased = clearing(results), _begin(tile, dtype), form.start == "bias"
    # With a bias, whose place is computed before the loop, to ask for places anew costs registers,
    # but where only the target is wide. Of several classes it costs operations, and smaller blocks
    # have registers left.
    again = not biased or (form.wide_target and not form.wide_source)
    again &= tile.threads > 128 or not form.classes
    find = finding(form.classes)

    @device_kernel(max_registers=tile.registers, settings=(str(dtype), tile, form))
    def product_of_gathered(source, weight, bias, target, plan, classes):
        thread = int32(cuda.threadIdx.x)
        group = int32(cuda.blockIdx.z)
        block, taps = find(int32(cuda.blockIdx.x), classes)
        row = int32(block * tile_rows)
        column = int32(cuda.blockIdx.y * tile_columns)
        first = cuda.local.array(windows, int32)
        y = cuda.local.array(windows, int32)
        x = cuda.local.array(windows, int32)
        example = divide(row, plan.positions_factor, plan.positions_shift)
        image = int64(plan.source_height) * plan.source_width * plan.source_channels
        source = moved(source, example * image + group * plan.channels)
        locate(first, y, x, int32(row + div(thread, left_across)), example, plan, taps)
        beside, line = mod(thread, right_across), div(thread, right_across)
        sums = cuda.local.array(results, number)
        clear(sums)
        if biased:
            begin(sums, bias, int32(column + column_of(thread)), group, plan)
        sum_products(
            sums,
            (source, first, y, x, mod(thread, left_across), plan, taps),
            (weight, column, group, beside, line, plan, taps),
            int32(0),
            taps.depth,
        )
        thread = anew.thread()
        if again:
            block, taps = find(anew.block_x(), classes)
            row, column = int32(block * tile_rows), int32(anew.block_y() * tile_columns)
            group = anew.block_z()
        row, column = int32(row + row_of(thread)), int32(column + column_of(thread))
        write(sums, target, row, column, group, plan, taps)

    return product_of_gathered


def _locate(reading: Reading) -> Callable:
    """Where the windows of a thread's rows lie: their first tap, and its place in the source.

    Places are counted from the first example of the block, in 32 bits.
    """
    step = reading.step

    @written_out(reading.loads)
    def locate(i, first, y, x, row, before, plan, taps):
        row = int32(row + i * step)
        example = divide(row, plan.positions_factor, plan.positions_shift)
        position = int32(row - example * plan.positions)
        v = divide(position, plan.width_factor, plan.width_shift)
        u = int32((position - v * plan.width) * plan.step_x + taps.source_x)
        v = int32(v * plan.step_y + taps.source_y)
        line = int32((example - before) * plan.source_height + v)
        first[i] = int32((line * plan.source_width + u) * plan.source_channels)
        y[i] = v if row < plan.rows else int32(_OUTSIDE)
        x[i] = u

    return locate


def _read_source(reading: Reading) -> Callable:
    chunk = reading.chunk
    read_chunk = guarded_read(chunk)

    @written_out(reading.loads)
    def read_windows(i, registers, source, first, y, x, tap_y, tap_x, offset, some, plan):
        some &= within(int32(y[i] + tap_y), plan.source_height)
        some &= within(int32(x[i] + tap_x), plan.source_width)
        read_chunk(registers, i * chunk, source, int32(first[i] + offset), some)

    @inlined
    def read(registers, state, term):
        source, first, y, x, beside, plan, taps = state
        term = int32(term + beside * chunk)
        tap = divide(term, plan.channels_factor, plan.channels_shift)
        channel = int32(term - tap * plan.channels)
        tap_y = divide(tap, taps.beside_factor, taps.beside_shift)
        tap_x = int32((tap - tap_y * taps.beside) * plan.tap_x)
        tap_y = int32(tap_y * plan.tap_y)
        offset = int32((tap_y * plan.source_width + tap_x) * plan.source_channels + channel)
        some = term < taps.depth
        read_windows(registers, source, first, y, x, tap_y, tap_x, offset, some, plan)

    return read


def _read_weight(reading: Reading) -> Callable:
    """Of the weight as it is, whose rows are the terms."""
    chunk, step, partial = reading.chunk, reading.step, reading.partial
    read_chunk = guarded_read(chunk)
    depth = reading.depth

    @written_out(reading.loads)
    def read_rows(i, registers, weight, place, term, some, plan, taps):
        some &= int32(term + i * step) < taps.depth
        read_chunk(registers, i * chunk, weight, int32(place + i * step * plan.weight_row), some)

    @inlined
    def read(registers, state, term):
        weight, column, group, beside, line, plan, taps = state
        column = int32(column + beside * chunk)
        term = int32(term + line)
        place = int32(term * plan.weight_row + group * plan.weight_group + column)
        some = column < plan.columns
        if partial:
            some &= line < depth
        read_rows(registers, weight, place, term, some, plan, taps)

    return read


def _read_transposed(reading: Reading) -> Callable:
    """Of the weight with its last two axes exchanged, whose columns are the channels of x."""
    chunk, step = reading.chunk, reading.step
    read_chunk = guarded_read(chunk)

    @written_out(reading.loads)
    def read_columns(i, registers, weight, place, column, some, plan):
        some &= int32(column + i * step) < plan.columns
        read_chunk(registers, i * chunk, weight, int32(place + i * step * plan.weight_row), some)

    @inlined
    def read(registers, state, term):
        weight, column, group, beside, line, plan, taps = state
        term = int32(term + beside * chunk)
        column = int32(column + line)
        tap = divide(term, plan.channels_factor, plan.channels_shift)
        channel = int32(term - tap * plan.channels)
        tap_y = divide(tap, taps.beside_factor, taps.beside_shift)
        tap_x = int32(tap - tap_y * taps.beside)
        tap = int32(taps.weight + tap_y * plan.weight_tap_y + tap_x * plan.weight_tap_x)
        place = int32(tap * plan.weight_size + column * plan.weight_row)
        place = int32(place + group * plan.weight_group + channel)
        read_columns(registers, weight, place, column, term < taps.depth, plan)

    return read


def _begin(tile: Tile, dtype: np.dtype) -> Callable:
    """The bias of each column as the first term of its sums."""
    chunk = lanes(dtype)
    column_step = tile.columns * chunk // tile.thread_columns
    beside = tile.thread_columns

    @written_out(tile.thread_rows)
    def fill(i, sums, j, value):
        sums[i * beside + j] = value

    @written_out(tile.thread_columns)
    def begin(j, sums, bias, column, group, plan):
        column = int32(column + j // chunk * column_step + j % chunk)
        if column < plan.columns:
            fill(sums, j, bias[group * plan.columns + column])

    return begin


def _write(tile: Tile, dtype: np.dtype, form: Form) -> Callable:
    """The results of a thread, added to what they start from, into the target."""
    chunk = row_chunk(tile, dtype)
    row_step = tile.rows * chunk // tile.thread_rows
    beside = tile.thread_columns
    write_row = row_writing(tile, dtype, form.wide_target, form.start == "target")

    @written_out(tile.thread_rows)
    def write(i, sums, target, row, column, group, plan, taps):
        row = int32(row + i // chunk * row_step + i % chunk)
        if row < plan.rows:
            example = divide(row, plan.positions_factor, plan.positions_shift)
            position = int32(row - example * plan.positions)
            v = divide(position, plan.width_factor, plan.width_shift)
            u = int32((position - v * plan.width) * plan.target_step_x + taps.target_x)
            v = int32(v * plan.target_step_y + taps.target_y)
            place = (int64(example) * plan.target_height + v) * plan.target_width + u
            place *= plan.target_channels
            first = int32(group * plan.columns)
            write_row(sums, i * beside, target, place, column, first, plan.columns)

    return write
