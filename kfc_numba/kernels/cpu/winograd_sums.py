"""Weight gradients by minimal filtering, in the terms of `winograd.py`: G' sum [(A dy) * (B' d)].

The sum over images runs in the transformed domain.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.direct import NARROW
from kfc_numba.kernels.cpu.jit import inlined, parallel, serial
from kfc_numba.kernels.cpu.linear_combination import combination
from kfc_numba.kernels.cpu.outer_products import (
    CHUNKS,
    PARTS_BYTES,
    PIXELS,
    STRIDES,
    Jobs,
    Places,
    sum_block,
    sum_columns,
)
from kfc_numba.kernels.cpu.records import IMAGES, ONE, ZERO, images, record, record_array
from kfc_numba.kernels.cpu.tile import tile_lanes
from kfc_numba.kernels.cpu.winograd import BLOCKS, Shape4, blocks_record, transform_rows
from kfc_numba.kernels.cpu.winograd_points import TAPS, points_and_rows, transforms, transposed
from kfc_numba.kernels.geometry import Pair, Windows

_combine_derivative = combination([transposed(transforms(taps)[0]) for taps in TAPS])
_combine_weight_derivative = combination([transposed(transforms(taps)[1]) for taps in TAPS])


def sum_outer_products(
    x: np.ndarray, dy: np.ndarray, windows: Windows, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives by the kernel and by the bias, for windows whose rows are `possible`.

    Parameters
    ----------
    x : numpy.ndarray
        (examples, height, width, channels).
    dy : numpy.ndarray
        (examples, output height, output width, filters).
    windows : Windows
    groups : int

    Returns
    -------
    weight : numpy.ndarray
        (kernel height, kernel width, channels / groups, filters).
    bias : numpy.ndarray
        (filters,), float64.
    """
    taps, taps_x = windows.kernel
    filters = dy.shape[3]
    jobs, plan = _sum_plan(windows, x.shape, filters, groups, x.itemsize)
    points = int(plan[0]["blocks"]["points"])
    row = taps_x * (x.shape[3] // groups) * filters
    chunks = min(CHUNKS, len(x) * int(plan[0]["blocks"]["per_image"]))
    while chunks > 1 and chunks * points * row * x.itemsize > PARTS_BYTES:
        chunks //= 2
    parts = np.zeros((chunks, points * row), x.dtype)
    sums = np.zeros((chunks, filters), x.dtype)
    _sum_outer(x.reshape(-1), dy.reshape(-1), plan, jobs.table, parts.reshape(-1), sums)
    weight = np.empty((taps, taps_x, x.shape[3] // groups, filters), x.dtype)
    total = parts.sum(axis=0)
    _transform_weight_derivative(total, row, weight.reshape(-1), taps, plan)
    return weight, sums.sum(axis=0, dtype=np.float64)


#: What a kernel knows of the sums for a weight gradient.
_SUM_PLAN = record(
    "band",  # blocks of rows whose products are summed at a time
    "lanes",
    source=IMAGES,
    derivative=IMAGES,
    blocks=BLOCKS,
    distances=STRIDES,
)


@functools.lru_cache(maxsize=1024)
def _sum_plan(
    windows: Windows, source: Shape4, filters: int, groups: int, itemsize: int
) -> tuple[Jobs, np.ndarray]:
    """Products to sum over a band of blocks of rows, and a record `_SUM_PLAN`."""
    band = max(1, PIXELS // windows.output[1])
    jobs, sides = _jobs(windows, band, source[3], filters, groups)
    plan = {
        "band": band,
        "lanes": tile_lanes(np.dtype(f"f{itemsize}")),
        "source": images(source),
        "derivative": images((source[0], *windows.output, filters)),
        "blocks": blocks_record(
            windows.kernel[0], windows.output[0], -windows.padding[0][0], sides
        ),
        "distances": dict(zip(STRIDES.names or (), jobs.strides[0], strict=True)),
    }
    return jobs, record_array(_SUM_PLAN, [plan])


def _jobs(
    windows: Windows, band: int, channels: int, filters: int, groups: int
) -> tuple[Jobs, Pair]:
    """Products to sum over a band of blocks, and the margins of the transformed rows."""
    points, _ = points_and_rows(windows.kernel[0])
    taps_x, output_x = windows.kernel[1], windows.output[1]
    per_group, out_group = channels // groups, filters // groups
    # Few channels: all taps of a kernel row at once, out of rows with margins.
    merged = groups == 1 and windows.dilation[1] == 1 and channels < NARROW
    left, right = windows.margins() if merged else (0, 0)
    pitch = (left + windows.size[1] + right) * channels
    jobs = Jobs((pitch, windows.stride[1] * channels), (output_x * filters, filters))
    for k, kx in np.ndindex(points, 1 if merged else taps_x):
        columns = range(output_x) if merged else windows.inside(1, kx)
        if not columns:
            continue
        first = 0 if merged else windows.cell(1, columns[0], kx)
        for group in range(groups):
            jobs.add(
                a=k * band * pitch + first * channels + group * per_group,
                height=taps_x * channels if merged else per_group,
                b=(k * band * output_x + columns[0]) * filters + group * out_group,
                lanes=out_group,
                c=(k * taps_x + kx) * per_group * filters + group * out_group,
                c_pitch=filters,
                extent=(band, len(columns)),
            )
    return jobs, (left, right)


@serial
def _transform_weight_derivative(total, row, weight, taps, plans):
    """G' of the sums."""
    blocks = plans[0].blocks
    _combine_weight_derivative(
        total, ZERO, row, ZERO, ZERO, blocks.points, total, ZERO,
        weight, ZERO, row, ZERO, taps, ONE, row, blocks.case,
    )  # fmt: skip


@parallel
def _sum_outer(x, dy, plans, jobs, parts, sums):
    for chunk in prange(sums.shape[0]):
        _sum_blocks(x, dy, plans[0], jobs, parts, sums, np.int64(chunk))


@inlined
def _sum_blocks(x, dy, plan, jobs, parts, sums, chunk):
    """Products of transformed rows, summed over one chunk of the blocks."""
    blocks, distances, band = plan.blocks, plan.distances, plan.band
    chunks = sums.shape[0]
    total = plan.source.examples * blocks.per_image
    end = (chunk + 1) * total // chunks
    a = np.empty(blocks.points * band * distances.a_row, x.dtype)
    b = np.empty(blocks.points * band * distances.b_row, x.dtype)
    for begin in range(chunk * total // chunks, end, band):
        count = min(band, end - begin)
        transform_rows(x, plan.source, blocks, begin, count, band, a)
        _transform_derivatives(dy, plan, begin, count, b, sums, chunk)
        for number in range(jobs.size):
            job = jobs[number]
            place = Places(ZERO, ZERO, distances.a_row, distances.a_pixel,
                           ZERO, ZERO, distances.b_row, distances.b_pixel)  # fmt: skip
            sum_block(
                a, b, place, job, parts, chunk * (parts.size // chunks), count, job.columns,
                plan.lanes, ONE,
            )  # fmt: skip


@inlined
def _transform_derivatives(dy, plan, begin, count, result, sums, chunk):
    """A dy for `count` blocks of rows, and their column sums while they are in the cache."""
    images, blocks = plan.derivative, plan.blocks
    row = images.width * images.channels
    for r in range(count):
        n = (begin + r) // blocks.per_image
        y = (begin + r - n * blocks.per_image) * blocks.rows
        height = min(blocks.rows, images.height - y)
        place = (n * images.height + y) * row
        sum_columns(dy, place, place + height * row, sums, chunk, plan.lanes)
        _combine_derivative(
            dy, place, row, ZERO, ZERO, height, dy, ZERO,
            result, r * row, plan.band * row, ZERO, blocks.points, ONE, row, blocks.case,
        )  # fmt: skip
