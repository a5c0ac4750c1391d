"""Exponentially weighted averages of the parameters over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import towards, zeros
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


def initial_average(params: Arrays) -> dict[str, np.ndarray]:
    """State of an average over no steps: zeros of weight zero.

    Parameters
    ----------
    params : mapping of str to numpy.ndarray

    Returns
    -------
    dict of str to numpy.ndarray
        ``average_weight``, and ``average/<name>`` for each parameter. All are float64: with a
        timescale of thousands of steps the increments are smaller than float32 resolves.
    """
    state = {PREFIX + name: zeros(value.shape, np.float64, value) for name, value in params.items()}
    return {WEIGHT: np.zeros(())} | state


def update_average(
    state: Mapping[str, np.ndarray], params: Arrays, timescale: float
) -> dict[str, np.ndarray]:
    """State of the average after one more step.

    After k steps the average is ``sum_i xi^(k-i) theta_i / sum_i xi^(k-i)`` over the parameters
    theta_1 to theta_k that the steps left, with ``xi = exp(-1 / timescale)``. It carries the sum
    of its weights, so it is unbiased from the first step; the initial parameters are not in it.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
        Entries as `initial_average` makes them, among others; not changed.
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
    changes = {WEIGHT: np.array(weight)}
    averages = {name: state[PREFIX + name] for name in params}
    new = towards(averages, params, weight)
    return changes | {PREFIX + name: value for name, value in new.items()}


def average(state: Mapping[str, np.ndarray], params: Arrays) -> dict[str, np.ndarray]:
    """Averaged parameters; before the first step, the parameters themselves.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
    params : mapping of str to numpy.ndarray
        Current parameters, for their names and dtype.

    Returns
    -------
    dict of str to numpy.ndarray
        In the order of `params`.
    """
    if not state[WEIGHT] > 0:
        return dict(params)
    return {
        name: array_namespace(value).astype(state[PREFIX + name], value.dtype)
        for name, value in params.items()
    }
