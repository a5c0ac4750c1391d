"""Kernels that treat every number of an array alike, and sums over all of them.

A thread takes 128 bits: memory is what limits these.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import cuda

from kfc_numba.checks import check_number
from kfc_numba.kernels.cpu import elementwise as cpu
from kfc_numba.kernels.cpu.arguments import real
from kfc_numba.kernels.cuda.arguments import alike, apart, checked, output_array, scalar
from kfc_numba.kernels.cuda.grids import THREADS, ceil_div
from kfc_numba.kernels.cuda.lanes import lanes_of, load_lanes, store_lanes, wide
from kfc_numba.kernels.cuda.launch import device_kernel, inlined
from kfc_numba.kernels.cuda.sums import row_sums
from kfc_numba.kernels.cuda.twin import twin


@twin(cpu.relu_forward)
def relu_forward(x: Any, *, out: Any = None) -> Any:
    return each(_relu_forward, alike(x=x), out)


@twin(cpu.relu_backward)
def relu_backward(dy: Any, y: Any, *, out: Any = None) -> Any:
    return each(_relu_backward, alike(dy=dy, y=y), out)


@twin(cpu.leaky_relu_forward)
def leaky_relu_forward(x: Any, *, negative_slope: float, out: Any = None) -> Any:
    slope = check_number("negative_slope", negative_slope, "[0, inf)")
    return each(_leaky_forward, alike(x=x), out, slope)


@twin(cpu.leaky_relu_backward)
def leaky_relu_backward(dy: Any, x: Any, *, negative_slope: float, out: Any = None) -> Any:
    slope = check_number("negative_slope", negative_slope, "[0, inf)")
    return each(_leaky_backward, alike(dy=dy, x=x), out, slope)


@twin(cpu.tanh_forward)
def tanh_forward(x: Any, *, out: Any = None) -> Any:
    return each(_tanh_forward, alike(x=x), out)


@twin(cpu.tanh_backward)
def tanh_backward(dy: Any, y: Any, *, out: Any = None) -> Any:
    return each(_tanh_backward, alike(dy=dy, y=y), out)


@twin(cpu.sigmoid_forward)
def sigmoid_forward(x: Any, *, out: Any = None) -> Any:
    x = checked("x", x, None)
    out = output_array(out, x.shape, x.dtype, x)
    apart(out=out, x=x)
    return each(_sigmoid_forward, [x], out)


@twin(cpu.sigmoid_backward)
def sigmoid_backward(dy: Any, y: Any, *, out: Any = None) -> Any:
    return each(_sigmoid_backward, alike(dy=dy, y=y), out)


@twin(cpu.add)
def add(a: Any, b: Any, *, out: Any = None) -> Any:
    return each(_add, alike(a=a, b=b), out)


@twin(cpu.scale)
def scale(x: Any, factor: float, *, out: Any = None) -> Any:
    return each(_scale, alike(x=x), out, real("factor", factor))


@twin(cpu.scaled_add)
def scaled_add(a: Any, b: Any, factor: float, *, out: Any = None) -> Any:
    return each(_scaled_add, alike(a=a, b=b), out, real("factor", factor))


@twin(cpu.apply_mask)
def apply_mask(x: Any, mask: Any, *, scale: float, out: Any = None) -> Any:
    x, mask = checked("x", x, None), checked("mask", mask, None, np.dtype(np.uint8))
    if mask.shape != x.shape:
        raise ValueError(f"mask has shape {mask.shape}, it must be that of x, {x.shape}")
    return each(_apply_mask, [x, mask], out, real("scale", scale))


@twin(cpu.dot)
def dot(a: Any, b: Any) -> float:
    """The order of the sum is another than on the CPU. Reading it waits for the device."""
    a, b = alike(a=a, b=b)
    return scalar(row_sums(_product, a, b, 1, a.size))


@twin(cpu.all_finite)
def all_finite(x: Any) -> bool:
    """Reading the answer waits for the device."""
    x = checked("x", x, None)
    return scalar(row_sums(_zero_if_finite, x, x, 1, x.size, x.dtype)) == 0


def each(function: Any, arrays: list[Any], out: Any, number: float = 0.0) -> Any:
    """``function(a, b, number)`` of all numbers a and b of two arrays of one shape.

    Parameters
    ----------
    function : callable
        Made by `inlined`; it gives a number of the type of a.
    arrays : list of cupy.ndarray
        One or two; a function of a single number takes no notice of b.
    out : cupy.ndarray or None
        Of the shape and dtype of the first array; may be one of them.
    number : float
        Rounded to the dtype of the first array.

    Returns
    -------
    cupy.ndarray
    """
    a, b = arrays[0], arrays[-1]
    out = output_array(out, a.shape, a.dtype, a)
    lanes = lanes_of(a, b)
    kernel = _kernel(function, a.dtype.type, b.dtype.type, lanes, wide(lanes, a, b, out))
    grid = ceil_div(a.size, lanes * THREADS)
    kernel(grid, THREADS, a, b, out, np.int64(a.size), a.dtype.type(number))
    return out


@functools.cache
def _kernel(function: Any, a_type: Any, b_type: Any, lanes: int, at_once: bool) -> Any:
    @device_kernel
    def each(a, b, out, size, number):
        first = lanes * cuda.grid(1)
        if first + lanes <= size:
            u, v = cuda.local.array(lanes, a_type), cuda.local.array(lanes, b_type)
            load_lanes(a, first, u, lanes, at_once)
            load_lanes(b, first, v, lanes, at_once)
            for k in range(lanes):
                u[k] = function(u[k], v[k], number)
            store_lanes(out, first, u, lanes, at_once)
        else:
            for k in range(lanes):
                if first + k < size:
                    out[first + k] = function(a[first + k], b[first + k], number)

    return each


# `0 if x <= 0 else x`, not `x if x > 0 else 0`: a comparison with NaN is false.


@inlined
def _relu_forward(x, _, number):
    return type(x)(0) if x <= type(x)(0) else x


@inlined
def _relu_backward(dy, y, number):
    return type(dy)(0) if y <= type(dy)(0) else dy


@inlined
def _leaky_forward(x, _, slope):
    return x * slope if x <= type(x)(0) else x


@inlined
def _leaky_backward(dy, x, slope):
    return dy * slope if x <= type(x)(0) else dy


@inlined
def _tanh_forward(x, _, number):
    return math.tanh(x)


@inlined
def _tanh_backward(dy, y, number):
    return dy * (type(y)(1) - y * y)


@inlined
def logistic(x):
    """``1 / (1 + e^-x)``."""
    small = math.exp(-abs(x))  # which cannot overflow
    return (small if x < type(x)(0) else type(x)(1)) / (type(x)(1) + small)


@inlined
def _sigmoid_forward(x, _, number):
    return logistic(x)


@inlined
def _sigmoid_backward(dy, y, number):
    return dy * (y * (type(y)(1) - y))


@inlined
def _add(a, b, number):
    return a + b


@inlined
def _scale(x, _, factor):
    return x * factor


@inlined
def _scaled_add(a, b, factor):
    return a + b * factor


@inlined
def _apply_mask(x, mask, scale):
    return x * (type(x)(mask) * scale)


@inlined
def _product(a, b):
    return np.float64(a) * np.float64(b)


@inlined
def _zero_if_finite(x, _):
    return x * type(x)(0)  # otherwise NaN, which a sum keeps
