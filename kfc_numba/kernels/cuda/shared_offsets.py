"""Second moments of patches with each pair of pixels multiplied once.

For stride and dilation 1, pairs of taps (d, e) with the same offset o = e - d sum the same products
a[u] a[u + o]^T; only the windows of u differ, by at most K - 1 rows and columns. The edges of all
windows cut the image into a few classes of rows and of columns. For each pair of classes all
offsets of one half-plane are summed at once, as the product of the pixels of the region with the
patches of K x (2 K - 1) taps around them; a pair of taps adds up the regions that its window
covers.

With C channels that are K (2 K - 1) C^2 multiplications a pixel, 15 C^2 for K = 3. The product of
the patch matrix with itself has (K^2 C)^2 / 2 and what tiles have beyond the diagonal and the
edge: at least 41 C^2 for K = 3, and 60 C^2 for 64 channels in tiles of 128.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from numba import cuda, int32, int64

from kfc_numba.kernels.cuda.arguments import empty
from kfc_numba.kernels.cuda.integers import divide, divider
from kfc_numba.kernels.cuda.launch import DeviceKernel, device_kernel
from kfc_numba.kernels.cuda.pixel_sums import Patches, sum_over_pixels
from kfc_numba.kernels.cuda.pixel_sums import room as sum_room
from kfc_numba.kernels.cuda.tiles import choose, tiles
from kfc_numba.kernels.geometry import Windows
from kfc_numba.kernels.rates import H200, Rates

_THREADS = 256
# What `pays` counts with: seconds that the host takes to launch the sums of a region (40 to 50
# microseconds with an H200), and the share of a card's multiply-adds that the whole product reaches
# (1.2e13 to 1.7e13 a second on it). Of 65 shapes and batches this chose the slower way for three,
# at most 1.4 times as slow.
_LAUNCH = 45e-6
_SHARE = 0.4


class Assembling(NamedTuple):
    """Where the sums of regions lie. Factors and shifts are those of `divider`."""

    numbers: int
    size: int  # of a matrix
    size_factor: int
    size_shift: int
    channels: int  # of a group
    channels_factor: int
    channels_shift: int
    taps: int  # beside each other
    taps_factor: int
    taps_shift: int
    taps_above: int  # taps above each other
    columns: int  # of the sums of a region
    group: int  # numbers from a group to the next
    region: int  # and from a region to the next
    across: int  # regions beside each other


class Regions(NamedTuple):
    """Edges of the regions along an axis, and the first and last edge of each tap's window."""

    edges: tuple[int, ...]
    taps: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, windows: Windows, i: int) -> Regions:
        size, before = windows.size[i], windows.padding[i][0]
        ends = [
            [min(max(end + tap - before, 0), size) for end in (0, windows.output[i])]
            for tap in range(windows.kernel[i])
        ]
        edges = sorted({end for pair in ends for end in pair})
        return cls(tuple(edges), tuple((edges.index(a), edges.index(b)) for a, b in ends))


