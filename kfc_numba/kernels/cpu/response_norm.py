"""Response normalisation, over windows of channels or over windows of pixels of one channel.

``y = x * d^-beta`` with ``d = k + alpha / n * sum of x^2`` over the window of y, n being the
number of places in a whole window. A window is cut at the ends of an axis; of an even size, the
larger half lies before. The windows that hold a place are the mirror image, which is what the
derivative by it sums over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from kfc_numba.checks import check_choice, check_integer, check_number
from kfc_numba.kernels.cpu.arguments import alike, checked, output_array
from kfc_numba.kernels.cpu.jit import inlined, parallel, serial

ACROSS, WITHIN = _REGIONS = ("across_channels", "within_channel")

_CHUNK = 2048  # numbers of a chunk, about: small enough for many threads
_MOST_CHUNKS = 256
_BLOCK = 16  # rows whose windows across channels are summed together
_BAND = 16  # rows of an image that a thread takes: it reads a window's rows more than those


class Reach(NamedTuple):
    """Pixels of a window beside its own."""

    above: int
    below: int
    left: int
    right: int


def response_norm_forward(
    x: np.ndarray,
    *,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    region: str = ACROSS,
    out: np.ndarray | None = None,
    denominator: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """``y = x * d^-beta`` with ``d = k + alpha / n * sum of x^2`` over a window.

    Parameters
    ----------
    x : numpy.ndarray
        (..., channels), float32 or float64; images (examples, height, width, channels) for
        windows of pixels.
    size : int
        Length of a window, at least 1.
    alpha, beta : float
        At least 0.
    k : float
        Greater than 0.
    region : str
        ``"across_channels"``: the window of channel c is c - size // 2, ...,
        c + (size - 1) // 2, and n is `size`. ``"within_channel"``: the window of a pixel holds
        the pixels of its channel whose row and column lie in such a range about its own, and n is
        the square of `size`.
    out, denominator : numpy.ndarray, optional
        Where the results go.

    Returns
    -------
    y, d : numpy.ndarray
        Of the shape and type of `x`.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit.
    """
    x = checked("x", x, None)
    count = window_places(x, size, region)
    alpha, beta = check_number("alpha", alpha, "[0, inf)"), check_number("beta", beta, "[0, inf)")
    k = check_number("k", k, "(0, inf)")
    out = output_array(out, x.shape, x.dtype)
    denominator = output_array(denominator, x.shape, x.dtype)
    real = x.dtype.type
    numbers = real(alpha / count), real(beta), real(k)
    if region == WITHIN:
        _within_forward(x, _reach(x, size), *numbers, out, denominator)
    else:
        rows = _rows(x)
        _across_forward(rows, size, *numbers, _chunk_rows(rows), _rows(out), _rows(denominator))
    return out, denominator


def response_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    denominator: np.ndarray,
    *,
    size: int,
    alpha: float,
    beta: float,
    region: str = ACROSS,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``dx_j = dy_j d_j^-beta - 2 alpha beta / n x_j sum_c dy_c x_c d_c^(-beta-1)``.

    The sum goes over the places c whose window holds j.

    Parameters
    ----------
    dy, x, denominator : numpy.ndarray
        Of one shape and type; `denominator` from `response_norm_forward`.
    size, alpha, beta, region
        As in `response_norm_forward`.
    out : numpy.ndarray, optional
        None of the other arrays.

    Returns
    -------
    numpy.ndarray

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit.
    """
    dy, x, denominator = alike(dy=dy, x=x, denominator=denominator)
    numbers = slopes(x, size, alpha, beta, region)
    out = output_array(out, dy.shape, dy.dtype)
    if region == WITHIN:
        above, below, left, right = _reach(x, size)
        _within_backward(dy, x, denominator, Reach(below, above, right, left), *numbers, out)
    else:
        rows = [_rows(array) for array in (dy, x, denominator)]
        _across_backward(*rows, size, *numbers, _chunk_rows(rows[0]), _rows(out))
    return out


