"""EKFAC: the eigenbases of K-FAC, with eigenvalues of their own (George et al., 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import cast
from kfc_numba.curvature.blocks.base import Averages, Found, State
from kfc_numba.curvature.blocks.kronecker import KroneckerBlock
from kfc_numba.curvature.damping import damped_eigenvalues
from kfc_numba.curvature.eigen import ONE_THREAD
from kfc_numba.curvature.example_gradients import squared_sum
from kfc_numba.layers.base import Arrays, Context, Saved, Shape


class EkfacBlock(KroneckerBlock):
    """``s[a, b] = E[(Q_G^T DW Q_O)[a, b]^2]`` over examples takes the place of ``g_a o_b``.

    Of all matrices with these eigenvectors it is the nearest to the Fisher block in Frobenius norm,
    so never farther than K-FAC's. DW is an example's whole gradient, summed over its locations:
    no assumption about locations enters s.

    State: that of `KroneckerBlock`, and ``second_moments/<layer>``, s, of the shape of the layer's
    matrix. Its running average carries a weight of its own (``second_moment_weight``); while that
    is zero, K-FAC's ``g_a o_b`` stands in. A new decomposition turns the average into the new
    bases: s becomes the diagonal, in them, of the matrix that it stood for.
    """

    structure: ClassVar[str] = "ekfac"
    averages: ClassVar[tuple[Averages, ...]] = (
        *KroneckerBlock.averages,
        Averages(kinds=("second_moments",), weight="second_moment_weight", in_bases=True),
    )

    def layout(self) -> dict[str, Shape]:
        return super().layout() | {f"second_moments/{self.name}": self.matrix_shape}

    def observe(
        self,
        sums: dict[str, np.ndarray],
        arrays: Arrays,
        saved: Saved,
        dy: np.ndarray,
        context: Context,
        state: State,
    ) -> None:
        super().observe(sums, arrays, saved, dy, context, state)
        left, right = self._vectors(state)
        if not array_namespace(left).any(left):
            return  # no eigenbases yet
        squares = squared_sum(self.layer, saved, dy, left, right)
        sums["squares"] = sums["squares"] + squares if "squares" in sums else squares

    def estimate(self, sums: Mapping[str, np.ndarray], examples: int, repeats: int) -> Found:
        found = super().estimate(sums, examples, repeats)
        if "squares" in sums:
            moments = sums["squares"] / (examples * repeats)
            found[f"second_moments/{self.name}"] = cast(moments, self.dtype)
        return found

    def turned(self, state: State, bases: Found) -> Found:
        if not state["second_moment_weight"]:
            return {}
        (old_left, old_right), (left, right) = self._vectors(state), self._vectors(bases)
        moments = state[f"second_moments/{self.name}"]
        xp = array_namespace(left)
        with ONE_THREAD:
            # Squared cosines between new and old eigenvectors: rows add up to 1.
            turn_left = xp.square(xp.matrix_transpose(left) @ old_left)
            turn_right = xp.square(xp.matrix_transpose(old_right) @ right)
            return {f"second_moments/{self.name}": turn_left @ moments @ turn_right}

    def eigenvalues(self, state: State, damping: float, strategy: str) -> np.ndarray:
        moments = state[f"second_moments/{self.name}"]
        return damped_eigenvalues(
            state[f"omega_values/{self.name}"],
            state[f"gamma_values/{self.name}"],
            damping,
            strategy,
            products=moments if state["second_moment_weight"] else None,
        )
