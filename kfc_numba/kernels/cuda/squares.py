"""Device code of minimal filtering: squares of numbers between constant matrices.

A thread has some channels of one square, all of it in registers. `winograd.py` has the formulas.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import cuda, int32, int64
from numba.core import types
from numba.cuda.extending import intrinsic

from kfc_numba.kernels.cpu.winograd_points import interpolation
from kfc_numba.kernels.cuda.integers import divide, within
from kfc_numba.kernels.cuda.launch import DeviceKernel, device_kernel, inlined
from kfc_numba.kernels.cuda.product import number_type
from kfc_numba.kernels.cuda.vector import guarded_read, moved, pointer, wide_store, written_out

TAPS = 3
#: Points of the interpolation besides infinity, by the results beside each other of a square.
POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 0.5, -2)}
#: Channels of a thread, by the size of its squares: all their points are in registers at once.
LANES = {2: 4, 4: 2}

Matrix = tuple[tuple[float, ...], ...]


class Tiling(NamedTuple):
    """Squares of images, and a thread for a chunk of channels of each."""

    first: int  # square
    squares: int
    down: int  # squares of an image
    down_factor: int
    down_shift: int
    across: int
    across_factor: int
    across_shift: int
    chunks: int  # of the channels
    chunks_factor: int
    chunks_shift: int
    height: int
    width: int
    channels: int
    top: int  # of the first square, in the image
    left: int


class Weights(NamedTuple):
    """A thread for a chunk of filters of each channel."""

    channels: int
    filters: int
    chunks: int
    chunks_factor: int
    chunks_shift: int


@functools.cache
def matrices(size: int) -> tuple[Matrix, Matrix, Matrix]:
    """A', G and B'."""
    a, g, b = interpolation(tuple(map(Fraction, POINTS[size])), TAPS)
    return tuple(tuple(map(tuple, matrix)) for matrix in (a, g, b))  # type: ignore[return-value]


@functools.cache
def image_kernel(dtype: np.dtype, size: int, lanes: int, derivative: bool) -> DeviceKernel:
    """B' d B of squares of images, or A d A' of those of an output derivative.

    (squares, points, channels) of (examples, height, width, channels).
    """
    number = number_type(dtype)
    a, _, b = matrices(size)
    matrix = tuple(zip(*a, strict=True)) if derivative else b
    side, points = len(matrix[0]), len(matrix) ** 2
    read, store = guarded_read(lanes), wide_store(lanes)
    transform = two_sided(matrix, lanes)

    @written_out(side * side)
    def read_pixels(i, values, source, v, u, channel, plan):
        y, x = int32(v + i // side), int32(u + i % side)
        some = within(y, plan.height)
        some &= within(x, plan.width)
        place = int32((y * plan.width + x) * plan.channels + channel)
        read(values, i * lanes, source, place, some)

    @written_out(points)
    def write_points(i, values, target, place, pitch):
        store(target, place + i * pitch, values, i * lanes)

    given, numbers = side * side * lanes, points * lanes

    @device_kernel(settings=(str(dtype), size, lanes, derivative))
    def transform_images(source, target, plan):
        thread = int32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        square = divide(thread, plan.chunks_factor, plan.chunks_shift)
        if square < plan.squares:
            channel = int32((thread - square * plan.chunks) * lanes)
            example, v, u = _place(int32(plan.first + square), size, plan)
            pixels = cuda.local.array(given, number)
            values = cuda.local.array(numbers, number)
            image = int64(plan.height) * plan.width * plan.channels
            read_pixels(pixels, moved(source, example * image), v, u, channel, plan)
            transform(pixels, values)
            place = int64(square) * points * plan.channels + channel
            write_points(values, target, place, plan.channels)

    return transform_images


@functools.cache
def product_kernel(dtype: np.dtype, size: int, lanes: int, biased: bool) -> DeviceKernel:
    """A' M A of the squares, with the bias: images of (squares, points, channels)."""
    number = number_type(dtype)
    side = size + TAPS - 1
    read, store = guarded_read(lanes), wide_store(lanes)
    transform = two_sided(matrices(size)[0], lanes)

    @written_out(side * side)
    def read_points(i, values, source, place, pitch):
        read(values, i * lanes, source, place + i * pitch, True)

    @written_out(size * size)
    def add(i, values, k, value):
        values[i * lanes + k] += value

    @written_out(lanes)
    def add_bias(k, values, bias, channel):
        add(values, k, bias[channel + k])

    @written_out(size * size)
    def write_pixels(i, values, target, first, v, u, channel, plan):
        y, x = int32(v + i // size), int32(u + i % size)
        if y < plan.height and x < plan.width:
            place = (first + y) * plan.width + x
            store(target, place * plan.channels + channel, values, i * lanes)

    points, results = side * side * lanes, size * size * lanes

    @device_kernel(settings=(str(dtype), size, lanes, biased))
    def transform_products(source, bias, target, plan):
        thread = int32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        square = divide(thread, plan.chunks_factor, plan.chunks_shift)
        if square < plan.squares:
            channel = int32((thread - square * plan.chunks) * lanes)
            example, v, u = _place(int32(plan.first + square), size, plan)
            values = cuda.local.array(points, number)
            sums = cuda.local.array(results, number)
            place = int64(square) * (side * side) * plan.channels + channel
            read_points(values, source, place, plan.channels)
            transform(values, sums)
            if biased:
                add_bias(sums, bias, channel)
            write_pixels(sums, target, int64(example) * plan.height, v, u, channel, plan)

    return transform_products


@inlined
def _place(square, size, plan):
    """Example of a square, and its first pixel."""
    line = divide(square, plan.across_factor, plan.across_shift)
    example = divide(line, plan.down_factor, plan.down_shift)
    v = int32((line - example * plan.down) * size + plan.top)
    u = int32((square - line * plan.across) * size + plan.left)
    return example, v, u


@functools.cache
def weight_kernel(dtype: np.dtype, size: int, lanes: int, flip: bool) -> DeviceKernel:
    """G g G', of taps in the opposite order for `flip`: (channels, points, filters)."""
    number = number_type(dtype)
    side, taps = size + TAPS - 1, TAPS * TAPS
    read, store = guarded_read(lanes), wide_store(lanes)
    transform = two_sided(matrices(size)[1], lanes)

    @written_out(taps)
    def read_taps(i, values, weight, place, pitch):
        tap = taps - 1 - i if flip else i
        read(values, i * lanes, weight, place + tap * pitch, True)

    @written_out(side * side)
    def write_points(i, values, target, place, pitch):
        store(target, place + i * pitch, values, i * lanes)

    given, numbers = taps * lanes, side * side * lanes

    @device_kernel(settings=(str(dtype), size, lanes, flip))
    def transform_weight(weight, target, plan):
        thread = int32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        channel = divide(thread, plan.chunks_factor, plan.chunks_shift)
        if channel < plan.channels:
            column = int32((thread - channel * plan.chunks) * lanes)
            kernel = cuda.local.array(given, number)
            values = cuda.local.array(numbers, number)
            place = int64(channel) * plan.filters + column
            read_taps(kernel, weight, place, int64(plan.channels) * plan.filters)
            transform(kernel, values)
            place = int64(channel) * (side * side) * plan.filters + column
            write_points(values, target, place, plan.filters)

    return transform_weight


@functools.cache
def sum_kernel(dtype: np.dtype, size: int, lanes: int) -> DeviceKernel:
    """G' S G, the gradient by the weight: (taps, numbers) of sums, (points, numbers)."""
    number = number_type(dtype)
    matrix = tuple(zip(*matrices(size)[1], strict=True))
    points, taps = len(matrix[0]) ** 2, TAPS * TAPS
    read, store = guarded_read(lanes), wide_store(lanes)
    transform = two_sided(matrix, lanes)

    @written_out(points)
    def read_points(i, values, source, place, pitch):
        read(values, i * lanes, source, place + i * pitch, True)

    @written_out(taps)
    def write_taps(i, values, target, place, pitch):
        store(target, place + i * pitch, values, i * lanes)

    given, numbers = points * lanes, taps * lanes

    @device_kernel(settings=(str(dtype), size, lanes))
    def transform_sums(sums, weight, pitch):
        thread = int32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        place = int64(thread) * lanes
        if place < pitch:
            values = cuda.local.array(given, number)
            kernel = cuda.local.array(numbers, number)
            read_points(values, sums, place, int64(pitch))
            transform(values, kernel)
            write_taps(kernel, weight, place, int64(pitch))

    return transform_sums


@functools.cache
def two_sided(matrix: Matrix, lanes: int) -> Callable:
    """``apply(values, results)``: M X M' for each lane, written out as additions.

    Both are arrays of registers, (lines, columns, lanes) flat; of the matrix, zeros cost nothing
    and ones no multiplication.
    """
    size = len(matrix[0])

    @intrinsic
    def apply(typingctx, values, results):
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = context.get_value_type(values.dtype)
            single = values.dtype == types.float32
            read, kept = (
                pointer(context, builder, register, arg)
                for register, arg in zip((values, results), args, strict=True)
            )

            def place(data: Any, i: int, j: int, across: int, lane: int) -> Any:
                index = (i * across + j) * lanes + lane
                return builder.gep(data, [ir.Constant(ir.IntType(64), index)])

            def combined(line: tuple[float, ...], terms: list) -> Any:
                total = None
                for factor, term in zip(line, terms, strict=True):
                    if factor == 0:
                        continue
                    if total is not None and abs(factor) == 1:
                        add = builder.fadd if factor > 0 else builder.fsub
                        total = add(total, term)
                        continue
                    if factor != 1:
                        constant = float(np.float32(factor)) if single else factor
                        term = builder.fmul(term, ir.Constant(kind, constant))
                    total = term if total is None else builder.fadd(total, term)
                return total

            for lane in range(lanes):
                columns = []
                for j in range(size):
                    terms = [builder.load(place(read, i, j, size, lane)) for i in range(size)]
                    columns.append([combined(line, terms) for line in matrix])
                for i in range(len(matrix)):
                    terms = [column[i] for column in columns]
                    for j, line in enumerate(matrix):
                        to = place(kept, i, j, len(matrix), lane)
                        builder.store(combined(line, terms), to)
            return context.get_dummy_value()

        return types.void(values, results), codegen

    return apply
