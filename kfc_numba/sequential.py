"""Networks that are one chain of layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from kfc_numba.checks import check_instance, check_shape
from kfc_numba.graph import Graph
from kfc_numba.layers.base import Layer, Node

_MOST_AXES = 3  # of the examples of all layers that look at their axes


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
        try:
            layers = list(layers)
        except TypeError:
            got = type(layers).__name__
            hint = f": see [{got}(...), ...]" if isinstance(layers, Layer) else ""
            raise TypeError(f"layers must be a sequence of layers, got {got}{hint}") from None
        if not layers:
            raise ValueError("layers must have at least one layer, got none")
        first = node = Node(None, (), check_shape("input_shape", input_shape))
        for index, layer in enumerate(layers):
            check_instance(f"layers[{index}]", layer, Layer, "a layer")
            try:
                node = layer(node)
            except ValueError as error:
                where, hint = f"layers[{index}], on {node.shape}", ""
                if node.shape == first.shape and node.shape[0] in (1, 3) and len(node.shape) == 3:
                    hint = "; input_shape is (height, width, channels)"
                if node.shape == first.shape and len(first.shape) > _MOST_AXES:
                    where = f"input_shape (={first.shape}) must be that of one example"
                raise ValueError(f"{where}: {error}{hint}") from None
        super().__init__(first, node, seed=seed, dtype=dtype, device=device)
