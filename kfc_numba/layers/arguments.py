"""What the layers of several files check or keep in the same way."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kfc_numba.layers.base import Layer, Shape


def number(name: str, value: Any) -> float:
    """A finite real number as a float; TypeError or ValueError that names the argument."""
    if not isinstance(value, Real) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` (={value!r}) must be a number")
    if not math.isfinite(value):
        raise ValueError(f"`{name}` (={value!r}) must be finite")
    return float(value)


def integer(name: str, value: Any, minimum: int = 1) -> int:
    """An integer of at least `minimum`; TypeError or ValueError that names the argument."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}` (={value!r}) must be an integer")
    if value < minimum:
        raise ValueError(f"`{name}` (={value!r}) must be at least {minimum}")
    return int(value)


def image_shape(layer: Layer, shape: Shape) -> tuple[int, int, int]:
    """Height, width and channels of an example; ValueError if it is not an image."""
    if len(shape) != 3:
        raise ValueError(
            f"{layer!r} takes examples of shape (height, width, channels), got {shape}"
        )
    height, width, channels = shape
    return height, width, channels


def shape_only(x: np.ndarray) -> np.ndarray:
    """A view of the shape of `x` that holds no memory: for layers that keep nothing but a shape."""
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)
