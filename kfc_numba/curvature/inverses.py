"""Kronecker-factored blocks of which the damped inverses of the factors are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.curvature.blockdiagonal import BLOCKS, BlockDiagonal
from kfc_numba.curvature.blocks.base import Block, Found, State
from kfc_numba.curvature.blocks.kronecker import KroneckerBlock
from kfc_numba.curvature.damping import factored_damping
from kfc_numba.curvature.inversion import (
    between_inverses,
    damped_inverse,
    is_wide,
    keeps_factor,
    products_between_inverses,
    rows_pay,
)
from kfc_numba.curvature.parts import LayerInParts, parts_of
from kfc_numba.graph import Capture, Graph, PlacedLayer, Trace
from kfc_numba.layers.base import Arrays, KroneckerLayer, Saved, Shape
from kfc_numba.layers.dense import Dense

#: Entry of the state with the damping, in units of the Fisher matrix, of the inverses in it.
DAMPING = "inverse_damping"
#: Entry of the state with the number of steps that they are for; zero: unknown, or on a card.
STEPS = "inverse_steps"
#: How damping is divided between the factors.
STRATEGY = "pi"
_SOON = 256  # rows of a matrix that is inverted before another thread would have begun


class InverseBlock(KroneckerBlock):
    """``U = (Gamma + sqrt(damping) / pi I)^-1 V (Omega + pi sqrt(damping) I)^-1``.

    The same as `KroneckerBlock` (but for very many inputs, see below), for half of its operations
    at each step and a fifth at each inversion; but the inverses are those for one damping, which is
    in the state. Whatever else is asked for, another damping or power, or eigenvalues, decomposes
    the factors anew, unless the state has their eigenvectors.

    State: ``omega/<layer>`` and ``gamma/<layer>`` as `KroneckerBlock`; the inverses
    ``omega_inverse`` and ``gamma_inverse``, of the same shapes; ``inverse_damping``; and
    ``inverse_steps``, for how many steps they are. Of a wide matrix that is for a few steps the
    Cholesky factor takes the place of the inverse (`kfc_numba.curvature.inversion.keeps_factor`).
    Of a dense layer with very many inputs the moment is that of parts of them, and all of these
    have a leading axis of parts (`kfc_numba.curvature.parts`).
    """

    def __init__(self, net: Graph, placed: PlacedLayer, approx: str):
        super().__init__(net, placed, approx)
        if (parts := parts_of(placed.layer, self.matrix_shape)) > 1:
            outputs, inputs = self.matrix_shape
            layer = LayerInParts(cast(Dense, placed.layer), parts, inputs)
            self.layer = cast(KroneckerLayer, layer)
            self.matrix_shape = (parts, outputs, layer.width)

    def layout(self) -> dict[str, Shape]:
        *groups, outputs, inputs = self.matrix_shape
        return {
            f"{kind}{what}/{self.name}": (*groups, size, size)
            for kind, size in (("omega", inputs), ("gamma", outputs))
            for what in ("", "_inverse")
        }

    def bases(self, state: State) -> Found:
        if not state[DAMPING]:  # nobody has said which: `compute`
            return super().bases(state)
        names = self.decomposed()
        factors = [state[name] for name in names]
        omega, gamma = (array_namespace(f).linalg.diagonal(f) for f in factors)
        # pi asks for traces: diagonals have those of eigenvalues.
        more = factored_damping(omega, gamma, float(state[DAMPING]), STRATEGY)
        return {
            name.replace("/", "_inverse/", 1): damped_inverse(matrix, damping, name, factor=kept)
            for name, matrix, damping, kept in zip(
                names, factors, more, reversed(self.keep_factors(state)), strict=True
            )
        }

    def needs_no_thread(self) -> bool:
        size = max(self.matrix_shape[-2:])
        return is_wide(size) or size < _SOON

    def keep_factors(self, state: State) -> tuple[bool, bool]:
        """Whether those of gamma and omega are Cholesky factors in place of inverses.

        Parameters
        ----------
        state : mapping of str to numpy.ndarray

        Returns
        -------
        tuple of bool
        """
        steps, (outputs, inputs) = float(state[STEPS]), self.matrix_shape[-2:]
        return keeps_factor(outputs, inputs, steps), keeps_factor(inputs, outputs, steps)

    def apply(
        self, state: State, vector: Arrays, damping: float, strategy: str, power: float = -1.0
    ) -> Found:
        if (power, strategy, damping) != (-1.0, STRATEGY, float(state[DAMPING])):
            return super().apply(self.complete(state), vector, damping, strategy, power)
        omega, gamma = (state[f"{kind}_inverse/{self.name}"] for kind in ("omega", "gamma"))
        matrix = self.layer.to_matrix(vector)
        matrix = between_inverses(matrix, gamma, omega, self.keep_factors(state))
        return self.layer.from_matrix(matrix, self.like)

    def apply_to_products(self, state: State, saved: Saved, dy: np.ndarray) -> Found:
        """`apply` to the gradient that a dense layer has from inputs and derivatives by outputs.

        With fewer examples than the layer has units this takes a fraction of the operations.
        """
        omega, gamma = (state[f"{kind}_inverse/{self.name}"] for kind in ("omega", "gamma"))
        outputs, inputs = self.layer.output_rows(dy)[:, 0], self.layer.homogeneous(saved)[:, 0]
        kept = self.keep_factors(state)
        if isinstance(self.layer, LayerInParts):
            parts = [self.layer.part(inputs, i) for i in range(self.layer.parts)]
            found = [
                products_between_inverses(outputs, part, gamma[i, ...], omega[i, ...], kept)
                for i, part in enumerate(parts)
            ]
            matrix = array_namespace(inputs).stack(found)
        else:
            matrix = products_between_inverses(outputs, inputs, gamma, omega, kept)
        return self.layer.from_matrix(matrix, self.like)

    def complete(self, state: State) -> State:
        known = f"omega_vectors/{self.name}" in state
        return state if known else {**state, **super().bases(state)}

    def eigenvalues(self, state: State, damping: float, strategy: str) -> np.ndarray:
        return super().eigenvalues(self.complete(state), damping, strategy)

    def spectrum(self, state: State, damping: float, strategy: str) -> np.ndarray:
        if not isinstance(self.layer, LayerInParts):
            return super().spectrum(state, damping, strategy)
        values = self.eigenvalues(state, damping, strategy)
        xp = array_namespace(values)
        # Zeros behind the inputs have the least eigenvalues of the last part.
        rest, last = values[:-1, ...], values[-1, :, self.layer.missing :]
        return xp.concat([xp.reshape(rest, (-1,)), xp.reshape(last, (-1,))])

    def _vectors(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        return super()._vectors(self.complete(state))


class InverseBlocks(BlockDiagonal):
    """Blocks of a network's layers, those with Kronecker factors as `InverseBlock`."""

    types: ClassVar[Mapping[str, type[Block]]] = BLOCKS | {"kronecker": InverseBlock}

    def initial_state(self) -> dict[str, np.ndarray]:
        return super().initial_state() | {DAMPING: np.zeros(()), STEPS: np.zeros(())}

    def precondition(
        self,
        state: State,
        gradients: Arrays,
        damping: float,
        strategy: str = "pi",
        outer: Mapping[str, tuple[Saved, np.ndarray]] | None = None,
    ) -> dict[str, np.ndarray]:
        if not outer or (strategy, damping) != (STRATEGY, float(state[DAMPING])):
            return super().precondition(state, gradients, damping, strategy)
        result: dict[str, np.ndarray] = {}
        for block in self.blocks:
            if isinstance(block, InverseBlock) and block.name in outer:
                found = block.apply_to_products(state, *outer[block.name])
            else:
                own = {short: gradients[f"{block.name}.{short}"] for short in block.shapes}
                found = block.apply(state, own, damping, strategy)
            result |= {f"{block.name}.{short}": found[short] for short in block.shapes}
        return result


def watch_products(trace: Trace) -> Capture:
    """What keeps the gradients of dense layers as products where that saves operations.

    Parameters
    ----------
    trace : Trace
        In whose `outer` they are kept.

    Returns
    -------
    callable
        `capture` of `kfc_numba.graph.Graph.backward`.
    """

    def capture(placed: PlacedLayer, saved: Saved, dy: np.ndarray) -> None:
        layer = placed.layer
        # A subclass with a gradient of its own means that one.
        if not isinstance(layer, Dense) or type(layer).backward is not Dense.backward:
            return
        if layer.locations(saved, dy) > 1:
            return
        (x,) = saved
        assert x is not None
        if rows_pay(len(dy), layer.units, x.shape[-1] + layer.bias):
            trace.outer[placed.name] = saved, dy

    return capture
