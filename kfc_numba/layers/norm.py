"""Normalisation of activations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kfc_numba.arrays import cast, zeros_like
from kfc_numba.checks import check_choice, check_integer, check_number
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.arguments import image_shape
from kfc_numba.layers.base import Arrays, Context, Layer, Saved, Shape

Terms = tuple[np.ndarray, ...]


class BatchNorm(Layer):
    """Batch normalisation of each channel, the last axis (Ioffe and Szegedy, 2015).

    ``weight * (x - mean) / sqrt(variance + epsilon) + bias``. In training mean and variance are
    those of the batch, over examples and locations, with their number as divisor, and derivatives
    go through them. In evaluation they are the running averages, which are constants.

    The running variance averages the unbiased estimate, as in PyTorch.

    A batch with a single value of a channel, which is one example without locations, has no
    variance and is refused in training: `Trainer.fit` leaves none at the end of a pass.

    Parameters
    ----------
    momentum : float
        Weight of the old value in the running averages, at least 0 and at most 1. (PyTorch's
        argument of this name is the weight of the new one.)
    epsilon : float
        Added to the variance, greater than 0.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    kind = "norm"
    couples_examples = True
    rescales = True
    squares = ("variance",)

    def __init__(self, *, momentum: Any = 0.9, epsilon: Any = 1e-5):
        self.momentum = check_number("momentum", momentum, "[0, 1]")
        self.epsilon = check_number("epsilon", epsilon, "(0, inf)")

    def parameters(self, rng: np.random.Generator, *shapes: Shape) -> dict[str, np.ndarray]:
        channels = shapes[0][-1]
        return {"weight": np.ones(channels), "bias": np.zeros(channels)}

    def buffers(self, *shapes: Shape) -> dict[str, np.ndarray]:
        channels = shapes[0][-1]
        return {"mean": np.zeros(channels), "variance": np.ones(channels)}

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        (x,) = inputs
        saved: Saved = (x, None, None, None, None)
        if context.training:
            if x.size == x.shape[-1]:
                raise ValueError(
                    f"{self!r} needs more than one value of a channel in training, got a batch of "
                    f"shape {x.shape}"
                )
            mean, variance = kernels(x).channel_moments(x)
        else:
            mean, variance = arrays["mean"], arrays["variance"]
        mean, inverse, scale, offset = self._terms(arrays, mean, variance)
        if context.training:
            saved = (x, mean, variance, inverse, scale)
        out = context.empty(x.shape, x.dtype)
        return kernels(x).channel_affine(x, mean, scale, offset, out=out), saved

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
        x = saved[0]
        assert x is not None
        k = kernels(dy)
        mean, inverse, scale = self._kept_terms(arrays, saved)
        through_statistics = need_inputs and saved[1] is not None
        gradients = {}
        if need_parameters or through_statistics:
            sums, products = k.channel_products(dy, x, mean)
            dweight, dbias, slope, offset = k.norm_gradients(
                arrays["weight"], sums, products, inverse, scale, x.size // x.shape[-1]
            )
            if need_parameters:
                gradients = {"weight": dweight, "bias": dbias}
        if not need_inputs:
            return (None,), gradients
        out = context.empty(x.shape, dy.dtype)
        if not through_statistics:
            zeros = zeros_like(scale)
            return (k.channel_affine(dy, zeros, scale, zeros, out=out),), gradients
        return (k.channel_combination(dy, x, mean, scale, slope, offset, out=out),), gradients

    def tangent(
        self,
        arrays: Arrays,
        saved: Saved,
        dinputs: tuple[np.ndarray | None, ...],
        dparameters: Arrays,
        context: Context,
    ) -> np.ndarray:
        (dx,) = dinputs
        x = saved[0]
        assert x is not None
        k = kernels(x)
        mean, inverse, scale = self._kept_terms(arrays, saved)
        out = context.empty(x.shape, x.dtype)
        dweight, dbias = dparameters["weight"], dparameters["bias"]
        if dx is not None and saved[1] is not None:
            sums, products = k.channel_products(dx, x, mean)
            rows = x.size // x.shape[-1]
            terms = k.norm_slopes(dweight, dbias, sums, products, inverse, scale, rows)
            return k.channel_combination(dx, x, mean, scale, *terms, out=out)
        slope, offset = dweight * inverse, cast(dbias, np.float64)
        if dx is None:
            return k.channel_affine(x, mean, slope, offset, out=out)
        return k.channel_combination(dx, x, mean, scale, slope, offset, out=out)

    def update_buffers(self, arrays: Arrays, saved: Saved) -> dict[str, np.ndarray]:
        x, mean, variance, _, _ = saved
        if mean is None or variance is None:
            return {}
        assert x is not None
        found = kernels(x).norm_running(
            arrays["mean"],
            arrays["variance"],
            mean,
            variance,
            momentum=self.momentum,
            rows=x.size // x.shape[-1],
        )
        return dict(zip(("mean", "variance"), found, strict=True))

    def squared_gradients(
        self, arrays: Arrays, saved: Saved, dy: np.ndarray, context: Context
    ) -> dict[str, np.ndarray]:
        """Sum over examples of the squared derivative of each example, by parameter.

        An example's derivative is its sum over locations, with the statistics of the batch taken
        as constants: the parameters do not act on them.

        Parameters
        ----------
        arrays, saved, context
            As in `backward`.
        dy : numpy.ndarray
            Derivatives of each example's own negative log-likelihood.

        Returns
        -------
        dict of str to numpy.ndarray
            ``"weight"`` and ``"bias"``, each (channels,).
        """
        x = saved[0]
        assert x is not None
        mean, inverse, _ = self._kept_terms(arrays, saved)
        sums, products = kernels(dy).channel_squares(dy, x, mean)
        return {
            "weight": cast(products * inverse**2, dy.dtype),
            "bias": cast(sums, dy.dtype),
        }

    def _terms(self, arrays: Arrays, mean: np.ndarray, variance: np.ndarray) -> Terms:
        """Mean, 1 / sqrt(variance + epsilon), scale and offset, by statistics."""
        weight, bias = arrays["weight"], arrays["bias"]
        return kernels(weight).norm_terms(weight, bias, mean, variance, epsilon=self.epsilon)

    def _kept_terms(self, arrays: Arrays, saved: Saved) -> Terms:
        """Mean, 1 / sqrt(variance + epsilon) and scale of the pass that left `saved`."""
        _, mean, _, inverse, scale = saved
        if mean is None or inverse is None or scale is None:  # it was in evaluation
            return self._terms(arrays, arrays["mean"], arrays["variance"])[:3]
        return mean, inverse, scale


