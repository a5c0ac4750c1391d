"""Kernels of categorical distributions: each row of outputs (..., K) holds the logits of K classes.

Up to 32 threads share a row, side by side; a block has as many rows as fit. Outputs that are not
finite give results that are not, for those rows.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import cuda

from kfc_numba.kernels.cpu import categorical as cpu
from kfc_numba.kernels.cpu.loss_arguments import component
from kfc_numba.kernels.cuda.arguments import (
    alike,
    apart,
    checked,
    empty,
    output_array,
    scalar,
    shaped,
)
from kfc_numba.kernels.cuda.grids import THREADS, ceil_div, cover, volume
from kfc_numba.kernels.cuda.integers import div
from kfc_numba.kernels.cuda.launch import device_kernel, inlined
from kfc_numba.kernels.cuda.sums import DOUBLE, first, row_sums
from kfc_numba.kernels.cuda.twin import twin

_INTEGER = np.dtype(np.int64)
_ABROAD = 1 << 32  # counts a target that is no class, among rows that are wrong


@twin(cpu.softmax)
def softmax(x: Any, *, out: Any = None) -> Any:
    x = _with_classes(checked("x", x, None), "x")
    out = output_array(out, x.shape, x.dtype, x)
    _launch(_softmax, x, x, out)
    return out


@twin(cpu.softmax_loss)
def softmax_loss(outputs: Any, targets: Any, *, out: Any = None) -> tuple[Any, Any]:
    """A target that is not from 0 to K - 1 makes its value and its derivatives NaN: an error would
    have to wait for the device.
    """
    outputs, targets = _classified(outputs, targets)
    out = output_array(out, outputs.shape, outputs.dtype, outputs)
    values = empty((targets.size,), DOUBLE, outputs)
    _launch(_softmax_loss, outputs, outputs, out, targets, values)
    examples = len(outputs)
    if targets.size > examples:
        values = row_sums(first, values, values, examples, targets.size // examples)
    return values, out


@twin(cpu.softmax_sample)
def softmax_sample(outputs: Any, uniform: Any) -> Any:
    outputs = _with_classes(checked("outputs", outputs, None), "outputs")
    uniform = shaped("uniform", uniform, DOUBLE, outputs.shape[:-1])
    labels = empty(uniform.shape, _INTEGER, outputs)
    _launch(_softmax_sample, outputs, outputs, uniform, labels)
    return labels


@twin(cpu.softmax_fisher_product)
def softmax_fisher_product(outputs: Any, v: Any, *, out: Any = None) -> Any:
    outputs, v = alike(outputs=outputs, v=v)
    _with_classes(outputs, "outputs")
    out = output_array(out, outputs.shape, outputs.dtype, outputs)
    apart(out=out, v=v)
    _launch(_softmax_fisher, outputs, outputs, v, out)
    return out


@twin(cpu.softmax_fisher_column)
def softmax_fisher_column(probabilities: Any, *, index: int, out: Any = None) -> Any:
    p = _with_classes(checked("probabilities", probabilities, None), "probabilities")
    index = component(p, index)
    out = output_array(out, p.shape, p.dtype, p)
    size = p.size // len(p)
    _fisher_column(p.dtype.type)(*volume(len(p), 1, size), p, out, index, size, p.shape[-1])
    return out


@twin(cpu.softmax_error)
def softmax_error(outputs: Any, targets: Any) -> float:
    """Reading it waits for the device."""
    outputs, targets = _classified(outputs, targets)
    wrong = empty((targets.size,), _INTEGER, outputs)
    _launch(_softmax_wrong, outputs, outputs, targets, wrong)
    abroad, count = divmod(scalar(row_sums(first, wrong, wrong, 1, wrong.size, _INTEGER)), _ABROAD)
    if abroad:
        last, given = outputs.shape[-1] - 1, targets.get()
        raise ValueError(f"targets must be from 0 to {last}, got {given.min()} to {given.max()}")
    return count / targets.size


def _with_classes(array: Any, name: str) -> Any:
    if array.ndim < 2:
        raise ValueError(f"{name} must have classes as its last axis, got shape {array.shape}")
    return array


def _classified(outputs: Any, targets: Any) -> tuple[Any, Any]:
    outputs = _with_classes(checked("outputs", outputs, None), "outputs")
    return outputs, shaped("targets", targets, _INTEGER, outputs.shape[:-1])


def _launch(kernel: Any, x: Any, *arrays: Any) -> None:
    """Call a kernel made for the type of `x` with arrays, and with the rows and classes of `x`."""
    classes = x.shape[-1]
    rows, width = x.size // classes, cover(classes, 32)
    height = THREADS // width
    kernel(x.dtype.type)(ceil_div(rows, height), (width, height), *arrays, rows, classes)


# In all kernels x is a thread's place in its row, `here` its place in the block, and `place` that
# of a number in memory. Threads of rows beyond the last have no numbers, and meet the others at
# barriers. What several threads need of a row is read before the barriers behind which the row may
# be written over.


@inlined
def _row_greatest(partial, value, here, x, width):
    """The largest number of the threads of a row, NaN apart."""
    partial[here] = value
    cuda.syncthreads()
    half = width >> 1
    while half > 0:
        if x < half and partial[here + half] > partial[here]:
            partial[here] = partial[here + half]
        cuda.syncthreads()
        half >>= 1
    return partial[here - x]


@inlined
def _row_total(partial, value, here, x, width):
    """The sum over the threads of a row."""
    cuda.syncthreads()  # until all have read what was there
    partial[here] = value
    cuda.syncthreads()
    half = width >> 1
    while half > 0:
        if x < half:
            partial[here] += partial[here + half]
        cuda.syncthreads()
        half >>= 1
    return partial[here - x]


@inlined
def _greatest(x, place, stop, step, least):
    """The largest number that a thread has, NaN apart."""
    found = least
    while place < stop:
        if x[place] > found:
            found = x[place]
        place += step
    return found


@functools.cache
def _softmax(kind: Any) -> Any:
    least = kind(-np.inf)

    @device_kernel
    def softmax(outputs, result, rows, classes):
        x, width = cuda.threadIdx.x, cuda.blockDim.x
        here = cuda.threadIdx.y * width + x
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        stop = (row + 1) * classes if row < rows else 0
        partial, totals = cuda.shared.array(THREADS, kind), cuda.shared.array(THREADS, np.float64)
        greatest = _greatest(outputs, row * classes + x, stop, width, least)
        greatest = _row_greatest(partial, greatest, here, x, width)
        total = np.float64(0)
        place = row * classes + x
        while place < stop:
            term = math.exp(outputs[place] - greatest)
            result[place] = term
            total += np.float64(term)
            place += width
        whole = kind(_row_total(totals, total, here, x, width))
        place = row * classes + x
        while place < stop:
            result[place] /= whole
            place += width

    return softmax


@functools.cache
def _softmax_loss(kind: Any) -> Any:
    least, nan = kind(-np.inf), kind(np.nan)

    @device_kernel
    def softmax_loss(outputs, derivative, targets, values, rows, classes):
        x, width = cuda.threadIdx.x, cuda.blockDim.x
        here = cuda.threadIdx.y * width + x
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        stop = (row + 1) * classes if row < rows else 0
        partial, totals = cuda.shared.array(THREADS, kind), cuda.shared.array(THREADS, np.float64)
        target, own = np.int64(0), nan
        if row < rows:
            target = targets[row]
            if 0 <= target < classes:
                own = outputs[row * classes + target]
        greatest = _greatest(outputs, row * classes + x, stop, width, least)
        greatest = _row_greatest(partial, greatest, here, x, width)
        total = np.float64(0)
        place = row * classes + x
        while place < stop:
            term = math.exp(outputs[place] - greatest)
            derivative[place] = term
            total += np.float64(term)
            place += width
        total = _row_total(totals, total, here, x, width)
        if x == 0 and row < rows:
            values[row] = math.log(total) - (np.float64(own) - np.float64(greatest))
        whole = kind(total) if 0 <= target < classes else nan
        place = row * classes + x
        while place < stop:
            share = derivative[place] / whole
            derivative[place] = share - kind(1) if place == row * classes + target else share
            place += width

    return softmax_loss


@functools.cache
def _softmax_sample(kind: Any) -> Any:
    least = kind(-np.inf)

    @device_kernel
    def softmax_sample(outputs, uniform, labels, rows, classes):
        x, width = cuda.threadIdx.x, cuda.blockDim.x
        here = cuda.threadIdx.y * width + x
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        stop = (row + 1) * classes if row < rows else 0
        partial, totals = cuda.shared.array(THREADS, kind), cuda.shared.array(THREADS, np.float64)
        greatest = _greatest(outputs, row * classes + x, stop, width, least)
        greatest = _row_greatest(partial, greatest, here, x, width)
        # Each thread has some classes that follow each other.
        count = div(classes + width - 1, width)
        start = row * classes + x * count
        own = np.float64(0)
        for place in range(start, min(start + count, stop)):
            own += np.float64(math.exp(outputs[place] - greatest))
        totals[here] = own
        cuda.syncthreads()
        below, total = np.float64(0), np.float64(0)
        for other in range(width):
            if other == x:
                below = total
            total += totals[here - x + other]
        limit = uniform[row] * total if row < rows else np.float64(0)
        passed = np.float64(0)
        # The last class needs no comparison.
        for place in range(start, min(start + count, stop - 1)):
            below += np.float64(math.exp(outputs[place] - greatest))
            if below <= limit:
                passed += np.float64(1)
        passed = _row_total(totals, passed, here, x, width)
        if x == 0 and row < rows:
            labels[row] = np.int64(passed)

    return softmax_sample


@functools.cache
def _softmax_fisher(kind: Any) -> Any:
    least = kind(-np.inf)

    @device_kernel
    def softmax_fisher(outputs, v, result, rows, classes):
        x, width = cuda.threadIdx.x, cuda.blockDim.x
        here = cuda.threadIdx.y * width + x
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        stop = (row + 1) * classes if row < rows else 0
        partial, totals = cuda.shared.array(THREADS, kind), cuda.shared.array(THREADS, np.float64)
        greatest = _greatest(outputs, row * classes + x, stop, width, least)
        greatest = _row_greatest(partial, greatest, here, x, width)
        total = np.float64(0)
        place = row * classes + x
        while place < stop:
            term = math.exp(outputs[place] - greatest)
            result[place] = term
            total += np.float64(term)
            place += width
        whole = kind(_row_total(totals, total, here, x, width))
        mean = np.float64(0)
        place = row * classes + x
        while place < stop:
            p = result[place] / whole
            result[place] = p
            mean += np.float64(p * v[place])
            place += width
        shared = kind(_row_total(totals, mean, here, x, width))
        place = row * classes + x
        while place < stop:
            p = result[place]
            result[place] = p * v[place] - p * shared
            place += width

    return softmax_fisher


@functools.cache
def _fisher_column(kind: Any) -> Any:
    @device_kernel
    def fisher_column(probabilities, result, index, size, classes):
        first = cuda.blockIdx.x * size
        root = math.sqrt(probabilities[first + index])
        i = cuda.threadIdx.x
        while i < size:
            value = kind(0)
            if div(i, classes) == div(index, classes):
                unit = kind(1) if i == index else kind(0)
                value = (unit - probabilities[first + i]) * root
            result[first + i] = value
            i += cuda.blockDim.x

    return fisher_column


@functools.cache
def _softmax_wrong(kind: Any) -> Any:
    @device_kernel
    def softmax_wrong(outputs, targets, wrong, rows, classes):
        x, width = cuda.threadIdx.x, cuda.blockDim.x
        here = cuda.threadIdx.y * width + x
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        values, labels = cuda.shared.array(THREADS, kind), cuda.shared.array(THREADS, np.int32)
        if row < rows:
            found = x  # there are no more threads than twice the classes, so it may lie outside
            if found >= classes:
                found = classes - 1
            value = outputs[row * classes + found]
            k = x + width
            while k < classes:
                if _precedes(outputs[row * classes + k], k, value, found):
                    value, found = outputs[row * classes + k], k
                k += width
            values[here], labels[here] = value, found
        cuda.syncthreads()
        half = width >> 1
        while half > 0:
            if x < half and row < rows:
                there = here + half
                if _precedes(values[there], labels[there], values[here], labels[here]):
                    values[here], labels[here] = values[there], labels[there]
            cuda.syncthreads()
            half >>= 1
        if x == 0 and row < rows:
            target = targets[row]
            count = np.int64(0 if labels[here] == target else 1)
            wrong[row] = count if 0 <= target < classes else _ABROAD

    return softmax_wrong


@inlined
def _precedes(value, k, other, j):
    """Whether one number is the larger one, or the first of equals; a NaN is the largest of all."""
    if value != value or other != other:
        return value != value and (other == other or k < j)
    return value > other or (value == other and k < j)
