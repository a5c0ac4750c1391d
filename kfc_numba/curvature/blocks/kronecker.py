"""Kronecker-factored blocks: Omega (x) Gamma (Grosse and Martens, 2016, Theorem 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from kfc_numba.arrays import cast
from kfc_numba.curvature.blocks.base import Averages, Found, MatrixBlock, State
from kfc_numba.curvature.damping import damped_eigenvalues
from kfc_numba.curvature.eigen import decompose, rotate
from kfc_numba.curvature.factors import scale
from kfc_numba.curvature.inputs import Inputs
from kfc_numba.devices import to_host
from kfc_numba.layers.base import Arrays, Context, Saved, Shape


class KroneckerBlock(MatrixBlock):
    """``U = Q_G [ (Q_G^T V Q_O) / damped eigenvalues ] Q_O^T``; a block for each group.

    State: ``omega/<layer>`` and ``gamma/<layer>``, (D, D) and (I, I), with a leading axis of groups
    where there are groups; their eigenvalues ``omega_values``, ``gamma_values`` and eigenvectors
    ``omega_vectors``, ``gamma_vectors``.
    """

    structure: ClassVar[str] = "kronecker"
    averages: ClassVar[tuple[Averages, ...]] = (Averages(kinds=("omega", "gamma")),)
    has_factors: ClassVar[bool] = True

    def layout(self) -> dict[str, Shape]:
        *groups, outputs, inputs = self.matrix_shape
        found = {}
        for kind, size in (("omega", inputs), ("gamma", outputs)):
            found[f"{kind}/{self.name}"] = (*groups, size, size)
            found[f"{kind}_values/{self.name}"] = (*groups, size)
            found[f"{kind}_vectors/{self.name}"] = (*groups, size, size)
        return found

    def observe_inputs(
        self,
        sums: dict[str, np.ndarray],
        saved: Saved,
        dy: np.ndarray,
        inputs: Inputs | None,
        index: int,
    ) -> None:
        locations = self.layer.locations(saved, dy)
        if inputs is not None:
            counted = locations if self.approx == "expand" else 1
            saved = inputs.of(index, self.matrix_shape[-1], counted)
        (x,) = saved
        assert x is not None
        sums["omega"] = self.layer.input_moment(saved, self.approx)
        sums["inputs"], sums["locations"] = np.array(len(x)), np.array(locations)

    def observe(
        self,
        sums: dict[str, np.ndarray],
        arrays: Arrays,
        saved: Saved,
        dy: np.ndarray,
        context: Context,
        state: State,
    ) -> None:
        gamma = self.layer.output_moment(dy, self.approx)
        sums["gamma"] = sums["gamma"] + gamma if "gamma" in sums else gamma

    def estimate(self, sums: Mapping[str, np.ndarray], examples: int, repeats: int) -> Found:
        omega, gamma = scale(
            sums["omega"],
            sums["gamma"],
            examples,
            int(sums["locations"]),
            self.approx,
            inputs=int(sums["inputs"]),
        )
        return {
            f"omega/{self.name}": cast(omega, self.dtype),
            f"gamma/{self.name}": cast(gamma / repeats, self.dtype),
        }

    def decomposed(self) -> tuple[str, ...]:
        return f"omega/{self.name}", f"gamma/{self.name}"

    def bases(self, state: State) -> Found:
        found = {}
        for kind in ("omega", "gamma"):
            values, vectors = decompose(state[f"{kind}/{self.name}"], f"{kind}/{self.name}")
            found[f"{kind}_values/{self.name}"] = values
            found[f"{kind}_vectors/{self.name}"] = vectors
        return found

    def eigenvalues(self, state: State, damping: float, strategy: str) -> np.ndarray:
        return damped_eigenvalues(
            state[f"omega_values/{self.name}"],
            state[f"gamma_values/{self.name}"],
            damping,
            strategy,
        )

    def decomposed_size(self) -> int:
        return sum(self.matrix_shape[-2:])

    def into_basis(self, state: State, vector: Arrays) -> np.ndarray:
        return rotate(self.layer.to_matrix(vector), *self._vectors(state))

    def from_basis(self, state: State, coordinates: np.ndarray) -> Found:
        matrix = rotate(coordinates, *self._vectors(state), back=True)
        return self.layer.from_matrix(matrix, self.like)

    def basis(self, state: State) -> np.ndarray:
        left, right = map(to_host, self._vectors(state))
        if left.ndim == 2:
            left, right = left[None], right[None]
        rows = self.order().reshape(len(left), -1)
        result = np.zeros((self.size + 1, rows.size), left.dtype)
        step = rows.shape[1]
        for group, (q, r) in enumerate(zip(left, right, strict=True)):
            result[rows[group], group * step : (group + 1) * step] = np.kron(q, r)
        return result[:-1]  # without the row of what belongs to no parameter

    def _vectors(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        return state[f"gamma_vectors/{self.name}"], state[f"omega_vectors/{self.name}"]
