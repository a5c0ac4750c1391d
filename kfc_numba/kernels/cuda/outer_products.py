"""Device code of sums of outer products over pixels, and of their parts.

C[q, f] = sum over positions p of A[p, q] * B[p, f]. An operand is a matrix with a row for each
position, or the matrix of patches of a batch of images, which is gathered while it is read. A block
sums one part of the positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import cuda, int32, int64

from kfc_numba.kernels.cuda import anew
from kfc_numba.kernels.cuda.integers import div, divide, mod, within
from kfc_numba.kernels.cuda.launch import DeviceKernel, device_kernel, inlined
from kfc_numba.kernels.cuda.product import (
    Operand,
    Reading,
    moving,
    number_type,
    row_chunk,
    row_writing,
    summation,
    thread_places,
)
from kfc_numba.kernels.cuda.tiles import Tile
from kfc_numba.kernels.cuda.vector import clearing, lanes, moved, written_out


class Form(NamedTuple):
    """What is fixed when a kernel is compiled."""

    gather_left: bool  # whether the left operand is a matrix of patches, and not a plain matrix
    gather_right: bool
    ones_left: bool  # whether a column of ones follows those of the patches
    ones_right: bool
    symmetric: bool  # whether only tiles on and above the diagonal are computed
    wide_left: bool  # whether numbers are read several at once
    wide_right: bool
    wide_result: bool
    copied: bool  # whether numbers are copied to shared memory while others are multiplied


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
    left_y: int  # of the source: the first tap of the first position
    left_x: int
    right_y: int
    right_x: int
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


@functools.cache
def outer_products(dtype: np.dtype, tile: Tile, form: Form) -> DeviceKernel:
    number = number_type(dtype)
    chunk = lanes(dtype)
    left = Reading.of(tile.rows, tile, chunk if form.wide_left else 1, False)
    right = Reading.of(tile.columns, tile, chunk if form.wide_right else 1, False)
    state_of_left, read_left = _reader(left, tile.rows, dtype, form, True)
    state_of_right, read_right = _reader(right, tile.columns, dtype, form, False)
    sum_products = summation(
        tile, dtype, Operand(left, read_left), Operand(right, read_right), form.copied
    )
    row_of, column_of = thread_places(tile, dtype)
    write = _write(tile, dtype, form.wide_result)
    tile_rows, tile_columns = tile.rows, tile.columns
    results = tile.thread_rows * tile.thread_columns
    clear = clearing(results)
    symmetric = form.symmetric
    # Elsewhere it costs registers (capability 7.5) to ask for places anew.
    again = form.gather_left and (form.wide_left or form.wide_right)

    @inlined
    def corner(block, plan):
        """First row and column of a block."""
        if symmetric:  # blocks go down the columns, each to the diagonal
            across = int32(0)
            while block > across:
                across = int32(across + 1)
                block = int32(block - across)
            return int32(block * tile_rows), int32(across * tile_columns)
        return (
            int32(div(block, plan.across) * tile_rows),
            int32(mod(block, plan.across) * tile_columns),
        )

    @device_kernel(max_registers=tile.registers, settings=(str(dtype), tile, form))
    def sum_of_outer_products(left, right, result, plan):
        thread = int32(cuda.threadIdx.x)
        part, group = int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        row, column = corner(int32(cuda.blockIdx.x), plan)
        first = int32(part * plan.part)
        end = min(int32(first + plan.part), plan.pixels)
        sums = cuda.local.array(results, number)
        clear(sums)
        sum_products(
            sums,
            state_of_left(left, row, group, thread, first, end, plan),
            state_of_right(right, column, group, thread, first, end, plan),
            first,
            end,
        )
        thread = anew.thread()
        if again:
            row, column = corner(anew.block_x(), plan)
            part, group = anew.block_y(), anew.block_z()
        row, column = int32(row + row_of(thread)), int32(column + column_of(thread))
        place = int64(part) * plan.result_part + int64(group) * plan.result_group
        write(sums, result, row, column, place, plan)

    return sum_of_outer_products


def _reader(
    reading: Reading, size: int, dtype: np.dtype, form: Form, is_left: bool
) -> tuple[Callable, Callable]:
    """Functions of device code: what a thread has to know to read an operand, and the reading.

    Places are counted from the first position of the block, in 32 bits: sums of which each may be
    beyond them, but not the result.
    """
    move = moving(reading, size, dtype, form.copied)
    if form.gather_left if is_left else form.gather_right:
        ones = form.ones_left if is_left else form.ones_right
        return _patch_state(reading, is_left), _read_patches(reading, move, ones, form.copied)
    return _plain_state(reading, is_left), _read_plain(reading, move)


def _plain_state(reading: Reading, is_left: bool) -> Callable:
    chunk, across = reading.chunk, reading.across

    @inlined
    def state(operand, column, group, thread, first, end, plan):
        if is_left:
            pitch, columns = plan.source_channels, plan.channels
        else:
            pitch, columns = plan.right_pitch, plan.right_group
        operand = moved(operand, int64(first) * pitch + group * columns)
        column = int32(column + mod(thread, across) * chunk)
        some = column < columns
        return operand, div(thread, across), int32(column - first * pitch), some, pitch, end

    return state


def _read_plain(reading: Reading, move: tuple[Callable, int]) -> Callable:
    step, partial, depth = reading.step, reading.partial, reading.depth
    move_chunk, spacing = move

    @written_out(reading.loads)
    def read_rows(i, to, operand, place, pixel, some, pitch, end):
        some &= int32(pixel + i * step) < end
        move_chunk(to, i * spacing, operand, int32(place + i * step * pitch), some)

    @inlined
    def read(to, state, term):
        operand, line, column, some, pitch, end = state
        if partial:
            some &= line < depth
        pixel = int32(term + line)
        place = int32(pixel * pitch + column)
        read_rows(to, operand, place, pixel, some, pitch, end)

    return read


def _patch_state(reading: Reading, is_left: bool) -> Callable:
    """Which tap and channel a thread reads, as distances from a window's place."""
    chunk, across = reading.chunk, reading.across

    @inlined
    def state(operand, column, group, thread, first, end, plan):
        column = int32(column + mod(thread, across) * chunk)
        tap = divide(column, plan.channels_factor, plan.channels_shift)
        channel = int32(column - tap * plan.channels)
        y = divide(tap, plan.taps_factor, plan.taps_shift)
        x = int32((tap - y * plan.taps) * plan.tap_x + (plan.left_x if is_left else plan.right_x))
        y = int32(y * plan.tap_y + (plan.left_y if is_left else plan.right_y))
        columns = int32((plan.rows if is_left else plan.columns) - column)
        before = divide(first, plan.positions_factor, plan.positions_shift)
        image = int64(plan.source_height) * plan.source_width * plan.source_channels
        operand = moved(operand, before * image + group * plan.channels)
        channel = int32(channel - before * image)
        return operand, div(thread, across), channel, y, x, columns, end, plan

    return state


