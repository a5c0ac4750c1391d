"""What the curvature of one layer does, whatever its structure."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import cast, shape_only, zeros
from kfc_numba.curvature.inputs import Inputs
from kfc_numba.devices import to_host
from kfc_numba.graph import Graph, PlacedLayer
from kfc_numba.layers.base import Arrays, Context, KroneckerLayer, Saved, Shape

State = Mapping[str, np.ndarray]
Found = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Averages:
    """Running averages that are estimated together and carry one weight.

    Attributes
    ----------
    kinds : tuple of str
        What their names in the state have before the slash.
    weight : str
        Entry of the state with the weight that they carry. ``"factor_weight"`` is that of what is
        estimated from the first batch on; those of another weight are averaged apart.
    in_bases : bool
        Whether they are taken in eigenbases: they are estimated for the first time after the first
        decomposition, on the batch of that step, and have no burn-in.
    """

    kinds: tuple[str, ...]
    weight: str = "factor_weight"
    in_bases: bool = False


class Block:
    """Curvature of one layer as ``B diag(eigenvalues) B^T``, B orthogonal.

    A block holds no arrays. They are in a flat mapping of names to arrays, as optimizers keep it;
    those of this block have names that end in ``/<layer>``, or ``/<layer>.<parameter>``. Vectors
    are mappings from the layer's short names to arrays; their coordinates in the basis B are an
    array of any shape that a structure likes.

    Parameters
    ----------
    net : Graph
    placed : PlacedLayer
        The layer.
    approx : {"expand", "reduce"}
        See `kfc_numba.curvature.factors.scale`.
    """

    structure: ClassVar[str]  #: its name
    averages: ClassVar[tuple[Averages, ...]]  #: those that `estimate` gives new values of
    has_factors: ClassVar[bool] = False  #: whether `approx` makes a difference

    def __init__(self, net: Graph, placed: PlacedLayer, approx: str):
        self.layer = placed.layer
        self.name = placed.name
        self.approx = approx
        self.dtype = net.dtype
        self.shapes: dict[str, Shape] = {
            short: net.params[f"{placed.name}.{short}"].shape for short in placed.names
        }
        #: an array of the library, and on the device, of the parameters
        self.example = net.params[f"{placed.name}.{placed.names[0]}"]
        self.size = sum(map(math.prod, self.shapes.values()))

    # What a structure defines.

    def layout(self) -> dict[str, Shape]:
        """Names and shapes of the block's entries of the state."""
        raise NotImplementedError

    def observe_inputs(
        self,
        sums: dict[str, np.ndarray],
        saved: Saved,
        dy: np.ndarray,
        inputs: Inputs | None,
        index: int,
    ) -> None:
        """Add to `sums` what the inputs alone tell, before the first backward pass is observed.

        Moments are of `inputs`, where the layer has the number `index`; None: of `saved`.
        """

    def observe(
        self,
        sums: dict[str, np.ndarray],
        arrays: Arrays,
        saved: Saved,
        dy: np.ndarray,
        context: Context,
        state: State,
    ) -> None:
        """Add to `sums` what one backward pass tells: raw sums, by names of the block's own."""
        raise NotImplementedError

    def estimate(self, sums: Mapping[str, np.ndarray], examples: int, repeats: int) -> Found:
        """New values of the averages, by their names in the state.

        From `sums` over `repeats` passes; without those in bases while there are no bases.
        """
        raise NotImplementedError

    def decomposed(self) -> tuple[str, ...]:
        """Names of the entries of the state that `bases` is computed from."""
        return ()

    def bases(self, state: State) -> Found:
        """Entries of the state that B consists of, from those of `decomposed` alone."""
        return {}

    def needs_no_thread(self) -> bool:
        """Whether `bases` takes all threads, or less time than it takes to start one."""
        return False

    def turned(self, state: State, bases: Found) -> Found:
        """Other entries that change when B does: what is kept in the old basis, in the new one."""
        return {}

    def eigenvalues(self, state: State, damping: float, strategy: str) -> np.ndarray:
        """Damped eigenvalues, one for each coordinate."""
        raise NotImplementedError

    def decomposed_size(self) -> int:
        """Rows of the matrices that are decomposed, added up; 0 where there are none."""
        return 0

    def into_basis(self, state: State, vector: Arrays) -> np.ndarray:
        """Coordinates B^T v."""
        raise NotImplementedError

    def from_basis(self, state: State, coordinates: np.ndarray) -> Found:
        """The vector B c."""
        raise NotImplementedError

    def basis(self, state: State) -> np.ndarray:
        """B in full, (size, coordinates), rows as the flattened parameters are; the host's."""
        raise NotImplementedError

    # What follows.

    def complete(self, state: State) -> State:
        """A state with B in it, for blocks that keep something else."""
        return state

    def decompose(self, state: State) -> Found:
        """Entries of the state that change when B is brought up to date."""
        bases = self.bases(state)
        return bases | self.turned(state, bases)

    def apply(
        self, state: State, vector: Arrays, damping: float, strategy: str, power: float = -1.0
    ) -> Found:
        """A power of the damped block times a vector: rotate, scale, rotate back."""
        coordinates = self.into_basis(state, vector)
        values = self.eigenvalues(state, damping, strategy)
        if power < 0 and damping == 0:
            xp, own = array_namespace(values), self.spectrum(state, damping, strategy)
            if xp.any(own <= self.rounding(state)):
                raise ValueError(
                    f"damping (=0) must be above 0 for a power of {power}: the curvature of layer "
                    f"{self.name} is singular but for rounding"
                )
            # Zeros that are left are of coordinates beyond those of the parameters.
            values = xp.where(values > 0, values, xp.ones_like(values))
        coordinates = coordinates / values if power == -1 else coordinates * values**power
        return self.from_basis(state, cast(coordinates, self.dtype))

    def spectrum(self, state: State, damping: float, strategy: str) -> np.ndarray:
        """`eigenvalues` of as many coordinates as there are parameters, in one axis."""
        values = self.eigenvalues(state, damping, strategy)
        return array_namespace(values).reshape(values, (-1,))

    def rounding(self, state: State) -> float:
        """What rounding can make of an eigenvalue that is zero.

        The largest eigenvalue, times the rows of what was decomposed (the relative errors of two
        factors add up), times the precision, as in `numpy.linalg.matrix_rank`.
        """
        values = self.eigenvalues(state, 0.0, "exact")
        largest = float(array_namespace(values).max(values))
        return largest * self.decomposed_size() * float(np.finfo(self.dtype).eps)

    def dense(self, state: State, damping: float = 0.0, strategy: str = "exact") -> np.ndarray:
        """The damped block in full, (size, size), float64, in the order of the parameters."""
        basis = self.basis(state).astype(np.float64)
        values = to_host(self.eigenvalues(state, damping, strategy)).astype(np.float64)
        return (basis * values.reshape(-1)) @ basis.T

    def initial(self) -> Found:
        """The block's entries of the state before the first estimate: zeros."""
        return {
            name: zeros(shape, self.dtype, self.example) for name, shape in self.layout().items()
        }


