"""Which examples of a batch curvature is computed on, where it is not all of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.inputs import Inputs
from kfc_numba.devices import owned, taken
from kfc_numba.graph import Graph, Trace


def sample_size(net: Graph, count: int, wanted: int | None) -> int:
    """How many of the examples of a batch an estimate is from.

    Parameters
    ----------
    net : Graph
    count : int
        Examples of the batch.
    wanted : int or None
        How many at most; None, or where the network couples examples (batch normalisation): all.

    Returns
    -------
    int
    """
    return count if wanted is None or net.couples_examples else min(wanted, count)


def spaced_part(
    net: Graph, trace: Trace, x: np.ndarray, y: np.ndarray, wanted: int | None
) -> tuple[Trace, np.ndarray]:
    """A number of examples, evenly over the batch, for estimates that all examples are alike for.

    Parameters
    ----------
    net : Graph
    trace : Trace
        Of the forward pass on the batch.
    x, y : numpy.ndarray
        The batch.
    wanted : int or None
        How many, as `sample_size` understands it.

    Returns
    -------
    trace : Trace
    y : numpy.ndarray
    """
    count = len(x)
    size = sample_size(net, count, wanted)
    if size == count:
        return trace, y
    chosen = np.arange(size) * count // size
    return net.part(trace, x, chosen), taken(owned("y", y), chosen)


def curvature_sample(
    curvature: BlockDiagonal, trace: Trace, x: np.ndarray, y: np.ndarray, wanted: int | None
) -> tuple[Trace, dict[str, Any]]:
    """What an update of the curvature rests on: few derivatives, and more inputs.

    What layers have kept of their inputs is at hand, and moments of inputs are wide; derivatives
    take a backward pass, and their moments are narrow. So derivatives are of half as many,
    evenly over the batch (with batch normalisation of all), and inputs of as many as
    `kfc_numba.curvature.inputs` says.

    Parameters
    ----------
    curvature : BlockDiagonal
        One with averages between layers is of the same examples for all that is estimated.
    trace : Trace
        Of the forward pass on the batch.
    x, y : numpy.ndarray
        The batch.
    wanted : int or None
        How many examples, as `sample_size` understands it. None: all, for all that is estimated.

    Returns
    -------
    trace : Trace
        For derivatives.
    how : dict of str to object
        ``targets``, those of its examples, and ``inputs``: arguments of `BlockDiagonal.estimate`.
    """
    net, inputs, derivatives = curvature.net, None, wanted
    if wanted is not None and not curvature.has_pairs:
        inputs = Inputs(trace, sample_size(net, len(x), wanted))
        derivatives = -(-wanted // 2)
    part, targets = spaced_part(net, trace, x, y, derivatives)
    return part, {"targets": targets, "inputs": inputs}


def sample_by_weight(weights: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """A systematic sample with chances in proportion to weights, the same at every call.

    The heaviest examples are all taken, as long as the next one's weight is above its share of
    what is left. The weights of the others are laid end to end in falling order; those at points of
    equal distance are taken. Any sum over all examples is then estimated by one over the sample,
    ``sum(factors * q[chosen])``, exactly where q is in proportion to the weights.

    Parameters
    ----------
    weights : numpy.ndarray
        (M,), finite, at least 0, with a sum above 0.
    wanted : int
        Number of examples, less than M.

    Returns
    -------
    chosen : numpy.ndarray
        (n,), int64: numbers of the examples; n is `wanted`, or fewer if fewer have weights above 0.
    factors : numpy.ndarray
        (n,), float64: how many examples each stands for, at least 1.
    """
    order = np.argsort(-weights, kind="stable")
    falling = weights[order]
    left = np.cumsum(falling[::-1])[::-1]  # the sum of a weight and those after it
    points = wanted - np.arange(wanted)
    heavy = int(np.argmax(falling[:wanted] * points <= left[:wanted]))
    if left[heavy] == 0:
        return order[:heavy], np.ones(heavy)
    distance = left[heavy] / points[heavy]
    places = (np.arange(points[heavy]) + 0.5) * distance
    light = heavy + np.searchsorted(np.cumsum(falling[heavy:]), places)
    factors = np.concatenate([np.ones(heavy), distance / falling[light]])
    return np.concatenate([order[:heavy], order[light]]), factors
