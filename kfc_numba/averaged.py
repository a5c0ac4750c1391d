"""What a network holds between trainings: averages; what the last step left is kept aside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.graph import Graph
from kfc_numba.layers.base import Arrays
from kfc_numba.optim.averaging import initial_average
from kfc_numba.optim.base import Optimizer, State


class Aside:
    """Raw parameters and running statistics, while their network holds averages of both.

    Raw ones are those of the last step. All is done in the arrays that the network has: who refers
    to one of them sees it change. An interrupt may come at any time: what it cuts short is done
    whole the next time. If somebody has changed the network in between, the raw ones are forgotten:
    what it holds now is what training goes on from, and the average begins anew, since the change
    is not in it. Of a network that holds raw ones, as after a step, nobody looks for changes.
    """

    def __init__(self) -> None:
        self._raw: dict[str, np.ndarray] | None = None
        self._left: dict[str, np.ndarray] | None = None  # None too while arrays are overwritten

    def leave_averages(self, net: Graph, optimizer: Optimizer, state: State) -> None:
        """Put into the network what evaluations use, if it is not there.

        Parameters
        ----------
        net : Graph
        optimizer : Optimizer
        state : dict of str to numpy.ndarray
            Of the optimizer.
        """
        if self._left is not None:
            return
        held = _held(net)
        averaged = optimizer.evaluation_arrays(net, state)
        if all(averaged[name] is value for name, value in held.items()):
            return  # there is no average
        if self._raw is None:
            self._raw = _copies(held)
        left = _copies(averaged)
        _write(net, left)
        self._left = left

    def go_on(self, net: Graph, optimizer: Optimizer, state: State) -> None:
        """Put into the network what training goes on from.

        Parameters
        ----------
        net : Graph
        optimizer : Optimizer
        state : dict of str to numpy.ndarray
            Of the optimizer; its average begins anew if somebody has changed the network.
        """
        self.accept_changes(net, optimizer, state)
        if self._raw is not None:
            self._left = None
            _write(net, self._raw)
            self._raw = None

    def accept_changes(self, net: Graph, optimizer: Optimizer, state: State) -> None:
        """Forget the raw ones if somebody has changed the network since it was left.

        Parameters
        ----------
        net : Graph
        optimizer : Optimizer
        state : dict of str to numpy.ndarray
            Of the optimizer; its average begins anew then.
        """
        if self._left is not None and not _same(_held(net), self._left):
            self._raw = self._left = None
            if optimizer.averaging is not None:
                state.update(initial_average(net))

    def raw(self, net: Graph, optimizer: Optimizer, state: State) -> dict[str, np.ndarray]:
        """What training goes on from; the network is left as it is.

        Parameters
        ----------
        net : Graph
        optimizer : Optimizer
        state : dict of str to numpy.ndarray
            Of the optimizer; its average begins anew if somebody has changed the network.

        Returns
        -------
        dict of str to numpy.ndarray
            Parameters and running statistics.
        """
        self.accept_changes(net, optimizer, state)
        return _held(net) if self._raw is None else self._raw

    @contextmanager
    def leaving(self, net: Graph, optimizer: Optimizer, state: State) -> Iterator[None]:
        """`leave_averages` at the end, whichever way it is reached."""
        try:
            yield
        finally:
            self.leave_averages(net, optimizer, state)

    @property
    def in_use(self) -> bool:
        """Whether the network holds averages, or what somebody has made of them."""
        return self._left is not None


def _held(net: Graph) -> dict[str, np.ndarray]:
    return {**net.params, **net.buffers}


def _copies(arrays: Arrays) -> dict[str, np.ndarray]:
    return {n: array_namespace(v).asarray(v, copy=True) for n, v in arrays.items()}


def _same(held: Arrays, left: Arrays) -> bool:
    for name, value in left.items():
        found = held.get(name)
        if getattr(found, "shape", None) != value.shape:
            return False
        if not array_namespace(value).all(found == value):
            return False
    return True


def _write(net: Graph, values: Arrays) -> None:
    held = _held(net)
    for name, value in values.items():
        held[name][...] = value
