"""Batches out of a data set, brought to where the network computes."""

from __future__ import annotations

import mmap
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from kfc_numba.arrays import cast
from kfc_numba.devices import cupy, device_of, taken, to_host, upload
from kfc_numba.graph import Graph

Batch = tuple[Any, Any]
#: Part of a card's free memory that a data set may take, to be uploaded once and for all.
RESIDENT_PART = 0.25


class Source(Protocol):
    """Where batches come from."""

    def take(self, chosen: np.ndarray, following: np.ndarray | None = None) -> Batch:
        """Inputs and targets of some examples.

        Parameters
        ----------
        chosen : numpy.ndarray
            Their numbers.
        following : numpy.ndarray, optional
            Those of the next batch, which can be made ready in the meantime.
        """


def source(net: Graph, x: Any, y: Any) -> Source:
    """The way from a data set to a network.

    Parameters
    ----------
    net : Graph
    x, y : numpy.ndarray or cupy.ndarray
        Inputs and targets of all examples.

    Returns
    -------
    Source
        For a network on a card, one that holds the data set there if it is small enough, else one
        that uploads batch by batch from pinned memory, a batch ahead.
    """
    if net.device == "cpu":
        return HostSource(net, to_host(x), to_host(y))
    if device_of(x) == "cuda":
        return DeviceSource(x, y)
    free, _ = cupy().cuda.runtime.memGetInfo()
    size = x.size * net.dtype.itemsize
    if not is_mapped(x) and size <= RESIDENT_PART * free:
        return DeviceSource(cast(upload(x), net.dtype), y)
    return PinnedSource(net, x, y)


def is_mapped(x: Any) -> bool:
    """Whether an array is one of a mapped file, or a view of one."""
    while isinstance(x, np.ndarray):  # np.memmap is what copies of one are, too
        x = x.base
    return isinstance(x, mmap.mmap)


class HostSource:
    """Batches in the memory of the host."""

    def __init__(self, net: Graph, x: Any, y: Any):
        self._net, self._x, self._y = net, x, y

    def take(self, chosen: np.ndarray, following: np.ndarray | None = None) -> Batch:
        x = self._x
        inputs = self._net.workspace.empty((len(chosen), *x.shape[1:]), x.dtype)
        # Without mode="clip" NumPy makes a copy first, in case an index is wrong.
        np.take(x, chosen, axis=0, out=inputs, mode="clip")
        return inputs, self._y[chosen]


class DeviceSource:
    """Batches out of a data set whose inputs lie on the card."""

    def __init__(self, x: Any, y: Any):
        self._x, self._y = x, y

    def take(self, chosen: np.ndarray, following: np.ndarray | None = None) -> Batch:
        return taken(self._x, chosen), taken(self._y, chosen)


class PinnedSource:
    """Batches that a thread gathers in pinned memory and uploads, one ahead of the step."""

    def __init__(self, net: Graph, x: Any, y: Any):
        self._dtype, self._x, self._y = net.dtype, x, y
        self._device = cupy().cuda.Device()
        self._stream = cupy().cuda.Stream(non_blocking=True)
        self._thread = ThreadPoolExecutor(1)
        self._ahead: tuple[bytes, Future] | None = None

    def take(self, chosen: np.ndarray, following: np.ndarray | None = None) -> Batch:
        if self._ahead is not None and self._ahead[0] == chosen.tobytes():
            future = self._ahead[1]
        else:
            future = self._begin(chosen)
        inputs, arrived = future.result()
        self._ahead = None
        if following is not None:
            self._ahead = following.tobytes(), self._begin(following)
        cupy().cuda.get_current_stream().wait_event(arrived)
        return inputs, taken(self._y, chosen)

    def _begin(self, chosen: np.ndarray) -> Future:
        # The memory belongs to the stream of the steps, whose earlier work may still use it.
        inputs = cupy().empty((len(chosen), *self._x.shape[1:]), self._dtype)
        usable = cupy().cuda.get_current_stream().record()
        return self._thread.submit(self._upload, chosen, inputs, usable)

    def _upload(self, chosen: np.ndarray, inputs: Any, usable: Any) -> tuple[Any, Any]:
        import cupyx

        with self._device, self._stream:
            pinned = cupyx.empty_pinned(inputs.shape, self._dtype)
            pinned[...] = self._x[chosen]
            self._stream.wait_event(usable)
            inputs.set(pinned, self._stream)
            arrived = self._stream.record()
            arrived.synchronize()  # the pinned block is free again when this returns
        return inputs, arrived
