"""Exact curvature along directions, on as little of a batch, and as seldom, as it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from kfc_numba.curvature.fisher import example_forms, quadratic_forms
from kfc_numba.graph import Graph, Trace
from kfc_numba.layers.base import Arrays
from kfc_numba.losses import Loss
from kfc_numba.optim.examples import sample_by_weight

#: Factor by which a ratio may change from one time to the next, for it to be looked at less often:
#: well above what differs by the choice of examples alone.
STEADY = 1.6


def precise_forms(
    net: Graph,
    trace: Trace,
    x: np.ndarray,
    loss: Loss,
    directions: Sequence[Arrays],
    wanted: int | None,
) -> np.ndarray:
    """All v_i^T F v_j, F the exact Fisher matrix, from a sample of the examples.

    An example adds ``(J v)^T F_R (J v)``, where F_R is the Fisher matrix of its prediction. Its
    trace is known from the outputs alone, and is small where the prediction leaves little open: a
    few examples have most of the sum. So examples are taken in proportion to their traces, and what
    they add is weighted by the inverse (`sample_by_weight`): what is left of an error is that of
    the Jacobians alone, and hardly depends on the size of the batch (`benchmarks.bound` measures
    it). Where the network couples examples (batch normalisation) all of them are looked at.

    Parameters
    ----------
    net : Graph
    trace : Trace
        Of the forward pass on the batch.
    x : numpy.ndarray
        The batch.
    loss : Loss
    directions : sequence of mappings
        n directions, each one array for each parameter.
    wanted : int or None
        How many examples, at most; None, or where there are no more: all of them.

    Returns
    -------
    numpy.ndarray
        (n, n), float64, symmetric.
    """
    if wanted is None or wanted >= len(x) or net.couples_examples:
        return quadratic_forms(net, trace, loss, directions)
    # Below rounding nothing is known of a prediction: such examples count alike.
    traces = np.maximum(loss.fisher_trace(trace.outputs), np.finfo(trace.outputs.dtype).eps)
    if not math.isfinite(traces.sum()):
        return quadratic_forms(net, trace, loss, directions)
    chosen, factors = sample_by_weight(traces, wanted)
    shares = example_forms(net, net.part(trace, x, chosen), loss, directions)
    return np.tensordot(factors, shares, axes=1) / len(x)


# The ratio of u^T F u to u^T g, which is u^T Fhat u: by how much the approximation errs along the
# step u = Fhat^-1 g. From step to step it changes much less than either.


def initial_ratio() -> dict[str, np.ndarray]:
    """State before the ratio was first computed.

    Returns
    -------
    dict of str to numpy.ndarray
        ``form_ratio``, 0 where there is none; ``form_interval``, steps from the last computation to
        the next; and ``form_age``, steps since the last one.
    """
    return {
        "form_ratio": np.zeros(()),
        "form_interval": np.array(1, np.int64),
        "form_age": np.array(0, np.int64),
    }


def known_ratio(state: Mapping[str, np.ndarray], refreshed: bool) -> float | None:
    """The ratio, if it need not be computed at this step.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
    refreshed : bool
        Whether Fhat was decomposed anew at this step.

    Returns
    -------
    float or None
    """
    ratio = float(state["form_ratio"])
    due = int(state["form_age"]) + 1 >= int(state["form_interval"])
    return None if due or refreshed or ratio == 0 else ratio


def next_ratio(
    state: Mapping[str, np.ndarray], computed: float | None, longest: int
) -> dict[str, np.ndarray]:
    """State of the ratio after a step.

    Where the ratio has changed by less than the factor `STEADY` the interval doubles, and the
    geometric mean with the old ratio is kept, which has less of the noise of few examples. Where it
    has changed by more the interval is one step again.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
    computed : float or None
        The ratio, if it was computed at this step; 0 where there is no telling.
    longest : int
        Steps from one computation to the next, at most.

    Returns
    -------
    dict of str to numpy.ndarray
    """
    if computed is None:
        return {"form_age": state["form_age"] + np.int64(1)}
    old = float(state["form_ratio"])
    # Not where either is zero: then there is none.
    steady = computed > 0 and old > 0 and abs(math.log(computed / old)) < math.log(STEADY)
    interval = min(2 * int(state["form_interval"]), longest) if steady else 1
    return {
        "form_ratio": np.array(math.sqrt(computed * old) if steady else computed),
        "form_interval": np.array(interval, np.int64),
        "form_age": np.array(0, np.int64),
    }