def response_norm_tangent(
    dx: np.ndarray,
    x: np.ndarray,
    denominator: np.ndarray,
    *,
    size: int,
    alpha: float,
    beta: float,
    region: str = ACROSS,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``dy_c = dx_c d_c^-beta - 2 alpha beta / n x_c d_c^(-beta-1) sum_j x_j dx_j``.

    The sum goes over the window of c.

    Parameters
    ----------
    dx, x, denominator : numpy.ndarray
        Of one shape and type; `denominator` from `response_norm_forward`.
    size, alpha, beta, region
        As in `response_norm_forward`.
    out : numpy.ndarray, optional
        None of the other arrays.

    Returns
    -------
    numpy.ndarray

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit.
    """
    dx, x, denominator = alike(dx=dx, x=x, denominator=denominator)
    numbers = slopes(x, size, alpha, beta, region)
    out = output_array(out, dx.shape, dx.dtype)
    if region == WITHIN:
        _within_tangent(dx, x, denominator, _reach(x, size), *numbers, out)
    else:
        rows = [_rows(array) for array in (dx, x, denominator)]
        _across_tangent(*rows, size, *numbers, _chunk_rows(rows[0]), _rows(out))
    return out


def window_places(x: np.ndarray, size: Any, region: Any) -> int:
    """Number of places in a whole window."""
    size = check_integer("size", size)
    if check_choice("region", region, _REGIONS) == ACROSS:
        return size
    if x.ndim != 4:
        raise ValueError(
            f"x has shape {x.shape}, windows of pixels take (examples, height, width, channels)"
        )
    return size * size


def slopes(x: np.ndarray, size: Any, alpha: Any, beta: Any, region: Any) -> tuple[Any, Any]:
    """``2 alpha beta / n`` and beta, in the type of `x`."""
    places = window_places(x, size, region)
    alpha, beta = check_number("alpha", alpha, "[0, inf)"), check_number("beta", beta, "[0, inf)")
    return x.dtype.type(2 * alpha * beta / places), x.dtype.type(beta)


def _reach(x: np.ndarray, size: int) -> Reach:
    """Pixels of a window above, below, left and right of its own, no more than there can be."""
    sides = [(min(size // 2, n - 1), min((size - 1) // 2, n - 1)) for n in x.shape[1:3]]
    return Reach(*sides[0], *sides[1])


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _chunk_rows(rows: np.ndarray) -> int:
    """Rows of a chunk: a function of the shape alone."""
    least = -(-_CHUNK // rows.shape[1])
    return max(least, -(-len(rows) // _MOST_CHUNKS))


@inlined
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
def _window_sums(values, step, size, sums):
    """``sums[i] = values[i] + values[i + step] + ... + values[i + (size - 1) * step]``."""
    # Slices, not sums of indices: of those Numba cannot tell that none is negative.
    second, third = values[min(size - 1, 1) * step :], values[min(size - 1, 2) * step :]
    if size == 1:
        sums[:] = values[: sums.size]
    elif size == 2:
        for i in range(sums.size):
            sums[i] = values[i] + second[i]
    else:
        for i in range(sums.size):
            sums[i] = values[i] + second[i] + third[i]
    for t in range(3, size):
        following = values[t * step :]
        for i in range(sums.size):
            sums[i] += following[i]


# Windows across channels. Sums are taken of some rows at a time, laid out one behind the other with
# `size` zeros between them: with single rows, loads that straddle the last stores would stall. The
# windows of channel c start `size // 2` before it; those that hold channel j start
# `(size - 1) // 2` before it.


@parallel
def _across_forward(x, size, alpha, beta, k, chunk_rows, y, d):
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
                line = values[place : place + channels]
                for c in range(channels):
                    line[c] = x[r, c] * x[r, c]
            _window_sums(values, 1, size, sums[: (last - first) * pitch])
            for r in range(first, last):
                place = (r - first) * pitch
                total = sums[place : place + channels]
                for c in range(channels):
                    d[r, c] = k + alpha * total[c]
                _powers(d[r], beta, factors)
                for c in range(channels):
                    y[r, c] = x[r, c] * factors[c]


@parallel
def _across_backward(dy, x, d, size, scale, beta, chunk_rows, dx):
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
                line = values[place : place + channels]
                _powers(d[r], beta, factors)
                for c in range(channels):
                    through = dy[r, c] * factors[c]
                    dx[r, c] = through
                    line[c] = through * x[r, c] / d[r, c]
            _window_sums(values, 1, size, sums[: (last - first) * pitch])
            for r in range(first, last):
                place = (r - first) * pitch
                total = sums[place : place + channels]
                for c in range(channels):
                    dx[r, c] -= scale * x[r, c] * total[c]


@parallel
def _across_tangent(dx, x, d, size, scale, beta, chunk_rows, dy):
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
                line = values[place : place + channels]
                for c in range(channels):
                    line[c] = x[r, c] * dx[r, c]
            _window_sums(values, 1, size, sums[: (last - first) * pitch])
            for r in range(first, last):
                place = (r - first) * pitch
                total = sums[place : place + channels]
                _powers(d[r], beta, factors)
                for c in range(channels):
                    share = scale * x[r, c] * total[c] / d[r, c]
                    dy[r, c] = factors[c] * (dx[r, c] - share)


# Windows within a channel: sums over the rows of a window, then over its columns. Rows of values
# have margins of zeros, as wide as a window reaches, so that no window is cut, and neighbouring
# pixels lie `channels` apart: all sums run along whole rows.


@inlined
def _band(x, low, reach):
    """Values of the rows that windows of a band from row `low` on reach: zeros, and which rows."""
    above, below, left, right = reach
    _, height, width, channels = x.shape
    rows = min(_BAND, height - low) + above + below
    values = np.zeros((rows, (left + width + right) * channels), x.dtype)
    return values, max(0, low - above), min(height, low - above + rows)


@inlined
def _sum_windows(values, row, reach, channels, sums):
    """Sums over the windows of a row of pixels, the first row of whose windows is given."""
    above, below, left, right = reach
    columns = np.empty(values.shape[1], values.dtype)
    flat = values.reshape(-1)
    _window_sums(flat[row * columns.size :], columns.size, above + 1 + below, columns)
    _window_sums(columns, channels, left + 1 + right, sums)


@parallel
def _within_forward(x, reach, alpha, beta, k, y, d):
    examples, height, width, channels = x.shape
    start = reach.left * channels
    bands = -(-height // _BAND)
    for number in prange(examples * bands):
        task = np.int64(number)
        n = task // bands
        low = (task - n * bands) * _BAND
        values, first, last = _band(x, low, reach)
        for r in range(first, last):
            row = x[n, r].reshape(-1)
            line = values[r - low + reach.above, start : start + row.size]
            for i in range(row.size):
                line[i] = row[i] * row[i]
        sums = np.empty(width * channels, x.dtype)
        for r in range(low, min(low + _BAND, height)):
            _sum_windows(values, r - low, reach, channels, sums)
            row, result, bottom = x[n, r].reshape(-1), y[n, r].reshape(-1), d[n, r].reshape(-1)
            for i in range(row.size):
                bottom[i] = k + alpha * sums[i]
            _powers(bottom, beta, sums)
            for i in range(row.size):
                result[i] = row[i] * sums[i]


@parallel
def _within_backward(dy, x, d, reach, scale, beta, dx):
    examples, height, width, channels = x.shape
    start = reach.left * channels
    bands = -(-height // _BAND)
    for number in prange(examples * bands):
        task = np.int64(number)
        n = task // bands
        low = (task - n * bands) * _BAND
        stop = min(low + _BAND, height)
        values, first, last = _band(x, low, reach)
        sums = np.empty(width * channels, x.dtype)
        for r in range(first, last):
            line, bottom = (
                values[r - low + reach.above, start : start + sums.size],
                d[n, r].reshape(-1),
            )
            _powers(bottom, beta, sums)
            row, pulled, result = x[n, r].reshape(-1), dy[n, r].reshape(-1), dx[n, r].reshape(-1)
            for i in range(row.size):
                sums[i] *= pulled[i]
                line[i] = sums[i] * row[i] / bottom[i]
            if low <= r < stop:  # the other rows are those of other bands
                result[:] = sums
        for r in range(low, stop):
            _sum_windows(values, r - low, reach, channels, sums)
            row, result = x[n, r].reshape(-1), dx[n, r].reshape(-1)
            for i in range(row.size):
                result[i] -= scale * row[i] * sums[i]


@parallel
def _within_tangent(dx, x, d, reach, scale, beta, dy):
    examples, height, width, channels = x.shape
    start = reach.left * channels
    bands = -(-height // _BAND)
    for number in prange(examples * bands):
        task = np.int64(number)
        n = task // bands
        low = (task - n * bands) * _BAND
        values, first, last = _band(x, low, reach)
        for r in range(first, last):
            row, along = x[n, r].reshape(-1), dx[n, r].reshape(-1)
            line = values[r - low + reach.above, start : start + row.size]
            for i in range(row.size):
                line[i] = row[i] * along[i]
        sums = np.empty(width * channels, x.dtype)
        factors = np.empty(width * channels, x.dtype)
        for r in range(low, min(low + _BAND, height)):
            _sum_windows(values, r - low, reach, channels, sums)
            row, along, bottom = x[n, r].reshape(-1), dx[n, r].reshape(-1), d[n, r].reshape(-1)
            _powers(bottom, beta, factors)
            result = dy[n, r].reshape(-1)
            for i in range(row.size):
                share = scale * row[i] * sums[i] / bottom[i]
                result[i] = factors[i] * (along[i] - share)
