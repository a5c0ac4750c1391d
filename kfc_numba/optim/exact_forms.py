"""Exact curvature along directions, on as little of a batch, and as seldom, as it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from kfc_numba.curvature.fisher import example_forms
from kfc_numba.graph import Graph, Trace
from kfc_numba.layers.base import Arrays
from kfc_numba.losses import Loss

#: Relative standard error up to which a mean over part of a batch stands for that over all of it.
PRECISION = 0.2
#: Examples that exact curvature is computed on at least, if the batch has as many.
LEAST_EXACT = 64
#: Factor by which a ratio may change from one time to the next, for it to be looked at less often:
#: well above what differs by the choice of examples alone.
STEADY = 1.6


def pieces(net: Graph, trace: Trace, x: np.ndarray, fraction: float) -> Iterator[Trace]:
    """A part of a batch and, piece by piece, the rest of it: for `precise_forms`.

    Parameters
    ----------
    net : Graph
    trace : Trace
        Of the forward pass on the batch.
    x : numpy.ndarray
        The batch.
    fraction : float
        Of the batch in the first piece, which has at least `LEAST_EXACT` examples.

    Yields
    ------
    Trace
        Of as many examples as have been before it. Where the network couples examples the second
        one is of the whole batch.
    """
    count = max(LEAST_EXACT, math.ceil(fraction * len(x)))
    yield net.part(trace, x, count)
    while count < len(x):
        more = min(count, len(x) - count)
        whole = net.couples_examples
        yield trace if whole else net.part(trace, x, more, start=count)
        count += len(x) if whole else more


def precise_forms(
    net: Graph, traces: Iterable[Trace], loss: Loss, directions: Sequence[Arrays]
) -> np.ndarray:
    """All v_i^T F v_j on as many of the pieces of a batch as it takes to know the mean.

    A few examples often have most of v^T F v. Examples are enough where the mean over them of the
    first direction's form has a relative standard error of at most `PRECISION`.

    Parameters
    ----------
    net : Graph
    traces : iterable of Trace
        Forward passes of pieces of a batch, one after the other; where the network couples
        examples, a piece holds those before it.
    loss : Loss
    directions : sequence of mappings
        n directions, each one array for each parameter.

    Returns
    -------
    numpy.ndarray
        (n, n), float64, symmetric.
    """
    shares = np.empty((0, len(directions), len(directions)))
    for trace in traces:
        new = example_forms(net, trace, loss, directions)
        shares = new if net.couples_examples else np.concatenate([shares, new])
        own = shares[:, 0, 0]
        if own.std() <= PRECISION * math.sqrt(len(own)) * own.mean():
            break
    return shares.mean(axis=0)


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
