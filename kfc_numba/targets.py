"""Checks of targets, for losses: shapes and ranges, with what to write in their place."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.devices import to_host
from kfc_numba.kernels.backend import on_device
from kfc_numba.layers.base import Shape


def class_hint(targets: np.ndarray, outputs_shape: Shape) -> str:
    """What to write in place of labels of classes as they often come, for a message."""
    places = outputs_shape[:-1]
    if targets.dtype.kind in "USO":
        return "; see np.unique(y, return_inverse=True)[1]" if targets.shape == places else ""
    if targets.shape == outputs_shape and bool(((targets == 0) | (targets == 1)).all()):
        return f"; one-hot labels become classes by y.argmax(axis={len(places)})"
    if targets.shape == places and targets.dtype.kind == "f" and bool((targets % 1 == 0).all()):
        return "; see y.astype(int)"
    return ""


def check_shape(targets: np.ndarray, shape: Shape, hint: str = "") -> None:
    if targets.shape != shape:
        if targets.shape == (*shape, 1):
            hint = "; see y[..., 0]"
        elif (*targets.shape, 1) == shape:
            hint = "; see y[..., None]"
        raise ValueError(f"targets must have shape {shape}, got {targets.shape}{hint}")


def check_range(targets: np.ndarray, low: int, high: int, if_from_one: str = "") -> None:
    if not targets.size:
        return
    least, greatest = targets.min(), targets.max()
    if on_device(targets):
        least, greatest = to_host(array_namespace(targets).stack([least, greatest]))
    if not (least >= low and greatest <= high):  # NaN is out of range too
        hint = if_from_one if least == low + 1 and greatest == high + 1 else ""
        raise ValueError(f"targets must be from {low} to {high}, got {least} to {greatest}{hint}")
