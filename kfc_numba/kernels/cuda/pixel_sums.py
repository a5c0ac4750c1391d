"""Sums of outer products over pixels: weight gradients, second moments, transposed products.

C[q, f] = sum over the positions p of a batch of A[p, q] * B[p, f]. An operand is a matrix with a row
for each position, or the matrix of patches of a batch of images, which is gathered while it is
read. Positions are cut into parts whose number depends on the shape alone; each part is summed into
an array of its own, and a second kernel adds these in order: the bits are the same in every run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, int32, int64

from kfc_numba.kernels.cuda.arguments import empty
from kfc_numba.kernels.cuda.integers import div, divide, divider, mod, within
from kfc_numba.kernels.cuda.launch import DeviceKernel, device_kernel, inlined
from kfc_numba.kernels.cuda.product import (
    DEPTH,
    Operand,
    Reading,
    number_type,
    row_writing,
    summation,
    thread_places,
)
from kfc_numba.kernels.cuda.tiles import PROCESSORS, Tile, choose, tiles
from kfc_numba.kernels.cuda.vector import aligned, clearing, guarded_read, lanes, written_out
from kfc_numba.kernels.geometry import Windows

_PART = 256  # positions that a part has at least
_PARTS_BYTES = 64 * 1024 * 1024  # memory that the parts may take
_THREADS = 256  # of the kernel that adds the parts


class Form(NamedTuple):
    """What is fixed when a kernel is compiled."""

    gather_left: bool  # whether the left operand is a matrix of patches, and not a plain matrix
    gather_right: bool
    ones: bool  # whether a column of ones follows those of the patches
    symmetric: bool  # whether only tiles on and above the diagonal are computed
    wide_left: bool  # whether numbers are read several at once
    wide_right: bool
    wide_result: bool


class Summing(NamedTuple):
    """Where everything lies. Factors and shifts are those of `divider`."""

    rows: int
    columns: int
    pixels: int
    part: int  # positions of a part
    across: int  # blocks side by side
    positions: int  # of an image
    positions_factor: int
    positions_shift: int
    width: int  # positions beside each other
    width_factor: int
    width_shift: int
    channels: int  # of the left operand, of one group
    channels_factor: int
    channels_shift: int
    taps: int  # beside each other
    taps_factor: int
    taps_shift: int
    source_height: int
    source_width: int
    source_channels: int
    source_y: int
    source_x: int
    step_y: int  # of the source, from a position to the next
    step_x: int
    tap_y: int  # of the source, from a tap to the next
    tap_x: int
    right_pitch: int  # numbers from a position to the next, in a plain right operand
    right_group: int  # and from a group to the next
    result_pitch: int
    result_group: int
    result_part: int


class Adding(NamedTuple):
    """Where the parts lie, and the result."""

    numbers: int
    parts: int
    part: int  # numbers from a part to the next
    group: int
    pitch: int
    columns: int
    columns_factor: int
    columns_shift: int
    rows: int
    rows_factor: int
    rows_shift: int
    result_group: int
    result_pitch: int


def sum_over_pixels(
    left: Any,
    right: Any,
    out: Any,
    groups: int = 1,
    *,
    windows: Windows | None = None,
    moment: bool = False,
    bias: Any = None,
    accumulate: bool = False,
    tile: Tile | None = None,
) -> None:
    """Sum the products of the columns of two operands into `out`.

    Parameters
    ----------
    left : cupy.ndarray
        Images, (examples, height, width, channels), of whose windows the patches are the left
        operand; without `windows` (positions, 1, 1, columns), the operand itself.
    right : cupy.ndarray or None
        (..., columns), a plain operand. None: the left one, and the result is symmetric.
    out : cupy.ndarray
        With `right` (rows, all columns), those of a group after those of the group before it; else
        (groups, rows, rows).
    groups : int
    windows : Windows, optional
    moment : bool
        Whether a column of ones follows those of the left operand.
    bias : cupy.ndarray, optional
        What the sums start from, one a column.
    accumulate : bool
        Whether the sums are added to what `out` holds.
    tile : Tile, optional
        Chosen by the shape if None.
    """
    dtype = left.dtype
    symmetric = right is None
    plan = _plan(left.shape, None if right is None else right.shape, groups, windows, moment)
    if tile is None:
        most = max(1, plan.pixels // _PART)
        tile = choose(tiles(dtype, symmetric), plan.rows, plan.columns, groups * most)
    across = -(-plan.columns // tile.columns)
    blocks = across * (across + 1) // 2 if symmetric else tile.blocks(plan.rows, plan.columns)
    chunk = lanes(dtype)
    pitch = -(-plan.columns // chunk) * chunk
    size = groups * plan.rows * pitch
    parts, part = _cut(plan.pixels, blocks * groups, size * dtype.itemsize)
    direct = parts == 1 and not symmetric and bias is None and not accumulate
    total = groups * plan.columns
    plan = plan._replace(part=part, across=across)
    if direct:
        plan = plan._replace(result_pitch=total, result_group=plan.columns)
        target = out
    else:
        plan = plan._replace(result_pitch=pitch, result_group=plan.rows * pitch, result_part=size)
        target = empty((parts, size), dtype, left)
    wide_left = plan.channels % chunk == 0 and aligned(left)
    form = Form(
        gather_left=windows is not None,
        gather_right=symmetric and windows is not None,
        ones=moment,
        symmetric=symmetric,
        wide_left=wide_left,
        wide_right=wide_left if symmetric else plan.columns % chunk == 0 and aligned(right),
        wide_result=not direct or (plan.columns % chunk == 0 and aligned(out)),
    )
    grid = (blocks, parts, groups)
    _kernel(dtype, tile, form)(grid, tile.threads, left, left if symmetric else right, target, plan)
    if not direct:
        count = groups * plan.rows * plan.columns
        adding = Adding(
            count, parts, size, plan.rows * pitch, pitch,
            plan.columns, *divider(plan.columns), plan.rows, *divider(plan.rows),
            *((plan.rows * plan.columns, plan.columns) if symmetric else (plan.columns, total)),
        )  # fmt: skip
        start = "bias" if bias is not None else "target" if accumulate else "zero"
        add = _adding(dtype, symmetric, start)
        add(-(-count // _THREADS), _THREADS, target, out if bias is None else bias, out, adding)


def _cut(pixels: int, blocks: int, part_bytes: int) -> tuple[int, int]:
    """Number of parts, and positions of each: two blocks a multiprocessor, if that can be."""
    parts = min(-(-2 * PROCESSORS // blocks), pixels // _PART, _PARTS_BYTES // part_bytes)
    part = -(-pixels // max(parts, 1))
    part = -(-part // DEPTH) * DEPTH
    return -(-pixels // part), part


@functools.lru_cache(maxsize=1024)
def _plan(
    left: tuple[int, ...],
    right: tuple[int, ...] | None,
    groups: int,
    windows: Windows | None,
    moment: bool,
) -> Summing:
    if windows is None:
        windows = Windows((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), left[1:3], left[1:3])
    channels = left[3] // groups
    rows = windows.kernel[0] * windows.kernel[1] * channels + moment
    columns = rows if right is None else right[-1] // groups
    positions = windows.output[0] * windows.output[1]
    return Summing(
        rows, columns, left[0] * positions, 0, 0,
        positions, *divider(positions),
        windows.output[1], *divider(windows.output[1]),
        channels, *divider(channels),
        windows.kernel[1], *divider(windows.kernel[1]),
        *left[1:],
        -windows.padding[0][0], -windows.padding[1][0],
        *windows.stride,
        *windows.dilation,
        groups * (channels if right is None else columns), channels if right is None else columns,
        0, 0, 0,
    )  # fmt: skip


@functools.cache
def _kernel(dtype: np.dtype, tile: Tile, form: Form) -> DeviceKernel:
    number = number_type(dtype)
    chunk = lanes(dtype)
    left = Reading.of(tile.rows, tile.threads, chunk if form.wide_left else 1, False)
    right = Reading.of(tile.columns, tile.threads, chunk if form.wide_right else 1, False)
    read_left = (_read_patches if form.gather_left else _read_plain)(left, form.ones)
    read_right = (_read_patches if form.gather_right else _read_plain)(right, form.ones)
    sum_products = summation(tile, dtype, Operand(left, read_left), Operand(right, read_right))
    row_of, column_of = thread_places(tile, dtype)
    state_of_left, state_of_right = (
        (_patch_state if gathered else _plain_state)(reading, first)
        for gathered, reading, first in (
            (form.gather_left, left, True),
            (form.gather_right, right, False),
        )
    )
    write = _write(tile, dtype, form.wide_result)
    tile_rows, tile_columns = tile.rows, tile.columns
    results = tile.thread_rows * tile.thread_columns
    clear = clearing(results)
    symmetric = form.symmetric

    @device_kernel(max_registers=tile.registers, settings=(str(dtype), tile, form))
    def sum_of_outer_products(left, right, result, plan):
        thread, block = int32(cuda.threadIdx.x), int32(cuda.blockIdx.x)
        part, group = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        if symmetric:  # blocks go down the columns, each to the diagonal
            across = int32(0)
            while block > across:
                across = int32(across + 1)
                block = int32(block - across)
            row, column = int32(block * tile_rows), int32(across * tile_columns)
        else:
            row = int32(div(block, plan.across) * tile_rows)
            column = int32(mod(block, plan.across) * tile_columns)
        first = int32(part * plan.part)
        end = min(int32(first + plan.part), plan.pixels)
        sums = cuda.local.array(results, number)
        clear(sums)
        sum_products(
            sums,
            state_of_left(left, row, group, thread, end, plan),
            state_of_right(right, column, group, thread, end, plan),
            first,
            end,
        )
        row, column = int32(row + row_of(thread)), int32(column + column_of(thread))
        place = int64(part) * plan.result_part + int64(group) * plan.result_group
        write(sums, result, row, column, place, plan)

    return sum_of_outer_products


def _plain_state(reading: Reading, first: bool) -> Callable:
    chunk, across = reading.chunk, reading.across

    @inlined
    def state(operand, column, group, thread, end, plan):
        column = int32(column + mod(thread, across) * chunk)
        if first:
            pitch, columns = plan.source_channels, plan.channels
        else:
            pitch, columns = plan.right_pitch, plan.right_group
        some = column < columns
        return operand, div(thread, across), group * columns + column, some, pitch, end

    return state


def _read_plain(reading: Reading, ones: bool) -> Callable:
    chunk, step = reading.chunk, reading.step
    partial, depth = reading.partial, DEPTH
    read_chunk = guarded_read(chunk)

    @written_out(reading.loads)
    def read_rows(i, registers, operand, place, pixel, some, pitch, end):
        some &= pixel + i * step < end
        read_chunk(registers, i * chunk, operand, place + int64(i * step) * pitch, some)

    @inlined
    def read(registers, state, term):
        operand, line, column, some, pitch, end = state
        if partial:
            some &= line < depth
        pixel = int32(term + line)
        place = int64(pixel) * pitch + column
        read_rows(registers, operand, place, pixel, some, pitch, end)

    return read


def _patch_state(reading: Reading, first: bool) -> Callable:
    """Which tap and channel a thread reads, as distances from a window's place."""
    chunk, across = reading.chunk, reading.across

    @inlined
    def state(operand, column, group, thread, end, plan):
        column = int32(column + mod(thread, across) * chunk)
        tap = divide(column, plan.channels_factor, plan.channels_shift)
        channel = int32(column - tap * plan.channels)
        y = divide(tap, plan.taps_factor, plan.taps_shift)
        x = int32((tap - y * plan.taps) * plan.tap_x + plan.source_x)
        y = int32(y * plan.tap_y + plan.source_y)
        size = plan.rows if first else plan.columns
        channel = int32(channel + group * plan.channels)
        return operand, div(thread, across), channel, y, x, int32(size - column), end, plan

    return state


