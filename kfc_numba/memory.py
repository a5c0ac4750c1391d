"""What a step of training takes of memory, known before the first one."""

from __future__ import annotations

import copy
import math
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

if TYPE_CHECKING:
    from kfc_numba.graph import Graph
    from kfc_numba.optim.base import Optimizer

#: Arrays of the size of all parameters that a step makes: gradients, preconditioned gradients,
#: the update and the new parameters.
_COPIES = 4
#: Matrices of the size of the largest that a decomposition takes besides its result.
_DECOMPOSITION = 4
_PROBES = (2, 4)  # examples; batch normalisation takes no batch of one


def step_memory(net: Graph, batch_size: int, optimizer: Optimizer | None) -> dict[str, int]:
    """Bytes that a step needs; see `kfc_numba.graph.Graph.memory`."""
    state = {} if optimizer is None else optimizer.init(_on_host(net))
    matrices = [value.nbytes for name, value in state.items() if "_vectors/" in name]
    found = {
        "parameters": _bytes(net.params),
        "buffers": _bytes(net.buffers),
        "activations": _activations(net, batch_size),
        "optimizer_state": _bytes(state),
        # A step makes new arrays, and lets the old ones go when all of it has ended well.
        "changes": _COPIES * _bytes(net.params)
        + _bytes(state)
        + _DECOMPOSITION * max(matrices, default=0),
    }
    return found | {"total": sum(found.values())}


def _bytes(arrays: Any) -> int:
    return sum(value.nbytes for value in arrays.values())


def _on_host(net: Graph) -> Graph:
    """A copy of a network that a probe may use."""
    probe = copy.copy(net)
    probe.params, probe.buffers = dict(net.params), dict(net.buffers)
    probe.workspace = Meter()  # type: ignore[assignment]
    return probe.to("cpu")


def _activations(net: Graph, batch_size: int) -> int:
    """The most that activations and their derivatives take at once, by two small batches.

    Each array has the batch as its first axis or none, so that the bytes are a linear function of
    its length.
    """
    _peak(net, _PROBES[0])  # what compiles kernels keeps arrays for longer
    few, more = (_peak(net, count) for count in _PROBES)
    slope = (more - few) / (_PROBES[1] - _PROBES[0])
    return math.ceil(few + slope * (batch_size - _PROBES[0]))


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
