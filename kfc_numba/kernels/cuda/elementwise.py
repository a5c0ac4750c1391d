"""Kernels that treat every number of an array alike."""

from __future__ import annotations

from typing import Any

from numba import cuda

from kfc_numba.kernels.cuda.arguments import alike, output_array
from kfc_numba.kernels.cuda.launch import device_kernel

_THREADS = 256


def relu_forward(x: Any, *, out: Any = None) -> Any:
    """``max(x, 0)``; a NaN stays one.

    Parameters
    ----------
    x : cupy.ndarray
        float32 or float64.
    out : cupy.ndarray, optional
        C-contiguous.

    Returns
    -------
    cupy.ndarray
    """
    (x,) = alike(x=x)
    out = output_array(out, x.shape, x.dtype, x)
    _relu_forward(-(-x.size // _THREADS), _THREADS, x, out, x.size)
    return out


def relu_backward(dy: Any, y: Any, *, out: Any = None) -> Any:
    """`dy` where the output `y` of `relu_forward` is positive (or NaN), elsewhere 0."""
    dy, y = alike(dy=dy, y=y)
    out = output_array(out, dy.shape, dy.dtype, dy)
    _relu_backward(-(-dy.size // _THREADS), _THREADS, dy, y, out, dy.size)
    return out


@device_kernel
def _relu_forward(x, y, size):
    i = cuda.grid(1)
    if i < size:
        y[i] = x[i] if not x[i] <= 0 else type(x[i])(0)


@device_kernel
def _relu_backward(dy, y, dx, size):
    i = cuda.grid(1)
    if i < size:
        dx[i] = dy[i] if not y[i] <= 0 else type(dy[i])(0)
