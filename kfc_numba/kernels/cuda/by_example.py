"""Sums over all numbers of each example, and over examples; examples picked out of a batch."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numba import cuda

from kfc_numba.kernels.backend import on_device
from kfc_numba.kernels.cpu import by_example as cpu
from kfc_numba.kernels.cuda.arguments import alike, checked, output_array
from kfc_numba.kernels.cuda.elementwise import each
from kfc_numba.kernels.cuda.grids import volume
from kfc_numba.kernels.cuda.lanes import channel_lanes, load_lanes, store_lanes
from kfc_numba.kernels.cuda.launch import device_kernel, inlined
from kfc_numba.kernels.cuda.sums import column_sums, rounded, row_sums
from kfc_numba.kernels.cuda.twin import twin


@twin(cpu.example_dots)
def example_dots(a: Any, b: Any) -> Any:
    a, b = alike(a=a, b=b)
    return row_sums(_product, a, b, len(a), a.size // len(a))


@twin(cpu.square)
def square(x: Any, *, out: Any = None) -> Any:
    return each(_square, [checked("x", x, None)], out)


@twin(cpu.square_sum)
def square_sum(x: Any, *, out: Any = None) -> Any:
    x = checked("x", x, None)
    out = output_array(out, x.shape[1:], x.dtype, x)
    sums, _ = column_sums(_squares, x, x, x, len(x), x.size // len(x))
    return rounded(sums, 1, out)


@twin(cpu.take_examples)
def take_examples(batch: Any, chosen: Any, *, out: Any = None) -> Any:
    """Numbers out of range are refused where `chosen` is an array of NumPy's, as it may be."""
    if not on_device(batch):
        raise TypeError(f"batch must be a device array, got {type(batch).__name__}")
    batch = checked("batch", batch, None, batch.dtype)
    if isinstance(chosen, np.ndarray):
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(batch)):
            raise ValueError(
                f"chosen must be from 0 to {len(batch) - 1}, got {chosen.min()} to {chosen.max()}"
            )
        chosen = array_namespace(batch).asarray(chosen)
    chosen = checked("chosen", chosen, 1, np.dtype(np.int64))
    out = output_array(out, (len(chosen), *batch.shape[1:]), batch.dtype, batch)
    size = batch.size // len(batch)
    lanes = channel_lanes(size, batch, out)
    grid, block = volume(1, len(chosen), size // lanes)
    _take(batch.dtype.type, lanes)(grid, block, batch, chosen, out, len(chosen), size // lanes)
    return out


@functools.cache
def _take(kind: Any, lanes: int) -> Any:
    @device_kernel
    def take(batch, chosen, found, count, size):
        values = cuda.local.array(lanes, kind)
        n = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        while n < count:
            row = chosen[n]
            i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
            while i < size:
                load_lanes(batch, (row * size + i) * lanes, values, lanes, True)
                store_lanes(found, (n * size + i) * lanes, values, lanes, True)
                i += cuda.gridDim.x * cuda.blockDim.x
            n += cuda.gridDim.y * cuda.blockDim.y

    return take


@inlined
def _product(a, b):
    return np.float64(a) * np.float64(b)


@inlined
def _square(x, _, number):
    return x * x


@inlined
def _squares(x, _, center):
    return np.float64(x) * np.float64(x), np.float64(0)
