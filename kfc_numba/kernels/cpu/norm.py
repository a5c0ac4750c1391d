"""Statistics of channels, and channels moved and scaled: what batch normalisation is made of.

Arrays are (rows, channels): every axis but the last counts as rows. Sums are taken in float64 over
chunks whose number depends on shapes alone and are added in order, so that results depend neither
on the number of threads nor on the offset of the data.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import alike, checked, output_array
from kfc_numba.kernels.cpu.jit import parallel

_CHUNK = 2048  # numbers of a chunk, about: small enough for many threads
_DOUBLE = np.dtype(np.float64)
_MOST_CHUNKS = 256  # so that adding the chunks costs nothing


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

    Raises
    ------
    ValueError, TypeError
        `x` is no such array.
    """
    x = _rows(checked("x", x, None))
    shift = x[0].astype(np.float64)
    size = _chunk_rows(x)
    parts = np.empty((2, -(-len(x) // size), x.shape[1]))
    _shifted_sums(x, shift, size, *parts)
    # Values that are not finite are for the optimizer to report, with the name of the layer.
    with np.errstate(over="ignore", invalid="ignore"):
        first, second = parts.sum(axis=1) / len(x)
        return shift + first, np.maximum(second - first * first, 0.0)


def channel_products(
    u: np.ndarray, x: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over rows of ``u`` and of ``u * (x - mean)``.

    Parameters
    ----------
    u, x : numpy.ndarray
        (..., channels), of one shape and type, float32 or float64.
    mean : numpy.ndarray
        (channels,), float64.

    Returns
    -------
    sums, products : numpy.ndarray
        (channels,), float64.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit.
    """
    u, x = alike(u=u, x=x)
    (mean,) = _vectors(x, mean=mean)
    u, x = _rows(u), _rows(x)
    size = _chunk_rows(x)
    parts = np.empty((2, -(-len(x) // size), x.shape[1]))
    _products(u, x, mean, size, *parts)
    sums, products = parts.sum(axis=1)
    return sums, products


def channel_squares(
    u: np.ndarray, x: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What `channel_products` is for each example by itself, squared, and summed over examples.

    Parameters
    ----------
    u, x : numpy.ndarray
        (examples, ..., channels), of one shape and type, float32 or float64.
    mean : numpy.ndarray
        (channels,), float64.

    Returns
    -------
    sums, products : numpy.ndarray
        (channels,), float64: sums over examples of the squares.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit.
    """
    u, x = alike(u=u, x=x)
    (mean,) = _vectors(x, mean=mean)
    examples = len(x)
    u, x = _rows(u), _rows(x)
    parts = np.empty((2, examples, x.shape[1]))
    _products(u, x, mean, len(x) // examples, *parts)
    # Values that are not finite are for the optimizer to report, with the name of the layer.
    with np.errstate(over="ignore", invalid="ignore"):
        sums, products = np.square(parts, out=parts).sum(axis=1)
    return sums, products


def channel_affine(
    x: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    *,
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
        Where to write the result; may be `x`.

    Returns
    -------
    numpy.ndarray
        Of the shape and type of `x`.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit.
    """
    x = checked("x", x, None)
    vectors = _vectors(x, mean=mean, scale=scale, offset=offset)
    out = output_array(out, x.shape, x.dtype)
    rows = _rows(x)
    _affine(rows, *vectors, _chunk_rows(rows), _rows(out))
    return out


def channel_combination(
    u: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``a * u + b * (x - mean) + c`` by channel, computed in float64.

    Parameters
    ----------
    u, x : numpy.ndarray
        (..., channels), of one shape and type, float32 or float64.
    mean, a, b, c : numpy.ndarray
        (channels,), float64.
    out : numpy.ndarray, optional
        Where to write the result; may be `u` or `x`.

    Returns
    -------
    numpy.ndarray
        Of the shape and type of `u`.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit.
    """
    u, x = alike(u=u, x=x)
    vectors = _vectors(x, mean=mean, a=a, b=b, c=c)
    out = output_array(out, u.shape, u.dtype)
    rows = _rows(x)
    _combination(_rows(u), rows, *vectors, _chunk_rows(rows), _rows(out))
    return out


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _vectors(x: np.ndarray, **vectors: np.ndarray) -> list[np.ndarray]:
    """The vectors, contiguous; an error if one is not float64 of the channels of `x`."""
    found = []
    for name, vector in vectors.items():
        vector = checked(name, vector, 1, _DOUBLE)
        if vector.shape != x.shape[-1:]:
            raise ValueError(
                f"{name} has shape {vector.shape}, it must be {x.shape[-1:]}, one a channel"
            )
        found.append(vector)
    return found


def _chunk_rows(rows: np.ndarray) -> int:
    """Rows of a chunk: a function of the shape alone."""
    least = -(-_CHUNK // rows.shape[1])
    return max(least, -(-len(rows) // _MOST_CHUNKS))


@parallel
def _shifted_sums(x, shift, size, firsts, seconds):
    rows, channels = x.shape
    for chunk in prange(len(firsts)):
        first, second = firsts[chunk], seconds[chunk]
        first[:] = 0
        second[:] = 0
        for r in range(chunk * size, min((chunk + 1) * size, rows)):
            for c in range(channels):
                value = x[r, c] - shift[c]
                first[c] += value
                second[c] += value * value


@parallel
def _products(u, x, mean, size, chunk_sums, chunk_products):
    rows, channels = x.shape
    for chunk in prange(len(chunk_sums)):
        sums, products = chunk_sums[chunk], chunk_products[chunk]
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
