"""Curvature matrices as SciPy linear operators on flattened parameters.

Vectors hold the parameters in the order of ``net.params``, each flattened in C order, as
`kfc_numba.curvature.fisher.flatten` makes them. SciPy's solvers take these operators as they
are: ``scipy.sparse.linalg.eigsh(exact_fisher(net, x, loss), 5)``,
``scipy.sparse.linalg.cg(exact_fisher(net, x, loss, damping=1e-3), gradient)``.

Vectors are NumPy's wherever the network computes: for one on a card each product brings its vector
there, and the result back.

Operators read the parameters of their network when they are applied: while one is in use, the
network must not be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import LinearOperator

from kfc_numba.checks import check_integer, check_number
from kfc_numba.curvature import fisher
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.damping import check_strategy
from kfc_numba.curvature.spectral import SpectralOperator
from kfc_numba.curvature.structures import curvature_of
from kfc_numba.curvature.tridiagonal import BlockTridiagonal
from kfc_numba.devices import check_places, to_host
from kfc_numba.graph import Graph, Trace
from kfc_numba.losses import Loss

__all__ = [
    "BlockOperator",
    "ExactFisher",
    "LowRankOperator",
    "SpectralOperator",
    "block_curvature",
    "exact_fisher",
]

#: Numbers that `ExactFisher.decompose` may lay out at most (8 bytes each).
LARGEST = 1 << 27


class BlockOperator(SpectralOperator):
    """Block-diagonal curvature (KFC, EKFAC, diagonal, full blocks) as estimated in a state.

    Parameters
    ----------
    curvature : BlockDiagonal
    state : mapping of str to numpy.ndarray
        With eigendecompositions: from `BlockDiagonal.compute`, or an optimizer's
        (``BlockOperator(optimizer.curvature(net), trainer.optimizer_state)``).
    damping : float
        At least 0.
    strategy : {"pi", "exact", "uniform"}
        See `kfc_numba.curvature.damping.damped_eigenvalues`.
    power : float
        See `SpectralOperator`.

    Raises
    ------
    ValueError
        An argument out of range.
    """

    def __init__(
        self,
        curvature: BlockDiagonal,
        state: Mapping[str, np.ndarray],
        *,
        damping: float = 0.0,
        strategy: str = "exact",
        power: float = 1.0,
    ):
        if isinstance(curvature, BlockTridiagonal):
            raise ValueError("curvature must be block-diagonal, got a block-tridiagonal one")
        check_strategy(strategy)
        check_places(curvature.net.device, state)
        for block in curvature.blocks:
            state = block.complete(state)
        self.curvature = curvature
        self.state = state
        self.damping = check_number("damping", damping, "[0, inf)")
        self.strategy = strategy
        super().__init__(sum(b.size for b in curvature.blocks), curvature.net.dtype, power)

    def damp(self, damping: float, strategy: str = "exact") -> BlockOperator:
        """The same curvature with another damping.

        Parameters
        ----------
        damping : float
        strategy : {"pi", "exact", "uniform"}

        Returns
        -------
        BlockOperator
        """
        return BlockOperator(
            self.curvature, self.state, damping=damping, strategy=strategy, power=self.power
        )

    def _with_power(self, power: float) -> BlockOperator:
        return BlockOperator(
            self.curvature, self.state, damping=self.damping, strategy=self.strategy, power=power
        )

    def _values(self) -> np.ndarray:
        parts = [
            to_host(block.spectrum(self.state, self.damping, self.strategy))
            for block in self.curvature.blocks
        ]
        return np.concatenate(parts).astype(np.float64)

    def _rounding(self) -> np.ndarray:
        # Of each block by itself: one layer's may be a million times another's.
        parts = [np.full(block.size, block.rounding(self.state)) for block in self.curvature.blocks]
        return np.concatenate(parts)

    def _product(self, vector: np.ndarray, power: float) -> np.ndarray:
        net = self.curvature.net
        arrays = fisher.unflatten(net, vector)
        found = self.curvature.apply(self.state, arrays, self.damping, self.strategy, power=power)
        return fisher.flatten(net, found)


class LowRankOperator(SpectralOperator):
    """``V diag(values) V^T + damping I`` with orthonormal columns V, fewer than rows.

    Parameters
    ----------
    vectors : numpy.ndarray
        V, (parameters, rank).
    values : numpy.ndarray
        (rank,), at least 0.
    damping : float
        At least 0.
    power : float
        See `SpectralOperator`.

    Raises
    ------
    ValueError
        An argument out of range.
    """

    def __init__(
        self, vectors: np.ndarray, values: np.ndarray, *, damping: float = 0.0, power: float = 1.0
    ):
        self.vectors = vectors
        self.values = values
        self.damping = check_number("damping", damping, "[0, inf)")
        super().__init__(len(vectors), vectors.dtype, power)

    def damp(self, damping: float) -> LowRankOperator:
        """The same matrix with another damping.

        Parameters
        ----------
        damping : float

        Returns
        -------
        LowRankOperator
        """
        return LowRankOperator(self.vectors, self.values, damping=damping, power=self.power)

    def _with_power(self, power: float) -> LowRankOperator:
        return LowRankOperator(self.vectors, self.values, damping=self.damping, power=power)

    def _values(self) -> np.ndarray:
        rest = np.zeros(len(self.vectors) - len(self.values))
        return np.concatenate([rest, self.values.astype(np.float64)]) + self.damping

    def _rounding(self) -> np.ndarray:
        size, largest = len(self.vectors), float(np.max(self.values, initial=0.0))
        return np.full(size, largest * size * np.finfo(self.vectors.dtype).eps)

    def _product(self, vector: np.ndarray, power: float) -> np.ndarray:
        # The columns that are left out span the space where the matrix is damping alone. Their
        # part is what remains of the vector: no difference of two large numbers.
        coordinates = self.vectors.T @ vector
        result = self.vectors @ ((self.values + self.damping) ** power * coordinates)
        if len(self.values) < len(self.vectors):
            result += self.damping**power * (vector - self.vectors @ coordinates)
        return result.astype(self.dtype, copy=False)


class ExactFisher(LinearOperator):
    """The exact Fisher matrix, equal to the generalised Gauss-Newton matrix, plus damping.

    A product takes one forward-mode and one backward pass, and nothing of the size of the matrix.

    Parameters
    ----------
    net : Graph
    x : numpy.ndarray
        Inputs, (examples, *input_shape): F is the mean over them.
    loss : Loss
    damping : float
        Added to the diagonal, at least 0.
    batch_size : int, optional
        Examples computed at a time, each product then with a forward pass of its own. None: all,
        and the activations of the forward pass are kept.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    def __init__(
        self,
        net: Graph,
        x: np.ndarray,
        loss: Loss,
        *,
        damping: float = 0.0,
        batch_size: int | None = None,
    ):
        self.net = net
        self.x = net.check_inputs(x)
        self.loss = loss
        self.damping = check_number("damping", damping, "[0, inf)")
        if batch_size is not None:
            batch_size = check_integer("batch_size", batch_size)
        self.batch_size = batch_size
        self._trace = net.forward(self.x) if batch_size is None else None
        size = sum(value.size for value in net.params.values())
        super().__init__(dtype=net.dtype, shape=(size, size))

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        vector = np.ravel(vector)
        direction = fisher.unflatten(self.net, vector)
        total = np.zeros(len(vector))
        for trace, weight in self._traces():
            product = fisher.fisher_vector_product(self.net, trace, self.loss, direction)
            total += weight * fisher.flatten(self.net, product)
        return (total + self.damping * vector).astype(self.dtype)

    def _adjoint(self) -> ExactFisher:
        return self

    def diagonal(self) -> np.ndarray:
        """The diagonal: squared gradients, by one backward pass for each output component.

        Returns
        -------
        numpy.ndarray
            (parameters,), float64.
        """
        curvature = BlockDiagonal(self.net, "diagonal")
        total = np.full(self.shape[0], self.damping)
        state = curvature.initial_state()
        for trace, weight in self._traces():
            found = curvature.estimate(trace, self.loss, state, mode="fisher_exact")
            arrays = {name: found[f"diagonal/{name}"] for name in self.net.params}
            total += weight * fisher.flatten(self.net, arrays)
        return total

    def trace(self) -> float:
        """Sum of the diagonal."""
        return float(self.diagonal().sum())

    def decompose(self) -> LowRankOperator:
        """The same matrix by its eigenvectors, for small networks or few examples.

        It has inverses, roots, eigenvalues, a determinant and samples, by a singular value
        decomposition of the (examples * outputs, parameters) matrix R with F = R^T R.

        Returns
        -------
        LowRankOperator
            Of float64.

        Raises
        ------
        ValueError
            R has more than `LARGEST` entries.
        """
        rows = len(self.x) * int(np.prod(self.net.output_shape))
        if rows * self.shape[0] > LARGEST:
            raise ValueError(
                f"x and the network make a root of {rows} x {self.shape[0]} entries, at most "
                f"{LARGEST} can be decomposed: take fewer examples, or solve with "
                "scipy.sparse.linalg.cg"
            )
        roots = [
            np.sqrt(weight) * fisher.fisher_root(self.net, trace, self.loss)
            for trace, weight in self._traces()
        ]
        _, singular, vectors = scipy.linalg.svd(np.concatenate(roots), full_matrices=False)
        return LowRankOperator(np.ascontiguousarray(vectors.T), singular**2, damping=self.damping)

    def inverse(self) -> SpectralOperator:
        """The inverse, by `decompose`."""
        return self.decompose().inverse()

    def _traces(self) -> list[tuple[Trace, float]] | Any:
        """Forward passes and their shares of the examples."""
        if self._trace is not None:
            return [(self._trace, 1.0)]
        assert self.batch_size is not None
        starts = range(0, len(self.x), self.batch_size)
        parts = (self.x[start : start + self.batch_size] for start in starts)
        return ((self.net.forward(part), len(part) / len(self.x)) for part in parts)


