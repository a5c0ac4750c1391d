"""The block-diagonal curvature of a network: one block a layer, each of a structure of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kfc_numba.curvature import factors
from kfc_numba.curvature.blocks.base import Block
from kfc_numba.curvature.blocks.diagonal import DiagonalBlock
from kfc_numba.curvature.blocks.ekfac import EkfacBlock
from kfc_numba.curvature.blocks.full import FullBlock
from kfc_numba.curvature.blocks.kronecker import KroneckerBlock
from kfc_numba.graph import Graph, PlacedLayer, Trace
from kfc_numba.layers.base import Arrays, KroneckerLayer, Saved
from kfc_numba.losses import Loss

#: Structures of a block, by name.
BLOCKS: dict[str, type[Block]] = {
    block.structure: block for block in (KroneckerBlock, EkfacBlock, DiagonalBlock, FullBlock)
}


class BlockDiagonal:
    """Blocks of a network's layers; what they estimate is in a state that is passed in and out.

    Parameters
    ----------
    net : Graph
    structure : str or mapping of str to str
        One of `BLOCKS` for all layers, or for those that are named (the others get
        ``"kronecker"``). Layers without Kronecker factors (batch normalisation) have
        ``"diagonal"``.
    approx : {"expand", "reduce"}
        How locations that share weights enter Kronecker factors; see
        `kfc_numba.curvature.factors.scale`.

    Attributes
    ----------
    blocks : tuple of Block
        In the order of the layers.

    Raises
    ------
    ValueError
        An unknown structure or layer, or a structure that the layer cannot have.
    """

    def __init__(
        self, net: Graph, structure: str | Mapping[str, str] = "kronecker", approx: str = "expand"
    ):
        if approx not in factors.APPROXIMATIONS:
            raise ValueError(f"kfac_approx (={approx!r}) must be one of {factors.APPROXIMATIONS}")
        named = {} if isinstance(structure, str) else dict(structure)
        default = structure if isinstance(structure, str) else "kronecker"
        placed_layers = list(net.parameter_layers())
        for name in named:
            if name not in [placed.name for placed in placed_layers]:
                known = ", ".join(placed.name for placed in placed_layers)
                raise ValueError(
                    f"structure names {name!r}, the layers with parameters are {known}"
                )
        for value in (default, *named.values()):
            if value not in BLOCKS:
                raise ValueError(f"structure (={value!r}) must be one of {tuple(BLOCKS)}")
        self.net = net
        self.approx = approx
        self.blocks = tuple(
            BLOCKS[
                named.get(
                    placed.name, default if isinstance(placed.layer, KroneckerLayer) else "diagonal"
                )
            ](net, placed, approx)
            for placed in placed_layers
        )

    def initial_state(self) -> dict[str, np.ndarray]:
        """Arrays before the first estimate: zeros, with weights of zero.

        Returns
        -------
        dict of str to numpy.ndarray
            What the blocks keep (see each), ``factor_batches`` (int64 scalar, the number of
            estimates so far), and the weights that the running averages carry, ``factor_weight``
            and, with EKFAC, ``second_moment_weight``.
        """
        state = {"factor_batches": np.zeros((), np.int64), "factor_weight": np.zeros(())}
        if any(isinstance(block, EkfacBlock) for block in self.blocks):
            state["second_moment_weight"] = np.zeros(())
        for block in self.blocks:
            state |= block.initial()
        return state

    def estimate(
        self,
        trace: Trace,
        loss: Loss,
        state: Mapping[str, np.ndarray],
        *,
        mode: str = "fisher_gradients",
        rng: np.random.Generator | None = None,
        targets: np.ndarray | None = None,
        samples: int = 1,
    ) -> dict[str, np.ndarray]:
        """What one batch says about the curvature.

        Parameters
        ----------
        trace : Trace
            Forward pass of the batch.
        loss : Loss
        state : mapping of str to numpy.ndarray
            Its eigenbases are those that EKFAC's second moments are taken in.
        mode, rng, targets, samples
            See `kfc_numba.curvature.factors.output_derivatives`.

        Returns
        -------
        dict of str to numpy.ndarray
            Estimates under the names of the running averages, for `average`.
        """
        derivatives, repeats = factors.output_derivatives(
            loss, trace.outputs, mode=mode, rng=rng, targets=targets, samples=samples
        )
        sums: dict[str, dict[str, np.ndarray]] = {block.name: {} for block in self.blocks}
        blocks = {block.name: block for block in self.blocks}

        def capture(placed: PlacedLayer, saved: Saved, dy: np.ndarray) -> None:
            arrays = self.net.arrays(placed)
            blocks[placed.name].observe(sums[placed.name], arrays, saved, dy, trace.context, state)

        for derivative in derivatives:
            self.net.backward(trace, derivative, parameters=False, capture=capture)
        found: dict[str, np.ndarray] = {}
        for block in self.blocks:
            found |= block.estimate(sums[block.name], len(trace.outputs), repeats)
        return found

    def average(
        self,
        state: Mapping[str, np.ndarray],
        new: Mapping[str, np.ndarray],
        ema: float,
        *,
        equal: bool = False,
    ) -> dict[str, np.ndarray]:
        """Running averages with a new estimate, unbiased from the first one on.

        Parameters
        ----------
        state : mapping of str to numpy.ndarray
        new : mapping of str to numpy.ndarray
            From `estimate` or `second_moments`.
        ema : float
            Weight of the old value, from 0 to below 1.
        equal : bool
            Whether the new estimate weighs as much as each of those before it, whatever `ema`;
            EKFAC's second moments, which have no burn-in, are averaged by `ema` all the same.

        Returns
        -------
        dict of str to numpy.ndarray
            New entries of the state; `state` is left as it is.
        """
        moments = {name: value for name, value in new.items() if _is_second_moment(name)}
        others = {name: value for name, value in new.items() if not _is_second_moment(name)}
        found: dict[str, np.ndarray] = {}
        if others:
            batches = int(state["factor_batches"])
            found |= factors.average(state, others, ema, equal=batches if equal else None)
            found["factor_batches"] = np.array(batches + 1, np.int64)
        if moments:
            found |= factors.average(state, moments, ema, weight="second_moment_weight")
        return found

    def decompose(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Eigenvalues and eigenvectors of the running averages.

        Parameters
        ----------
        state : mapping of str to numpy.ndarray

        Returns
        -------
        dict of str to numpy.ndarray
            New entries of the state; `state` is left as it is.

        Raises
        ------
        FloatingPointError, numpy.linalg.LinAlgError
            As `kfc_numba.curvature.eigen.decompose`, naming the factor.
        """
        found: dict[str, np.ndarray] = {}
        for block in self.blocks:
            found |= block.decompose(state)
        return found

    def lacks_second_moments(self, state: Mapping[str, np.ndarray]) -> bool:
        """Whether there is EKFAC, and none of its second moments has been estimated yet.

        Parameters
        ----------
        state : mapping of str to numpy.ndarray

        Returns
        -------
        bool
        """
        return "second_moment_weight" in state and not state["second_moment_weight"]

    def second_moments(
        self, trace: Trace, loss: Loss, state: Mapping[str, np.ndarray], **how: object
    ) -> dict[str, np.ndarray]:
        """EKFAC's second moments alone, in the eigenbases of the state.

        Parameters
        ----------
        trace, loss, state
            As in `estimate`.
        **how
            Its keyword arguments.

        Returns
        -------
        dict of str to numpy.ndarray
            For `average`.
        """
        found = self.estimate(trace, loss, state, **how)  # type: ignore[arg-type]
        return {name: value for name, value in found.items() if _is_second_moment(name)}

    def compute(self, trace: Trace, loss: Loss, **how: object) -> dict[str, np.ndarray]:
        """The curvature of one batch, decomposed.

        Parameters
        ----------
        trace : Trace
            Forward pass of the batch.
        loss : Loss
        **how
            Keyword arguments of `estimate`. A generator that is given draws twice with EKFAC.

        Returns
        -------
        dict of str to numpy.ndarray
            A complete state.
        """
        state = self.initial_state()
        state |= self.average(state, self.estimate(trace, loss, state, **how), 0.0)  # type: ignore[arg-type]
        state |= self.decompose(state)
        if self.lacks_second_moments(state):
            state |= self.average(state, self.second_moments(trace, loss, state, **how), 0.0)
        return state

    def apply(
        self,
        state: Mapping[str, np.ndarray],
        vector: Arrays,
        damping: float,
        strategy: str = "pi",
        *,
        power: float = -1.0,
    ) -> dict[str, np.ndarray]:
        """A power of the damped curvature times a vector.

        Parameters
        ----------
        state : mapping of str to numpy.ndarray
            With eigendecompositions.
        vector : mapping of str to numpy.ndarray
            One array for each parameter.
        damping : float
            Above zero for a negative power, unless the curvature has full rank.
        strategy : {"pi", "exact", "uniform"}
            See `kfc_numba.curvature.damping.damped_eigenvalues`; diagonal and full blocks have
            `damping` added to them with each.
        power : float
            -1 for the inverse, -0.5 for its root, 1 for the matrix itself.

        Returns
        -------
        dict of str to numpy.ndarray
            One array for each parameter, in order.
        """
        result = {}
        for block in self.blocks:
            own = {short: vector[f"{block.name}.{short}"] for short in block.shapes}
            found = block.apply(state, own, damping, strategy, power)
            for short in block.shapes:
                result[f"{block.name}.{short}"] = found[short]
        return result

    def precondition(
        self,
        state: Mapping[str, np.ndarray],
        gradients: Arrays,
        damping: float,
        strategy: str = "pi",
    ) -> dict[str, np.ndarray]:
        """Damped inverse of the curvature times a vector; see `apply`.

        Parameters
        ----------
        state, gradients, damping, strategy
            As in `apply`.

        Returns
        -------
        dict of str to numpy.ndarray
        """
        return self.apply(state, gradients, damping, strategy)

    def dense(
        self,
        state: Mapping[str, np.ndarray],
        damping: float = 0.0,
        strategy: str = "exact",
    ) -> dict[str, np.ndarray]:
        """The damped blocks in full, for small layers.

        Parameters
        ----------
        state, damping, strategy
            As in `apply`.

        Returns
        -------
        dict of str to numpy.ndarray
            By layer: (parameters, parameters), float64, in the order of ``net.params``.
        """
        return {block.name: block.dense(state, damping, strategy) for block in self.blocks}

    def memory(self) -> dict[str, dict[str, int]]:
        """Bytes of the state.

        Returns
        -------
        dict of str to dict of str to int
            By layer, then by kind of array (``"omega"``, ``"omega_vectors"``, ...).
        """
        itemsize = self.net.dtype.itemsize
        result: dict[str, dict[str, int]] = {}
        for block in self.blocks:
            own = result.setdefault(block.name, {})
            for name, shape in block.layout().items():
                kind = name.partition("/")[0]
                own[kind] = own.get(kind, 0) + int(np.prod(shape)) * itemsize
        return result


def _is_second_moment(name: str) -> bool:
    return name.startswith("second_moments/")
