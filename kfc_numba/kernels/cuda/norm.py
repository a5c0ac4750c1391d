"""Statistics of channels, and channels moved and scaled: what batch normalisation is made of.

Sums are taken in float64, in an order that depends on shapes alone. Computing in float64 costs
nothing on cards made for it, and four operations a number, which others do about as fast as they
read it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from kfc_numba.kernels.cpu import norm as cpu
from kfc_numba.kernels.cuda.arguments import alike, checked, empty, output_array
from kfc_numba.kernels.cuda.grids import THREADS, ceil_div, cover
from kfc_numba.kernels.cuda.lanes import channel_lanes, load_lanes, store_lanes
from kfc_numba.kernels.cuda.launch import device_kernel, inlined
from kfc_numba.kernels.cuda.sums import DOUBLE, column_sums, segment_sums
from kfc_numba.kernels.cuda.twin import twin

_BLOCKS = 1 << 11  # that keep all multiprocessors busy
_WIDTH = 32  # threads side by side, at most: with lanes, four lines of memory


@twin(cpu.channel_moments)
def channel_moments(x: Any) -> tuple[Any, Any]:
    x = checked("x", x, None)
    channels = x.shape[-1]
    rows = x.size // channels
    sums = column_sums(_shifted, x, x, x, rows, channels)  # of which the first row is the shift
    mean, variance = (empty((channels,), DOUBLE, x) for _ in range(2))
    grid = ceil_div(channels, THREADS)
    _moments(grid, THREADS, *sums, x, mean, variance, np.float64(rows), channels)
    return mean, variance


@twin(cpu.channel_products)
def channel_products(u: Any, x: Any, mean: Any) -> tuple[Any, Any]:
    u, x = alike(u=u, x=x)
    (mean,) = _vectors(x, mean=mean)
    return column_sums(_products, u, x, mean, x.size // x.shape[-1], x.shape[-1])


@twin(cpu.channel_squares)
def channel_squares(u: Any, x: Any, mean: Any) -> tuple[Any, Any]:
    u, x = alike(u=u, x=x)
    (mean,) = _vectors(x, mean=mean)
    rows, channels = x.size // x.shape[-1], x.shape[-1]
    examples = segment_sums(_products, u, x, mean, rows // len(x), rows, channels)
    return column_sums(_squares, *examples, mean, len(x), channels)


@twin(cpu.channel_affine)
def channel_affine(x: Any, mean: Any, scale: Any, offset: Any, *, out: Any = None) -> Any:
    x = checked("x", x, None)
    mean, scale, offset = _vectors(x, mean=mean, scale=scale, offset=offset)
    out = output_array(out, x.shape, x.dtype, x)
    return _combined(_affine, x, x, [mean, scale, scale, offset], out)


@twin(cpu.channel_combination)
def channel_combination(
    u: Any, x: Any, mean: Any, a: Any, b: Any, c: Any, *, out: Any = None
) -> Any:
    u, x = alike(u=u, x=x)
    vectors = _vectors(x, mean=mean, a=a, b=b, c=c)
    out = output_array(out, u.shape, u.dtype, u)
    return _combined(_combination, u, x, vectors, out)


def _vectors(x: Any, **vectors: Any) -> list[Any]:
    """The vectors, contiguous; an error if one is not float64 of the channels of `x`."""
    found = []
    for name, vector in vectors.items():
        vector = checked(name, vector, 1, DOUBLE)
        if vector.shape != x.shape[-1:]:
            raise ValueError(
                f"{name} has shape {vector.shape}, it must be {x.shape[-1:]}, one a channel"
            )
        found.append(vector)
    return found


def _combined(function: Any, u: Any, x: Any, vectors: list[Any], out: Any) -> Any:
    """``function(u, x, mean, a, b, c)``, of numbers and of the vectors' for their channel."""
    channels = x.shape[-1]
    rows, lanes = x.size // channels, channel_lanes(channels, u, x, out)
    groups = channels // lanes
    width = cover(groups, _WIDTH)
    height = THREADS // width
    columns = ceil_div(groups, width)
    grid = min(ceil_div(rows, height), ceil_div(_BLOCKS, columns)), columns
    kernel = _combine(function, x.dtype.type, lanes)
    kernel(grid, (width, height), u, x, *vectors, out, rows, groups)
    return out


@inlined
def _shifted(x, _, shift):
    value = np.float64(x) - shift
    return value, value * value


@inlined
def _products(u, x, mean):
    return np.float64(u), np.float64(u) * (np.float64(x) - mean)


@inlined
def _squares(a, b, center):
    return a * a, b * b


@inlined
def _affine(u, x, mean, a, b, c):
    return b * (np.float64(x) - mean) + c


@inlined
def _combination(u, x, mean, a, b, c):
    return a * np.float64(u) + b * (np.float64(x) - mean) + c


@device_kernel
def _moments(firsts, seconds, shift, mean, variance, rows, channels):
    c = cuda.grid(1)
    if c < channels:
        first = firsts[c] / rows
        spread = seconds[c] / rows - first * first
        mean[c] = shift[c] + first
        variance[c] = 0.0 if spread < 0.0 else spread  # a NaN stays one


@functools.cache
def _combine(function: Any, kind: Any, lanes: int) -> Any:
    double = np.float64

    @device_kernel
    def combine(u, x, means, firsts, seconds, constants, out, rows, groups):
        group = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        if group < groups:
            mean, a = cuda.local.array(lanes, double), cuda.local.array(lanes, double)
            b, c = cuda.local.array(lanes, double), cuda.local.array(lanes, double)
            for k in range(lanes):
                mean[k], a[k] = means[group * lanes + k], firsts[group * lanes + k]
                b[k], c[k] = seconds[group * lanes + k], constants[group * lanes + k]
            v, y = cuda.local.array(lanes, kind), cuda.local.array(lanes, kind)
            r = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
            while r < rows:
                place = (r * groups + group) * lanes
                load_lanes(u, place, v, lanes, True)
                load_lanes(x, place, y, lanes, True)
                for k in range(lanes):
                    y[k] = function(v[k], y[k], mean[k], a[k], b[k], c[k])
                store_lanes(out, place, y, lanes, True)
                r += cuda.gridDim.x * cuda.blockDim.y

    return combine
