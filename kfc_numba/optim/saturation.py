"""Steps from predictions that are sure and wrong, of which the Fisher matrix says nothing.

The Fisher matrix of a prediction vanishes as it becomes sure, whether it is right or wrong. With
logits in the hundreds, as they come of pixels from 0 to 255 that nobody scaled, ``v^T F v`` is zero
for steps that turn all predictions over, and a bound of it holds nothing. There the length is found
by trying: predictions after the step may be as far from those before as the bound says, twice their
Kullback-Leibler divergence taken for ``v^T F v``, which it is where that is of any use. Nor may the
loss rise by more: where all predictions are sure of one class none changes, however far logits go.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np

from kfc_numba.arrays import combine
from kfc_numba.graph import Graph, Trace
from kfc_numba.layers.base import Arrays
from kfc_numba.losses import Loss
from kfc_numba.optim.exact_forms import form
from kfc_numba.optim.update import LEAST_TRIED, LEEWAY, REACH, TRIALS, Setting, reach, settled

#: Predictions are sure and wrong where their loss is above this many times what they leave open
#: (`Loss.fisher_trace`): where they are as sure as they are right it is a few times of it, however
#: little that is.
SURE = 20.0


def length(
    net: Graph,
    trace: Trace,
    x: np.ndarray,
    y: np.ndarray,
    loss: Loss,
    value: float,
    setting: Setting,
    wanted: int | None,
    by_difference: bool,
) -> Callable[[Arrays, float], float]:
    """How u^T F u is computed at a step, as `kfc_numba.optim.update.propose` asks for it.

    Parameters
    ----------
    net, trace, x, loss, wanted
        As in `kfc_numba.optim.exact_forms.form`.
    y : numpy.ndarray
        Targets of the batch.
    value : float
        Loss of the batch.
    setting : Setting
    by_difference : bool
        Whether it may be by a difference.

    Returns
    -------
    callable of u, and of what it is about multiplied by
        u^T F u, or what stands in its place so that the step is within the bound.
    """

    def computed(direction: Arrays, scale: float) -> float:
        traces = loss.fisher_trace(trace.outputs) if saturates(loss) else None

        def along(over: float) -> float:
            return form(net, trace, x, loss, direction, wanted, over, traces)

        found = settled(along, setting, scale, REACH if by_difference else 0.0)
        if traces is None or not is_sure_and_wrong(value, traces, trace.outputs.dtype):
            return found
        return by_trial(net, trace, x, y, loss, direction, setting, found, wanted)

    return computed


def saturates(loss: Loss) -> bool:
    """Whether outputs say how sure predictions are: those of probabilities do.

    Parameters
    ----------
    loss : Loss

    Returns
    -------
    bool
        False where the Fisher matrix is the same for all outputs: it vanishes nowhere.
    """
    return type(loss).divergence is not Loss.divergence


def is_sure_and_wrong(value: float, traces: np.ndarray, dtype: np.dtype) -> bool:
    """Whether a loss is far above what predictions leave open.

    Parameters
    ----------
    value : float
        Mean over examples.
    traces : numpy.ndarray
        `Loss.fisher_trace` of each.
    dtype : numpy.dtype
        Of the outputs: what is left open below its rounding is not known.

    Returns
    -------
    bool
    """
    return value > SURE * float(np.maximum(traces, np.finfo(dtype).eps).mean())


def by_trial(
    net: Graph,
    trace: Trace,
    x: np.ndarray,
    y: np.ndarray,
    loss: Loss,
    direction: Arrays,
    setting: Setting,
    found: float,
    wanted: int | None,
) -> float:
    """What stands in the place of u^T F u where the Fisher matrix says nothing.

    Parameters
    ----------
    net, trace, x, loss, direction, wanted
        As in `kfc_numba.optim.exact_forms.form`.
    y : numpy.ndarray
        Targets of the batch.
    setting : Setting
        With a bound and a learning rate.
    found : float
        u^T F u.

    Returns
    -------
    float
        `found`, or more.
    """
    bound = setting.kl_bound
    if bound is None or not math.isfinite(found):
        return found
    if not (wanted is None or wanted >= len(x) or net.couples_examples):
        x, y, trace = x[:wanted], y[:wanted], trace.taken(np.arange(wanted))
    before = float(loss.values(trace.outputs, y).mean())
    scale = first = reach(setting, found)
    moved = copy.copy(net)
    for _ in range(TRIALS):
        moved.params = combine(1, net.params, scale, direction)
        after = moved.forward(x, like=trace)
        divergence = loss.divergence(trace.outputs, after.outputs)
        if divergence is None:
            return found
        rise = float(loss.values(after.outputs, y).mean()) - before
        far = float(np.maximum(2 * float(divergence.mean()), rise))  # NaN if one of them is
        if far <= LEEWAY * bound:
            break
        scale *= max(math.sqrt(bound / far), LEAST_TRIED) if math.isfinite(far) else LEAST_TRIED
    return found if scale == first else bound / scale**2
