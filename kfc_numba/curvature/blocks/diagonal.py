"""The diagonal of a Fisher block: the fallback of layers without Kronecker factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import cast
from kfc_numba.curvature.blocks.base import Averages, Block, Found, State
from kfc_numba.curvature.damping import check_strategy
from kfc_numba.curvature.example_gradients import squared_sum
from kfc_numba.layers.base import Arrays, Context, KroneckerLayer, Saved, Shape


class DiagonalBlock(Block):
    """Mean over examples of the squared gradient of each; damping is added to it.

    State: ``diagonal/<layer>.<parameter>``, of the parameter's shape.
    """

    structure: ClassVar[str] = "diagonal"
    averages: ClassVar[tuple[Averages, ...]] = (Averages(kinds=("diagonal",)),)

    def layout(self) -> dict[str, Shape]:
        return {f"diagonal/{self.name}.{short}": shape for short, shape in self.shapes.items()}

    def observe(
        self,
        sums: dict[str, np.ndarray],
        arrays: Arrays,
        saved: Saved,
        dy: np.ndarray,
        context: Context,
        state: State,
    ) -> None:
        if isinstance(self.layer, KroneckerLayer):
            squares = self.layer.from_matrix(squared_sum(self.layer, saved, dy), arrays)
        else:
            squares = self.layer.squared_gradients(arrays, saved, dy, context)
        for short, value in squares.items():
            sums[short] = sums[short] + value if short in sums else value

    def estimate(self, sums: Mapping[str, np.ndarray], examples: int, repeats: int) -> Found:
        return {
            f"diagonal/{self.name}.{short}": cast(value / (examples * repeats), self.dtype)
            for short, value in sums.items()
        }

    def eigenvalues(self, state: State, damping: float, strategy: str) -> np.ndarray:
        check_strategy(strategy)
        moments = {short: state[f"diagonal/{self.name}.{short}"] for short in self.shapes}
        return cast(self.into_basis(state, moments) + damping, self.dtype)

    def into_basis(self, state: State, vector: Arrays) -> np.ndarray:
        xp = array_namespace(*vector.values())
        return xp.concat([xp.reshape(vector[short], (-1,)) for short in self.shapes])

    def from_basis(self, state: State, coordinates: np.ndarray) -> Found:
        xp = array_namespace(coordinates)
        found, start = {}, 0
        for short, shape in self.shapes.items():
            stop = start + int(np.prod(shape))
            found[short] = xp.reshape(coordinates[start:stop], shape)
            start = stop
        return found

    def basis(self, state: State) -> np.ndarray:
        return np.eye(self.size)
