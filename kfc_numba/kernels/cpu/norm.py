"""Normalisation kernels: statistics of channels, and response normalisation across channels.

Arrays are (rows, channels): every axis but the last counts as rows. Sums are taken in float64 over
chunks whose number depends on shapes alone and are added in order, so that results depend neither
on the number of threads nor on the offset of the data.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.jit import parallel, serial

_CHUNK = 2048  # numbers of a chunk, about: small enough for many threads
_MOST_CHUNKS = 256  # so that adding the chunks costs nothing
_BLOCK = 16  # rows whose windows across channels are summed together


def channel_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel.

    One pass over the data less its first row. That row is one of the data, so that its squared
    distance from the mean is at most `rows` times the variance, and float64 loses next to nothing
    whatever the mean is.

    Parameters
    ----------
    x : numpy.ndarray
        (..., channels), float32 or float64.

    Returns
    -------
    mean, variance : numpy.ndarray
        (channels,), float64; the variance with the number of rows as divisor.
    """
    x = _rows(checked("x", x, None))
    shift = x[0].astype(np.float64)
    size = _chunk_rows(x)
    parts = np.empty((2, -(-len(x) // size), x.shape[1]))
    _shifted_sums(x, shift, size, parts)
    # Values that are not finite are for the optimizer to report, with the name of the layer.
    with np.errstate(over="ignore", invalid="ignore"):
        first, second = parts.sum(axis=1) / len(x)
        return shift + first, np.maximum(second - first * first, 0.0)


def channel_products(
    u: np.ndarray, x: np.ndarray, mean: np.ndarray, *, by_example: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over rows of ``u`` and of ``u * (x - mean)``.

    Parameters
    ----------
    u, x : numpy.ndarray
        (examples, ..., channels), of one shape and type.
    mean : numpy.ndarray
        (channels,), float64.
    by_example : bool
        Whether each example is summed by itself.

    Returns
    -------
    sums, products : numpy.ndarray
        (channels,), or (examples, channels) with `by_example`; float64.
    """
    examples = len(x)
    u, x = _matched(checked("u", u, None), checked("x", x, None))
    size = len(x) // examples if by_example else _chunk_rows(x)
    parts = np.empty((2, -(-len(x) // size), x.shape[1]))
    _products(u, x, mean, size, parts)
    sums, products = parts if by_example else parts.sum(axis=1)
    return sums, products


def channel_affine(
    x: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``scale * (x - mean) + offset`` by channel, computed in float64.

    Parameters
    ----------
    x : numpy.ndarray
        (..., channels), float32 or float64.
    mean, scale, offset : numpy.ndarray
        (channels,), float64.
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        Of the shape and type of `x`.
    """
    x = checked("x", x, None)
    out = output_array(out, x.shape, x.dtype)
    rows = _rows(x)
    _affine(rows, mean, scale, offset, _chunk_rows(rows), _rows(out))
    return out


def channel_combination(
    u: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    factors: tuple[np.ndarray, np.ndarray, np.ndarray],
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``a * u + b * (x - mean) + c`` by channel, computed in float64.

    Parameters
    ----------
    u, x : numpy.ndarray
        (..., channels), of one shape and type.
    mean : numpy.ndarray
        (channels,), float64.
    factors : (numpy.ndarray, numpy.ndarray, numpy.ndarray)
        a, b and c, each (channels,), float64.
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
        Of the shape and type of `u`.
    """
    u, x = checked("u", u, None), checked("x", x, None)
    out = output_array(out, u.shape, u.dtype)
    u, x, rows = _matched(u, x, out)
    _combination(u, x, mean, *factors, _chunk_rows(x), rows)
    return out


def response_norm_forward(
    x: np.ndarray,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    out: np.ndarray | None = None,
    denominator: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """``y = x * d^-beta`` with ``d = k + alpha / size * sum of x^2``, over `size` channels.

    The window of channel c is c - size // 2, ..., c + (size - 1) // 2, cut at the ends.

    Parameters
    ----------
    x : numpy.ndarray
        (..., channels), float32 or float64.
    size : int
    alpha, beta, k : float
    out, denominator : numpy.ndarray, optional
        Where the results go.

    Returns
    -------
    y, d : numpy.ndarray
        Of the shape and type of `x`.
    """
    x = checked("x", x, None)
    out = output_array(out, x.shape, x.dtype)
    denominator = output_array(denominator, x.shape, x.dtype)
    real = x.dtype.type
    rows = _rows(x)
    numbers = real(alpha / size), real(beta), real(k)
    _response_forward(rows, size, *numbers, _chunk_rows(rows), _rows(out), _rows(denominator))
    return out, denominator


def response_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    denominator: np.ndarray,
    size: int,
    alpha: float,
    beta: float,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``dx_j = dy_j d_j^-beta - 2 alpha beta / size x_j sum_c dy_c x_c d_c^(-beta-1)``.

    The sum goes over the channels c whose window holds j.

    Parameters
    ----------
    dy, x, denominator : numpy.ndarray
        (..., channels), of one shape and type; `denominator` from `response_norm_forward`.
    size : int
    alpha, beta : float
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
    """
    dy = checked("dy", dy, None)
    out = output_array(out, dy.shape, dy.dtype)
    real = dy.dtype.type
    numbers = real(2 * alpha * beta / size), real(beta)
    dy, x, denominator, rows = _matched(dy, x, denominator, out)
    _response_backward(dy, x, denominator, size, *numbers, _chunk_rows(x), rows)
    return out


def response_norm_tangent(
    dx: np.ndarray,
    x: np.ndarray,
    denominator: np.ndarray,
    size: int,
    alpha: float,
    beta: float,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``dy_c = dx_c d_c^-beta - 2 alpha beta / size x_c d_c^(-beta-1) sum_j x_j dx_j``.

    The sum goes over the window of c.

    Parameters
    ----------
    dx, x, denominator : numpy.ndarray
        (..., channels), of one shape and type; `denominator` from `response_norm_forward`.
    size : int
    alpha, beta : float
    out : numpy.ndarray, optional

    Returns
    -------
    numpy.ndarray
    """
    dx = checked("dx", dx, None)
    out = output_array(out, dx.shape, dx.dtype)
    real = dx.dtype.type
    numbers = real(2 * alpha * beta / size), real(beta)
    dx, x, denominator, rows = _matched(dx, x, denominator, out)
    _response_tangent(dx, x, denominator, size, *numbers, _chunk_rows(x), rows)
    return out


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _matched(*arrays: np.ndarray) -> list[np.ndarray]:
    """Rows of each array; ValueError if the shapes differ."""
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"arrays must have one shape, got {shapes}")
    return [_rows(array) for array in arrays]


def _chunk_rows(rows: np.ndarray) -> int:
    """Rows of a chunk: a function of the shape alone."""
    least = -(-_CHUNK // rows.shape[1])
    return max(least, -(-len(rows) // _MOST_CHUNKS))


@parallel
def _shifted_sums(x, shift, size, parts):
    rows, channels = x.shape
    for chunk in prange(parts.shape[1]):
        first, second = parts[0, chunk], parts[1, chunk]
        first[:] = 0
        second[:] = 0
        for r in range(chunk * size, min((chunk + 1) * size, rows)):
            for c in range(channels):
                value = x[r, c] - shift[c]
                first[c] += value
                second[c] += value * value


@parallel
def _products(u, x, mean, size, parts):
    rows, channels = x.shape
    for chunk in prange(parts.shape[1]):
        sums, products = parts[0, chunk], parts[1, chunk]
        sums[:] = 0
        products[:] = 0
        for r in range(chunk * size, min((chunk + 1) * size, rows)):
            for c in range(channels):
                sums[c] += u[r, c]
                products[c] += u[r, c] * (x[r, c] - mean[c])


@parallel
def _affine(x, mean, scale, offset, size, y):
    rows, channels = x.shape
    for chunk in prange(-(-rows // size)):
        for r in range(chunk * size, min((chunk + 1) * size, rows)):
            for c in range(channels):
                y[r, c] = scale[c] * (x[r, c] - mean[c]) + offset[c]


@parallel
def _combination(u, x, mean, a, b, constant, size, y):
    rows, channels = x.shape
    for chunk in prange(-(-rows // size)):
        for r in range(chunk * size, min((chunk + 1) * size, rows)):
            for c in range(channels):
                y[r, c] = a[c] * u[r, c] + b[c] * (x[r, c] - mean[c]) + constant[c]


@serial
def _powers(d, beta, out):
    """``d^-beta``; through square roots, which are vectorised, where these do."""
    one = d.dtype.type(1)
    if beta == 0.75:
        for c in range(len(d)):
            root = np.sqrt(d[c])
            out[c] = one / (root * np.sqrt(root))
    elif beta == 0.5:
        for c in range(len(d)):
            out[c] = one / np.sqrt(d[c])
    else:
        for c in range(len(d)):
            out[c] = d[c] ** -beta


@serial
def _window_sums(values, count, size, sums):
    """``sums[i] = values[i] + ... + values[i + size - 1]`` for every i below `count`."""
    for i in range(count):
        sums[i] = values[i]
    for t in range(1, size):
        for i in range(count):
            sums[i] += values[i + t]


# Sums over windows of channels are taken of some rows at a time, laid out one behind the other
# with `size` zeros between them: with single rows, loads that straddle the last stores would stall.
# The windows of channel c start `size // 2` before it; those that hold channel j start
# `(size - 1) // 2` before it.


@parallel
def _response_forward(x, size, alpha, beta, k, chunk_rows, y, d):
    rows, channels = x.shape
    pitch, before = channels + size, size // 2
    for chunk in prange(-(-rows // chunk_rows)):
        stop = min((chunk + 1) * chunk_rows, rows)
        values = np.zeros(_BLOCK * pitch + size, x.dtype)
        sums = np.empty(_BLOCK * pitch, x.dtype)
        factors = np.empty(channels, x.dtype)
        for first in range(chunk * chunk_rows, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            for r in range(first, last):
                place = (r - first) * pitch + before
                for c in range(channels):
                    values[place + c] = x[r, c] * x[r, c]
            _window_sums(values, (last - first) * pitch, size, sums)
            for r in range(first, last):
                place = (r - first) * pitch
                for c in range(channels):
                    d[r, c] = k + alpha * sums[place + c]
                _powers(d[r], beta, factors)
                for c in range(channels):
                    y[r, c] = x[r, c] * factors[c]


@parallel
def _response_backward(dy, x, d, size, scale, beta, chunk_rows, dx):
    rows, channels = x.shape
    pitch, before = channels + size, (size - 1) // 2
    for chunk in prange(-(-rows // chunk_rows)):
        stop = min((chunk + 1) * chunk_rows, rows)
        values = np.zeros(_BLOCK * pitch + size, x.dtype)
        sums = np.empty(_BLOCK * pitch, x.dtype)
        factors = np.empty(channels, x.dtype)
        for first in range(chunk * chunk_rows, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            for r in range(first, last):
                place = (r - first) * pitch + before
                _powers(d[r], beta, factors)
                for c in range(channels):
                    through = dy[r, c] * factors[c]
                    dx[r, c] = through
                    values[place + c] = through * x[r, c] / d[r, c]
            _window_sums(values, (last - first) * pitch, size, sums)
            for r in range(first, last):
                place = (r - first) * pitch
                for c in range(channels):
                    dx[r, c] -= scale * x[r, c] * sums[place + c]


@parallel
def _response_tangent(dx, x, d, size, scale, beta, chunk_rows, dy):
    rows, channels = x.shape
    pitch, before = channels + size, size // 2
    for chunk in prange(-(-rows // chunk_rows)):
        stop = min((chunk + 1) * chunk_rows, rows)
        values = np.zeros(_BLOCK * pitch + size, x.dtype)
        sums = np.empty(_BLOCK * pitch, x.dtype)
        factors = np.empty(channels, x.dtype)
        for first in range(chunk * chunk_rows, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            for r in range(first, last):
                place = (r - first) * pitch + before
                for c in range(channels):
                    values[place + c] = x[r, c] * dx[r, c]
            _window_sums(values, (last - first) * pitch, size, sums)
            for r in range(first, last):
                place = (r - first) * pitch
                _powers(d[r], beta, factors)
                for c in range(channels):
                    share = scale * x[r, c] * sums[place + c] / d[r, c]
                    dy[r, c] = factors[c] * (dx[r, c] - share)
