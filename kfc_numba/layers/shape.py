"""Layers that change the shape of examples and nothing else."""

from __future__ import annotations

import math

import numpy as np

from kfc_numba.arrays import shape_only
from kfc_numba.layers.base import Arrays, Context, Layer, Saved, Shape


class Flatten(Layer):
    """All numbers of an example in one row; an image row by row, pixel by pixel, channels last."""

    kind = "flatten"

    def output_shape(self, *shapes: Shape) -> Shape:
        return (math.prod(shapes[0]),)

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        (x,) = inputs
        return x.reshape(len(x), -1), (shape_only(x.shape, x.dtype),)

    def backward(
        self,
        arrays: Arrays,
        saved: Saved,
        dy: np.ndarray,
        context: Context,
        *,
        need_inputs: bool = True,
        need_parameters: bool = True,
    ) -> tuple[tuple[np.ndarray | None, ...], dict[str, np.ndarray]]:
        (x,) = saved
        assert x is not None
        return (dy.reshape(x.shape) if need_inputs else None,), {}

    def tangent(
        self,
        arrays: Arrays,
        saved: Saved,
        dinputs: tuple[np.ndarray | None, ...],
        dparameters: Arrays,
        context: Context,
    ) -> np.ndarray:
        (dx,) = dinputs
        assert dx is not None
        return dx.reshape(len(dx), -1)
