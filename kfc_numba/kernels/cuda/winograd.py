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
from typing import Any

import numpy as np

from kfc_numba.kernels.cpu.direct import Axis
from kfc_numba.kernels.cuda.arguments import empty
from kfc_numba.kernels.cuda.gathered import gather
from kfc_numba.kernels.cuda.grids import ceil_div
from kfc_numba.kernels.cuda.integers import divider
from kfc_numba.kernels.cuda.pixel_sums import room as sum_room
from kfc_numba.kernels.cuda.pixel_sums import sum_over_pixels
from kfc_numba.kernels.cuda.squares import (
    LANES,
    POINTS,
    TAPS,
    Tiling,
    Weights,
    image_kernel,
    product_kernel,
    sum_kernel,
    weight_kernel,
)
from kfc_numba.kernels.cuda.vector import aligned
from kfc_numba.kernels.rates import H200, Rates

#: Bytes that transformed images and their products may take at once. More squares at a time save
#: launches, and fill a card better; activations of a network that is worth it take several times as
#: much in a step.
ROOM = 256 * 1024 * 1024

# What `pays` counts with: shares of what a card can do in a second that an H200 reached. A card
# with more multiply-adds for each byte gains less.
_PRODUCTS = 0.57  # of multiply-adds, in the tiles of `gather`
_SUMS = 0.42  # in those of `sum_over_pixels`
_MOVED = 0.625  # of bytes, in kernels that read and write each number once
_LAUNCH = 28e-6  # seconds of the host, which a step waits for where the device is no slower
_MARGIN = 0.9  # of the time, that is to be gained
_EDGE = 32  # terms of a sum that take as long as the beginning and the end of it
_ROWS = 64  # that a tile has at least, for shapes that come into question

_THREADS = 128
Plans = list[tuple[Tiling, Tiling]]
_PIXEL = (Axis(1, 0, 1, 0, 1, 1, (0,)),) * 2  # of an image of one