def pays(
    shape: tuple[int, ...], dtype: np.dtype, windows: Windows, groups: int, card: Rates = H200
) -> bool:
    """Whether regions take less time than the product of the patch matrix with itself."""
    regions = [len(Regions.of(windows, i).edges) - 1 for i in range(2)]
    if windows.stride != (1, 1) or windows.dilation != (1, 1) or 0 in regions:
        return False
    channels = shape[3] // groups
    taps = windows.kernel[0] * windows.kernel[1]
    columns = windows.kernel[0] * (2 * windows.kernel[1] - 1) * channels + 1
    pixels = shape[0] * shape[1] * shape[2]
    size = taps * channels + 1
    tile = choose(tiles(dtype, True), size, size, pixels)
    across = -(-size // tile.rows)
    whole = across * (across + 1) // 2 * tile.rows * tile.columns
    tile = choose(tiles(dtype), channels, columns, pixels)
    shared = tile.blocks(channels, columns) * tile.rows * tile.columns
    saved = (whole - shared) * pixels * groups / (_SHARE * card.products)
    return saved > regions[0] * regions[1] * _LAUNCH


def patch_moment(x: Any, windows: Windows, groups: int, out: Any) -> None:
    """The second moment of the patches, with the bias coordinate, into `out`.

    Parameters
    ----------
    x : cupy.ndarray
        (examples, height, width, channels).
    windows : Windows
        Of stride and dilation 1.
    groups : int
    out : cupy.ndarray
        (groups, D + 1, D + 1).
    """
    kh, kw = windows.kernel
    channels = x.shape[3] // groups
    rows, beside = (Regions.of(windows, i) for i in range(2))
    sums = empty(_sums_shape(windows, channels, groups), x.dtype, x)
    for k, (pixels, around) in enumerate(_operands(windows)):
        sum_over_pixels(
            x, None, sums[k], groups, patches=pixels, right_patches=around, ones=True, by_group=True
        )
    columns = sums.shape[3]
    size = out.shape[1]
    plan = Assembling(
        groups * size * size,
        size, *divider(size), channels, *divider(channels), kw, *divider(kw), kh,
        columns, channels * columns, groups * channels * columns, len(beside.edges) - 1,
    )  # fmt: skip
    edges = np.array([*rows.taps, *beside.taps], np.int32)
    edges = array_namespace(x).asarray(edges)
    count = x.dtype.type(len(x) * windows.output[0] * windows.output[1])
    grid = -(-plan.numbers // _THREADS)
    _assembly(x.dtype)(grid, _THREADS, sums, edges, count, out, plan)


def room(shape: tuple[int, ...], dtype: np.dtype, windows: Windows, groups: int) -> int:
    """Bytes that `patch_moment` takes for images of a shape, besides its arguments."""
    sums = math.prod(_sums_shape(windows, shape[3] // groups, groups)) * dtype.itemsize
    return sums + max(
        sum_room(shape, None, dtype, groups, patches=pixels, right_patches=around, ones=True)
        for pixels, around in _operands(windows)
    )


def _sums_shape(windows: Windows, channels: int, groups: int) -> tuple[int, ...]:
    """Of the sums of all regions: (regions, groups, channels, columns)."""
    kh, kw = windows.kernel
    down, across = (len(Regions.of(windows, i).edges) - 1 for i in range(2))
    return down * across, groups, channels, kh * (2 * kw - 1) * channels + 1


def _operands(windows: Windows) -> list[tuple[Patches, Patches]]:
    """The pixels of each region, and the patches around them."""
    kh, kw = windows.kernel
    edges = (itertools.pairwise(Regions.of(windows, i).edges) for i in range(2))
    found = []
    for (top, bottom), (left, right) in itertools.product(*edges):
        pixels = Patches((bottom - top, right - left), (1, 1), (top, left), (1, 1), (1, 1))
        around = pixels._replace(taps=(kh, 2 * kw - 1), first=(top, left - kw + 1))
        found.append((pixels, around))
    return found


@functools.cache
def _assembly(dtype: np.dtype) -> DeviceKernel:
    zero = dtype.type(0)

    @device_kernel(settings=(str(dtype),))
    def assemble(sums, edges, count, out, plan):
        i = int32(cuda.grid(1))
        if i < plan.numbers:
            row = divide(i, plan.size_factor, plan.size_shift)
            column = int32(i - row * plan.size)
            group = divide(row, plan.size_factor, plan.size_shift)
            row = int32(row - group * plan.size)
            if row > column:  # the matrix is symmetric
                row, column = column, row
            tap = divide(row, plan.channels_factor, plan.channels_shift)
            channel = int32(row - tap * plan.channels)
            y = divide(tap, plan.taps_factor, plan.taps_shift)
            x = int32(tap - y * plan.taps)
            other = int32(plan.columns - 1)  # the column of ones
            if column < plan.size - 1:
                tap = divide(column, plan.channels_factor, plan.channels_shift)
                other = int32(column - tap * plan.channels)
                down = divide(tap, plan.taps_factor, plan.taps_shift)
                right = int32(tap - down * plan.taps - x + plan.taps - 1)
                offset = int32((down - y) * (2 * plan.taps - 1) + right)
                other = int32(other + offset * plan.channels)
            total = count
            if row < plan.size - 1:
                total = zero
                place = int64(group) * plan.group + int64(channel) * plan.columns + other
                x += plan.taps_above
                for k in range(edges[2 * y], edges[2 * y + 1]):
                    for j in range(edges[2 * x], edges[2 * x + 1]):
                        total += sums[place + int64(k * plan.across + j) * plan.region]
            out[i] = total

    return assemble