class MatrixBlock(Block):
    """A block of a layer whose parameters form a matrix."""

    layer: KroneckerLayer

    def __init__(self, net: Graph, placed: PlacedLayer, approx: str):
        if not isinstance(placed.layer, KroneckerLayer):
            raise ValueError(
                f"structure (={self.structure!r}) of layer {placed.name}: "
                f"{type(placed.layer).__name__} has no gradients in matrix form, its "
                "structure must be 'diagonal'"
            )
        super().__init__(net, placed, approx)
        # Blocks are made anew at every step: no memory is taken, and nothing asked of a device.
        self.like = {short: shape_only(shape, net.dtype) for short, shape in self.shapes.items()}
        self.matrix_shape = _matrix_shape(self.layer, tuple(self.shapes.items()))

    def order(self) -> np.ndarray:
        """Places of the flattened matrix's entries among the flattened parameters; -1: of none."""
        start, places = 1, {}
        for short, shape in self.shapes.items():
            stop = start + int(np.prod(shape))
            places[short] = np.arange(start, stop).reshape(shape)
            start = stop
        return self.layer.to_matrix(places).reshape(-1) - 1


@functools.lru_cache(maxsize=1024)
def _matrix_shape(layer: KroneckerLayer, shapes: tuple[tuple[str, Shape], ...]) -> Shape:
    return layer.to_matrix({short: np.zeros(shape) for short, shape in shapes}).shape
