"""Curvature of networks: estimates, exact matrices, operators.

Its modules are imported when they are first asked for, as ``kfc_numba.curvature.operators``.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "blockdiagonal",
    "conventions",
    "fisher",
    "linearised",
    "operators",
    "report",
    "structures",
    "tridiagonal",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
