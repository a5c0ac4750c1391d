"""Sums over the taps of a window: the computation under forward convolution and its transpose.

An output position is a sum over taps, each a position of a source image times a matrix of weights.
For the gradient by the input the source is the output derivative, and input positions fall into
stride x stride classes, each with the taps that reach it; a class is computed at once. Taps that
lie in the padding are skipped, not multiplied by zeros, and nothing is copied, but for images of
few channels.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.image_rows import read_rows
from kfc_numba.kernels.cpu.jit import inlined, parallel
from kfc_numba.kernels.cpu.panels import PANELS, TAPS, Panels, pack_panel, progression
from kfc_numba.kernels.cpu.records import IMAGES, ONE, ZERO, images, record, record_array
from kfc_numba.kernels.cpu.tile import TILE_ROWS, tile
from kfc_numba.kernels.geometry import Pair, Windows

_WEIGHTS = 128 * 1024  # bytes of weights that stay in the L2 cache while a band of rows passes
_PIXELS = 256  # that a part of the weights should serve at least
_FEW_PIXELS = 256  # for which weights are read where they are: packing would take longer
_TASKS = 32  # least number of tasks that a batch is cut into
#: Channels below which the taps of a kernel row are worth a copy of the image with margins.
NARROW = 8


class Axis(NamedTuple):
    """How positions of the target draw on the source, along one axis.

    Position p (0 <= p < length) of the target, at `target_first + p * target_step`, is the sum over
    taps m of the source at `source_first + p * source_step + m * tap_step`, where that lies in the
    image, times the weights of kernel index ``taps[m]``.
    """

    length: int
    target_first: int
    target_step: int
    source_first: int
    source_step: int
    tap_step: int
    taps: tuple[int, ...]


@functools.lru_cache(maxsize=1024)
def forward_axis(windows: Windows, i: int) -> Axis:
    return Axis(
        length=windows.output[i],
        target_first=0,
        target_step=1,
        source_first=-windows.padding[i][0],
        source_step=windows.stride[i],
        tap_step=windows.dilation[i],
        taps=tuple(range(windows.kernel[i])),
    )


@functools.lru_cache(maxsize=1024)
def gradient_axes(windows: Windows, i: int) -> tuple[Axis, ...]:
    """One axis for each class of input positions modulo the stride that any window reaches."""
    kernel, stride, dilation = windows.kernel[i], windows.stride[i], windows.dilation[i]
    size, before = windows.size[i], windows.padding[i][0]
    axes = []
    for first in range(min(stride, size)):
        # Window t has its tap d at t * stride + d * dilation - before.
        taps = [d for d in reversed(range(kernel)) if (first + before - d * dilation) % stride == 0]
        if taps:
            axes.append(
                Axis(
                    length=-(-(size - first) // stride),
                    target_first=first,
                    target_step=stride,
                    source_first=(first + before - taps[0] * dilation) // stride,
                    source_step=1,
                    tap_step=dilation // math.gcd(stride, dilation),
                    taps=tuple(taps),
                )
            )
    return tuple(axes)


def inside(axis: Axis, size: int) -> int:
    """Number of pairs of a position and a tap that lie in an image of some size."""
    count = 0
    for m in range(len(axis.taps)):
        first = axis.source_first + m * axis.tap_step
        low = max(0, -(first // axis.source_step))
        high = min(axis.length, (size - 1 - first) // axis.source_step + 1)
        count += max(0, high - low)
    return count


def convolve(
    source: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    target: np.ndarray,
    axes: tuple[tuple[Axis, Axis], ...],
    groups: int,
    flip: bool,
) -> None:
    """Sum over taps for all positions of some pairs of axes, into `target`.

    Parameters
    ----------
    source : numpy.ndarray
        (examples, height, width, channels).
    weight : numpy.ndarray
        (kernel height, kernel width, channels / groups, filters).
    bias : numpy.ndarray or None
        What the sums start from, one a channel of the target.
    target : numpy.ndarray
        (examples, height, width, channels); positions outside the axes are left as they are.
    axes : tuple of (Axis, Axis)
        Vertical and horizontal; pairs have no position in common.
    groups : int
    flip : bool
        Whether the sum runs over filters, for the gradient by the input, and not over channels.
    """
    if len(source) >= _TASKS and all(_is_pixelwise(*pair, source.shape) for pair in axes):
        # Images as single rows, which are longer.
        n, height, width, _ = source.shape
        source = source.reshape(n, 1, height * width, source.shape[3])
        target = target.reshape(n, 1, height * width, target.shape[3])
        ((rows, columns),) = axes
        axes = ((rows._replace(length=1), columns._replace(length=height * width)),)
    panels = Panels.of(weight.shape, groups, flip, weight.dtype)
    plan = _plan(axes, source.shape, target.shape, panels, weight.itemsize)
    _convolve.for_products(plan.products)(
        source.reshape(-1),
        weight.reshape(-1),
        np.empty(plan.packed, weight.dtype) if plan.packed else weight.reshape(-1),
        panels.bias(bias, weight.dtype),
        target.reshape(-1),
        plan.pairs,
        plan.packings,
        plan.tasks,
    )


def _is_pixelwise(rows: Axis, columns: Axis, source: tuple[int, ...]) -> bool:
    """Whether every pixel of the source makes the pixel at its place, by a single tap."""
    return all(
        len(axis.taps) == axis.source_step == axis.target_step == 1
        and axis.source_first == axis.target_first == 0
        and axis.length == size
        for axis, size in ((rows, source[1]), (columns, source[2]))
    )


#: `Axis`, as kernels read it.
AXIS = record(*Axis._fields[:-1], taps=TAPS)


def axis_record(axis: Axis) -> dict[str, Any]:
    """`AXIS` of an axis."""
    return {**axis._asdict(), "taps": progression(axis.taps)}


#: What a kernel knows of a pair of axes.
_PAIR = record(
    "first_task",
    "first_packing",
    "packed_at",  # place of the weights
    "examples",  # images of a task,
    "band",  # and rows of each
    "kernel_rows",  # whose weights are used at a time
    "left",  # zeros beside the rows of the source
    "right",
    "width",  # of the source with these
    "contiguous",  # a kernel row is one run of the source
    "inside",  # no row of the target draws on what lies beside the source
    source=IMAGES,
    target=IMAGES,
    rows=AXIS,
    columns=AXIS,
    panels=PANELS,
    # Distances in the weights, from one to the next of each.
    distances=record("group", "block", "tap", "term"),
)


class _Plan(NamedTuple):
    """How the work of a convolution is cut."""

    pairs: np.ndarray  # records `_PAIR`
    packings: int  # number of tasks that pack weights
    tasks: int  # and of those that convolve
    packed: int  # numbers in the packed weights; 0: they are read in place
    products: int  # multiply-adds


@functools.lru_cache(maxsize=1024)
def _plan(
    axes: tuple[tuple[Axis, Axis], ...],
    source: tuple[int, ...],
    target: tuple[int, ...],
    panels: Panels,
    itemsize: int,
) -> _Plan:
    pairs: list[dict[str, Any]] = []
    tasks = place = packings = products = 0
    for rows, columns in axes:
        taps_y, taps_x = len(rows.taps), len(columns.taps)
        bands = min(rows.length, -(-_TASKS // source[0]))
        band = -(-rows.length // bands)
        run = panels.depth * panels.lanes
        left = right = 0
        if panels.depth < NARROW:
            # Few channels: rows with margins, so that all taps of a kernel row are one run.
            left, right = margins(columns, source[2])
        examples = 1
        size = panels.size(rows.taps, columns.taps)
        if bands == 1 and left + right == 0 and size * itemsize > _WEIGHTS:
            # Small images, many weights: a part of the weights is fetched once for some images.
            examples = max(1, min(source[0] // 8, _PIXELS // (rows.length * columns.length)))
        block = taps_y * taps_x * run
        distances = (panels.blocks * block, block, run, panels.lanes)
        in_place = not panels.flip and source[0] * rows.length * columns.length <= _FEW_PIXELS
        if in_place:
            out_group = panels.filters // panels.groups
            distances = (out_group, panels.lanes, panels.depth * panels.filters, panels.filters)
        last = columns.source_first + (columns.length - 1) * columns.source_step
        last += (taps_x - 1) * columns.tap_step
        pairs.append(
            {
                "first_task": tasks,
                "first_packing": packings,
                "packed_at": place,
                "examples": examples,
                "band": band,
                "kernel_rows": max(1, min(taps_y, _WEIGHTS // (taps_x * run * itemsize))),
                "left": left,
                "right": right,
                "width": left + source[2] + right,
                "contiguous": panels.groups == 1 and (columns.tap_step == 1 or taps_x == 1),
                "inside": columns.source_first + left >= 0 and last < source[2] + right,
                "source": images(source),
                "target": images(target),
                "rows": axis_record(rows),
                "columns": axis_record(columns),
                "panels": panels._asdict(),
                "distances": dict(zip(("group", "block", "tap", "term"), distances, strict=True)),
            }
        )
        tasks += -(-source[0] // examples) * -(-rows.length // band)
        products += source[0] * rows.length * columns.length * size
        if not in_place:
            packings += panels.tasks(rows.taps, columns.taps)
            place += size
    return _Plan(record_array(_PAIR, pairs), packings, tasks, place, products)


def margins(columns: Axis, width: int) -> Pair:
    """Pixels beside an image of some width, left and right, that an axis draws on."""
    last = columns.source_first + (columns.length - 1) * columns.source_step
    last += (len(columns.taps) - 1) * columns.tap_step
    return max(0, -columns.source_first), max(0, last + 1 - width)


@parallel
def _convolve(source, weight, packed, start, target, pairs, packings, tasks):
    """Sum over taps for each position; arrays flat, `pairs` and counts as in `_Plan`."""
    for task in prange(packings):
        _pack(weight, packed, pairs, np.int64(task))
    for task in prange(tasks):
        _convolve_band(source, packed, start, target, pairs, np.int64(task))


@inlined
def _pack(weight, packed, pairs, task):
    """Pack the panel of a task of packing."""
    c = pairs.size - 1
    while pairs[c].first_packing > task:
        c -= 1
    pair = pairs[c]
    pack_panel(
        weight, packed, pair.packed_at, pair.panels, pair.rows.taps, pair.columns.taps,
        task - pair.first_packing,
    )  # fmt: skip


# A function of its own: see "Arrays that are assigned twice" in kernels/README.md.
@inlined
def _convolve_band(source, packed, start, target, pairs, task):
    """Sum over taps for some rows of some images."""
    c = pairs.size - 1
    while pairs[c].first_task > task:
        c -= 1
    pair = pairs[c]
    rows, images = pair.rows, pair.source
    bands = -(-rows.length // pair.band)
    first = (task - pair.first_task) // bands * pair.examples
    begin = (task - pair.first_task) % bands * pair.band
    end = min(rows.length, begin + pair.band)
    top = rows.source_first + begin * rows.source_step
    bottom = rows.source_first + (end - 1) * rows.source_step
    bottom += (rows.taps.count - 1) * rows.tap_step + 1
    top, bottom = min(max(top, 0), images.height), max(min(bottom, images.height), 0)
    shape = images.examples, images.height, images.width, images.channels
    image, origin = read_rows(source, shape, first, (pair.left, pair.right), top, bottom)
    origin -= top * pair.width * images.channels
    size = images.height * images.width * images.channels
    # No more rows of the kernel at a time than have their weights stay in the cache.
    for panel in range(pair.panels.groups * pair.panels.blocks):
        for tap in range(0, rows.taps.count, pair.kernel_rows):
            for n in range(first, min(first + pair.examples, images.examples)):
                _convolve_rows(
                    image, origin + (n - first) * size, packed, start, target, pair, panel, n,
                    begin, end, tap, min(rows.taps.count, tap + pair.kernel_rows),
                )  # fmt: skip


class _Row(NamedTuple):
    """A row of the target, for one block of lanes and some rows of the kernel."""

    source_at: int  # place of the first pixel under the first tap, as if it were in the image
    weight_at: int
    start_at: int
    target_at: int
    taps: int  # rows of the kernel
    lanes: int
    fresh: bool  # whether the sum begins


@inlined
def _convolve_rows(
    image, origin, packed, start, target, pair, panel, n, begin, end, tap_begin, tap_end
):
    """Sum over some rows of the kernel, into rows `begin` to `end` of an image of the target."""
    rows, columns, panels, distances = pair.rows, pair.columns, pair.panels, pair.distances
    group, block = panel // panels.blocks, panel % panels.blocks
    out_group = pair.target.channels // panels.groups
    lanes = min(panels.lanes, out_group - block * panels.lanes)
    weight_at = pair.packed_at + group * distances.group + block * distances.block
    for y in range(begin, end):
        v = rows.source_first + y * rows.source_step
        # The taps that lie in the image: 0 <= v + tap * tap_step < height.
        tap = max(tap_begin, -(v // rows.tap_step))
        stop = min(tap_end, (pair.source.height - 1 - v) // rows.tap_step + 1)
        source_at = ((v + tap * rows.tap_step) * pair.width + pair.left) * pair.source.channels
        target_row = n * pair.target.height + rows.target_first + y * rows.target_step
        target_at = target_row * pair.target.width + columns.target_first
        row = _Row(
            origin + source_at + group * panels.depth,
            weight_at + tap * columns.taps.count * distances.tap,
            panel * panels.lanes,
            target_at * pair.target.channels + group * out_group + block * panels.lanes,
            stop - tap,
            lanes,
            tap_begin == 0,
        )
        if row.taps <= 0:
            if row.fresh:
                _fill(target, start, pair, row, ZERO, columns.length)
        elif pair.contiguous and pair.inside:
            _sum_taps(image, packed, start, target, pair, row, ZERO, columns.length)
        else:
            _convolve_tiles(image, packed, start, target, pair, row)


@inlined
def _convolve_tiles(image, packed, start, target, pair, row):
    """A row of which some tiles may touch the border: tile by tile."""
    columns = pair.columns
    tiles = -(-columns.length // TILE_ROWS)
    reach = (columns.taps.count - 1) * columns.tap_step
    for t in range(tiles):
        x, end = t * columns.length // tiles, (t + 1) * columns.length // tiles
        u = columns.source_first + x * columns.source_step + pair.left
        last = columns.source_first + (end - 1) * columns.source_step + pair.left + reach
        if pair.contiguous and u >= 0 and last < pair.width:
            _sum_taps(image, packed, start, target, pair, row, x, end)
        else:
            _sum_by_tap(image, packed, start, target, pair, row, x, end)


@inlined
def _sum_taps(image, packed, start, target, pair, row, x, end):
    """Sum over all taps, whose rows are runs, for positions that have all of them in the image."""
    columns, channels = pair.columns, pair.source.channels
    c_x = columns.target_step * pair.target.channels
    c = row.target_at + x * c_x
    tile(
        image, row.source_at + (columns.source_first + x * columns.source_step) * channels,
        columns.source_step * channels, pair.rows.tap_step * pair.width * channels, ONE,
        packed, row.weight_at, columns.taps.count * pair.distances.tap, pair.distances.term,
        start if row.fresh else target,
        row.start_at if row.fresh else c,
        ZERO if row.fresh else c_x,
        target, c, c_x,
        row.taps, columns.taps.count * pair.panels.depth, end - x, row.lanes,
    )  # fmt: skip


@inlined
def _sum_by_tap(image, packed, start, target, pair, row, x, end):
    """Sum over one tap of the kernel rows at a time, for the positions that have it in the image.

    A middle tap comes first, which most often all of them have.
    """
    columns, distances, channels = pair.columns, pair.distances, pair.source.channels
    fresh = row.fresh
    c_x = columns.target_step * pair.target.channels
    for k in range(columns.taps.count):
        m = (columns.taps.count // 2 + k) % columns.taps.count
        w = columns.source_first + pair.left + m * columns.tap_step
        z = max(x, -(w // columns.source_step))
        z_end = min(end, (pair.width - 1 - w) // columns.source_step + 1)
        if fresh and not (z == x and z_end == end):
            _fill(target, start, pair, row, x, end)
            fresh = False
        if z >= z_end:
            continue
        c = row.target_at + z * c_x
        w += z * columns.source_step - pair.left
        tile(
            image, row.source_at + w * channels, columns.source_step * channels,
            pair.rows.tap_step * pair.width * channels, ONE,
            packed, row.weight_at + m * distances.tap, columns.taps.count * distances.tap,
            distances.term,
            start if fresh else target,
            row.start_at if fresh else c,
            ZERO if fresh else c_x,
            target, c, c_x,
            row.taps, pair.panels.depth, z_end - z, row.lanes,
        )  # fmt: skip
        fresh = False


@inlined
def _fill(target, start, pair, row, x, end):
    """Positions `x` to `end` of a row with what their sums start from."""
    c_x = pair.columns.target_step * pair.target.channels
    for position in range(x, end):
        for v in range(row.lanes):
            target[row.target_at + position * c_x + v] = start[row.start_at + v]
