"""Sums of outer products over pixels: weight gradients, second moments, transposed products.

Positions are cut into parts whose number depends on the shape and on the card; each part is summed
into an array of its own, and a second kernel adds these in order: the bits are the same in every
run on a card.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from kfc_numba.kernels.cuda import launch, tensor_cores
from kfc_numba.kernels.cuda.arguments import empty
from kfc_numba.kernels.cuda.integers import divider
from kfc_numba.kernels.cuda.launch import DeviceKernel
from kfc_numba.kernels.cuda.outer_products import Adding, Form, Summing, outer_products, part_sums
from kfc_numba.kernels.cuda.product import copies
from kfc_numba.kernels.cuda.tiles import TENSOR_TILES, Tile, choose, tiles
from kfc_numba.kernels.cuda.vector import aligned, lanes
from kfc_numba.kernels.geometry import Pair, Windows
from kfc_numba.kernels.rates import Rates

_PART = 256  # positions that a part has at least
#: What a multiprocessor loses at the end, of the time of a block: on an H200 6 blocks for each took
#: 0.7 to 0.95 of the time that 2 took, mostly less than 4, 8 or 12.
_IDLE = 0.75
_MOST_BLOCKS = 6  # for each multiprocessor
_PARTS_BYTES = 64 * 1024 * 1024  # memory that the parts may take
_PLACES = 2**31  # numbers that a block can tell apart in an operand
_THREADS = 256  # of the kernel that adds the parts


class Patches(NamedTuple):
    """Which positions are summed, and which patch of the images each has."""

    positions: Pair  # of an image, vertical and horizontal
    taps: Pair
    first: Pair  # of the image: the first tap of the first position
    step: Pair  # of the image, from a position to the next
    tap_step: Pair  # and from a tap to the next

    @classmethod
    def of(cls, windows: Windows) -> Patches:
        """The patches of a convolution."""
        (top, _), (left, _) = windows.padding
        return cls(windows.output, windows.kernel, (-top, -left), windows.stride, windows.dilation)


_WHOLE = Patches((1, 1), (1, 1), (0, 0), (1, 1), (1, 1))  # an image of one pixel, itself


def sum_over_pixels(
    left: Any,
    right: Any,
    out: Any,
    groups: int = 1,
    *,
    patches: Patches | None = None,
    right_patches: Patches | None = None,
    ones: bool = False,
    by_group: bool = False,
    bias: Any = None,
    accumulate: bool = False,
    tile: Tile | None = None,
) -> None:
    """Sum the products of the columns of two operands into `out`.

    Parameters
    ----------
    left : cupy.ndarray
        Images, (examples, height, width, channels), of which the patches are the left operand;
        without `patches` (positions, 1, 1, columns), the operand itself.
    right : cupy.ndarray or None
        (..., columns), a plain operand. None: the left one, or other patches of its images.
    out : cupy.ndarray
        (rows, columns of all groups), or (groups, rows, columns) with `by_group`.
    groups : int
    patches : Patches, optional
    right_patches : Patches, optional
        At the same positions. Without these and `right`, the result is symmetric.
    ones : bool
        Whether a column of ones follows those of patches; of the right ones only, if they differ.
    by_group : bool
        Whether `out` has an axis of groups.
    bias : cupy.ndarray, optional
        What the sums start from, one a column.
    accumulate : bool
        Whether the sums are added to what `out` holds.
    tile : Tile, optional
        Chosen by the shape if None.
    """
    dtype = left.dtype
    # Second moments are decomposed: without a right operand nothing is rounded.
    usable = tile is None and right is not None and tensor_cores.enabled(dtype)
    how = _how(
        dtype, left.shape, None if right is None else right.shape, groups, patches, right_patches,
        ones, by_group, bias is not None, accumulate, aligned(left),
        right is not None and aligned(right), aligned(out), usable, copies(), tile, launch.rates(),
    )  # fmt: skip
    target = out if how.parts is None else empty(how.parts, dtype, left)
    how.multiply(how.grid, how.threads, left, left if right is None else right, target, how.plan)
    if how.parts is not None:
        start = out if bias is None else bias
        how.add(-(-how.adding.numbers // _THREADS), _THREADS, target, start, out, how.adding)


class _How(NamedTuple):
    """What is launched for arrays of some shapes."""

    multiply: DeviceKernel
    grid: tuple[int, int, int]
    threads: int
    plan: Summing
    parts: tuple[int, int] | None  # shape of what is added up; None: results are written at once
    add: DeviceKernel
    adding: Adding


@functools.lru_cache(maxsize=1024)
def _how(
    dtype: np.dtype,
    left: tuple[int, ...],
    right: tuple[int, ...] | None,
    groups: int,
    patches: Patches | None,
    right_patches: Patches | None,
    ones: bool,
    by_group: bool,
    biased: bool,
    accumulate: bool,
    left_aligned: bool,
    right_aligned: bool,
    out_aligned: bool,
    tensor: bool,
    copying: bool,
    tile: Tile | None,
    card: Rates,
) -> _How:
    gathered = patches is not None
    symmetric = right is None and right_patches is None
    plan = _plan(left, right, groups, patches or _WHOLE, right_patches, ones)
    cut = _cut(plan, gathered, symmetric, groups, dtype, tile, tensor, card)
    tile, parts, pitch, size = cut.tile, cut.parts, cut.pitch, cut.size
    direct = parts == 1 and not symmetric and not biased and not accumulate
    to_group, to_row = plan.columns, groups * plan.columns
    if by_group:
        to_group, to_row = plan.rows * plan.columns, plan.columns
    plan = plan._replace(
        part=cut.part, across=cut.across, result_pitch=to_row, result_group=to_group
    )
    chunk = lanes(dtype)
    if not direct:
        plan = plan._replace(result_pitch=pitch, result_group=plan.rows * pitch, result_part=size)
    wide_left = plan.channels % chunk == 0 and left_aligned
    wide_right = plan.columns % chunk == 0 and right_aligned
    if right is None:
        wide_right = wide_left
    form = Form(
        gather_left=gathered,
        gather_right=gathered and right is None,
        ones_left=ones and right_patches is None,
        ones_right=ones,
        symmetric=symmetric,
        wide_left=wide_left,
        wide_right=wide_right,
        wide_result=not direct or (plan.columns % chunk == 0 and out_aligned),
        copied=copying and wide_left and wide_right and not tile.tensor,
    )
    adding = Adding(
        groups * plan.rows * plan.columns, parts, size, plan.rows * pitch, pitch,
        plan.columns, *divider(plan.columns), plan.rows, *divider(plan.rows),
        to_group, to_row,
    )  # fmt: skip
    start = "bias" if biased else "target" if accumulate else "zero"
    return _How(
        multiply=outer_products(dtype, tile, form),
        grid=(cut.blocks, parts, groups),
        threads=tile.threads,
        plan=plan,
        parts=None if direct else (parts, size),
        add=part_sums(dtype, symmetric, start),
        adding=adding,
    )


def room(
    left: tuple[int, ...],
    right: tuple[int, ...] | None,
    dtype: np.dtype,
    groups: int = 1,
    *,
    patches: Patches | None = None,
    right_patches: Patches | None = None,
    ones: bool = False,
    accumulate: bool = False,
) -> int:
    """Bytes that `sum_over_pixels` takes for operands of these shapes, besides its arguments."""
    plan = _plan(left, right, groups, patches or _WHOLE, right_patches, ones)
    symmetric = right is None and right_patches is None
    tensor = right is not None and tensor_cores.enabled(dtype)
    cut = _cut(plan, patches is not None, symmetric, groups, dtype, None, tensor, launch.rates())
    direct = cut.parts == 1 and not symmetric and not accumulate
    return 0 if direct else cut.parts * cut.size * dtype.itemsize


class Cut(NamedTuple):
    """How a sum is divided among blocks."""

    tile: Tile
    across: int  # tiles beside each other
    blocks: int  # of a part, and of a group
    pitch: int  # numbers from a row of a part to the next
    size: int  # numbers of a part
    parts: int
    part: int  # positions of it


def _cut(
    plan: Summing,
    gathered: bool,
    symmetric: bool,
    groups: int,
    dtype: np.dtype,
    tile: Tile | None,
    tensor: bool,
    card: Rates,
) -> Cut:
    """Tiles, unless one is given, and as many parts as should take the least time."""
    if tile is None:
        most = max(1, plan.pixels // _PART)
        tensor = tensor and tensor_cores.fits(plan.rows, plan.columns)
        candidates = TENSOR_TILES if tensor else tiles(dtype, symmetric)
        tile = choose(candidates, plan.rows, plan.columns, groups * most)
    across = -(-plan.columns // tile.columns)
    blocks = across * (across + 1) // 2 if symmetric else tile.blocks(plan.rows, plan.columns)
    chunk = lanes(dtype)
    pitch = -(-plan.columns // chunk) * chunk
    size = groups * plan.rows * pitch
    computed = blocks * groups * tile.rows * tile.columns
    # Parts are written and read again, where all of them are multiplied.
    adding = 2 * size * dtype.itemsize / card.moved * card.products / (computed * plan.pixels)
    parts = min(plan.pixels // _PART, _PARTS_BYTES // (size * dtype.itemsize))
    part = _part(plan.pixels, tile.step, blocks * groups, parts, adding, card.processors)
    most = (_PLACES - 1) // max(plan.right_pitch, plan.source_channels)
    if gathered:
        image = plan.source_height * plan.source_width * plan.source_channels
        most = min(most, ((_PLACES - 1) // image - 2) * plan.positions)
    if most < tile.step:
        raise ValueError(f"x or dy has images that are too large for device code: {plan}")
    part = min(part, most // tile.step * tile.step)
    return Cut(tile, across, blocks, pitch, size, -(-plan.pixels // part), part)


def _part(pixels: int, step: int, blocks: int, most: int, adding: float, processors: int) -> int:
    """Positions of a part, with which a sum should take the least time.

    Parameters
    ----------
    pixels : int
        Positions in all.
    step : int
        Of which a part has a multiple.
    blocks : int
        Of a part.
    most : int
        Parts at most.
    adding : float
        What a part takes to be written and added, of the time to multiply all of them.
    processors : int
    """

    def length(parts: int) -> int:
        return -(-pixels // (parts * step)) * step

    def time(parts: int) -> float:
        part = length(parts)
        parts = -(-pixels // part)
        each = -(-blocks * parts // processors) + _IDLE  # of a multiprocessor, one after the other
        added = adding * parts if parts > 1 else 0.0
        return each * processors * part / (blocks * pixels) + added

    most = max(1, min(most, -(-_MOST_BLOCKS * processors // blocks)))
    return length(min(range(1, most + 1), key=time))


def _plan(
    left: tuple[int, ...],
    right: tuple[int, ...] | None,
    groups: int,
    patches: Patches,
    right_patches: Patches | None,
    ones: bool,
) -> Summing:
    channels = left[3] // groups
    other = right_patches or patches
    rows = patches.taps[0] * patches.taps[1] * channels + (ones and right_patches is None)
    columns = other.taps[0] * other.taps[1] * channels + ones
    if right is not None:
        columns = right[-1] // groups
    right_group = channels if right is None else columns
    positions = patches.positions[0] * patches.positions[1]
    fields = (
        rows, columns, left[0] * positions, 0, 0,
        positions, *divider(positions),
        patches.positions[1], *divider(patches.positions[1]),
        channels, *divider(channels),
        other.taps[1], *divider(other.taps[1]),
        *left[1:], *patches.first, *other.first, *patches.step, *patches.tap_step,
        groups * right_group, right_group, 0, 0, 0,
    )  # fmt: skip
    return Summing(*fields)
