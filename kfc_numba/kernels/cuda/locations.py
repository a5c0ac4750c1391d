"""Sums and means over the locations of each example, taken in float64 and rounded once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda

from kfc_numba.checks import check_shape
from kfc_numba.kernels.cpu import locations as cpu
from kfc_numba.kernels.cuda.arguments import checked, output_array
from kfc_numba.kernels.cuda.grids import volume
from kfc_numba.kernels.cuda.lanes import channel_lanes, load_lanes, store_lanes
from kfc_numba.kernels.cuda.launch import device_kernel, inlined
from kfc_numba.kernels.cuda.sums import rounded, segment_sums
from kfc_numba.kernels.cuda.twin import twin


@twin(cpu.location_sum)
def location_sum(x: Any, *, out: Any = None) -> Any:
    return _sums(x, 1, out)


@twin(cpu.location_mean)
def location_mean(x: Any, *, out: Any = None) -> Any:
    return _sums(x, None, out)


@twin(cpu.location_mean_backward)
def location_mean_backward(dy: Any, input_shape: Sequence[int], *, out: Any = None) -> Any:
    dy = checked("dy", dy, 2)
    shape = check_shape("input_shape", input_shape)
    if len(shape) < 2 or (shape[0], shape[-1]) != dy.shape:
        raise ValueError(
            f"dy has shape {dy.shape}, it must be the first and the last of input_shape (={shape})"
        )
    out = output_array(out, shape, dy.dtype, dy)
    locations, lanes = math.prod(shape[1:-1]), channel_lanes(shape[-1], dy, out)
    groups = shape[-1] // lanes
    kernel = _spread(dy.dtype.type, lanes)
    kernel(*volume(len(dy), locations, groups), dy, out, locations, groups)
    return out


def _sums(x: Any, divisor: int | None, out: Any) -> Any:
    """Sums over `divisor`, or over the number of locations."""
    x = checked("x", x, None)
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}, it must have at least 2 dimensions")
    examples, channels = x.shape[0], x.shape[-1]
    out = output_array(out, (examples, channels), x.dtype, x)
    locations = math.prod(x.shape[1:-1])
    sums, _ = segment_sums(_number, x, x, x, locations, examples * locations, channels)
    return rounded(sums, locations if divisor is None else divisor, out)


@inlined
def _number(x, _, center):
    return np.float64(x), np.float64(0)


@functools.cache
def _spread(kind: Any, lanes: int) -> Any:
    @device_kernel
    def spread(dy, dx, locations, groups):
        n = cuda.blockIdx.x
        shares = cuda.local.array(lanes, kind)
        group = cuda.threadIdx.x
        while group < groups:
            load_lanes(dy, (n * groups + group) * lanes, shares, lanes, True)
            for k in range(lanes):
                shares[k] /= kind(locations)
            t = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
            while t < locations:
                place = ((n * locations + t) * groups + group) * lanes
                store_lanes(dx, place, shares, lanes, True)
                t += cuda.gridDim.y * cuda.blockDim.y
            group += cuda.blockDim.x

    return spread