def _read_patches(reading: Reading, ones: bool) -> Callable:
    chunk, step = reading.chunk, reading.step
    partial, depth = reading.partial, DEPTH
    read_chunk = guarded_read(chunk)
    last = int(ones)  # columns at the end that are no patch's

    @written_out(reading.loads)
    def read_pixels(i, registers, operand, pixel, channel, y, x, columns, end, plan):
        pixel = int32(pixel + i * step)
        example = divide(pixel, plan.positions_factor, plan.positions_shift)
        position = int32(pixel - example * plan.positions)
        v = divide(position, plan.width_factor, plan.width_shift)
        u = int32((position - v * plan.width) * plan.step_x + x)
        v = int32(v * plan.step_y + y)
        some = (pixel < end) & (columns > last)
        some &= within(v, plan.source_height) & within(u, plan.source_width)
        line = int64(example) * plan.source_height + v
        place = (line * plan.source_width + u) * plan.source_channels + channel
        read_chunk(registers, i * chunk, operand, place, some)
        if ones and columns == 1 and pixel < end:
            registers[i * chunk] = 1

    @inlined
    def read(registers, state, term):
        operand, line, channel, y, x, columns, end, plan = state
        if not partial or line < depth:
            pixel = int32(term + line)
            read_pixels(registers, operand, pixel, channel, y, x, columns, end, plan)

    return read


