"""What a step of training takes of memory, known before the first one."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from kfc_numba.devices import free_bytes

if TYPE_CHECKING:
    from kfc_numba.graph import Graph
    from kfc_numba.optim.base import Optimizer

T = TypeVar("T")

#: Arrays of the size of all parameters that a step makes: gradients, preconditioned gradients,
#: the update and the new parameters.
_COPIES = 4
#: Matrices of the size of the largest that a decomposition takes besides its result.
_DECOMPOSITION = 4
#: What is foretold does not count what is lost between blocks, nor small arrays.
_MARGIN = 1.3
_PROBES = (2, 4)  # examples; batch normalisation takes no batch of one


def step_memory(net: Graph, batch_size: int, optimizer: Optimizer | None) -> dict[str, int]:
    """Bytes that a step needs; see `kfc_numba.graph.Graph.memory`."""
    state = {} if optimizer is None else optimizer.init(_on_host(net))
    fixed, each = _activations(net)
    decomposed = ("_vectors/", "_inverse/")
    matrices = [v.nbytes for name, v in state.items() if any(kind in name for kind in decomposed)]
    found = {
        "parameters": _bytes(net.params),
        "buffers": _bytes(net.buffers),
        "activations": math.ceil(fixed + each * batch_size),
        "optimizer_state": _bytes(state),
        # A step makes new arrays, and lets the old ones go when all of it has ended well.
        "changes": _COPIES * _bytes(net.params)
        + _bytes(state)
        + _DECOMPOSITION * max(matrices, default=0),
        "kernels": _room(net, batch_size, optimizer),
    }
    return found | {"total": sum(found.values())}


def _bytes(arrays: Any) -> int:
    return sum(value.nbytes for value in arrays.values())


def _room(net: Graph, examples: int, optimizer: Optimizer | None) -> int:
    """The most that kernels of a card take for a moment, of one layer."""
    if net.device == "cpu":
        return 0
    approx = getattr(optimizer, "kfac_approx", None)
    room = (p.layer.room(examples, p.input_shapes[0], net.dtype, approx) for p in net.layers)
    return max(room, default=0)


def _on_host(net: Graph) -> Graph:
    """A copy of a network that a probe may use."""
    probe = copy.copy(net)
    probe.params, probe.buffers = dict(net.params), dict(net.buffers)
    probe.workspace = Meter()  # type: ignore[assignment]
    return probe.to("cpu")


def told(call: Callable[[], T], net: Graph, x: Any, optimizer: Optimizer | None = None) -> T:
    """What a call returns; where a card has too little memory, the error says what would fit.

    Parameters
    ----------
    call : callable
        Without arguments.
    net : Graph
    x : array_like
        The batch that it computes on.
    optimizer : Optimizer, optional
        Whose step it is; None: it is a forward pass alone, which takes no more than with a backward
        pass.

    Returns
    -------
    object

    Raises
    ------
    MemoryError
        In place of one on a card.
    """
    try:
        return call()
    except MemoryError:
        if net.device == "cpu":
            raise
    # Not in the handler: until its end there are the arrays of all functions that were left.
    gc.collect()
    free, examples = free_bytes(), len(x)
    changes = 0 if optimizer is None else step_memory(net, 1, optimizer)["changes"]
    fixed, each = _activations(net)

    def needed(count: int) -> int:
        return math.ceil(changes + fixed + each * count) + _room(net, count, optimizer)

    # The batch did not fit, whatever was foretold.
    most, more = 0, examples
    while more - most > 1:
        middle = (most + more) // 2
        if needed(middle) <= free / _MARGIN:
            most = middle
        else:
            more = middle
    fit = f"at most {most:,} fit" if most > 0 else "none fits"
    raise MemoryError(
        f"a batch of {examples:,} examples needs about {needed(examples):,} bytes on the card "
        f"besides what lies there, which has {free:,} free: {fit} (batch_size; see "
        "`net.memory`)"
    )


def _activations(net: Graph) -> tuple[float, float]:
    """The most that activations and their derivatives take at once: for none, and each example.

    Each array has the batch as its first axis or none, so that the bytes are a linear function of
    its length, which two small batches tell.
    """
    _peak(net, _PROBES[0])  # what compiles kernels keeps arrays for longer
    few, more = (_peak(net, count) for count in _PROBES)
    each = (more - few) / (_PROBES[1] - _PROBES[0])
    return few - each * _PROBES[0], each


def _peak(net: Graph, examples: int) -> int:
    probe = _on_host(net)
    meter = probe.workspace = Meter()  # type: ignore[assignment]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, *net.input_shape)).astype(net.dtype)
    trace = probe.forward(x, training=True)
    probe.backward(trace, np.ones_like(trace.outputs))
    return meter.peak + x.nbytes


class Meter:
    """What `kfc_numba.workspace.Workspace` is for a network, and counts what is in use.

    Attributes
    ----------
    peak : int
        The most bytes that were in use at once.
    """

    def __init__(self) -> None:
        self.used = self.peak = 0

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Uninitialised C-contiguous array."""
        array = np.empty(shape, dtype)
        # The owner of the memory: views of the array keep it alive.
        weakref.finalize(array, self._freed, array.nbytes)
        self.used += array.nbytes
        self.peak = max(self.peak, self.used)
        return array

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """The same as `empty`, filled with zeros."""
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def _freed(self, size: int) -> None:
        self.used -= size
