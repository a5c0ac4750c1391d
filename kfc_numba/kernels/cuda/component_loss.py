"""Kernels of independent distributions of each output: Bernoulli (`sigmoid_*`) or normal.

Outputs that are not finite give results that are not, for those examples.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from kfc_numba.kernels.cpu import component_loss as cpu
from kfc_numba.kernels.cpu.loss_arguments import component
from kfc_numba.kernels.cuda.arguments import alike, apart, checked, output_array, scalar, shaped
from kfc_numba.kernels.cuda.elementwise import each, logistic
from kfc_numba.kernels.cuda.grids import volume
from kfc_numba.kernels.cuda.launch import device_kernel, inlined
from kfc_numba.kernels.cuda.sums import DOUBLE, row_sums
from kfc_numba.kernels.cuda.twin import twin


@twin(cpu.squared_loss)
def squared_loss(outputs: Any, targets: Any, *, out: Any = None) -> tuple[Any, Any]:
    return _loss(_squared_value, _squared_slope, outputs, targets, out)


@twin(cpu.squared_error)
def squared_error(outputs: Any, targets: Any) -> float:
    """Reading it waits for the device."""
    outputs, targets = _paired(outputs, targets)
    values = row_sums(_squared_value, outputs, targets, 1, outputs.size)
    return 2 * (scalar(values) / outputs.size)


@twin(cpu.sigmoid_loss)
def sigmoid_loss(outputs: Any, targets: Any, *, out: Any = None) -> tuple[Any, Any]:
    return _loss(_sigmoid_value, _sigmoid_slope, outputs, targets, out)


@twin(cpu.sigmoid_sample)
def sigmoid_sample(outputs: Any, uniform: Any, *, out: Any = None) -> Any:
    outputs = checked("outputs", outputs, None)
    uniform = shaped("uniform", uniform, DOUBLE, outputs.shape)
    return each(_sigmoid_sample, [outputs, uniform], out)


@twin(cpu.sigmoid_fisher_product)
def sigmoid_fisher_product(outputs: Any, v: Any, *, out: Any = None) -> Any:
    outputs, v = alike(outputs=outputs, v=v)
    out = output_array(out, outputs.shape, outputs.dtype, outputs)
    apart(out=out, v=v)
    return each(_sigmoid_fisher, [outputs, v], out)


@twin(cpu.sigmoid_deviation)
def sigmoid_deviation(x: Any, *, out: Any = None) -> Any:
    return each(_sigmoid_deviation, [checked("x", x, None)], out)


@twin(cpu.sigmoid_error)
def sigmoid_error(outputs: Any, targets: Any) -> float:
    """Reading it waits for the device."""
    outputs, targets = _paired(outputs, targets)
    wrong = row_sums(_differs, outputs, targets, 1, outputs.size, np.dtype(np.int64))
    return scalar(wrong) / outputs.size


@twin(cpu.single_component)
def single_component(x: Any, *, index: int, out: Any = None) -> Any:
    x = checked("x", x, None)
    index = component(x, index)
    out = output_array(out, x.shape, x.dtype, x)
    size = x.size // len(x)
    _single_component(*volume(len(x), 1, size), x, out, index, size)
    return out


def _paired(outputs: Any, targets: Any) -> tuple[Any, Any]:
    outputs = checked("outputs", outputs, None)
    return outputs, shaped("targets", targets, None, outputs.shape)


def _loss(value: Any, slope: Any, outputs: Any, targets: Any, out: Any) -> tuple[Any, Any]:
    """Sums of values by example, and derivatives, which may replace the outputs."""
    outputs, targets = _paired(outputs, targets)
    out = output_array(out, outputs.shape, outputs.dtype, outputs)
    values = row_sums(value, outputs, targets, len(outputs), outputs.size // len(outputs))
    return values, each(slope, [outputs, targets], out)


@inlined
def _squared_value(z, t):
    difference = np.float64(z) - np.float64(t)
    return np.float64(0.5) * (difference * difference)


@inlined
def _squared_slope(z, t, number):
    return z - t


@inlined
def _sigmoid_value(z, t):
    logit, target = np.float64(z), np.float64(t)
    # max(z, 0) - t z, without the difference of two large numbers.
    linear = (1.0 - target) * logit if logit > 0 else -target * logit
    return linear + math.log1p(np.float64(math.exp(-abs(z))))


@inlined
def _sigmoid_slope(z, t, number):
    return logistic(z) - t


@inlined
def _sigmoid_sample(z, uniform, number):
    return type(z)(1) if uniform < logistic(z) else type(z)(0)


@inlined
def _sigmoid_fisher(z, v, number):
    small = math.exp(-abs(z))
    whole = type(z)(1) + small
    return small / (whole * whole) * v


@inlined
def _sigmoid_deviation(z, _, number):
    small = math.exp(-abs(z))
    return math.sqrt(small) / (type(z)(1) + small)


@inlined
def _differs(z, t):
    return (z > type(z)(0)) != (t > type(t)(0.5))


@device_kernel
def _single_component(x, result, index, size):
    first = cuda.blockIdx.x * size
    i = cuda.threadIdx.x
    while i < size:
        result[first + i] = x[first + i] if i == index else type(x[first])(0)
        i += cuda.blockDim.x
