"""How layers hang together: the input that a graph starts from, and its layers in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kfc_numba.checks import check_shape
from kfc_numba.layers.base import Layer, Node, Shape
from kfc_numba.random import generator


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
    return Node(None, (), check_shape("shape", shape))


@dataclass(frozen=True)
class PlacedLayer:
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
    last_of : tuple of int
        Those of them that no later layer needs.
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
    last_of: tuple[int, ...]
    input_shapes: tuple[Shape, ...]
    shape: Shape
    names: tuple[str, ...]
    trained: bool


def order_layers(inputs: Node, outputs: Node) -> list[PlacedLayer]:
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
    last_use = {id(parent): index for index, node in enumerate(order) for parent in node.parents}
    counts: dict[str, int] = {}
    placed: list[PlacedLayer] = []
    for index, node in enumerate(order):
        layer = node.layer
        assert layer is not None
        counts[layer.kind] = counts.get(layer.kind, 0) + 1
        shapes = tuple(parent.shape for parent in node.parents)
        # Names only: the values are drawn by the network, with its seed.
        names = tuple(layer.parameters(generator(0, "names"), *shapes))
        parents = tuple(place[id(parent)] for parent in node.parents)
        last = {place[id(parent)] for parent in node.parents if last_use[id(parent)] == index}
        trained = bool(names) or any(p >= 0 and placed[p].trained for p in parents)
        name, ends = f"{layer.kind}{counts[layer.kind]}", (shapes, node.shape)
        placed.append(PlacedLayer(index, name, layer, parents, tuple(last), *ends, names, trained))
    return placed
