"""Channels side by side, and taken apart again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import prange

from kfc_numba.checks import check_integer
from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.jit import parallel


def concatenate(parts: Sequence[np.ndarray], *, out: np.ndarray | None = None) -> np.ndarray:
    """Arrays side by side along the last axis.

    Parameters
    ----------
    parts : sequence of numpy.ndarray
        At least one, (..., channels), alike but for the last axis; float32 or float64.
    out : numpy.ndarray, optional
        None of the parts.

    Returns
    -------
    numpy.ndarray
        (..., sum of channels).

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit.
    """
    if not parts:
        raise ValueError("parts must have at least one array, got none")
    found: list[np.ndarray] = []
    for number, part in enumerate(parts):
        found.append(checked(f"parts[{number}]", part, None, found[0].dtype if found else None))
        if part.shape[:-1] != parts[0].shape[:-1]:
            raise ValueError(
                f"parts[{number}] has shape {part.shape}, it may differ from {parts[0].shape} in "
                "the last axis only"
            )
    ends = np.cumsum([part.shape[-1] for part in found]).tolist()
    out = output_array(out, (*found[0].shape[:-1], ends[-1]), found[0].dtype)
    rows = out.reshape(-1, ends[-1])
    for part, end in zip(found, ends, strict=True):
        source = part.reshape(-1, part.shape[-1])
        _copy_channels(source, 0, rows, end - part.shape[-1], part.shape[-1])
    return out


def split(
    x: np.ndarray, sizes: Sequence[int], *, out: Sequence[np.ndarray] | None = None
) -> list[np.ndarray]:
    """The inverse of `concatenate`: the last axis cut into parts.

    Parameters
    ----------
    x : numpy.ndarray
        (..., channels), float32 or float64.
    sizes : sequence of int
        Channels of each part; their sum is the number of channels.
    out : sequence of numpy.ndarray, optional
        An array for each part.

    Returns
    -------
    list of numpy.ndarray
        Each (..., channels of the part).

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit.
    """
    x = checked("x", x, None)
    sizes = [check_integer("sizes", size) for size in sizes]
    if sum(sizes) != x.shape[-1]:
        raise ValueError(f"sizes (={sizes}) must add up to the {x.shape[-1]} channels of x")
    if out is not None and len(out) != len(sizes):
        raise ValueError(f"out has {len(out)} arrays, it must have {len(sizes)}, one a part")
    parts = [
        output_array(None if out is None else out[number], (*x.shape[:-1], size), x.dtype)
        for number, size in enumerate(sizes)
    ]
    rows, start = x.reshape(-1, x.shape[-1]), 0
    for part, size in zip(parts, sizes, strict=True):
        _copy_channels(rows, start, part.reshape(-1, size), 0, size)
        start += size
    return parts


@parallel
def _copy_channels(source, source_start, target, target_start, count):
    for r in prange(source.shape[0]):
        here = source[r, source_start : source_start + count]
        there = target[r, target_start : target_start + count]
        for c in range(count):
            there[c] = here[c]
