"""A Fisher block in full, for small layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import cast
from kfc_numba.curvature.blocks.base import Averages, Found, MatrixBlock, State
from kfc_numba.curvature.damping import check_strategy
from kfc_numba.curvature.eigen import decompose, product
from kfc_numba.curvature.example_gradients import example_gradients
from kfc_numba.devices import to_host
from kfc_numba.graph import Graph, PlacedLayer
from kfc_numba.layers.base import Arrays, Context, Saved, Shape

#: Parameters that a layer may have at most: its block takes the square of that, three times.
LARGEST = 4096


class FullBlock(MatrixBlock):
    """Mean over examples of the outer product of the gradient with itself; damping is added.

    Nothing is assumed about activations, derivatives, locations or groups. State: ``full/<layer>``,
    (parameters, parameters) in the order of the layer's flattened matrix, and its eigenvalues
    ``full_values`` and eigenvectors ``full_vectors``.
    """

    structure: ClassVar[str] = "full"
    averages: ClassVar[tuple[Averages, ...]] = (Averages(kinds=("full",)),)

    def __init__(self, net: Graph, placed: PlacedLayer, approx: str):
        super().__init__(net, placed, approx)
        if self.size > LARGEST:
            raise ValueError(
                f"structure (='full') of layer {placed.name}: it has {self.size} parameters, a "
                f"full block takes at most {LARGEST}"
            )

    def layout(self) -> dict[str, Shape]:
        return {
            f"full/{self.name}": (self.size, self.size),
            f"full_values/{self.name}": (self.size,),
            f"full_vectors/{self.name}": (self.size, self.size),
        }

    def observe(
        self,
        sums: dict[str, np.ndarray],
        arrays: Arrays,
        saved: Saved,
        dy: np.ndarray,
        context: Context,
        state: State,
    ) -> None:
        for gradients in example_gradients(self.layer, saved, dy):
            rows = gradients.reshape(len(gradients), -1)
            outer = product(rows, rows, transpose_a=True)
            sums["full"] = sums["full"] + outer if "full" in sums else outer

    def estimate(self, sums: Mapping[str, np.ndarray], examples: int, repeats: int) -> Found:
        full = sums["full"] / (examples * repeats)
        return {f"full/{self.name}": cast(full, self.dtype)}

    def decomposed(self) -> tuple[str, ...]:
        return (f"full/{self.name}",)

    def bases(self, state: State) -> Found:
        values, vectors = decompose(state[f"full/{self.name}"], f"full/{self.name}")
        return {f"full_values/{self.name}": values, f"full_vectors/{self.name}": vectors}

    def eigenvalues(self, state: State, damping: float, strategy: str) -> np.ndarray:
        check_strategy(strategy)
        return cast(state[f"full_values/{self.name}"] + damping, self.dtype)

    def decomposed_size(self) -> int:
        return self.size

    def into_basis(self, state: State, vector: Arrays) -> np.ndarray:
        matrix = self.layer.to_matrix(vector)
        row = array_namespace(matrix).reshape(matrix, (1, -1))
        return product(row, state[f"full_vectors/{self.name}"])[0, ...]

    def from_basis(self, state: State, coordinates: np.ndarray) -> Found:
        xp = array_namespace(coordinates)
        column = xp.reshape(coordinates, (-1, 1))
        matrix = product(state[f"full_vectors/{self.name}"], column)
        return self.layer.from_matrix(xp.reshape(matrix, self.matrix_shape), self.like)

    def basis(self, state: State) -> np.ndarray:
        result = np.empty((self.size, self.size), self.dtype)
        result[self.order()] = to_host(state[f"full_vectors/{self.name}"])
        return result
