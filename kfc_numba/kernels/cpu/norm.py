"""Statistics of channels, and channels moved and scaled: what batch normalisation is made of.

Arrays are (rows, channels): every axis but the last counts as rows. Sums are taken in float64 over
chunks whose number depends on shapes alone and are added in order, so that results depend neither
on the number of threads nor on the offset of the data.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.jit import parallel

_CHUNK = 2048  # numbers of a chunk, about: small enough for many threads
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
