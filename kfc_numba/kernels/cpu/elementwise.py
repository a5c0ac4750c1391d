"""Kernels that treat every number of an array alike; arrays of any shape, C-contiguous.

Derivatives are written in terms of the output where that is enough, since the next layer keeps
the output anyway. They serve both directions: the Jacobian is diagonal.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import output_array
from kfc_numba.kernels.cpu.jit import parallel


def relu_forward(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
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
    out = output_array(out, x.shape, x.dtype)
    _relu_forward(*_flat(x, out))
    return out


def relu_backward(dy: np.ndarray, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """`dy` where the output `y` of `relu_forward` is positive (or NaN), elsewhere 0.

    Parameters
    ----------
    dy, y : numpy.ndarray
        Of one shape and type.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    out = output_array(out, dy.shape, dy.dtype)
    _relu_backward(*_flat(dy, y, out))
    return out


def leaky_relu_forward(x: np.ndarray, slope: float, out: np.ndarray | None = None) -> np.ndarray:
    """``x`` where positive, elsewhere ``slope * x``.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64.
    slope : float
        At least 0.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    return leaky_relu_backward(x, x, slope, out)


def leaky_relu_backward(
    dy: np.ndarray, x: np.ndarray, slope: float, out: np.ndarray | None = None
) -> np.ndarray:
    """`dy` where `x` is positive, elsewhere ``slope * dy``.

    Parameters
    ----------
    dy, x : numpy.ndarray
        Of one shape and type. The output, with a `slope` of at least 0, serves as well as `x`.
    slope : float
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    out = output_array(out, dy.shape, dy.dtype)
    _leaky(*_flat(dy, x, out), dy.dtype.type(slope))
    return out


def tanh_forward(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """``tanh(x)``.

    Parameters
    ----------
    x : numpy.ndarray
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
    """
    return np.tanh(x, out=output_array(out, x.shape, x.dtype))


def tanh_backward(dy: np.ndarray, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """``dy * (1 - y^2)``, with the output `y` of `tanh_forward`.

    Parameters
    ----------
    dy, y : numpy.ndarray
        Of one shape and type.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    out = output_array(out, dy.shape, dy.dtype)
    _tanh_backward(*_flat(dy, y, out))
    return out


def sigmoid_forward(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """``1 / (1 + exp(-x))``, accurate for all `x`.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous; not `x`.

    Returns
    -------
    numpy.ndarray
    """
    out = output_array(out, x.shape, x.dtype)
    np.copysign(x, -1, out=out)
    np.exp(out, out=out)  # of -|x|, which cannot overflow; NumPy's is vectorised
    _sigmoid_forward(*_flat(x, out))
    return out


def sigmoid_backward(dy: np.ndarray, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """``dy * y * (1 - y)``, with the output `y` of `sigmoid_forward`.

    Parameters
    ----------
    dy, y : numpy.ndarray
        Of one shape and type.
    out : numpy.ndarray, optional
        C-contiguous.

    Returns
    -------
    numpy.ndarray
    """
    out = output_array(out, dy.shape, dy.dtype)
    _sigmoid_backward(*_flat(dy, y, out))
    return out


def add(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """``a + b``, on all threads.

    Parameters
    ----------
    a, b : numpy.ndarray
        Of one shape and type.
    out : numpy.ndarray, optional
        C-contiguous; may be `a` or `b`.

    Returns
    -------
    numpy.ndarray
    """
    out = output_array(out, a.shape, a.dtype)
    _add(*_flat(a, b, out))
    return out


def apply_mask(
    x: np.ndarray, mask: np.ndarray, scale: float, out: np.ndarray | None = None
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
    out = output_array(out, x.shape, x.dtype)
    _apply_mask(*_flat(x, mask, out), x.dtype.type(scale))
    return out


def _flat(*arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays as vectors; ValueError if their shapes differ."""
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"arrays must have one shape, got {shapes}")
    return [array.reshape(-1) for array in arrays]


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
    for i in prange(x.size):
        y[i] = (y[i] if x[i] < 0 else one) / (one + y[i])


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
def _apply_mask(x, mask, out, scale):
    for i in prange(x.size):
        out[i] = x[i] * (x.dtype.type(mask[i]) * scale)
