"""What is done to all parameters alike, in few launches: they are many, and most are small.

The kernels of no other file have their twins here: on the CPU a call for each array costs nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from llvmlite import ir
from numba import cuda
from numba.core import types
from numba.cuda.extending import intrinsic

from kfc_numba.kernels.cuda.arguments import empty
from kfc_numba.kernels.cuda.grids import THREADS, ceil_div
from kfc_numba.kernels.cuda.launch import device_kernel, inlined

SLOTS = 16  # arrays of a launch
_LEAST = 1 << 11  # numbers that are worth a block
_BLOCKS = 64  # of an array, at most
LARGEST = 2**31 - THREADS * _BLOCKS  #: numbers of an array, for places of 32 bits


def combined(factors: Sequence[float], xs: Sequence[Any], b: float, ys: Sequence[Any]) -> list[Any]:
    """``a x + b y`` of pairs of arrays, with an a of each, in the dtype of x."""
    return _each(_combine, xs, ys, factors, b)


def scaled(xs: Sequence[Any], factors: Sequence[float]) -> list[Any]:
    """``a x`` of arrays, with a number of each."""
    return _each(_times, xs, xs, factors, 0.0)


def averaged(
    averages: Sequence[Any], values: Sequence[Any], weight: float, roots: Sequence[bool]
) -> list[Any]:
    """``average + (value - average) / weight`` of pairs of arrays, in the dtype of the average.

    With the square roots of values where `roots` says so.
    """
    return _each(_average, averages, values, [float(root) for root in roots], weight)


def copy(sources: Sequence[Any], targets: Sequence[Any]) -> None:
    """Write arrays into others of the same shape and dtype, which are contiguous."""
    _each(_first, sources, sources, [0.0] * len(sources), 0.0, targets)


def finite(arrays: Sequence[Any], besides: Any = None) -> tuple[list[bool], Any]:
    """Whether all numbers of each array are finite; and another array, float64, on the host.

    Waits for the device, once.
    """
    sums, order = _sums(_zero_if_finite, arrays, arrays, np.dtype(np.float32))
    xp = array_namespace(sums)
    sums = xp.sum(sums, axis=1, dtype=xp.float64)  # NaN stays NaN
    if besides is None:
        return [bool(value == 0) for value in _sorted(sums.get(), order)], None
    found = xp.concat([sums, xp.reshape(besides, (-1,))]).get()
    rest = found[len(arrays) :].reshape(besides.shape)
    return [bool(value == 0) for value in _sorted(found[: len(arrays)], order)], rest


def inners(xs: Sequence[Any], ys: Sequence[Any]) -> np.ndarray:
    """Sums of the products of all numbers of pairs of arrays, in float64. Waits for the device."""
    sums, order = _sums(_product, xs, ys, np.dtype(np.float64))
    return _sorted(sums.get(), order).sum(axis=1)


def _each(
    function: Any,
    xs: Sequence[Any],
    ys: Sequence[Any],
    us: Sequence[float],
    v: float,
    outs: Any = None,
) -> list[Any]:
    """``function(x, y, u, v)`` of all numbers of pairs of arrays, with a u of each pair.

    New arrays if `outs` is None.
    """
    xs, ys = _contiguous(xs), _contiguous(ys)
    if outs is None:
        outs = [empty(x.shape, x.dtype, x) for x in xs]
    for chosen, sizes in _slots(xs, ys):
        parts = [tuple([arrays[i] for i in chosen]) for arrays in (xs, ys, outs)]
        kind = parts[0][0].dtype.type
        grid = _blocks(sizes), SLOTS - sizes.count(0)
        own = tuple([kind(us[i]) for i in chosen])
        _each_kernel(function)(grid, THREADS, *parts, sizes, own, kind(v))
    return outs


def _sums(function: Any, xs: Sequence[Any], ys: Sequence[Any], dtype: Any) -> tuple[Any, list[int]]:
    """Sums of ``function(x, y)`` over pairs of arrays, (pairs, blocks), and the order of pairs."""
    xs, ys = _contiguous(xs), _contiguous(ys)
    blocks = _blocks([x.size for x in xs])
    sums = empty((len(xs), blocks), dtype, xs[0])
    row, order = 0, []  # launches take arrays in the order of their dtypes
    for chosen, sizes in _slots(xs, ys):
        count = SLOTS - sizes.count(0)
        parts = [tuple([arrays[i] for i in chosen]) for arrays in (xs, ys)]
        _sums_kernel(function, dtype.type)((blocks, count), THREADS, *parts, sizes, sums, row)
        row += count
        order += [i for i, size in zip(chosen, sizes, strict=True) if size]
    return sums, order


def _sorted(found: np.ndarray, order: list[int]) -> np.ndarray:
    result = np.empty_like(found)
    result[order] = found
    return result


def _slots(xs: Sequence[Any], ys: Sequence[Any]) -> Iterator[tuple[list[int], tuple[int, ...]]]:
    """Places of `SLOTS` pairs of alike dtypes, and their sizes; the last ones, of size 0, again."""
    kinds: dict[tuple, list[int]] = {}
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if x.shape != y.shape:
            raise ValueError(f"arrays of shapes {x.shape} and {y.shape} do not match")
        if x.size > LARGEST:
            raise ValueError(f"an array of shape {x.shape} is too large for device code")
        kinds.setdefault((x.dtype, y.dtype), []).append(i)
    for places in kinds.values():
        for start in range(0, len(places), SLOTS):
            chosen = places[start : start + SLOTS]
            more = SLOTS - len(chosen)
            sizes = tuple([xs[i].size for i in chosen]) + (0,) * more
            yield chosen + [chosen[-1]] * more, sizes


def _contiguous(arrays: Sequence[Any]) -> list[Any]:
    return [a if a.flags.c_contiguous else array_namespace(a).ascontiguousarray(a) for a in arrays]


def _blocks(sizes: Sequence[int]) -> int:
    return max(1, min(ceil_div(max(sizes), _LEAST), _BLOCKS))


@intrinsic
def _chosen(typingctx, items, k):
    """``items[k]`` of a tuple of one type, for k that all threads of a block share."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = builder.extract_value(args[0], 0)
        for i in range(1, items.count):
            here = builder.icmp_signed("==", args[1], ir.Constant(ir.IntType(32), i))
            found = builder.select(here, builder.extract_value(args[0], i), found)
        return found

    return items.dtype(items, types.int32), codegen


