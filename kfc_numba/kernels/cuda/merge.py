"""Channels side by side, and taken apart again."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

from numba import cuda

from kfc_numba.checks import check_integer
from kfc_numba.kernels.cpu import merge as cpu
from kfc_numba.kernels.cuda.arguments import checked, output_array
from kfc_numba.kernels.cuda.grids import volume
from kfc_numba.kernels.cuda.lanes import channel_lanes, load_lanes, store_lanes
from kfc_numba.kernels.cuda.launch import device_kernel
from kfc_numba.kernels.cuda.twin import twin


@twin(cpu.concatenate)
def concatenate(parts: Sequence[Any], *, out: Any = None) -> Any:
    if not parts:
        raise ValueError("parts must have at least one array, got none")
    found: list[Any] = []
    for number, part in enumerate(parts):
        found.append(checked(f"parts[{number}]", part, None, found[0].dtype if found else None))
        if part.shape[:-1] != parts[0].shape[:-1]:
            raise ValueError(
                f"parts[{number}] has shape {part.shape}, it may differ from {parts[0].shape} in "
                "the last axis only"
            )
    sizes = [part.shape[-1] for part in found]
    out = output_array(out, (*found[0].shape[:-1], sum(sizes)), found[0].dtype, found[0])
    starts = itertools.accumulate(sizes, initial=0)
    for part, start in zip(found, starts, strict=False):
        _copy_channels(part, 0, out, start, part.shape[-1])
    return out


@twin(cpu.split)
def split(x: Any, sizes: Sequence[int], *, out: Sequence[Any] | None = None) -> list[Any]:
    x = checked("x", x, None)
    sizes = [check_integer("sizes", size) for size in sizes]
    if sum(sizes) != x.shape[-1]:
        raise ValueError(f"sizes (={sizes}) must add up to the {x.shape[-1]} channels of x")
    if out is not None and len(out) != len(sizes):
        raise ValueError(f"out has {len(out)} arrays, it must have {len(sizes)}, one a part")
    parts = [
        output_array(None if out is None else out[number], (*x.shape[:-1], size), x.dtype, x)
        for number, size in enumerate(sizes)
    ]
    starts = itertools.accumulate(sizes, initial=0)
    for part, start in zip(parts, starts, strict=False):
        _copy_channels(x, start, part, 0, part.shape[-1])
    return parts


def _copy_channels(source: Any, source_start: int, target: Any, start: int, count: int) -> None:
    """Copy `count` channels of all rows."""
    steps = source.shape[-1], source_start, target.shape[-1], start, count
    lanes = channel_lanes(math.gcd(*steps), source, target)
    rows = source.size // source.shape[-1]
    grid, block = volume(1, rows, count // lanes)
    groups = [step // lanes for step in steps]
    _copy(source.dtype.type, lanes)(grid, block, source, target, rows, *groups)


@functools.cache
def _copy(kind: Any, lanes: int) -> Any:
    @device_kernel
    def copy(source, target, rows, source_row, source_start, target_row, target_start, count):
        values = cuda.local.array(lanes, kind)
        r = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        while r < rows:
            c = cuda.threadIdx.x
            while c < count:
                here = (r * source_row + source_start + c) * lanes
                there = (r * target_row + target_start + c) * lanes
                load_lanes(source, here, values, lanes, True)
                store_lanes(target, there, values, lanes, True)
                c += cuda.blockDim.x
            r += cuda.gridDim.y * cuda.blockDim.y

    return copy
