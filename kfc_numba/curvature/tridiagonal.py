"""Block-tridiagonal inverse for stacks of dense layers (Martens and Grosse, 2015, section 4.3).

The gradients of neighbouring layers are modelled as a Gaussian chain, in which a layer's gradient
depends on those of the layers after it through the next one alone. With Omega_i and Gamma_i the
(damped) factors of layer i, and Omega_{i,i+1}, Gamma_{i,i+1} the moments between the inputs, and
between the output derivatives, of layers i and i + 1:

    F^-1 = Xi^T Lambda Xi,   Xi = I - Psi,   Psi_{i,i+1} = Psi^Omega_i (x) Psi^Gamma_i,
    Psi^Omega_i = Omega_{i,i+1} Omega_{i+1}^-1,   Psi^Gamma_i = Gamma_{i,i+1} Gamma_{i+1}^-1,
    Lambda_i = (Omega_i (x) Gamma_i - C_i (x) D_i)^-1,
    C_i = Psi^Omega_i Omega_{i+1} Psi^Omega_i^T,   D_i = Psi^Gamma_i Gamma_{i+1} Psi^Gamma_i^T,

and Lambda of the last layer is the inverse of its own block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import cast, zeros
from kfc_numba.curvature import factors
from kfc_numba.curvature.blockdiagonal import BlockDiagonal, Seen
from kfc_numba.curvature.blocks.base import Averages
from kfc_numba.curvature.damping import factored_damping
from kfc_numba.curvature.eigen import decompose
from kfc_numba.graph import Graph
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Arrays
from kfc_numba.layers.dense import Dense
from kfc_numba.precision import tensor_cores


class BlockTridiagonal(BlockDiagonal):
    """Kronecker factors, and those between neighbouring layers, of a stack of dense layers.

    State: that of Kronecker blocks, and for each layer but the last ``omega_next/<layer>``,
    (inputs, inputs of the next layer), and ``gamma_next/<layer>``, (outputs, outputs of the next).
    ``omega_link/<layer>`` and ``gamma_link/<layer>`` are what these averages were at the last
    decomposition: an inverse made of factors and cross moments of different batches is that of no
    matrix, and need not be positive definite.
    `apply` gives the inverse alone. It decomposes matrices of every layer anew at each call, since
    damping enters before: a step costs what a decomposition does.

    Parameters
    ----------
    net : Graph
        One chain of layers; those with parameters are `Dense`, on vectors.
    approx : {"expand", "reduce"}
        The same for vectors.

    Raises
    ------
    ValueError
        The network is no such stack.
    """

    has_pairs: ClassVar[bool] = True

    def __init__(self, net: Graph, approx: str = "expand"):
        for placed in net.layers:
            if placed.parents != (placed.index - 1,):
                raise ValueError(
                    f"structure (='tridiagonal') needs a chain of layers, {placed.name} breaks it"
                )
            if placed.names and not (isinstance(placed.layer, Dense) and len(placed.shape) == 1):
                raise ValueError(
                    f"structure (='tridiagonal') needs dense layers on vectors, {placed.name} is "
                    f"{placed.layer!r} with outputs of shape {placed.shape}"
                )
        super().__init__(net, "kronecker", approx)
        self.averages += (Averages(kinds=("omega_next", "gamma_next")),)

    def initial_state(self) -> dict[str, np.ndarray]:
        state = super().initial_state()
        for block, after in zip(self.blocks, self.blocks[1:], strict=False):
            for kind in ("omega", "gamma"):
                shape = (
                    state[f"{kind}/{block.name}"].shape[0],
                    state[f"{kind}/{after.name}"].shape[0],
                )
                for name in ("next", "link"):
                    state[f"{kind}_{name}/{block.name}"] = zeros(
                        shape, self.net.dtype, block.example
                    )
        return state

    def decompose(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = super().decompose(state)
        for block in self.blocks[:-1]:
            for kind in ("omega", "gamma"):
                latest = state[f"{kind}_next/{block.name}"]
                found[f"{kind}_link/{block.name}"] = array_namespace(latest).asarray(
                    latest, copy=True
                )
        return found

    @tensor_cores(False)
    def observe_pair(self, sums: dict[str, np.ndarray], here: Seen, after: Seen) -> None:
        (placed, saved, dy), (next_placed, next_saved, next_dy) = here, after
        product = kernels(dy).matmul
        gamma = product(dy, next_dy, transpose_a=True)
        if "gamma_next" in sums:
            sums["gamma_next"] += gamma
            return
        assert isinstance(placed.layer, Dense)
        assert isinstance(next_placed.layer, Dense)
        inputs = placed.layer.homogeneous(saved)[:, 0]
        next_inputs = next_placed.layer.homogeneous(next_saved)[:, 0]
        sums["omega_next"] = product(inputs, next_inputs, transpose_a=True)
        sums["gamma_next"] = gamma

    def estimate_pair(
        self, name: str, sums: Mapping[str, np.ndarray], examples: int, repeats: int
    ) -> dict[str, np.ndarray]:
        if "gamma_next" not in sums:
            return {}  # the last layer
        omega, gamma = factors.scale(
            sums["omega_next"], sums["gamma_next"], examples, 1, self.approx
        )
        found = {f"omega_next/{name}": omega, f"gamma_next/{name}": gamma / repeats}
        return {name: cast(value, self.net.dtype) for name, value in found.items()}

    def apply(
        self,
        state: Mapping[str, np.ndarray],
        vector: Arrays,
        damping: float,
        strategy: str = "pi",
        *,
        power: float = -1.0,
    ) -> dict[str, np.ndarray]:
        if power != -1:
            raise ValueError(f"power (={power!r}) must be -1 with structure 'tridiagonal'")
        factored = [_Factored(state, block.name, damping, strategy) for block in self.blocks]
        matrices = []
        for block in self.blocks:
            own = {short: vector[f"{block.name}.{short}"] for short in block.shapes}
            matrices.append(cast(block.layer.to_matrix(own), np.float64))  # type: ignore[attr-defined]
        links = [
            here.link(after, state, block.name)
            for here, after, block in zip(factored, factored[1:], self.blocks, strict=False)
        ]
        # Xi: what the next layer's gradient predicts is taken off.
        rest = [
            v - psi_gamma @ after @ psi_omega.T
            for v, after, (psi_omega, psi_gamma) in zip(matrices, matrices[1:], links, strict=False)
        ]
        scaled = [
            here.conditional(after, *link, v)
            for here, after, link, v in zip(factored, factored[1:], links, rest, strict=False)
        ]
        scaled.append(factored[-1].inverse(matrices[-1]))
        # Xi^T.
        result = {}
        for index, block in enumerate(self.blocks):
            matrix = scaled[index]
            if index:
                psi_omega, psi_gamma = links[index - 1]
                matrix = matrix - psi_gamma.T @ scaled[index - 1] @ psi_omega
            found = block.layer.from_matrix(matrix, block.like)  # type: ignore[attr-defined]
            for short in block.shapes:
                result[f"{block.name}.{short}"] = cast(found[short], self.net.dtype)
        return result

    def dense(
        self,
        state: Mapping[str, np.ndarray],
        damping: float = 0.0,
        strategy: str = "exact",
    ) -> dict[str, np.ndarray]:
        """The blocks on the diagonal, undamped or damped, as in `BlockDiagonal`."""
        return super().dense(state, damping, strategy)

    def memory(self) -> dict[str, dict[str, int]]:
        result = super().memory()
        state = self.initial_state()
        for name, own in result.items():
            for kind in ("omega_next", "gamma_next", "omega_link", "gamma_link"):
                if f"{kind}/{name}" in state:
                    own[kind] = state[f"{kind}/{name}"].nbytes
        return result


class _Factored:
    """Damped factors of one layer in float64, by their eigendecompositions."""

    def __init__(
        self, state: Mapping[str, np.ndarray], name: str, damping: float, strategy: str
    ) -> None:
        omega = cast(state[f"omega_values/{name}"], np.float64)
        gamma = cast(state[f"gamma_values/{name}"], np.float64)
        more_omega, more_gamma = factored_damping(omega, gamma, damping, strategy)
        self.omega, self.gamma = omega + more_omega, gamma + more_gamma
        self.omega_vectors = cast(state[f"omega_vectors/{name}"], np.float64)
        self.gamma_vectors = cast(state[f"gamma_vectors/{name}"], np.float64)

    def inverse(self, matrix: np.ndarray) -> np.ndarray:
        inner = self.gamma_vectors.T @ matrix @ self.omega_vectors
        inner /= self.gamma[:, None] * self.omega[None, :]
        return self.gamma_vectors @ inner @ self.omega_vectors.T

    def link(
        self, after: _Factored, state: Mapping[str, np.ndarray], name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Psi^Omega and Psi^Gamma."""
        omega = cast(state[f"omega_link/{name}"], np.float64) @ after.omega_vectors
        gamma = cast(state[f"gamma_link/{name}"], np.float64) @ after.gamma_vectors
        return (omega / after.omega) @ after.omega_vectors.T, (
            gamma / after.gamma
        ) @ after.gamma_vectors.T

    def conditional(
        self,
        after: _Factored,
        psi_omega: np.ndarray,
        psi_gamma: np.ndarray,
        matrix: np.ndarray,
    ) -> np.ndarray:
        """Lambda times a matrix: (A (x) B - C (x) D)^-1 by a common diagonal form of each pair."""
        k_omega, s_omega = _common(
            self.omega, self.omega_vectors, psi_omega @ after.omega_vectors, after.omega
        )
        k_gamma, s_gamma = _common(
            self.gamma, self.gamma_vectors, psi_gamma @ after.gamma_vectors, after.gamma
        )
        inner = k_gamma.T @ matrix @ k_omega
        inner /= 1 - s_gamma[:, None] * s_omega[None, :]
        return k_gamma @ inner @ k_omega.T


def _common(
    values: np.ndarray, vectors: np.ndarray, psi: np.ndarray, after: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """K and s with ``K^T A K = I`` and ``K^T C K = diag(s)``, C = psi diag(after) psi^T."""
    xp = array_namespace(values)
    root = (vectors / xp.sqrt(values)) @ vectors.T
    half = (root @ psi) * xp.sqrt(after)
    s, inner = decompose(half @ half.T, "of neighbouring layers")
    return root @ inner, xp.where(s < 1, s, xp.ones_like(s))