def exact_fisher(
    net: Graph,
    x: np.ndarray,
    loss: Loss,
    *,
    damping: float = 0.0,
    batch_size: int | None = None,
) -> ExactFisher:
    """The exact Fisher matrix of a network on some inputs.

    Parameters
    ----------
    net, x, loss, damping, batch_size
        See `ExactFisher`.

    Returns
    -------
    ExactFisher
    """
    return ExactFisher(net, x, loss, damping=damping, batch_size=batch_size)


def block_curvature(
    net: Graph,
    x: np.ndarray,
    loss: Loss,
    *,
    structure: str | Mapping[str, str] = "kronecker",
    approx: str = "expand",
    damping: float = 0.0,
    strategy: str = "exact",
    **how: Any,
) -> BlockOperator:
    """Approximate curvature of a network on some inputs: KFC, or EKFAC and other structures.

    Parameters
    ----------
    net : Graph
    x : numpy.ndarray
        Inputs, (examples, *input_shape), computed at once.
    loss : Loss
    structure, approx
        See `kfc_numba.curvature.structures.curvature_of`.
    damping, strategy
        See `BlockOperator`.
    **how
        ``mode`` (``"fisher_exact"`` if not given), ``rng``, ``targets`` and ``samples`` of
        `kfc_numba.curvature.factors.output_derivatives`.

    Returns
    -------
    BlockOperator
    """
    curvature = curvature_of(net, structure, approx)
    state = curvature.compute(net.forward(x), loss, **{"mode": "fisher_exact", **how})
    return BlockOperator(curvature, state, damping=damping, strategy=strategy)
