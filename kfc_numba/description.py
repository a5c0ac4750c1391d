"""Networks, losses and optimizers as JSON, and built again from it by the names of their classes.

Nothing is executed but the constructors of the library's own layers, losses, optimizers and
schedules. Objects of other classes are described too, so that two descriptions can be compared;
they are not built again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from kfc_numba import layers, losses
from kfc_numba import optim as optimizers
from kfc_numba.graph import Graph, Input
from kfc_numba.layers.base import Layer, Node
from kfc_numba.losses import Loss
from kfc_numba.optim import schedule
from kfc_numba.optim.base import Optimizer
from kfc_numba.schema import (
    Check,
    anything,
    choice,
    integer,
    mapping,
    record,
    sequence,
    short,
    text,
    wrong,
)

Kind = TypeVar("Kind")

#: Channels that a layer may have although a file has fewer numbers, as `Flatten` may.
_MOST_CHANNELS = 2**24


def _kinds(module: Any, base: type) -> dict[str, type]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
        if not name.startswith("_")
    }


LAYERS = _kinds(layers, Layer)
LOSSES = _kinds(losses, Loss)
OPTIMIZERS = _kinds(optimizers, Optimizer)
SCHEDULES = {n: k for n, k in _kinds(schedule, object).items() if dataclasses.is_dataclass(k)}

#: Schemas of what `describe_network`, `describe_loss` and `describe_optimizer` return.
NETWORK: Check = record(
    {
        "dtype": choice("float32", "float64"),
        "input_shape": sequence(integer(1), least=1),
        "layers": sequence(
            record(
                {
                    "name": text,
                    "layer": text,
                    "arguments": mapping(anything),
                    "inputs": sequence(integer(-1), least=1),
                    "shape": sequence(integer(1)),
                }
            ),
            least=1,
        ),
    }
)
LOSS: Check = record({"loss": text, "arguments": mapping(anything)})
OPTIMIZER: Check = record({"optimizer": text, "arguments": mapping(anything)})


def describe_network(net: Graph) -> dict[str, Any]:
    """Layers and how they hang together: all of a network that is not in its arrays.

    Parameters
    ----------
    net : Graph

    Returns
    -------
    dict
        What JSON can hold.
    """
    return {
        "dtype": str(net.dtype),
        "input_shape": list(net.input_shape),
        "layers": [
            {
                "name": placed.name,
                "layer": _name(placed.layer, LAYERS),
                "arguments": _arguments(placed.layer),
                "inputs": list(placed.parents),
                "shape": list(placed.shape),
            }
            for placed in net.layers
        ],
    }


def describe_loss(loss: Loss) -> dict[str, Any]:
    """A loss by its class and its attributes, as JSON can hold them.

    Parameters
    ----------
    loss : Loss

    Returns
    -------
    dict
    """
    return {"loss": _name(loss, LOSSES), "arguments": _arguments(loss)}


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer by its class and its hyperparameters, as JSON can hold them.

    Parameters
    ----------
    optimizer : Optimizer

    Returns
    -------
    dict
    """
    return {"optimizer": _name(optimizer, OPTIMIZERS), "arguments": _arguments(optimizer)}


def lines(network: Mapping[str, Any]) -> list[str]:
    """A line for the input and for each layer of a network that was described.

    Parameters
    ----------
    network : mapping
        From `describe_network`.

    Returns
    -------
    list of str
        Such as ``"dense1: Dense(units=10, bias=True) of flatten1, shape (10,)"``.
    """
    found = [f"input: {network['dtype']}, shape {tuple(network['input_shape'])}"]
    names = [entry["name"] for entry in network["layers"]]
    for entry in network["layers"]:
        parents = ", ".join("input" if p < 0 else names[p] for p in entry["inputs"])
        layer = call(entry["layer"], entry["arguments"])
        found.append(f"{entry['name']}: {layer} of {parents}, shape {tuple(entry['shape'])}")
    return found


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """A described object as it would be written in a program.

    Parameters
    ----------
    name : str
    arguments : mapping of str to object

    Returns
    -------
    str
        Such as ``"Dense(units=10, bias=True)"``.
    """
    return f"{name}({', '.join(f'{k}={_written(v)}' for k, v in arguments.items())})"


