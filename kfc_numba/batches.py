"""How a data set is cut into batches: shuffled passes, and what is left over at their end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np

from kfc_numba.feeding import source
from kfc_numba.graph import Graph
from kfc_numba.random import generator


def batches(
    net: Graph,
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int,
    timed: Callable[[], AbstractContextManager[None]],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches without end, from some place of some pass.

    Parameters
    ----------
    net : Graph
        Whose memory is used.
    x, y : numpy.ndarray
        Inputs and targets.
    batch_size : int
    seed : int
        Of the order, together with the number of the pass.
    epoch, start : int
        The pass, and how many of its examples were used before.
    timed : callable
        Gives the context that work is done in.

    Yields
    ------
    inputs, targets : numpy.ndarray
    numbers : numpy.ndarray
        Which examples they are.
    """
    data = source(net, x, y)
    while True:
        with timed():
            order = generator(seed, "shuffle", epoch).permutation(len(x))
        while start < len(x):
            with timed():
                last = len(x) - start <= batch_size + _spare(net, batch_size)
                chosen = order[start : None if last else start + batch_size]
                following = None if last else order[start + batch_size :][:batch_size]
                batch = data.take(chosen, following)
            yield *batch, chosen
            start += len(chosen)
        epoch, start = epoch + 1, 0


def number_of_batches(net: Graph, examples: int, batch_size: int) -> int:
    """Number of batches of the examples that are left of a pass.

    Parameters
    ----------
    net : Graph
    examples, batch_size : int

    Returns
    -------
    int
    """
    return max(1, math.ceil((examples - _spare(net, batch_size)) / batch_size))


def _spare(net: Graph, batch_size: int) -> int:
    """Examples that the last batch of a pass takes beyond `batch_size`, to leave none alone."""
    return int(net.couples_examples and batch_size > 1)
