"""What batch normalisation computes of the statistics of its channels, one launch for each."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import cuda

from kfc_numba.kernels.cpu import norm_vectors as cpu
from kfc_numba.kernels.cuda.arguments import FLOATS, checked, empty, shaped
from kfc_numba.kernels.cuda.grids import THREADS, ceil_div
from kfc_numba.kernels.cuda.launch import device_kernel
from kfc_numba.kernels.cuda.sums import DOUBLE
from kfc_numba.kernels.cuda.twin import twin


@twin(cpu.norm_terms)
def norm_terms(
    weight: Any, bias: Any, mean: Any, variance: Any, *, epsilon: float
) -> tuple[Any, Any, Any, Any]:
    weight = checked("weight", weight, 1)
    bias = shaped("bias", bias, weight.dtype, weight.shape)
    mean, variance = _statistics(weight, mean=mean, variance=variance)
    found = _doubles(weight, 4)
    _each(_terms, weight, weight, bias, mean, variance, np.float64(epsilon), *found)
    return found[0], found[1], found[2], found[3]


@twin(cpu.norm_gradients)
def norm_gradients(
    weight: Any, sums: Any, products: Any, inverse: Any, scale: Any, rows: int
) -> tuple[Any, Any, Any, Any]:
    weight = checked("weight", weight, 1)
    vectors = _vectors(weight, sums=sums, products=products, inverse=inverse, scale=scale)
    dweight, dbias = (empty(weight.shape, weight.dtype, weight) for _ in range(2))
    slope, offset = _doubles(weight, 2)
    kernel = _gradients(weight.dtype.type)
    _each(kernel, weight, *vectors, np.float64(rows), dweight, dbias, slope, offset)
    return dweight, dbias, slope, offset


@twin(cpu.norm_slopes)
def norm_slopes(
    dweight: Any, dbias: Any, sums: Any, products: Any, inverse: Any, scale: Any, rows: int
) -> tuple[Any, Any]:
    dweight = checked("dweight", dweight, 1)
    dbias = shaped("dbias", dbias, dweight.dtype, dweight.shape)
    vectors = _vectors(dweight, sums=sums, products=products, inverse=inverse, scale=scale)
    slope, offset = _doubles(dweight, 2)
    _each(_slopes, dweight, dweight, dbias, *vectors, np.float64(rows), slope, offset)
    return slope, offset


@twin(cpu.norm_running)
def norm_running(
    running_mean: Any,
    running_variance: Any,
    mean: Any,
    variance: Any,
    *,
    momentum: float,
    rows: int,
) -> tuple[Any, Any]:
    olds = [checked("running_mean", running_mean, 1)]
    olds.append(shaped("running_variance", running_variance, olds[0].dtype, olds[0].shape))
    news = _vectors(olds[0], mean=mean, variance=variance)
    found = [empty(old.shape, old.dtype, old) for old in olds]
    numbers = np.float64(momentum), np.float64(rows / (rows - 1))
    _each(_running(olds[0].dtype.type), olds[0], *olds, *news, *numbers, *found)
    return found[0], found[1]


def _statistics(weight: Any, **vectors: Any) -> list[Any]:
    """Vectors of either dtype."""
    kinds = [v.dtype if v.dtype in FLOATS else DOUBLE for v in vectors.values()]
    return [
        shaped(name, vector, kind, weight.shape)
        for (name, vector), kind in zip(vectors.items(), kinds, strict=True)
    ]


def _vectors(weight: Any, **vectors: Any) -> list[Any]:
    """The vectors, contiguous; an error if one is not float64 of as many channels."""
    return [shaped(name, vector, DOUBLE, weight.shape) for name, vector in vectors.items()]


def _doubles(weight: Any, count: int) -> list[Any]:
    return [empty(weight.shape, DOUBLE, weight) for _ in range(count)]


def _each(kernel: Any, weight: Any, *arguments: Any) -> None:
    kernel(ceil_div(weight.size, THREADS), THREADS, *arguments, weight.size)


@device_kernel
def _terms(weight, bias, mean, variance, epsilon, means, inverses, scales, offsets, channels):
    c = cuda.grid(1)
    if c < channels:
        inverse = 1.0 / math.sqrt(np.float64(variance[c]) + epsilon)
        means[c], inverses[c] = np.float64(mean[c]), inverse
        scales[c], offsets[c] = np.float64(weight[c]) * inverse, np.float64(bias[c])


@functools.cache
def _gradients(kind: Any) -> Any:
    @device_kernel
    def gradients(
        sums, products, inverses, scales, rows, dweight, dbias, slopes, offsets, channels
    ):
        c = cuda.grid(1)
        if c < channels:
            slope = products[c] * inverses[c]
            dweight[c], dbias[c] = kind(slope), kind(sums[c])
            slopes[c] = -scales[c] * inverses[c] * slope / rows
            offsets[c] = -scales[c] * sums[c] / rows

    return gradients


@device_kernel
def _slopes(dweight, dbias, sums, products, inverses, scales, rows, slopes, offsets, channels):
    c = cuda.grid(1)
    if c < channels:
        inverse, scale = inverses[c], scales[c]
        more = scale * (inverse * inverse) * products[c] / rows
        slopes[c] = np.float64(dweight[c]) * inverse - more
        offsets[c] = np.float64(dbias[c]) - scale * sums[c] / rows


@functools.cache
def _running(kind: Any) -> Any:
    @device_kernel
    def running(
        old_mean, old_variance, mean, variance, momentum, unbiased, new_mean, new_variance, channels
    ):
        c = cuda.grid(1)
        if c < channels:
            rest = 1.0 - momentum
            new_mean[c] = kind(momentum * np.float64(old_mean[c]) + rest * mean[c])
            found = momentum * np.float64(old_variance[c]) + rest * (variance[c] * unbiased)
            new_variance[c] = kind(found)

    return running
