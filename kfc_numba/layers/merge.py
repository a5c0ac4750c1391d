"""Layers that join branches of a graph."""

from __future__ import annotations

import numpy as np

from kfc_numba.arrays import shape_only
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Arrays, Context, Layer, Saved, Shape


class Add(Layer):
    """Sum of two or more inputs of the same shape."""

    kind = "add"
    arity = None

    def output_shape(self, *shapes: Shape) -> Shape:
        if len(shapes) < 2 or len(set(shapes)) > 1:
            raise ValueError(f"{self!r} takes two or more inputs of one shape, got {shapes}")
        return shapes[0]

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        # How many inputs there were cannot be seen from the output: an entry for each.
        return self._sum(inputs, context), (None,) * len(inputs)

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
        return (dy if need_inputs else None,) * len(saved), {}

    def tangent(
        self,
        arrays: Arrays,
        saved: Saved,
        dinputs: tuple[np.ndarray | None, ...],
        dparameters: Arrays,
        context: Context,
    ) -> np.ndarray:
        return self._sum(dinputs, context)

    def _sum(self, terms: tuple[np.ndarray | None, ...], context: Context) -> np.ndarray:
        first, *others = terms
        assert first is not None
        k = kernels(first)
        total, out = first, context.empty(first.shape, first.dtype)
        for term in others:
            total = k.add(total, term, out=out)
        return total


class Concat(Layer):
    """Two or more inputs side by side along the last axis, the channels."""

    kind = "concat"
    arity = None

    def output_shape(self, *shapes: Shape) -> Shape:
        if len(shapes) < 2 or len({shape[:-1] for shape in shapes}) > 1:
            raise ValueError(
                f"{self!r} takes two or more inputs that differ in the last axis only, got {shapes}"
            )
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        return self._join(inputs, context), tuple(shape_only(x.shape, x.dtype) for x in inputs)

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
        if not need_inputs:
            return (None,) * len(saved), {}
        shapes = [x.shape for x in saved if x is not None]
        out = [context.empty(shape, dy.dtype) for shape in shapes]
        return tuple(kernels(dy).split(dy, [shape[-1] for shape in shapes], out=out)), {}

    def tangent(
        self,
        arrays: Arrays,
        saved: Saved,
        dinputs: tuple[np.ndarray | None, ...],
        dparameters: Arrays,
        context: Context,
    ) -> np.ndarray:
        return self._join(dinputs, context)

    def _join(self, parts: tuple[np.ndarray | None, ...], context: Context) -> np.ndarray:
        present = [part for part in parts if part is not None]
        first = present[0]
        channels = sum(part.shape[-1] for part in present)
        out = context.empty((*first.shape[:-1], channels), first.dtype)
        return kernels(first).concatenate(present, out=out)
