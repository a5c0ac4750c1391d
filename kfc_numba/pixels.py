"""Images as they are stored, given to a network that was not meant to see them so."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any

from kfc_numba.devices import to_host

_LOOKED_AT = 2**18  # numbers, of the first examples: enough for some to be bright
_BRIGHT = 100  # numbers as large are none that somebody has normalised
_LARGEST = (255, 65535)  # of 8 and 16 bits
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
    some = to_host(x[: max(1, _LOOKED_AT // x[0].size)])
    least, greatest = some.min(), some.max()
    if not (least >= 0 and _BRIGHT < greatest <= _LARGEST[-1]):  # NaN is none either
        return
    if greatest > _LARGEST[0] and not (some % 1 == 0).all():
        return
    largest = next(value for value in _LARGEST if greatest <= value)
    warnings.warn(
        f"{name}: numbers from {least:g} to {greatest:g} look like pixels; networks train best on "
        f"numbers of mean 0 and variance 1: see x / {largest}, or kfc_numba.Normalization.of(x); "
        "the data sets of kfc_numba.datasets have .normalized()",
        UserWarning,
        stacklevel=_outside(),
    )


def _outside() -> int:
    """How many frames above `warn_of_pixels` the call of the user is."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame, level = frame.f_back, level + 1
    return level
