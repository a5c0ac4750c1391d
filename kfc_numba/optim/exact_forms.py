"""Exact curvature along directions, on as little of a batch, and as seldom, as it takes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import combine
from kfc_numba.curvature.fisher import example_forms, layer_slopes, quadratic_forms
from kfc_numba.devices import taken, to_host
from kfc_numba.graph import Graph, Trace
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Arrays
from kfc_numba.losses import Loss
from kfc_numba.optim.examples import sample_by_weight

#: How v^T F v of a step is computed.
EXACT_BY = ("difference", "tangent")
#: Factor by which a ratio may change from one time to the next, for it to be looked at less often:
#: well above what differs by the choice of examples alone.
STEADY = 1.6
# Least change of the outputs that is seen well enough, in units of their rounding.
_COARSEST = 1000


def precise_forms(
    net: Graph,
    trace: Trace,
    x: np.ndarray,
    loss: Loss,
    directions: Sequence[Arrays],
    wanted: int | None,
    traces: np.ndarray | None = None,
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
    traces : numpy.ndarray, optional
        `Loss.fisher_trace` of the outputs, where it is known.

    Returns
    -------
    numpy.ndarray
        (n, n), float64, symmetric.
    """
    sample = _sample(net, trace, loss, wanted, traces)
    if sample is None:
        return quadratic_forms(net, trace, loss, directions)
    chosen, factors = sample
    shares = example_forms(net, net.part(trace, x, chosen), loss, directions)
    return np.tensordot(factors, shares, axes=1) / len(x)


def form(
    net: Graph,
    trace: Trace,
    x: np.ndarray,
    loss: Loss,
    direction: Arrays,
    wanted: int | None,
    over: float = 0.0,
    traces: np.ndarray | None = None,
) -> float:
    """u^T F u of one direction, by how predictions change along it.

    J u is taken for ``(f(theta + h u) - f(theta)) / h``: one forward pass, where a tangent pass
    costs two. A tangent pass it is all the same where rounding would be a hundredth of the change.

    Parameters
    ----------
    net, trace, x, loss, wanted
        As in `precise_forms`.
    direction : mapping of str to numpy.ndarray
        u.
    over : float
        h; 0: no difference is taken.
    traces : numpy.ndarray, optional
        `Loss.fisher_trace` of the outputs, where it is known.

    Returns
    -------
    float
        At least 0; infinite where the change is not finite.
    """
    if over:
        moved = copy.copy(net)
        moved.params = combine(1, net.params, over, direction)
        found = _by_difference(moved, trace, x, loss, wanted, traces)
        if found is not None:
            return max(found / over**2, 0.0)  # rounding can take it below
    return max(float(precise_forms(net, trace, x, loss, [direction], wanted, traces)[0, 0]), 0.0)


def layer_forms(
    net: Graph,
    trace: Trace,
    x: np.ndarray,
    loss: Loss,
    direction: Arrays,
    wanted: int | None,
    rng: np.random.Generator,
) -> dict[str, float]:
    """u_l^T F u_l of the part u_l of a direction in each layer, with sampled targets.

    Parameters
    ----------
    net, trace, x, loss, wanted
        As in `precise_forms`.
    direction : mapping of str to numpy.ndarray
        u.
    rng : numpy.random.Generator
        For the targets, one for each example.

    Returns
    -------
    dict of str to float
        By layer with parameters.
    """
    sample, count = _sample(net, trace, loss, wanted, None), len(x)
    factors = np.ones(count)
    if sample is not None:
        chosen, factors = sample
        trace = net.part(trace, x, chosen)
    targets = loss.sample(trace.outputs, rng)
    slopes = layer_slopes(net, trace, loss.derivative(trace.outputs, targets), direction)
    rows = list(slopes.values())
    found = to_host(array_namespace(*rows).stack(rows)).astype(np.float64)
    return dict(zip(slopes, (found**2 @ factors / count).tolist(), strict=True))


