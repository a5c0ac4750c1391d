"""The block-diagonal curvature of a network: one block a layer, each of a structure of its own."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
from array_api_compat import is_numpy_array

from kfc_numba.curvature import factors
from kfc_numba.curvature.blocks.base import Averages, Block
from kfc_numba.curvature.blocks.diagonal import DiagonalBlock
from kfc_numba.curvature.blocks.ekfac import EkfacBlock
from kfc_numba.curvature.blocks.full import FullBlock
from kfc_numba.curvature.blocks.kronecker import KroneckerBlock
from kfc_numba.curvature.inputs import Inputs
from kfc_numba.graph import Graph, PlacedLayer, Trace
from kfc_numba.layers.base import Arrays, KroneckerLayer, Saved
from kfc_numba.losses import Loss

#: A layer of a backward pass: what it saved, and its output derivatives.
Seen = tuple[PlacedLayer, Saved, np.ndarray]
Sums = dict[str, np.ndarray]  #: of one block
#: Structures of a block, by name.
BLOCKS: dict[str, type[Block]] = {
    block.structure: block for block in (KroneckerBlock, EkfacBlock, DiagonalBlock, FullBlock)
}


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # which belong to a thread
def _bases(block: Block, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return block.bases(state)


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
    averages : tuple of Averages
        Those of all blocks.

    Raises
    ------
    ValueError
        An unknown structure or layer, or a structure that the layer cannot have.
    """

    types: ClassVar[Mapping[str, type[Block]]] = BLOCKS  #: of blocks, by structure
    has_pairs: ClassVar[bool] = False  #: whether there are averages between neighbouring layers

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
            self.types[
                named.get(
                    placed.name, default if isinstance(placed.layer, KroneckerLayer) else "diagonal"
                )
            ](net, placed, approx)
            for placed in placed_layers
        )
        self.averages: tuple[Averages, ...] = tuple(
            dict.fromkeys(group for block in self.blocks for group in block.averages)
        )

    def initial_state(self) -> dict[str, np.ndarray]:
        """Arrays before the first estimate: zeros, with weights of zero.

        Returns
        -------
        dict of str to numpy.ndarray
            What the blocks keep (see each), ``factor_batches`` (int64 scalar, the number of
            estimates so far), and the weights that the running averages carry: ``factor_weight``,
            and those that structures have of their own.
        """
        state = {"factor_batches": np.zeros((), np.int64), "factor_weight": np.zeros(())}
        state |= {group.weight: np.zeros(()) for group in self.averages}
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
        inputs: Inputs | None = None,
    ) -> dict[str, np.ndarray]:
        """What one batch says about the curvature.

        Parameters
        ----------
        trace : Trace
            Forward pass of the batch.
        loss : Loss
        state : mapping of str to numpy.ndarray
            Its eigenbases are those that averages in bases are taken in.
        mode, rng, targets, samples
            See `kfc_numba.curvature.factors.output_derivatives`.
        inputs : Inputs, optional
            What moments of inputs are taken over; None: all examples of `trace`.

        Returns
        -------
        dict of str to numpy.ndarray
            Estimates under the names of the running averages, for `average`.
        """
        derivatives, repeats = factors.output_derivatives(
            loss, trace.outputs, mode=mode, rng=rng, targets=targets, samples=samples
        )
        observed: dict[str, tuple[Block, Sums]] = {b.name: (b, {}) for b in self.blocks}
        seen: list[Seen] = []

        def capture(placed: PlacedLayer, saved: Saved, dy: np.ndarray) -> None:
            block, own = observed[placed.name]
            if not own:
                block.observe_inputs(own, saved, dy, inputs, placed.index)
            block.observe(own, self.net.arrays(placed), saved, dy, trace.context, state)
            if self.has_pairs:
                if seen:
                    self.observe_pair(own, (placed, saved, dy), seen.pop())
                seen.append((placed, saved, dy))

        for derivative in derivatives:
            seen.clear()
            self.net.backward(trace, derivative, parameters=False, capture=capture)
        examples = len(trace.outputs)
        found: dict[str, np.ndarray] = {}
        for name, (block, own) in observed.items():
            found |= block.estimate(own, examples, repeats)
            if self.has_pairs:
                found |= self.estimate_pair(name, own, examples, repeats)
        return found

    def observe_pair(self, sums: dict[str, np.ndarray], here: Seen, after: Seen) -> None:
        """Add to `sums` what a layer and the next one with parameters tell together.

        Called where `has_pairs`, once for each backward pass.

        Parameters
        ----------
        sums : dict of str to numpy.ndarray
            Raw sums of the layer, which its block has too.
        here, after : tuple of PlacedLayer, what it saved, and its output derivatives
        """
        raise NotImplementedError

    def estimate_pair(
        self, name: str, sums: Mapping[str, np.ndarray], examples: int, repeats: int
    ) -> dict[str, np.ndarray]:
        """New values of the averages between a layer and the next, from their sums.

        Parameters
        ----------
        name : str
            The layer.
        sums : mapping of str to numpy.ndarray
            As `observe_pair` left them, if there is a next layer.
        examples, repeats : int
            Numbers of examples, and of backward passes for each target.

        Returns
        -------
        dict of str to numpy.ndarray
        """
        raise NotImplementedError

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
            From `estimate` or `estimate_in_bases`.
        ema : float
            Weight of the old value, from 0 to below 1.
        equal : bool
            Whether the new estimate weighs as much as each of those before it, whatever `ema`;
            averages in bases, which have no burn-in, go by `ema` all the same.

        Returns
        -------
        dict of str to numpy.ndarray
            New entries of the state; `state` is left as it is.
        """
        batches = int(state["factor_batches"])
        parts: dict[tuple[str, bool], dict[str, np.ndarray]] = {}
        for name, value in new.items():
            group = self._group(name)
            parts.setdefault((group.weight, group.in_bases), {})[name] = value
        found: dict[str, np.ndarray] = {}
        for (weight, in_bases), part in parts.items():
            count = batches if equal and not in_bases else None
            found |= factors.average(state, part, ema, weight=weight, equal=count)
            if not in_bases:
                found["factor_batches"] = np.array(batches + 1, np.int64)
        return found

    def decompose(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Eigenvalues and eigenvectors of the running averages; `InverseBlocks`: damped inverses.

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
        found = self.bases(state)
        for block in self.blocks:
            found |= block.turned(state, found)
        return found

    def bases(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The part of `decompose` that depends on the factors alone.

        Decompositions on the host have a thread each, as many at once as kernels have; LAPACK has
        one, so that the result does not depend on their number. Those that need none come before.

        Parameters
        ----------
        state : mapping of str to numpy.ndarray
            With the factors.

        Returns
        -------
        dict of str to numpy.ndarray

        Raises
        ------
        FloatingPointError, numpy.linalg.LinAlgError
            As `decompose`.
        """
        from numba import get_num_threads  # as late as kernels are

        on_host = all(is_numpy_array(state[n]) for b in self.blocks for n in b.decomposed())
        shared = [b for b in self.blocks if on_host and not b.needs_no_thread()]
        threads = min(get_num_threads(), len(shared))
        several = {b.name: _bases(b, state) for b in self.blocks if threads < 2 or b not in shared}
        if threads > 1:
            largest_first = sorted(shared, key=lambda block: -block.decomposed_size())
            with ThreadPoolExecutor(threads, "kfc_numba block") as executor:
                begun = {b.name: executor.submit(_bases, b, state) for b in largest_first}
                several |= {name: future.result() for name, future in begun.items()}
        return {name: value for b in self.blocks for name, value in several[b.name].items()}

    def lacks_estimates(self, state: Mapping[str, np.ndarray]) -> bool:
        """Whether there are averages in bases of which none has been estimated yet.

        Parameters
        ----------
        state : mapping of str to numpy.ndarray

        Returns
        -------
        bool
        """
        return any(group.in_bases and not state[group.weight] for group in self.averages)

    def estimate_in_bases(
        self, trace: Trace, loss: Loss, state: Mapping[str, np.ndarray], **how: object
    ) -> dict[str, np.ndarray]:
        """Estimates of the averages in bases alone, in the eigenbases of the state.

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
        return {name: value for name, value in found.items() if self._group(name).in_bases}

    def compute(self, trace: Trace, loss: Loss, **how: object) -> dict[str, np.ndarray]:
        """The curvature of one batch, decomposed.

        Parameters
        ----------
        trace : Trace
            Forward pass of the batch.
        loss : Loss
        **how
            Keyword arguments of `estimate`. A generator that is given draws twice where there are
            averages in bases.

        Returns
        -------
        dict of str to numpy.ndarray
            A complete state.
        """
        state = self.initial_state()
        state |= self.average(state, self.estimate(trace, loss, state, **how), 0.0)  # type: ignore[arg-type]
        state |= self.decompose(state)
        if self.lacks_estimates(state):
            state |= self.average(state, self.estimate_in_bases(trace, loss, state, **how), 0.0)
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
        outer: Mapping[str, tuple[Saved, np.ndarray]] | None = None,
    ) -> dict[str, np.ndarray]:
        """Damped inverse of the curvature times a vector; see `apply`.

        `outer` has the gradients of some layers as products of what these kept and of derivatives,
        for what can do better with them (`kfc_numba.trace.Trace`).
        """
        return self.apply(state, gradients, damping, strategy)

    def dense(
        self, state: Mapping[str, np.ndarray], damping: float = 0.0, strategy: str = "exact"
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

    def _group(self, name: str) -> Averages:
        kind = name.partition("/")[0]
        return next(group for group in self.averages if kind in group.kinds)
