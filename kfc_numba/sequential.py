"""Networks that are one chain of layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from kfc_numba.checks import check_instance, check_shape
from kfc_numba.graph import Graph
from kfc_numba.layers.base import Layer, Node


class Sequential(Graph):
    """A network that is one chain of layers.

    Parameters
    ----------
    layers : sequence of Layer
        From input to output, at least one.
    input_shape : sequence of int
        Shape of one example, such as ``(height, width, channels)``.
    seed : int
        Seed of the initial parameters.
    dtype : dtype
        float32 or float64.
    device : {"cpu", "cuda"}
        Where the network computes: see `to`.

    Raises
    ------
    ValueError, TypeError
        Layers do not fit one after another, or an argument is out of range.
    DeviceError
        The device cannot be used: see `to`.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        input_shape: Sequence[int],
        seed: int = 0,
        dtype: DTypeLike = np.float32,
        device: str = "cpu",
    ):
        layers = list(layers)
        if not layers:
            raise ValueError("layers must have at least one layer, got none")
        first = node = Node(None, (), check_shape("input_shape", input_shape))
        for index, layer in enumerate(layers):
            check_instance(f"layers[{index}]", layer, Layer, "a layer")
            node = layer(node)
        super().__init__(first, node, seed=seed, dtype=dtype, device=device)
