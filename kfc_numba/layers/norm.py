"""Normalisation of activations."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import cast, zeros_like
from kfc_numba.checks import check_choice, check_integer, check_number
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.arguments import image_shape
from kfc_numba.layers.base import Arrays, Context, Layer, Saved, Shape


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
        saved: Saved = (x, None, None)
        if context.training:
            if x.size == x.shape[-1]:
                raise ValueError(
                    f"{self!r} needs more than one value of a channel in training, got a batch of "
                    f"shape {x.shape}"
                )
            saved = (x, *kernels(x).channel_moments(x))
        mean, inverse = self._statistics(arrays, saved)
        y = kernels(x).channel_affine(
            x,
            mean,
            arrays["weight"] * inverse,
            cast(arrays["bias"], np.float64),
            out=context.empty(x.shape, x.dtype),
        )
        return y, saved

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
        mean, inverse = self._statistics(arrays, saved)
        through_statistics = need_inputs and saved[1] is not None
        gradients = {}
        if need_parameters or through_statistics:
            dbias, products = k.channel_products(dy, x, mean)
            dweight = products * inverse
            if need_parameters:
                gradients = {"weight": cast(dweight, dy.dtype), "bias": cast(dbias, dy.dtype)}
        if not need_inputs:
            return (None,), gradients
        out = context.empty(x.shape, dy.dtype)
        scale = arrays["weight"] * inverse
        if not through_statistics:
            zeros = zeros_like(scale)
            return (k.channel_affine(dy, zeros, scale, zeros, out=out),), gradients
        # With h = (x - mean) * inverse: dx = scale * (dy - mean of dy - h * mean of (dy * h)).
        count = x.size // x.shape[-1]
        slope, offset = -scale * inverse * dweight / count, -scale * dbias / count
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
        mean, inverse = self._statistics(arrays, saved)
        out = context.empty(x.shape, x.dtype)
        slope = dparameters["weight"] * inverse
        offset = cast(dparameters["bias"], np.float64)
        if dx is None:
            return k.channel_affine(x, mean, slope, offset, out=out)
        scale = arrays["weight"] * inverse
        if saved[1] is not None:
            # The Jacobian of the normalisation is symmetric: the same terms as in `backward`.
            count = x.size // x.shape[-1]
            sums, products = k.channel_products(dx, x, mean)
            slope -= scale * inverse**2 * products / count
            offset = offset - scale * sums / count  # not in place: it may be the argument
        return k.channel_combination(dx, x, mean, scale, slope, offset, out=out)

    def update_buffers(self, arrays: Arrays, saved: Saved) -> dict[str, np.ndarray]:
        x, mean, variance = saved
        if mean is None or variance is None:
            return {}
        assert x is not None
        count = x.size // x.shape[-1]
        batch = {"mean": mean, "variance": variance * (count / (count - 1))}
        return {
            short: array_namespace(value).astype(
                self.momentum * arrays[short] + (1 - self.momentum) * value, arrays[short].dtype
            )
            for short, value in batch.items()
        }

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
        mean, inverse = self._statistics(arrays, saved)
        sums, products = kernels(dy).channel_squares(dy, x, mean)
        return {
            "weight": cast(products * inverse**2, dy.dtype),
            "bias": cast(sums, dy.dtype),
        }

    def _statistics(self, arrays: Arrays, saved: Saved) -> tuple[np.ndarray, np.ndarray]:
        """Mean, and 1 / sqrt(variance + epsilon), of the pass that left `saved` (float64)."""
        _, mean, variance = saved
        if mean is None or variance is None:
            mean = cast(arrays["mean"], np.float64)
            variance = cast(arrays["variance"], np.float64)
        return mean, 1 / array_namespace(variance).sqrt(variance + self.epsilon)


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
