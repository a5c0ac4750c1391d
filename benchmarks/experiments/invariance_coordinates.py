"""The same data and the same functions in other coordinates: affine maps of channels.

Grosse and Martens (2016), section 5: ``phi'(S) = phi(S U + c) V + d``, across channels and the same
at every location, gives a network whose parameters can be such that it computes the same function.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kfc_numba.layers.base import Arrays, Context, Layer, Saved

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as in JPEG


@contextlib.contextmanager
def pixels_are_meant() -> Iterator[None]:
    """Without the warning of inputs from 0 to 255: they are one of the coordinates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* look like pixels", UserWarning)
        yield


@dataclass(frozen=True, eq=False)
class AffineMap:
    """``a -> a @ matrix + offset`` of channels (the last axis).

    Attributes
    ----------
    matrix : numpy.ndarray
        (channels, channels), invertible.
    offset : numpy.ndarray
        (channels,).
    """

    matrix: np.ndarray
    offset: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The map of an array, of its dtype."""
        matrix, offset = self.matrix.astype(x.dtype), self.offset.astype(x.dtype)
        mapped = x @ matrix
        mapped += offset
        return mapped

    def inverse(self) -> AffineMap:
        matrix = np.linalg.inv(self.matrix)
        return AffineMap(matrix, -self.offset @ matrix)

    def then(self, other: AffineMap) -> AffineMap:
        """This map and another one behind it."""
        return AffineMap(self.matrix @ other.matrix, self.offset @ other.matrix + other.offset)

    def linear(self) -> AffineMap:
        """The same without its offset: zero stays zero."""
        return AffineMap(self.matrix, np.zeros_like(self.offset))


def scaling(factors: Any, offset: Any = 0.0) -> AffineMap:
    """Channels one by one: ``factors * a + offset``."""
    factors = np.asarray(factors, dtype=np.float64)
    return AffineMap(np.diag(factors), np.broadcast_to(offset, factors.shape).astype(np.float64))


def random_map(channels: int, rng: np.random.Generator) -> AffineMap:
    """Some map of a moderate condition."""
    matrix = np.eye(channels) + rng.normal(size=(channels, channels)) / (2 * channels**0.5)
    return AffineMap(matrix, rng.normal(size=channels) / 2)


def ycbcr() -> AffineMap:
    """Of RGB from 0 to 1: luma, and the differences of blue and of red from it around 0.5."""
    luma = np.array(LUMA)
    columns = [luma]
    for channel in (2, 0):
        columns.append((np.eye(3)[channel] - luma) / (2 * (1 - luma[channel])))
    return AffineMap(np.stack(columns, axis=1), np.array([0.0, 0.5, 0.5]))


@dataclass(frozen=True, eq=False)
class Moments:
    """Of pixels from 0 to 1, over images and locations: (channels,) and (channels, channels)."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, scale: float = 1.0) -> Moments:
        """Moments of ``images / scale``, some images at a time: there may be many."""
        channels = images.shape[-1]
        total, squares, count = np.zeros(channels), np.zeros((channels, channels)), 0
        for start in range(0, len(images), 1000):
            pixels = images[start : start + 1000].reshape(-1, channels) / np.float64(scale)
            total += pixels.sum(axis=0)
            squares += pixels.T @ pixels
            count += len(pixels)
        mean = total / count
        return cls(mean, squares / count - np.outer(mean, mean))


def coordinates_of(moments: Moments) -> dict[str, AffineMap]:
    """What images can be given as, by name; the first is what is usual.

    Parameters
    ----------
    moments : Moments
        By which channels are standardised, and whitened.

    Returns
    -------
    dict of str to AffineMap
        From pixels from 0 to 1, of one channel or of red, green and blue.
    """
    mean, covariance = moments.mean, moments.covariance
    std = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance)
    white = vectors / np.sqrt(values) @ vectors.T
    ones = np.ones(len(mean))
    found = {
        "standardised": scaling(1 / std, -mean / std),
        "from 0 to 1": scaling(ones),
        "from 0 to 255": scaling(255 * ones),
    }
    if len(mean) == 1:
        return found | {"negative": scaling(-ones, 1.0)}
    return found | {"YCbCr": ycbcr(), "whitened": AffineMap(white, -mean @ white)}


# Parameters in other coordinates.


def seeing(arrays: Arrays, inputs: AffineMap) -> dict[str, np.ndarray]:
    """Parameters of a layer with the same outputs where it sees mapped inputs.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray
        ``weight``, (..., channels * locations, outputs) with the channels fastest, and ``bias``.
    inputs : AffineMap
        What becomes of the layer's inputs, at every location.
    """
    weight, bias = arrays["weight"], arrays["bias"]
    back = inputs.inverse()
    by_location = weight.astype(np.float64).reshape(-1, len(back.offset), weight.shape[-1])
    return {
        "weight": (back.matrix @ by_location).reshape(weight.shape).astype(weight.dtype),
        "bias": (bias + back.offset @ by_location.sum(axis=0)).astype(bias.dtype),
    }


def giving(arrays: Arrays, outputs: AffineMap) -> dict[str, np.ndarray]:
    """Parameters of a layer whose outputs become the old ones by a map behind it."""
    back = outputs.inverse()
    weight, bias = arrays["weight"], arrays["bias"]
    return {
        "weight": (weight @ back.matrix).astype(weight.dtype),
        "bias": (bias @ back.matrix + back.offset).astype(bias.dtype),
    }


def arrays_of(params: Arrays, layer: str) -> dict[str, np.ndarray]:
    """``weight`` and ``bias`` of a layer, from the parameters of its network."""
    return {short: params[f"{layer}.{short}"] for short in ("weight", "bias")}


def set_arrays(params: Arrays, layer: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Put arrays in the place of a layer's parameters."""
    for short, value in arrays.items():
        params[f"{layer}.{short}"][...] = value


class ChannelMap(Layer):
    """An affine map of channels as a layer without parameters.

    Parameters
    ----------
    map : AffineMap
    """

    kind = "channel_map"

    def __init__(self, map: AffineMap):
        self.map = map

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        return self.map(inputs[0]), ()

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
        return (np.ascontiguousarray(dy @ self.map.matrix.T.astype(dy.dtype)),), {}

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
        return self.map.linear()(dx)
