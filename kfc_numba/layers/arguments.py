"""What the layers of several files check or keep in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kfc_numba.layers.base import Layer, Shape


def image_shape(layer: Layer, shape: Shape) -> tuple[int, int, int]:
    """Height, width and channels of an example; ValueError if it is not an image."""
    if len(shape) != 3:
        raise ValueError(f"{type(layer).__name__} takes (height, width, channels), got {shape}")
    height, width, channels = shape
    return height, width, channels
