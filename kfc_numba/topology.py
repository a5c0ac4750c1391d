"""How layers hang together: nodes while a network is put together, steps once it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kfc_numba.layers.base import Layer, Shape
from kfc_numba.random import generator


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


def Input(shape: Sequence[int]) -> Node:
    """Input of a network.

    Parameters
    ----------
    shape : sequence of int
        Shape of one example, such as ``(height, width, channels)``; each at least 1.

    Returns
    -------
    Node
    """
    return Node(None, (), checked_shape("shape", shape))


@dataclass(frozen=True)
class Step:
    """One layer of a network in order of computation.

    Attributes
    ----------
    index : int
        Place in the order, which keys the random numbers of the layer.
    name : str
        Name of the node, such as ``conv1``.
    layer : Layer
    parents : tuple of int
        Places of the inputs in the order, -1 for the network's input.
    input_shapes : tuple of tuple of int
    shape : tuple of int
        Shape of one example's output.
    names : tuple of str
        Short names of the parameters.
    trained : bool
        Whether this layer or one before it has parameters.
    """

    index: int
    name: str
    layer: Layer
    parents: tuple[int, ...]
    input_shapes: tuple[Shape, ...]
    shape: Shape
    names: tuple[str, ...]
    trained: bool


def ordered(inputs: Node, outputs: Node) -> list[Step]:
    """Layers between two nodes, parents first."""
    order: list[Node] = []
    done: set[int] = {id(inputs)}
    stack: list[tuple[Node, bool]] = [(outputs, False)]
    while stack:
        node, expanded = stack.pop()
        if id(node) in done:
            continue
        if node.layer is None:
            raise ValueError("outputs depends on an Input other than inputs")
        if expanded:
            done.add(id(node))
            order.append(node)
        else:
            stack.append((node, True))
            stack.extend((parent, False) for parent in reversed(node.parents))
    if not order:
        raise ValueError("outputs must be the output of a layer, got the input itself")
    place = {id(inputs): -1} | {id(node): index for index, node in enumerate(order)}
    counts: dict[str, int] = {}
    steps: list[Step] = []
    for index, node in enumerate(order):
        layer = node.layer
        assert layer is not None
        counts[layer.kind] = counts.get(layer.kind, 0) + 1
        shapes = tuple(parent.shape for parent in node.parents)
        # Names only: the values are drawn by the network, with its seed.
        names = tuple(layer.parameters(generator(0, "names"), *shapes))
        parents = tuple(place[id(parent)] for parent in node.parents)
        trained = bool(names) or any(p >= 0 and steps[p].trained for p in parents)
        name = f"{layer.kind}{counts[layer.kind]}"
        steps.append(Step(index, name, layer, parents, shapes, node.shape, names, trained))
    return steps


def checked_shape(name: str, shape: Sequence[int]) -> Shape:
    try:
        result = tuple(int(size) for size in shape)
    except TypeError:
        raise TypeError(f"{name} (={shape!r}) must be a sequence of integers") from None
    if not result or min(result) < 1 or any(a != b for a, b in zip(result, shape, strict=True)):
        raise ValueError(f"{name} (={shape!r}) must hold integers of at least 1")
    return result
