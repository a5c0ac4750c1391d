"""Sums and means over the locations of each example, taken in float64 and rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import prange

from kfc_numba.checks import check_shape
from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.jit import parallel


def location_sum(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Sum over the axes between the first and the last.

    Parameters
    ----------
    x : numpy.ndarray
        (examples, ..., channels), float32 or float64.
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        (examples, channels), of the type of `x`.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit.
    """
    return _sums(x, 1, out)


def location_mean(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Mean over the axes between the first and the last.

    Parameters
    ----------
    x : numpy.ndarray
        (examples, ..., channels), float32 or float64.
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        (examples, channels), of the type of `x`.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit.
    """
    return _sums(x, None, out)


def location_mean_backward(
    dy: np.ndarray, input_shape: Sequence[int], *, out: np.ndarray | None = None
) -> np.ndarray:
    """Derivative of ``sum(dy * location_mean(x))`` by `x`: a share of `dy` at each location.

    Parameters
    ----------
    dy : numpy.ndarray
        (examples, channels), float32 or float64.
    input_shape : sequence of int
        (examples, ..., channels).
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        Of `input_shape`.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit.
    """
    dy = checked("dy", dy, 2)
    shape = check_shape("input_shape", input_shape)
    if len(shape) < 2 or (shape[0], shape[-1]) != dy.shape:
        raise ValueError(
            f"dy has shape {dy.shape}, it must be the first and the last of input_shape (={shape})"
        )
    out = output_array(out, shape, dy.dtype)
    _spread(dy, out.reshape(shape[0], -1, shape[-1]))
    return out


def _sums(x: np.ndarray, divisor: int | None, out: np.ndarray | None) -> np.ndarray:
    """Sums over `divisor`, or over the number of locations."""
    x = checked("x", x, None)
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}, it must have at least 2 dimensions")
    examples, channels = x.shape[0], x.shape[-1]
    out = output_array(out, (examples, channels), x.dtype)
    locations = x.reshape(examples, -1, channels)
    _sum_locations(locations, locations.shape[1] if divisor is None else divisor, out)
    return out


@parallel
def _sum_locations(x, divisor, out):
    examples, locations, channels = x.shape
    for n in prange(examples):
        sums = np.zeros(channels)
        for t in range(locations):
            for c in range(channels):
                sums[c] += x[n, t, c]
        for c in range(channels):
            out[n, c] = sums[c] / divisor


@parallel
def _spread(dy, dx):
    examples, locations, channels = dx.shape
    for n in prange(examples):
        for c in range(channels):
            dx[n, 0, c] = dy[n, c] / dy.dtype.type(locations)
        for t in range(1, locations):
            for c in range(channels):
                dx[n, t, c] = dx[n, 0, c]
