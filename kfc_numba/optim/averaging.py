"""Exponentially weighted averages of parameters and running statistics over the steps.

A network with averaged parameters is another one than those that the average is of: its activations
vary less, and where parameters drift they lag behind. Statistics of the last steps do not fit it;
averaged over the same steps they nearly do. A variance is averaged by its root, which grows like
the weights before it: where they shrink or grow, the averages of both go together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from kfc_numba.arrays import cast, towards, zeros
from kfc_numba.graph import Graph
from kfc_numba.layers.base import Arrays

WEIGHT = "average_weight"
PREFIX = "average/"


def timescale_at(averaging: float, steps: int) -> float:
    """Timescale of the average when some number of steps has been done.

    Parameters
    ----------
    averaging : float
        In steps; or, below 1, as a part of the steps done.
    steps : int

    Returns
    -------
    float
        In steps, at least 1 where it is a part.
    """
    return averaging if averaging >= 1 else max(1.0, averaging * steps)


def initial_average(net: Graph) -> dict[str, np.ndarray]:
    """State of an average over no steps: zeros of weight zero.

    Parameters
    ----------
    net : Graph

    Returns
    -------
    dict of str to numpy.ndarray
        ``average_weight``, and ``average/<name>`` for each parameter and running statistic. All
        are float64: with a timescale of thousands of steps the increments are smaller than float32
        resolves.
    """
    held = {**net.params, **net.buffers}
    state = {PREFIX + name: zeros(value.shape, np.float64, value) for name, value in held.items()}
    return {WEIGHT: np.zeros(())} | state


def update_average(
    state: Mapping[str, np.ndarray], net: Graph, params: Arrays, timescale: float
) -> dict[str, np.ndarray]:
    """State of the average after one more step.

    After k steps the average is ``sum_i xi^(k-i) theta_i / sum_i xi^(k-i)`` over what the steps
    left, theta_1 to theta_k, with ``xi = exp(-1 / timescale)``. It carries the sum of its weights,
    so it is unbiased from the first step; what was there before is not in it.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
        Entries as `initial_average` makes them, among others; not changed.
    net : Graph
        With the running statistics after the step.
    params : mapping of str to numpy.ndarray
        Parameters after the step.
    timescale : float
        In steps, positive.

    Returns
    -------
    dict of str to numpy.ndarray
        New arrays for the same entries.
    """
    weight = math.exp(-1.0 / timescale) * float(state[WEIGHT]) + 1.0
    held = {**params, **net.buffers}
    new = towards({name: state[PREFIX + name] for name in held}, held, weight, _squares(net))
    return {WEIGHT: np.array(weight)} | {PREFIX + name: value for name, value in new.items()}


def average(state: Mapping[str, np.ndarray], net: Graph) -> dict[str, np.ndarray]:
    """Averaged parameters and running statistics; before the first step, the network's own.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
    net : Graph
        For their names and dtype.

    Returns
    -------
    dict of str to numpy.ndarray
        In the order of ``net.params`` and ``net.buffers``.
    """
    held = {**net.params, **net.buffers}
    if not state[WEIGHT] > 0:
        return held
    squares = _squares(net)
    means = {name: state[PREFIX + name] for name in held}
    return {
        name: cast(mean * mean if name in squares else mean, net.dtype)
        for name, mean in means.items()
    }


def _squares(net: Graph) -> frozenset[str]:
    """Running statistics that are squares: averaged by their roots."""
    return frozenset(f"{s.name}.{short}" for s in net.layers for short in s.layer.squares)