def _read_patches(
    reading: Reading, move: tuple[Callable, int], ones: bool, copied: bool
) -> Callable:
    step, partial, depth = reading.step, reading.partial, reading.depth
    move_chunk, spacing = move
    last = int(ones)  # columns at the end that are no patch's

    @written_out(reading.chunk)
    def put_one(j, to, place, some):
        to[place + j] = 1 if j == 0 and some else 0

    @written_out(reading.loads)
    def read_pixels(i, to, operand, pixel, channel, y, x, columns, end, plan):
        pixel = int32(pixel + i * step)
        example = divide(pixel, plan.positions_factor, plan.positions_shift)
        position = int32(pixel - example * plan.positions)
        v = divide(position, plan.width_factor, plan.width_shift)
        u = int32((position - v * plan.width) * plan.step_x + x)
        v = int32(v * plan.step_y + y)
        some = (pixel < end) & (columns > last)
        some &= within(v, plan.source_height) & within(u, plan.source_width)
        line = int32(example * plan.source_height + v)
        place = int32((line * plan.source_width + u) * plan.source_channels + channel)
        if ones and copied and columns == 1:  # nothing may be written where a copy arrives
            put_one(to, i * spacing, pixel < end)
        else:
            move_chunk(to, i * spacing, operand, place, some)
        if ones and not copied and columns == 1 and pixel < end:
            to[i * spacing] = 1

    @inlined
    def read(to, state, term):
        operand, line, channel, y, x, columns, end, plan = state
        if not partial or line < depth:
            pixel = int32(term + line)
            read_pixels(to, operand, pixel, channel, y, x, columns, end, plan)

    return read


def _write(tile: Tile, dtype: np.dtype, wide: bool) -> Callable:
    chunk = row_chunk(tile, dtype)
    row_step = tile.rows * chunk // tile.thread_rows
    beside = tile.thread_columns
    write_row = row_writing(tile, dtype, wide, False)

    @written_out(tile.thread_rows)
    def write(i, sums, result, row, column, place, plan):
        row = int32(row + i // chunk * row_step + i % chunk)
        if row < plan.rows:
            place += int64(row) * plan.result_pitch
            write_row(sums, i * beside, result, place, column, 0, plan.columns)

    return write


@functools.cache
def part_sums(dtype: np.dtype, symmetric: bool, start: str) -> DeviceKernel:
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
