"""Inputs of another size than networks start out for: pixels as they are stored, tiny numbers."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from kfc_numba.devices import to_host

_LOOKED_AT = 2**18  # numbers, of the first examples: enough for some to be bright
_BRIGHT = 100  # numbers as large are none that somebody has normalised
_LARGEST = (255, 65535)  # of 8 and 16 bits
_TINY = 0.01  # with all inputs smaller, networks with biases were seen to lose all units of ReLU
_BETWEEN = str(Path(__file__).parent), contextlib.__file__  # the library, and its decorators


def warn_of_pixels(name: str, x: Any) -> None:
    """Warn where inputs of a network are images as they are stored.

    Networks train on them slowly or not at all, and one that was trained on others predicts
    nonsense from them.

    Parameters
    ----------
    name : str
        What the warning calls them.
    x : array
        Real numbers, examples first.
    """
    if x.ndim != 4 or x.dtype.kind == "b":
        return
    some = _first(x)
    least, greatest = some.min(), some.max()
    if not (least >= 0 and _BRIGHT < greatest <= _LARGEST[-1]):  # NaN is none either
        return
    if greatest > _LARGEST[0] and not (some % 1 == 0).all():
        return
    largest = next(value for value in _LARGEST if greatest <= value)
    _warn(
        f"{name}: numbers from {least:g} to {greatest:g} look like pixels",
        f"x / {largest}, or kfc_numba.Normalization.of(x); "
        "the data sets of kfc_numba.datasets have .normalized()",
    )


def warn_of_tiny(name: str, x: Any) -> None:
    """Warn where inputs to train on are so small that a network hardly sees them.

    What its first layer then learns from are its biases, and these can turn all units of ReLU off
    for good, with any optimizer that takes long steps.

    Parameters
    ----------
    name, x
        As `warn_of_pixels`.
    """
    if x.dtype.kind != "f" or not _greatest(_first(x)) < _TINY:
        return
    greatest = _greatest(x)
    if not 0 < greatest < _TINY:  # NaN is none either
        return
    _warn(
        f"{name}: numbers of at most {greatest:.2g} are too small for networks to see",
        "kfc_numba.Normalization.of(x)",
    )


def _warn(what: str, hint: str) -> None:
    advice = "networks train best on numbers of mean 0 and variance 1: see"
    warnings.warn(f"{what}; {advice} {hint}", UserWarning, stacklevel=_outside())


def _greatest(x: Any) -> Any:
    """Largest magnitude, without an array as large as `x`, which may be a mapped file."""
    return np.maximum(to_host(x.max()), -to_host(x.min()))


def _first(x: Any) -> Any:
    """Some of the first examples, enough to tell."""
    return to_host(x[: max(1, _LOOKED_AT // x[0].size)])


def _outside() -> int:
    """How many frames above a warning of this module the call of the user is."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame, level = frame.f_back, level + 1
    return level
