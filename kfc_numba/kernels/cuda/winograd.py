"""Convolution with fewer multiplications: Winograd's minimal filtering, in both directions.

A square of m x m results under a 3x3 kernel takes 9 m^2 products for each channel and filter when
done by the definition, and (m + 2)^2 by interpolation,

    Y = A' [(G g G') * (B' d B)] A,

where d are the (m + 2)^2 pixels under the square, g the kernel, and * multiplies point by point
(`kernels/cpu/winograd_points.py` has the matrices). For each point the sum over channels is a
product of matrices, whose rows are the squares of all images: (m + 2)^2 groups of a convolution of
single pixels. So three kernels run around `gather`: what transforms images, what transforms
weights, and what transforms the products and adds the bias.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, int32, int64

from kfc_numba.kernels.cpu.direct import Axis
from kfc_numba.kernels.cpu.winograd_points import interpolation
from kfc_numba.kernels.cuda.arguments import empty
from kfc_numba.kernels.cuda.gathered import gather
from kfc_numba.kernels.cuda.grids import ceil_div
from kfc_numba.kernels.cuda.integers import divide, divider, within
from kfc_numba.kernels.cuda.launch import DeviceKernel, device_kernel, inlined
from kfc_numba.kernels.cuda.product import number_type
from kfc_numba.kernels.cuda.squares import Matrix, two_sided
from kfc_numba.kernels.cuda.vector import aligned, guarded_read, moved, wide_store, written_out

TAPS = 3
#: Points of the interpolation besides infinity, by the results beside each other of a square.
POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 0.5, -2)}
#: Bytes that transformed images and their products may take at once. More squares at a time save
#: launches, and fill a card better; activations of a network that is worth it take several times as
#: much in a step.
ROOM = 256 * 1024 * 1024

# What `pays` counts with, of one card, so that the same shape has the same bits on all. A card with
# more multiply-adds for each byte gains less.
_MULTIPLY_ADDS = 19e12  # a second, of the tiles of `gather` on an H200
_BYTES = 3e12  # a second, of kernels that read and write each number once, on the same
_LAUNCH = 20e-6  # seconds of the host, which a step waits for where the device is no slower
_MARGIN = 0.9  # of the time, that is to be gained
_EDGE = 32  # terms of a sum that take as long as the beginning and the end of it
_ROWS = 64  # that a tile has at least, for shapes that come into question

#: Channels of a thread, by the size of its squares: all their points are in registers at once.
_LANES = {2: 4, 4: 2}
_THREADS = 128
_PIXEL = (Axis(1, 0, 1, 0, 1, 1, (0,)),) * 2  # of an image of one


def possible(axes: tuple[Axis, Axis], groups: int, dtype: np.dtype) -> bool:
    """Whether there are transforms for a pair of axes: 3x3 taps side by side, float32.

    float64 has other rates on each card, and serves checks: it goes by the definition.
    """
    return (
        groups == 1
        and dtype == np.float32
        and all(
            len(axis.taps) == TAPS
            and axis.source_step == axis.tap_step == axis.target_step == 1
            for axis in axes
        )
    )


@functools.lru_cache(maxsize=1024)
def pays(
    axes: tuple[Axis, Axis],
    source: tuple[int, ...],
    target: tuple[int, ...],
    groups: int,
    dtype: np.dtype,
) -> int:
    """Which squares take the least time, by a count of bytes and operations.

    Parameters
    ----------
    axes : (Axis, Axis)
        Vertical and horizontal.
    source, target : tuple of int
        Shapes of the images: (examples, height, width, channels).
    groups : int
    dtype : numpy.dtype

    Returns
    -------
    int
        Results beside each other in a square; 0 if the definition takes no more time.
    """
    depth, filters = source[3], target[3]
    weights = depth * filters
    if (
        not possible(axes, groups, dtype)
        or max(source[1] * source[2] * depth, _points(max(POINTS)) * weights) >= 2**31
    ):
        return 0
    positions = source[0] * axes[0].length * axes[1].length
    direct = positions * (TAPS**2 * depth + _EDGE) * filters / _MULTIPLY_ADDS
    least, best = _MARGIN * direct, 0
    for size in POINTS:
        squares = source[0] * ceil_div(axes[0].length, size) * ceil_div(axes[1].length, size)
        points = _points(size)
        transformed = points * (squares * (depth + filters) + weights)
        given = math.prod(source) + math.prod(target) + TAPS**2 * weights
        rows = ceil_div(squares, _ROWS) * _ROWS
        product = points * rows * (depth + _EDGE) * filters / _MULTIPLY_ADDS
        product = max(product, transformed * dtype.itemsize / _BYTES)
        transforms = (given + transformed) * dtype.itemsize / _BYTES
        # Three a time, and one for the weights; by the definition there is one.
        launches = 3 * ceil_div(squares, _at_once(size, depth, filters, dtype))
        time = product + transforms + launches * _LAUNCH
        if time < least:
            least, best = time, size
    return best


def _points(size: int) -> int:
    return (size + TAPS - 1) ** 2


def _at_once(size: int, depth: int, filters: int, dtype: np.dtype) -> int:
    """Squares that there is room for."""
    return max(ROOM // (_points(size) * (depth + filters) * dtype.itemsize), 1)


def convolve(
    source: Any,
    weight: Any,
    bias: Any,
    target: Any,
    axes: tuple[Axis, Axis],
    size: int,
    *,
    flip: bool = False,
) -> None:
    """`gathered.gather` for axes that are `possible`, in squares of `size` x `size` results."""
    dtype = source.dtype
    depth, filters = source.shape[3], target.shape[3]
    points = _points(size)
    lanes = _lanes(source, size), _lanes(target, size)
    room = _at_once(size, depth, filters, dtype)
    count, plans = _plans(axes, source.shape, target.shape, size, lanes, room)
    transform_images = _image_kernel(dtype, size, lanes[0])
    transform_products = _product_kernel(dtype, size, lanes[1], bias is not None)
    kept = empty((1, 1, weight.shape[2], points * weight.shape[3]), dtype, weight)
    _transform_weight(weight, kept, size, flip)
    images = empty((count, 1, 1, points * depth), dtype, source)
    products = empty((count, 1, 1, points * filters), dtype, source)
    for read, write in plans:
        if read.squares < count:
            images, products = images[: read.squares], products[: read.squares]
        transform_images(_grid(read), _THREADS, source, images, read)
        gather(images, kept, None, products, _PIXEL, points, flip=flip)
        start = products if bias is None else bias
        transform_products(_grid(write), _THREADS, products, start, target, write)


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


def _lanes(array: Any, size: int) -> int:
    """Channels of a thread: those that are moved at once, or 1."""
    count = _LANES[size]
    return count if array.shape[-1] % count == 0 and aligned(array) else 1


@functools.lru_cache(maxsize=1024)
def _plans(
    axes: tuple[Axis, Axis],
    source: tuple[int, ...],
    target: tuple[int, ...],
    size: int,
    lanes: tuple[int, int],
    room: int,
) -> tuple[int, list[tuple[Tiling, Tiling]]]:
    """Squares of a time, and for each time those of the source and those of the target.

    `room` for as many at most, of whatever images; about equally many each time.
    """
    down, across = (ceil_div(axis.length, size) for axis in axes)
    squares = source[0] * down * across
    count = ceil_div(squares, ceil_div(squares, room))
    origins = (axes[0].source_first, axes[1].source_first), (0, 0)
    plans = []
    for first in range(0, squares, count):
        some = (first, min(count, squares - first), down, *divider(down), across, *divider(across))
        read, write = (
            Tiling(*some, image[3] // n, *divider(image[3] // n), *image[1:], *origin)  # type: ignore[call-arg]
            for image, n, origin in zip((source, target), lanes, origins, strict=True)
        )
        plans.append((read, write))
    return count, plans


def _grid(plan: Tiling) -> int:
    return ceil_div(plan.squares * plan.chunks, _THREADS)


def _transform_weight(weight: Any, kept: Any, size: int, flip: bool) -> None:
    channels, filters = weight.shape[2:]
    count = _lanes(weight, size)
    chunks = filters // count
    plan = Weights(channels, filters, chunks, *divider(chunks))
    transform = _weight_kernel(weight.dtype, size, count, flip)
    transform(ceil_div(channels * chunks, _THREADS), _THREADS, weight, kept, plan)


class Weights(NamedTuple):
    """A thread for a chunk of filters of each channel."""

    channels: int
    filters: int
    chunks: int
    chunks_factor: int
    chunks_shift: int


@functools.cache
def _matrices(size: int) -> tuple[Matrix, Matrix, Matrix]:
    """A', G and B'."""
    a, g, b = interpolation(tuple(map(Fraction, POINTS[size])), TAPS)
    return tuple(tuple(map(tuple, matrix)) for matrix in (a, g, b))  # type: ignore[return-value]


@functools.cache
def _image_kernel(dtype: np.dtype, size: int, lanes: int) -> DeviceKernel:
    """B' d B of the squares: (squares, points, channels) of (examples, height, width, channels)."""
    number = number_type(dtype)
    side = size + TAPS - 1
    read, store = guarded_read(lanes), wide_store(lanes)
    transform = two_sided(_matrices(size)[2], lanes)

    @written_out(side * side)
    def read_pixels(i, values, source, v, u, channel, plan):
        y, x = int32(v + i // side), int32(u + i % side)
        some = within(y, plan.height)
        some &= within(x, plan.width)
        place = int32((y * plan.width + x) * plan.channels + channel)
        read(values, i * lanes, source, place, some)

    @written_out(side * side)
    def write_points(i, values, target, place, pitch):
        store(target, place + i * pitch, values, i * lanes)

    numbers = side * side * lanes

    @device_kernel(settings=(str(dtype), size, lanes))
    def transform_images(source, target, plan):
        thread = int32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        square = divide(thread, plan.chunks_factor, plan.chunks_shift)
        if square < plan.squares:
            channel = int32((thread - square * plan.chunks) * lanes)
            example, v, u = _place(int32(plan.first + square), size, plan)
            values = cuda.local.array(numbers, number)
            image = int64(plan.height) * plan.width * plan.channels
            read_pixels(values, moved(source, example * image), v, u, channel, plan)
            transform(values, values)
            place = int64(square) * (side * side) * plan.channels + channel
            write_points(values, target, place, plan.channels)

    return transform_images


@functools.cache
def _product_kernel(dtype: np.dtype, size: int, lanes: int, biased: bool) -> DeviceKernel:
    """A' M A of the squares, with the bias: images of (squares, points, channels)."""
    number = number_type(dtype)
    side = size + TAPS - 1
    read, store = guarded_read(lanes), wide_store(lanes)
    transform = two_sided(_matrices(size)[0], lanes)

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
def _weight_kernel(dtype: np.dtype, size: int, lanes: int, flip: bool) -> DeviceKernel:
    """G g G', of taps in the opposite order for `flip`: (channels, points, filters)."""
    number = number_type(dtype)
    side, taps = size + TAPS - 1, TAPS * TAPS
    read, store = guarded_read(lanes), wide_store(lanes)
    transform = two_sided(_matrices(size)[1], lanes)

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
