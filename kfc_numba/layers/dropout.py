"""Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from kfc_numba.checks import check_number
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Arrays, Context, Layer, Saved


class Dropout(Layer):
    """Set each unit to zero with probability `rate` in training; the others grow by 1/(1 - rate).

    In evaluation the inputs pass unchanged, without a copy. What is dropped depends on the seed,
    the step and the place of the layer in the network, and on nothing else.

    Parameters
    ----------
    rate : float
        At least 0 and below 1.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    kind = "dropout"

    def __init__(self, rate: Any):
        self.rate = check_number("rate", rate, "[0, 1)")

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        (x,) = inputs
        if not context.training or self.rate == 0:
            return x, (None,)
        if context.earlier is not None:
            (mask,) = context.earlier[context.node]
        else:
            out, rng = context.empty(x.shape, np.uint8), context.rng("dropout")
            mask = kernels(x).dropout_mask(x.shape, rate=self.rate, rng=rng, out=out)
        return self._masked(x, mask, context), (mask,)

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
        (mask,) = saved
        return (self._masked(dy, mask, context) if need_inputs else None,), {}

    def tangent(
        self,
        arrays: Arrays,
        saved: Saved,
        dinputs: tuple[np.ndarray | None, ...],
        dparameters: Arrays,
        context: Context,
    ) -> np.ndarray:
        (dx,) = dinputs
        (mask,) = saved
        assert dx is not None
        return self._masked(dx, mask, context)

    def _masked(self, x: np.ndarray, mask: np.ndarray | None, context: Context) -> np.ndarray:
        if mask is None:
            return x
        out = context.empty(x.shape, x.dtype)
        return kernels(x).apply_mask(x, mask, scale=1 / (1 - self.rate), out=out)