class LocalResponseNorm(Layer):
    """Response normalisation: a number over a power of the squares around it.

    ``y = x * (k + alpha / n * sum of x^2)^-beta``, where the sum goes over the window of y and n
    is the number of places of a whole window. Windows are cut where channels or pixels end.

    Across channels (Krizhevsky et al., 2012, section 3.3) the window of channel c is
    c - size // 2, ..., c + (size - 1) // 2 at the same pixel, and n is `size`: PyTorch's formula,
    and cuda-convnet's layer ``cmrnorm``. In the paper's formula alpha is not divided: multiply its
    alpha by `size`.

    Within a channel the window is ``size x size`` pixels of the same map, rows and columns in such
    ranges about those of y, and n is the square of `size`: cuda-convnet's layer ``rnorm``, which is
    ``u / (1 + scale / size^2 * sum of u^2)^pow`` with its ``scale`` as `alpha`, its ``pow`` as
    `beta` and `k` = 1 (its documentation of layers, "local response normalization layer (same
    map)"; its ``layer.py`` divides scale by size^2), and Caffe's ``WITHIN_CHANNEL``.

    Parameters
    ----------
    size : int
        Length of a window, at least 1.
    alpha : float
        At least 0.
    beta : float
        At least 0. 0.75 and 0.5 are much faster than other values.
    k : float
        Greater than 0.
    region : str
        ``"across_channels"``, or ``"within_channel"``, which takes images.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    kind = "response_norm"

    def __init__(
        self,
        size: Any = 5,
        *,
        alpha: Any = 1e-4,
        beta: Any = 0.75,
        k: Any = 1.0,
        region: str = "across_channels",
    ):
        self.size = check_integer("size", size)
        self.alpha = check_number("alpha", alpha, "[0, inf)")
        self.beta = check_number("beta", beta, "[0, inf)")
        self.k = check_number("k", k, "(0, inf)")
        self.region = check_choice("region", region, ("across_channels", "within_channel"))

    @property
    def _window(self) -> dict[str, Any]:
        """What the kernels of all three passes take."""
        return {"size": self.size, "alpha": self.alpha, "beta": self.beta, "region": self.region}

    def output_shape(self, *shapes: Shape) -> Shape:
        if self.region == "within_channel":
            image_shape(self, shapes[0])
        return shapes[0]

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        (x,) = inputs
        y, denominator = kernels(x).response_norm_forward(
            x,
            **self._window,
            k=self.k,
            out=context.empty(x.shape, x.dtype),
            denominator=context.empty(x.shape, x.dtype),
        )
        return y, (x, denominator)

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
        out = context.empty(dy.shape, dy.dtype)
        return (kernels(dy).response_norm_backward(dy, *saved, **self._window, out=out),), {}

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
        out = context.empty(dx.shape, dx.dtype)
        return kernels(dx).response_norm_tangent(dx, *saved, **self._window, out=out)

    def room(self, examples: int, shape: Shape, dtype: np.dtype, approx: str | None) -> int:
        return examples * math.prod(shape) * dtype.itemsize  # terms of sums in `backward`