@functools.cache
def _each_kernel(function: Any) -> Any:
    @device_kernel
    def each_of_many(xs, ys, outs, sizes, us, v):
        k = cuda.blockIdx.y
        x, y, out, size = _chosen(xs, k), _chosen(ys, k), _chosen(outs, k), _chosen(sizes, k)
        u = _chosen(us, k)
        i = cuda.grid(1)
        while i < size:
            out[i] = function(x[i], y[i], u, v)
            i += THREADS * cuda.gridDim.x

    return each_of_many


@functools.cache
def _sums_kernel(function: Any, kind: Any) -> Any:
    @device_kernel
    def sums_of_many(xs, ys, sizes, sums, row):
        k, thread = cuda.blockIdx.y, cuda.threadIdx.x
        x, y, size = _chosen(xs, k), _chosen(ys, k), _chosen(sizes, k)
        total = kind(0)
        i = cuda.grid(1)
        while i < size:
            total += kind(function(x[i], y[i]))
            i += THREADS * cuda.gridDim.x
        partial = cuda.shared.array(THREADS, kind)
        partial[thread] = total
        cuda.syncthreads()
        half = THREADS >> 1
        while half > 0:
            if thread < half:
                partial[thread] += partial[thread + half]
            cuda.syncthreads()
            half >>= 1
        if thread == 0:
            sums[(row + k) * cuda.gridDim.x + cuda.blockIdx.x] = partial[0]

    return sums_of_many


@inlined
def _combine(x, y, a, b):
    return a * x + b * type(x)(y)


@inlined
def _times(x, _, u, v):
    return u * x


@inlined
def _average(average, value, root, weight):
    new = type(average)(value)
    if root > 0:
        new = math.sqrt(new)
    return average + (new - average) / weight


@inlined
def _first(x, _, u, v):
    return x


@inlined
def _product(x, y):
    return np.float64(x) * np.float64(y)


@inlined
def _zero_if_finite(x, _):
    return x * type(x)(0)  # otherwise NaN, which a sum keeps
