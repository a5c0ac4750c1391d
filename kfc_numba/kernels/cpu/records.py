"""Records of integers that kernels read by name, as ``plan.rows.length``.

A NumPy array of them is as cheap to hand to a compiled function as any array, and holds what is
planned once for a shape; a NamedTuple costs several times as much at each launch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Numbers for the arguments of compiled functions: Numba compiles a function anew for each literal
# number that another one hands to it (kernels/README.md, "Literal numbers").
ZERO: Any = np.int64(0)
ONE: Any = np.int64(1)


def record(*names: str, **records: np.dtype) -> np.dtype:
    """Type of a record of integers called `names`, and of records inside it."""
    fields = [*((name, np.int64) for name in names), *records.items()]
    # As np.record, fields are read by name without compilation too.
    return np.dtype((np.record, fields))


def record_array(kind: np.dtype, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Array of records from mappings, whose records are mappings too."""
    return np.array([_values(kind, row) for row in rows], kind)


def _values(kind: np.dtype, row: Mapping[str, Any]) -> tuple:
    assert kind.names is not None
    assert set(row) == set(kind.names), f"{sorted(row)} are not {sorted(kind.names)}"
    return tuple(
        _values(kind[name], row[name]) if kind[name].names else int(row[name])
        for name in kind.names
    )


#: Sizes of a batch of images.
IMAGES = record("examples", "height", "width", "channels")


def images(shape: Sequence[int]) -> dict[str, int]:
    """`IMAGES` of an array."""
    assert IMAGES.names is not None
    return dict(zip(IMAGES.names, shape, strict=True))
