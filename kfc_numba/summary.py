"""A network as a table that fits a terminal."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from kfc_numba.layers.base import Arrays, Layer, Shape
from kfc_numba.topology import PlacedLayer

COLUMNS = 100
_HEADERS = ("layer", "inputs", "output shape", "parameters")
_GAP = 2  # columns between two of the table
_WINDOWS = ("kernel", "stride", "padding", "dilation")
_INPUTS = 24  # columns for the names of inputs, at most


def table(
    layers: Sequence[PlacedLayer], input_shape: Shape, params: Mapping[str, np.ndarray]
) -> str:
    """Layers, their inputs, output shapes and numbers of parameters, in at most 100 columns.

    Parameters
    ----------
    layers : sequence of PlacedLayer
    input_shape : tuple of int
    params : mapping of str to numpy.ndarray

    Returns
    -------
    str
    """
    rows = [("input", "", times(input_shape), "")]
    for placed in layers:
        parents = ", ".join("input" if p < 0 else layers[p].name for p in placed.parents)
        count = sum(params[f"{placed.name}.{short}"].size for short in placed.names)
        layer = f"{placed.name}: {described(placed.layer)}"
        rows.append((layer, parents, times(placed.shape), f"{count:,}"))
    rows.append(("total", "", "", f"{sum(value.size for value in params.values()):,}"))
    headers = [header + " " * _GAP for header in _HEADERS]  # that much is kept free beside them
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    widths[1] = min(widths[1], _INPUTS)
    widths[0] = min(widths[0], COLUMNS - sum(widths[1:]) - _GAP * (len(widths) - 1))
    return tabulate(
        rows,
        _HEADERS,
        "simple",
        maxcolwidths=[*widths[:2], None, None],
        colalign=("left", "left", "left", "right"),
        disable_numparse=True,
    )


def described(layer: Layer) -> str:
    """``Conv2d(filters=16, kernel=5)``: the arguments that are not what they are by default.

    Parameters
    ----------
    layer : Layer

    Returns
    -------
    str
    """
    values = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
    parameters = inspect.signature(type(layer)).parameters
    if not values.keys() <= parameters.keys():
        return repr(layer)
    given = (
        f"{name}={_short(value) if name in _WINDOWS else repr(value)}"
        for name, value in ((name, values[name]) for name in parameters if name in values)
        if not _usual(value, parameters[name].default)
    )
    return f"{type(layer).__name__}({', '.join(given)})"


def line(name: str, ends: tuple[Shape, Shape], layers: int, params: Arrays, dtype: np.dtype) -> str:
    """A network in a line.

    Parameters
    ----------
    name : str
        Of its class.
    ends : (tuple of int, tuple of int)
        Shapes of an example's input and output.
    layers : int
        How many there are.
    params : mapping of str to numpy.ndarray
    dtype : numpy.dtype

    Returns
    -------
    str
    """
    size = sum(value.size for value in params.values())
    count = f"{layers} layer{'s' * (layers != 1)}"
    return f"{name}: {' to '.join(map(times, ends))}, {count}, {size:,} parameters, {dtype}"


def times(shape: Shape) -> str:
    """``28 x 28 x 1``."""
    return " x ".join(map(str, shape))


def _short(value: Any) -> str:
    """``5`` for (5, 5), which means the same in windows."""
    if isinstance(value, tuple) and value and len(set(value)) == 1:
        return _short(value[0])
    return repr(value)


def _usual(value: Any, default: Any) -> bool:
    """Whether a value is the default, or pairs of it: layers keep 1 as (1, 1)."""
    if isinstance(value, tuple):
        return bool(value) and all(_usual(part, default) for part in value)
    return type(value) is type(default) and bool(value == default)
