"""What every layer defines. A layer holds hyperparameters only; networks hold the arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from kfc_numba.devices import DeviceMemory
from kfc_numba.foreign_names import Explained
from kfc_numba.random import generator
from kfc_numba.workspace import Workspace

Shape = tuple[int, ...]
Arrays = Mapping[str, np.ndarray]
Saved = tuple[np.ndarray | None, ...]


@dataclass
class Context:
    """What a pass through a network knows besides the arrays.

    Attributes
    ----------
    training : bool
        Whether dropout and batch statistics are in force.
    seed, step : int
        Key of the random numbers of this pass.
    node : int
        Index of the node being computed; two dropout layers draw different masks.
    workspace : Workspace or DeviceMemory
        Where layers take their large arrays from.
    earlier : sequence, optional
        What each node kept of a pass whose random numbers this one takes over.
    """

    training: bool = False
    seed: int = 0
    step: int = 0
    node: int = 0
    workspace: Workspace | DeviceMemory = field(default_factory=Workspace)
    earlier: Sequence[Saved] | None = None

    def rng(self, purpose: str) -> np.random.Generator:
        """Generator for this node and step."""
        return generator(self.seed, purpose, self.step, self.node)

    def empty(self, shape: Shape, dtype: Any) -> np.ndarray:
        """Uninitialised array from the workspace."""
        return self.workspace.empty(shape, dtype)


class Layer(Explained):
    """Base class of layers.

    Shapes in `output_shape`, `parameters` and `running` leave out the batch axis; arrays in
    `forward`, `backward` and `tangent` have it first. `arrays` maps the layer's short names
    (``"weight"``, ``"bias"``, ``"mean"``) to its parameters and running statistics. `saved` is a
    tuple of what `forward` keeps for the other two; each entry is None or an array with the batch
    axis first, so that a part of a batch can be cut out of it (a layer that keeps anything else
    sets `couples_examples`).
    """

    kind: ClassVar[str] = "layer"  #: nodes are named by it: ``conv1``, ``conv2``
    arity: ClassVar[int | None] = 1  #: number of inputs; None for one or more
    couples_examples: ClassVar[bool] = False  #: an output depends on other examples of the batch
    rescales: ClassVar[bool] = False  #: in training, the scale of its inputs makes no difference
    squares: ClassVar[tuple[str, ...]] = ()  #: buffers that grow like the square of its inputs

    def __call__(self, *nodes: Node) -> Node:
        """Put the layer into a graph behind `nodes`."""
        return Node(self, nodes)

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of one example's output; ValueError if the inputs do not fit."""
        return shapes[0]

    def parameters(self, rng: np.random.Generator, *shapes: Shape) -> dict[str, np.ndarray]:
        """Initial parameters by short name, weight before bias (float64; the network casts)."""
        return {}

    def buffers(self, *shapes: Shape) -> dict[str, np.ndarray]:
        """Initial running statistics by short name: arrays that are kept but not trained."""
        return {}

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        """Output of a batch, and what `backward` and `tangent` need."""
        raise NotImplementedError

    def backward(
        self,
        arrays: Arrays,
        saved: Saved,
        dy: np.ndarray,
        context: Context,
        *,
        need_inputs: bool = True,
        need_parameters: bool = True,
    ) -> tuple[tuple[np.ndarray | None, ...], dict[str, np.ndarray]]:
        """Derivatives of ``sum(dy * y)`` by the inputs and by the parameters.

        May be called several times on the same `saved`, and must change neither `saved` nor `dy`.
        What is not needed is None, or an empty mapping.
        """
        raise NotImplementedError

    def tangent(
        self,
        arrays: Arrays,
        saved: Saved,
        dinputs: tuple[np.ndarray | None, ...],
        dparameters: Arrays,
        context: Context,
    ) -> np.ndarray:
        """Directional derivative of the output (forward mode).

        `dparameters` has all of the layer's parameters. An entry of `dinputs` is None, meaning
        zero, only in layers that have parameters.
        """
        raise NotImplementedError

    def update_buffers(self, arrays: Arrays, saved: Saved) -> dict[str, np.ndarray]:
        """Running statistics after a training pass that ended well."""
        return {}

    def squared_gradients(
        self, arrays: Arrays, saved: Saved, dy: np.ndarray, context: Context
    ) -> dict[str, np.ndarray]:
        """Sum over examples of the squared derivative of each example, by parameter.

        The diagonal Fisher, for parameters that have no Kronecker factors. `dy` holds the
        derivatives of each example's own negative log-likelihood.
        """
        raise NotImplementedError(f"{type(self).__name__} has no per-example gradients")

    def room(self, examples: int, shape: Shape, dtype: np.dtype, approx: str | None) -> int:
        """Bytes of a card that kernels take for a moment, besides what passes take and give.

        `shape` is that of an example's input; `approx` is that of `KroneckerLayer.input_moment`
        where second moments are computed too. What is a few hundred thousand bytes is not counted.
        """
        return 0

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({arguments})"


