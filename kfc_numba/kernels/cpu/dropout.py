"""Random masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kfc_numba.checks import check_instance, check_number, check_shape
from kfc_numba.kernels.cpu.arguments import output_array

_BLOCK = 1 << 16  # numbers drawn at a time: they stay in the cache


def dropout_mask(
    shape: Sequence[int],
    *,
    rate: float,
    rng: np.random.Generator,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Zeros, each with probability `rate`, among ones.

    One float32 number is drawn for each place, in memory order, whatever the network's dtype: the
    same generator gives the same mask.

    Parameters
    ----------
    shape : sequence of int
    rate : float
        At least 0 and below 1.
    rng : numpy.random.Generator
    out : numpy.ndarray, optional
        uint8.

    Returns
    -------
    numpy.ndarray
        uint8 of `shape`.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit.
    """
    check_instance("rng", rng, np.random.Generator, "a NumPy generator")
    least = np.float32(check_number("rate", rate, "[0, 1)"))
    out = output_array(out, check_shape("shape", shape), np.dtype(np.uint8))
    flat = out.reshape(-1)
    draws = np.empty(min(flat.size, _BLOCK), np.float32)
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        drawn = rng.random(dtype=np.float32, out=draws[: part.size])
        np.greater_equal(drawn, least, out=part.view(np.bool_))
    return out