def _write(tile: Tile, dtype: np.dtype, wide: bool) -> Callable:
    chunk = lanes(dtype)
    row_step = tile.rows * chunk // tile.thread_rows
    beside = tile.thread_columns
    write_row = row_writing(tile, dtype, wide, "zero")

    @written_out(tile.thread_rows)
    def write(i, sums, result, row, column, place, plan):
        row = int32(row + i // chunk * row_step + i % chunk)
        if row < plan.rows:
            place += int64(row) * plan.result_pitch
            write_row(sums, i * beside, result, result, place, column, 0, plan.columns)

    return write


@functools.cache
def _adding(dtype: np.dtype, symmetric: bool, start: str) -> DeviceKernel:
    zero = dtype.type(0)

    @device_kernel
    def sum_of_parts(parts, begin, out, plan):
        i = int32(cuda.grid(1))
        if i < plan.numbers:
            row = divide(i, plan.columns_factor, plan.columns_shift)
            column = int32(i - row * plan.columns)
            group = divide(row, plan.rows_factor, plan.rows_shift)
            row = int32(row - group * plan.rows)
            to = int64(group) * plan.result_group + int64(row) * plan.result_pitch + column
            place = int64(group) * plan.group
            if symmetric and row > column:
                place += int64(column) * plan.pitch + row
            else:
                place += int64(row) * plan.pitch + column
            total = zero
            for part in range(plan.parts):
                total += parts[place + int64(part) * plan.part]
            if start == "bias":
                total += begin[group * plan.columns + column]
            if start == "target":
                total += begin[to]
            out[to] = total

    return sum_of_parts