class Node:
    """The output of a layer, or of the network's input, while a graph is put together.

    Parameters
    ----------
    layer : Layer or None
        None for the input of a network.
    parents : sequence of Node
    shape : tuple of int, optional
        Shape of one example, for an input.
    """

    def __init__(self, layer: Layer | None, parents: Sequence[Node], shape: Shape | None = None):
        for parent in parents:
            if not isinstance(parent, Node):
                raise TypeError(f"a layer is applied to nodes, got {type(parent).__name__}")
        self.layer = layer
        self.parents = tuple(parents)
        if layer is None:
            assert shape is not None
            self.shape = shape
            return
        if layer.arity is not None and len(self.parents) != layer.arity:
            raise ValueError(f"{layer!r} takes {layer.arity} input, got {len(self.parents)}")
        if not self.parents:
            raise ValueError(f"{layer!r} takes one or more inputs, got none")
        self.shape = tuple(layer.output_shape(*(parent.shape for parent in self.parents)))


class KroneckerLayer(Layer):
    """A layer whose Fisher block is Omega (x) Gamma (Grosse and Martens, 2016, Theorem 1).

    A matrix of the layer has outputs as rows; its columns are (kernel row, kernel column, input
    channel) and then the bias. A grouped convolution has a leading axis of groups before both.
    """

    def locations(self, saved: Saved, dy: np.ndarray) -> int:
        """Number |T| of output locations of an example."""
        raise NotImplementedError

    def input_moment(self, saved: Saved, approx: str) -> np.ndarray:
        """Raw sum over examples (and locations) of abar abar^T, with the bias coordinate last.

        `approx` is ``"expand"``, or ``"reduce"``: abar averaged over locations first.
        """
        raise NotImplementedError

    def output_moment(self, dy: np.ndarray, approx: str) -> np.ndarray:
        """Raw sum over examples (and locations) of Ds Ds^T.

        `approx` is ``"expand"``, or ``"reduce"``: Ds summed over locations first.
        """
        raise NotImplementedError

    def to_matrix(self, arrays: Arrays) -> np.ndarray:
        """Parameters, or their gradients, as the layer's matrix: (outputs, inputs [+ 1])."""
        raise NotImplementedError

    def from_matrix(self, matrix: np.ndarray, like: Arrays) -> dict[str, np.ndarray]:
        """Inverse of `to_matrix`: C-contiguous arrays shaped as those in `like`."""
        raise NotImplementedError

    def homogeneous(self, saved: Saved) -> np.ndarray:
        """The patch matrix [[A]] in full: (examples, locations, columns of the matrix).

        With groups (groups, examples, locations, columns). Large: for small layers and checks.
        """
        raise NotImplementedError

    def output_rows(self, dy: np.ndarray) -> np.ndarray:
        """Ds as (examples, locations, outputs), with groups (groups, examples, locations, ...)."""
        raise NotImplementedError
