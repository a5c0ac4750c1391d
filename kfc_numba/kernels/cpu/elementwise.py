"""Kernels that treat every number of an array alike, and sums over all of them.

Arrays of any shape; those that a kernel takes together have one shape and dtype. Derivatives are
written in terms of the output where that is enough, since the next layer keeps the output anyway.
They serve both directions: the Jacobian is diagonal. `out` may be one of the arguments except
where it is said otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from kfc_numba.checks import check_number
from kfc_numba.kernels.cpu.arguments import alike, checked, output_array, real
from kfc_numba.kernels.cpu.exponential import exponentials, logistic
from kfc_numba.kernels.cpu.jit import parallel, serial

_SMALL = 1 << 14  # numbers that one thread is done with before others would have woken
_CHUNK = 1 << 14  # numbers that are added up together
_BLOCK = 1 << 12  # numbers that stay in the cache from step to step
_PLACES = 64  # sums that are kept side by side


def relu_forward(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """``max(x, 0)``; a NaN stays one.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    return _each(_relu_forward, alike(x=x), out)


def relu_backward(dy: np.ndarray, y: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """`dy` where the output `y` of `relu_forward` is positive (or NaN), elsewhere 0.

    Parameters
    ----------
    dy, y : numpy.ndarray
        float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    return _each(_relu_backward, alike(dy=dy, y=y), out)


def leaky_relu_forward(
    x: np.ndarray, *, negative_slope: float, out: np.ndarray | None = None
) -> np.ndarray:
    """``x`` where positive, elsewhere ``negative_slope * x``.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64.
    negative_slope : float
        At least 0.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    slope = check_number("negative_slope", negative_slope, "[0, inf)")
    (x,) = alike(x=x)
    return _each(_leaky, [x, x], out, slope)


def leaky_relu_backward(
    dy: np.ndarray, x: np.ndarray, *, negative_slope: float, out: np.ndarray | None = None
) -> np.ndarray:
    """`dy` where `x` is positive, elsewhere ``negative_slope * dy``.

    Parameters
    ----------
    dy, x : numpy.ndarray
        float32 or float64. The output of `leaky_relu_forward` serves as well as `x`.
    negative_slope : float
        At least 0.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    slope = check_number("negative_slope", negative_slope, "[0, inf)")
    return _each(_leaky, alike(dy=dy, x=x), out, slope)


def tanh_forward(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """``tanh(x)``.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    x = checked("x", x, None)
    return np.tanh(x, out=output_array(out, x.shape, x.dtype))  # NumPy's is vectorised


def tanh_backward(dy: np.ndarray, y: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """``dy * (1 - y^2)``, with the output `y` of `tanh_forward`.

    Parameters
    ----------
    dy, y : numpy.ndarray
        float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    return _each(_tanh_backward, alike(dy=dy, y=y), out)


def sigmoid_forward(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """``1 / (1 + exp(-x))``, accurate for all `x`.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous; no part of `x`.

    Returns
    -------
    numpy.ndarray
    """
    x = checked("x", x, None)
    out = output_array(out, x.shape, x.dtype)
    if np.may_share_memory(x, out):
        raise ValueError("out must not share memory with x")
    return _each(_sigmoid_forward, [x], out)


def sigmoid_backward(dy: np.ndarray, y: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """``dy * y * (1 - y)``, with the output `y` of `sigmoid_forward`.

    Parameters
    ----------
    dy, y : numpy.ndarray
        float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    return _each(_sigmoid_backward, alike(dy=dy, y=y), out)


def add(a: np.ndarray, b: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """``a + b``.

    Parameters
    ----------
    a, b : numpy.ndarray
        float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    return _each(_add, alike(a=a, b=b), out)


def scale(x: np.ndarray, factor: float, *, out: np.ndarray | None = None) -> np.ndarray:
    """``factor * x``, with the factor rounded to the dtype of `x`.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64.
    factor : float
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    return _each(_scale, alike(x=x), out, real("factor", factor))


def scaled_add(
    a: np.ndarray, b: np.ndarray, factor: float, *, out: np.ndarray | None = None
) -> np.ndarray:
    """``a + factor * b``, with the factor rounded to the dtype of the arrays.

    Parameters
    ----------
    a, b : numpy.ndarray
        float32 or float64.
    factor : float
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    return _each(_scaled_add, alike(a=a, b=b), out, real("factor", factor))


def apply_mask(
    x: np.ndarray, mask: np.ndarray, *, scale: float, out: np.ndarray | None = None
) -> np.ndarray:
    """``x * mask * scale``.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64.
    mask : numpy.ndarray
        uint8 of the shape of `x`, 0 or 1.
    scale : float
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    x, mask = checked("x", x, None), checked("mask", mask, None, np.dtype(np.uint8))
    if mask.shape != x.shape:
        raise ValueError(f"mask has shape {mask.shape}, it must be that of x, {x.shape}")
    return _each(_apply_mask, [x, mask], out, real("scale", scale))


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of the products of entries, products and sum in float64.

    The order of the sum depends on the size alone, and not on the number of threads.

    Parameters
    ----------
    a, b : numpy.ndarray
        float32 or float64.

    Returns
    -------
    float
    """
    a, b = (array.reshape(-1) for array in alike(a=a, b=b))
    if a.size <= _CHUNK:
        return _dot_chunk(a, b, 0, a.size)
    return _dot(a, b, np.empty(-(-a.size // _CHUNK)))


def all_finite(x: np.ndarray) -> bool:
    """Whether no number is infinite or NaN.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64.

    Returns
    -------
    bool
    """
    x = checked("x", x, None).reshape(-1)
    if x.size <= _CHUNK:
        return _finite_chunk(x, 0, x.size)
    return bool(_all_finite(x, np.empty(-(-x.size // _CHUNK), np.bool_)))


def _each(kernel: Any, arrays: list[np.ndarray], out: np.ndarray | None, *numbers: float) -> Any:
    """A kernel's result for arrays of one shape, the first of which has the dtype of the result."""
    shape, dtype = arrays[0].shape, arrays[0].dtype
    out = output_array(out, shape, dtype)
    launch = kernel.serial if out.size <= _SMALL else kernel
    flat = (array.reshape(-1) for array in (*arrays, out))
    launch(*flat, *map(dtype.type, numbers))
    return out


# `0 if x <= 0 else x`, not `x if x > 0 else 0`: a comparison with NaN is false.


@parallel
def _relu_forward(x, y):
    zero = x.dtype.type(0)
    for i in prange(x.size):
        y[i] = zero if x[i] <= zero else x[i]


@parallel
def _relu_backward(dy, y, dx):
    zero = dy.dtype.type(0)
    for i in prange(dy.size):
        dx[i] = zero if y[i] <= zero else dy[i]


@parallel
def _leaky(dy, x, dx, slope):
    for i in prange(dy.size):
        dx[i] = dy[i] * slope if x[i] <= 0 else dy[i]


@parallel
def _tanh_backward(dy, y, dx):
    one = dy.dtype.type(1)
    for i in prange(dy.size):
        dx[i] = dy[i] * (one - y[i] * y[i])


@parallel
def _sigmoid_forward(x, y):
    one = x.dtype.type(1)
    for chunk in prange(-(-x.size // _BLOCK)):
        first = np.int64(chunk) * _BLOCK
        source, target = x[first : first + _BLOCK], y[first : first + _BLOCK]
        for i in range(source.size):
            target[i] = -abs(source[i])
        exponentials(target)
        for i in range(source.size):
            target[i] = logistic(source[i], target[i], one)


@parallel
def _sigmoid_backward(dy, y, dx):
    one = dy.dtype.type(1)
    for i in prange(dy.size):
        dx[i] = dy[i] * (y[i] * (one - y[i]))


@parallel
def _add(a, b, out):
    for i in prange(a.size):
        out[i] = a[i] + b[i]


@parallel
def _scale(x, out, factor):
    for i in prange(x.size):
        out[i] = x[i] * factor


@parallel
def _scaled_add(a, b, out, factor):
    for i in prange(a.size):
        out[i] = a[i] + b[i] * factor


@parallel
def _apply_mask(x, mask, out, scale):
    for i in prange(x.size):
        out[i] = x[i] * (x.dtype.type(mask[i]) * scale)


# Sums of one number depend on each other, and would be added up one by one. With a sum for each of
# some places LLVM uses vector instructions.


@serial
def _dot_chunk(a, b, first, last):
    sums = np.zeros(_PLACES)
    whole = first + (last - first) // _PLACES * _PLACES
    for start in range(first, whole, _PLACES):
        u, v = a[start : start + _PLACES], b[start : start + _PLACES]
        for i in range(_PLACES):
            sums[i] += np.float64(u[i]) * np.float64(v[i])
    for i in range(last - whole):
        sums[i] += np.float64(a[whole + i]) * np.float64(b[whole + i])
    total = 0.0
    for i in range(_PLACES):
        total += sums[i]
    return total


@parallel
def _dot(a, b, parts):
    for chunk in prange(parts.size):
        first = np.int64(chunk) * _CHUNK
        parts[chunk] = _dot_chunk(a, b, first, min(first + _CHUNK, a.size))
    total = 0.0
    for chunk in range(parts.size):
        total += parts[chunk]
    return total


@serial
def _finite_chunk(x, first, last):
    # Zero times a number that is not finite is NaN, which a sum keeps.
    zero = x.dtype.type(0)
    sums = np.zeros(_PLACES, x.dtype)
    whole = first + (last - first) // _PLACES * _PLACES
    for start in range(first, whole, _PLACES):
        u = x[start : start + _PLACES]
        for i in range(_PLACES):
            sums[i] += u[i] * zero
    for i in range(last - whole):
        sums[i] += x[whole + i] * zero
    total = zero
    for i in range(_PLACES):
        total += sums[i]
    return total == zero


@parallel
def _all_finite(x, parts):
    for chunk in prange(parts.size):
        first = np.int64(chunk) * _CHUNK
        parts[chunk] = _finite_chunk(x, first, min(first + _CHUNK, x.size))
    result = True
    for chunk in range(parts.size):
        result &= parts[chunk]
    return result