def _by_difference(
    moved: Graph,
    trace: Trace,
    x: np.ndarray,
    loss: Loss,
    wanted: int | None,
    traces: np.ndarray | None,
) -> float | None:
    """v^T F v from the predictions of a network whose parameters lie v away; None: not seen."""
    sample, count = _sample(moved, trace, loss, wanted, traces), len(x)
    factors = np.ones(count)
    if sample is not None:
        chosen, factors = sample
        x, trace = taken(x, chosen), trace.taken(chosen)
    outputs, after = trace.outputs, moved.forward(x, like=trace)
    change = kernels(outputs).scaled_add(after.outputs, outputs, -1.0)
    dots = kernels(outputs).example_dots
    pairs = [(change, loss.fisher_product(outputs, change)), (change, change), (outputs, outputs)]
    xp = array_namespace(outputs)
    shares, squares, sizes = to_host(xp.stack([dots(a, b) for a, b in pairs])).astype(np.float64)
    if not math.isfinite(shares.sum()):
        return math.inf
    if not _is_seen(squares, sizes, outputs.dtype):
        return None
    return float(factors @ shares) / count


def _is_seen(squares: np.ndarray, sizes: np.ndarray, dtype: np.dtype) -> bool:
    """Whether a change is well above rounding; squared lengths of changes and of outputs."""
    limit = _COARSEST * np.finfo(dtype).eps
    return bool(squares.sum() > limit**2 * sizes.sum())


def _sample(
    net: Graph, trace: Trace, loss: Loss, wanted: int | None, traces: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Examples to look at, and how many each stands for; None: all of them."""
    if wanted is None or wanted >= len(trace.outputs) or net.couples_examples:
        return None
    # Below rounding nothing is known of a prediction: such examples count alike.
    if traces is None:
        traces = loss.fisher_trace(trace.outputs)
    traces = np.maximum(traces, np.finfo(trace.outputs.dtype).eps)
    return sample_by_weight(traces, wanted) if math.isfinite(traces.sum()) else None


# The ratio of u^T F u to u^T g, which is u^T Fhat u: by how much the approximation errs along the
# step u = Fhat^-1 g. From step to step it changes much less than either.


def initial_ratio() -> dict[str, np.ndarray]:
    """State before the ratio was first computed.

    Returns
    -------
    dict of str to numpy.ndarray
        ``form_ratio``, 0 where there is none; ``form_length``, what u^T g was then;
        ``form_interval``, steps from the last computation to the next, at most; and ``form_age``,
        steps since the last one.
    """
    return {
        "form_ratio": np.zeros(()),
        "form_length": np.zeros(()),
        "form_interval": np.array(1, np.int64),
        "form_age": np.array(0, np.int64),
    }


def form_due(state: Mapping[str, np.ndarray], refreshed: bool) -> bool:
    """Whether the ratio has to be computed at this step.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
    refreshed : bool
        Whether Fhat was inverted anew at this step.

    Returns
    -------
    bool
    """
    due = int(state["form_age"]) + 1 >= int(state["form_interval"])
    return due or refreshed or float(state["form_ratio"]) == 0


def next_ratio(
    state: Mapping[str, np.ndarray], computed: float | None, length: float | None, longest: int
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
    length : float or None
        What u^T g was, if so.
    longest : int
        Steps from one computation to the next, at most.

    Returns
    -------
    dict of str to numpy.ndarray
    """
    if computed is None or length is None:
        return {"form_age": state["form_age"] + np.int64(1)}
    old = float(state["form_ratio"])
    # Not where either is zero: then there is none.
    steady = computed > 0 and old > 0 and abs(math.log(computed / old)) < math.log(STEADY)
    interval = min(2 * int(state["form_interval"]), longest) if steady else 1
    return {
        "form_ratio": np.array(math.sqrt(computed * old) if steady else computed),
        "form_length": np.array(length),
        "form_interval": np.array(interval, np.int64),
        "form_age": np.array(0, np.int64),
    }
