"""Activation functions: the same curve at every unit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kfc_numba.checks import check_number
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Arrays, Context, Layer, Saved


class _Activation(Layer):
    """A curve whose slope follows from its value, so that only the output is kept."""

    def _curve(self, k: Any) -> Callable[..., np.ndarray]:
        """Kernel ``(x, *, out)``."""
        raise NotImplementedError

    def _slope(self, k: Any) -> Callable[..., np.ndarray]:
        """Kernel ``(dy, y, *, out)``: dy times the slope where the value is y."""
        raise NotImplementedError

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        (x,) = inputs
        y = self._curve(kernels(x))(x, out=context.empty(x.shape, x.dtype))
        return y, (y,)

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
            return (None,), {}
        return (self._product(saved, dy, context),), {}

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
        return self._product(saved, dx, context)

    def _product(self, saved: Saved, vector: np.ndarray, context: Context) -> np.ndarray:
        """Product with the Jacobian, which is diagonal."""
        (y,) = saved
        out = context.empty(vector.shape, vector.dtype)
        return self._slope(kernels(vector))(vector, y, out=out)


class ReLU(_Activation):
    """``max(x, 0)``, with slope 0 at 0. A NaN stays one."""

    kind = "relu"

    def _curve(self, k: Any) -> Callable[..., np.ndarray]:
        return k.relu_forward

    def _slope(self, k: Any) -> Callable[..., np.ndarray]:
        return k.relu_backward


class LeakyReLU(_Activation):
    """``x`` where positive, elsewhere ``negative_slope * x``.

    Parameters
    ----------
    negative_slope : float
        Finite and at least 0.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    kind = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01):
        self.negative_slope = check_number("negative_slope", negative_slope, "[0, inf)")

    def _curve(self, k: Any) -> Callable[..., np.ndarray]:
        return functools.partial(k.leaky_relu_forward, negative_slope=self.negative_slope)

    def _slope(self, k: Any) -> Callable[..., np.ndarray]:
        return functools.partial(k.leaky_relu_backward, negative_slope=self.negative_slope)


class Tanh(_Activation):
    """Hyperbolic tangent."""

    kind = "tanh"

    def _curve(self, k: Any) -> Callable[..., np.ndarray]:
        return k.tanh_forward

    def _slope(self, k: Any) -> Callable[..., np.ndarray]:
        return k.tanh_backward


class Sigmoid(_Activation):
    """Logistic function ``1 / (1 + exp(-x))``."""

    kind = "sigmoid"

    def _curve(self, k: Any) -> Callable[..., np.ndarray]:
        return k.sigmoid_forward

    def _slope(self, k: Any) -> Callable[..., np.ndarray]:
        return k.sigmoid_backward