def possible(axes: tuple[Axis, Axis], groups: int, dtype: np.dtype) -> bool:
    """Whether there are transforms for a pair of axes: 3x3 taps side by side, float32.

    float64 has other rates on each card, and serves checks: it goes by the definition.
    """
    return (
        groups == 1
        and dtype == np.float32
        and all(
            len(axis.taps) == TAPS and axis.source_step == axis.tap_step == axis.target_step == 1
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
    sums: bool = False,
    card: Rates = H200,
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
    sums : bool
        Whether it is about the gradient by the weight, which reads and writes as much.
    card : Rates
        Of the card: another one may go another way, and have other bits.

    Returns
    -------
    int
        Results beside each other in a square; 0 if the definition takes no more time.
    """
    depth, filters = source[3], target[3]
    weights = depth * filters
    largest = max(math.prod(source[1:]), math.prod(target[1:]), _points(max(POINTS)) * weights)
    if not possible(axes, groups, dtype) or largest >= 2**31:
        return 0
    positions = source[0] * axes[0].length * axes[1].length
    # Each time it takes three launches, and one more where parts are added up; one for the weight.
    share, each = (_SUMS, 4) if sums else (_PRODUCTS, 3)
    rate, moved = share * card.products, _MOVED * card.moved
    direct = positions * (TAPS**2 * depth + _EDGE) * filters / rate
    least, best = (_MARGIN * direct, 0.0), 0
    for size in POINTS:
        squares = source[0] * ceil_div(axes[0].length, size) * ceil_div(axes[1].length, size)
        points = _points(size)
        transformed = points * (squares * (depth + filters) + weights)
        given = math.prod(source) + math.prod(target) + TAPS**2 * weights
        rows = ceil_div(squares, _ROWS) * _ROWS
        product = points * rows * (depth + _EDGE) * filters / rate
        product = max(product, transformed * dtype.itemsize / moved)
        transforms = (given + transformed) * dtype.itemsize / moved
        launches = 1 + each * ceil_div(squares, _at_once(size, depth, filters, dtype))
        time = product + transforms
        found = max(time, launches * _LAUNCH), time
        if found < least:
            least, best = found, size
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
    dtype, points = source.dtype, _points(size)
    lanes = _lanes(source, size), _lanes(target, size)
    plans = _plans(axes, source, target, size, lanes)
    transform_images = image_kernel(dtype, size, lanes[0], False)
    transform_products = product_kernel(dtype, size, lanes[1], bias is not None)
    kept = empty((1, 1, weight.shape[2], points * weight.shape[3]), dtype, weight)
    _transform_weight(weight, kept, size, flip)
    whole, results = _room(plans, source, target, points)
    for read, write in plans:
        images, products = whole[: read.squares], results[: read.squares]
        transform_images(_grid(read), _THREADS, source, images, read)
        gather(images, kept, None, products, _PIXEL, points, flip=flip)
        start = products if bias is None else bias
        transform_products(_grid(write), _THREADS, products, start, target, write)


def sum_products(x: Any, dy: Any, weight: Any, axes: tuple[Axis, Axis], size: int) -> None:
    """The gradient by the weight, into `weight`, for the axes of the forward convolution.

    Convolution is linear in the transformed weight, so that its transpose serves,

        G' [sum over squares of (B' d B) * (A dY A')] G,

    in which the sum is, point by point, one of outer products over squares.
    """
    dtype, points = x.dtype, _points(size)
    lanes = _lanes(x, size), _lanes(dy, size)
    plans = _plans(axes, x, dy, size, lanes)
    transform_images = image_kernel(dtype, size, lanes[0], False)
    transform_derivative = image_kernel(dtype, size, lanes[1], True)
    whole, derivatives = _room(plans, x, dy, points)
    sums = empty((points, *weight.shape[2:]), dtype, x)
    for read, write in plans:
        images, outputs = whole[: read.squares], derivatives[: read.squares]
        transform_images(_grid(read), _THREADS, x, images, read)
        transform_derivative(_grid(write), _THREADS, dy, outputs, write)
        sum_over_pixels(images, outputs, sums, points, by_group=True, accumulate=read.first > 0)
    pitch = sums.size // points
    count = LANES[size] if pitch % LANES[size] == 0 and aligned(weight) else 1
    transform = sum_kernel(dtype, size, count)
    transform(ceil_div(pitch // count, _THREADS), _THREADS, sums, weight, pitch)


def room(
    axes: tuple[Axis, Axis],
    source: tuple[int, ...],
    target: tuple[int, ...],
    size: int,
    dtype: np.dtype,
    *,
    sums: bool = False,
) -> int:
    """Bytes that `convolve` takes besides its arguments, or `sum_products` with `sums`."""
    points, depth, filters = _points(size), source[3], target[3]
    most = _at_once(size, depth, filters, dtype)
    plans = _cut(axes, source, target, size, (1, 1), most)
    counts = [read.squares for read, _ in plans]
    found = dtype.itemsize * points * (counts[0] * (depth + filters) + depth * filters)
    if not sums:
        return found
    parts = []
    for k, count in enumerate(counts):
        left, right = ((count, 1, 1, points * channels) for channels in (depth, filters))
        parts.append(sum_room(left, right, dtype, points, accumulate=k > 0))
    return found + max(parts)


def _lanes(array: Any, size: int) -> int:
    """Channels of a thread: those that are moved at once, or 1."""
    count = LANES[size]
    return count if array.shape[-1] % count == 0 and aligned(array) else 1


def _room(plans: Plans, source: Any, target: Any, points: int) -> tuple[Any, Any]:
    """Memory for the points of squares of both, as images of one pixel."""
    count = plans[0][0].squares
    first, second = (
        empty((count, 1, 1, points * image.shape[3]), image.dtype, image)
        for image in (source, target)
    )
    return first, second


def _plans(
    axes: tuple[Axis, Axis], source: Any, target: Any, size: int, lanes: tuple[int, int]
) -> Plans:
    """For each time the squares of the source, and those of the target; the last may be fewer."""
    most = _at_once(size, source.shape[3], target.shape[3], source.dtype)
    return _cut(axes, source.shape, target.shape, size, lanes, most)


@functools.lru_cache(maxsize=1024)
def _cut(
    axes: tuple[Axis, Axis],
    source: tuple[int, ...],
    target: tuple[int, ...],
    size: int,
    lanes: tuple[int, int],
    most: int,
) -> Plans:
    """No more than `most` squares at a time, of whatever images; about equally many each time."""
    down, across = (ceil_div(axis.length, size) for axis in axes)
    squares = source[0] * down * across
    count = ceil_div(squares, ceil_div(squares, most))
    origins = (axes[0].source_first, axes[1].source_first), (0, 0)
    plans = []
    for first in range(0, squares, count):
        some = (first, min(count, squares - first), down, *divider(down), across, *divider(across))
        read, write = (
            Tiling(*some, image[3] // n, *divider(image[3] // n), *image[1:], *origin)  # type: ignore[call-arg]
            for image, n, origin in zip((source, target), lanes, origins, strict=True)
        )
        plans.append((read, write))
    return plans


def _grid(plan: Tiling) -> int:
    return ceil_div(plan.squares * plan.chunks, _THREADS)


def _transform_weight(weight: Any, kept: Any, size: int, flip: bool) -> None:
    channels, filters = weight.shape[2:]
    count = _lanes(weight, size)
    chunks = filters // count
    plan = Weights(channels, filters, chunks, *divider(chunks))
    transform = weight_kernel(weight.dtype, size, count, flip)
    transform(ceil_div(channels * chunks, _THREADS), _THREADS, weight, kept, plan)