def build_network(description: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """The network that was described, with parameters that are not those of the one described.

    Parameters
    ----------
    description : mapping
        As `NETWORK` requires.
    shapes : mapping of str to tuple of int
        Shapes of the parameters that there are for it. Others are found out before memory is
        asked for.

    Returns
    -------
    Graph

    Raises
    ------
    ValueError
        A layer is not one of the library's, or cannot be built so, or has other parameters.
    """
    nodes = [Input(description["input_shape"])]
    numbers = sum(math.prod(shape) for shape in shapes.values())
    count = 0
    for index, entry in enumerate(description["layers"]):
        place = f"network.layers[{index}]"
        layer = _build(place, LAYERS, entry["layer"], entry["arguments"])
        for parent in entry["inputs"]:
            integer(-1, index - 1)(f"{place}.inputs", parent)
        try:
            node = layer(*(nodes[parent + 1] for parent in entry["inputs"]))
            count += _numbers_of(node, max(numbers, _MOST_CHANNELS))
        except (TypeError, ValueError, OverflowError, MemoryError) as error:
            raise ValueError(f"{place} cannot be built: {error}") from None
        nodes.append(node)
    if count != numbers:
        raise ValueError(
            f"network must have the {numbers} parameters that the file has, it has {count}"
        )
    try:
        net = Graph(nodes[0], nodes[-1], dtype=description["dtype"])
    except MemoryError:
        raise ValueError(f"network has {count} parameters, more than memory holds") from None
    if describe_network(net) != description:
        raise ValueError(
            "network.layers must be in order of computation, each used, by their names"
        )
    return net


def build_loss(description: Mapping[str, Any]) -> Loss:
    """The loss that `describe_loss` described; ValueError if it is not one of the library's."""
    return _build("loss", LOSSES, description["loss"], description["arguments"])


def build_optimizer(description: Mapping[str, Any]) -> Optimizer:
    """The optimizer that `describe_optimizer` described; ValueError if that cannot be built."""
    arguments = description["arguments"]
    return _build("optimizer", OPTIMIZERS, description["optimizer"], arguments)


class _Sizes:
    """In the place of a generator of random numbers: arrays of a shape that hold no memory."""

    def __getattr__(self, name: str) -> Any:
        def draw(*arguments: Any, size: Any = (), **more: Any) -> np.ndarray:
            return np.broadcast_to(np.zeros(()), size)

        return draw


def _numbers_of(node: Node, most: int) -> int:
    """Number of parameters of a layer, without an array of their size."""
    layer = node.layer
    assert layer is not None
    shapes = [parent.shape for parent in node.parents]
    widest = max((shape[-1] for shape in (*shapes, node.shape) if shape), default=0)
    if widest > most:
        raise ValueError(f"it has {widest} channels, the file has fewer numbers")
    found = layer.parameters(_Sizes(), *shapes)  # type: ignore[arg-type]
    return sum(value.size for value in found.values())


def _name(value: Any, known: Mapping[str, type]) -> str:
    kind = type(value)
    # A class of a program may have the name of one of the library.
    prefix = "" if known.get(kind.__name__) is kind else f"{kind.__module__}."
    return prefix + kind.__name__


def _arguments(value: Any) -> dict[str, Any]:
    return {k: _encoded(v) for k, v in vars(value).items() if not k.startswith("_")}


def _encoded(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, (tuple, list)):
        return [_encoded(entry) for entry in value]
    if SCHEDULES.get(type(value).__name__) is type(value):
        return {"schedule": type(value).__name__, "arguments": _arguments(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not callable(value):
        return {"mapping": _arguments(value)}
    if isinstance(value, Mapping):
        return {"mapping": {str(name): _encoded(entry) for name, entry in value.items()}}
    return {"program": repr(value)[:200]}


def _decoded(place: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(f"{place}[{index}]", entry) for index, entry in enumerate(value))
    if not isinstance(value, dict):
        return value
    if value.keys() == {"float"} and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    if value.keys() == {"mapping"} and isinstance(value["mapping"], dict):
        return {k: _decoded(f"{place}[{short(k)}]", v) for k, v in value["mapping"].items()}
    if value.keys() == {"schedule", "arguments"} and isinstance(value["arguments"], dict):
        return _build(place, SCHEDULES, text(place, value["schedule"]), value["arguments"])
    if value.keys() == {"program"}:
        raise ValueError(
            f"{place} was {short(value['program'])}, which is made by the program that wrote the "
            "file; give it anew, with Trainer.load"
        )
    raise wrong(place, value, "a described value")


def _build(place: str, kinds: Mapping[str, type], name: str, arguments: Mapping[str, Any]) -> Any:
    if name not in kinds:
        raise ValueError(
            f"{place} is of class {short(name)}, which is none of {', '.join(kinds)}; if it is one "
            "of your program, use Trainer.load"
        )
    given = {k: _decoded(f"{place}.{k}", v) for k, v in arguments.items()}
    try:
        return kinds[name](**given)
    except (TypeError, ValueError, OverflowError) as error:
        message = " ".join(str(error).split())[:300]
        raise ValueError(f"{place}, {name}, cannot be built: {message}") from None


def _written(value: Any) -> str:
    """A described value as `repr` writes what it describes."""
    if isinstance(value, list):
        inner = ", ".join(map(_written, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, dict):
        if value.keys() == {"mapping"} and isinstance(value["mapping"], dict):
            return (
                "{" + ", ".join(f"{k!r}: {_written(v)}" for k, v in value["mapping"].items()) + "}"
            )
        if value.keys() == {"schedule", "arguments"} and isinstance(value["arguments"], dict):
            return call(str(value["schedule"]), value["arguments"])
        return str(next(iter(value.values()), value))
    return repr(value)
