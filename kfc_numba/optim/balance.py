"""How far a step takes each layer: as far, by the exact Fisher matrix, as the approximation says.

Along the step u = Fhat^-1 g the approximation falls short of the exact Fisher matrix, and in some
layers by far more than in others: in a deep autoencoder u^T F u is a few times u^T Fhat u in the
narrow layers, and hundreds of times in the first one (docs/balance.md), whose inputs have many
directions that the examples at hand hardly tell from none. A bound of the whole step then shortens
all layers for the sake of a few, and the others hardly move. So the part of each layer, u_l, is
first made as long as the approximation takes it for: multiplied by
``sqrt(u_l^T g_l / u_l^T F u_l)``. What all layers have in common is left to the learning rate and
the bound: together they promise as much as before.

u_l^T F u_l is the mean over examples of (u_l^T g_l)^2, g_l the gradient of one with a target
sampled from its prediction: one backward pass on a few examples tells it for all layers. Ratios of
layers change slowly: they are computed when the number of steps has doubled, and every
`inverse_update_period` at last, and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from kfc_numba.arrays import scaled
from kfc_numba.curvature.factors import average
from kfc_numba.graph import Graph, Trace
from kfc_numba.layers.base import Arrays
from kfc_numba.losses import Loss
from kfc_numba.optim.adaptation import is_adaptive
from kfc_numba.optim.exact_forms import layer_forms
from kfc_numba.optim.periods import is_due
from kfc_numba.optim.quadratic import inners
from kfc_numba.optim.setting import keeps_ratio
from kfc_numba.random import generator

if TYPE_CHECKING:
    from kfc_numba.optim.kfc import KFC

#: Entries of the state, before the name of each layer with parameters: the logarithm of u_l^T F u_l
#: over u_l^T g_l, 0 at least, less the mean of those of all layers, averaged; and what u_l is
#: multiplied by.
RATIO, SCALE = "layer_ratio/", "layer_scale/"
_WEIGHT = "layer_ratio_weight"
#: Weight of the old value in the averages.
EMA = 0.5
#: Examples that they are computed on: with 64 nothing was gained.
EXAMPLES = 32


def is_balanced(optimizer: KFC) -> bool:
    """Whether layers are balanced: where a step has a bound by exact curvature, and no model.

    Parameters
    ----------
    optimizer : KFC

    Returns
    -------
    bool
    """
    return optimizer.balance_layers and keeps_ratio(optimizer) and not is_adaptive(optimizer)


def balance_due(optimizer: KFC, step: int) -> bool:
    """Whether the ratios are computed at a step.

    Parameters
    ----------
    optimizer : KFC
    step : int

    Returns
    -------
    bool
    """
    return is_balanced(optimizer) and is_due(step, optimizer.inverse_update_period, 1.0)


def initial_balance(optimizer: KFC, net: Graph) -> dict[str, np.ndarray]:
    """State before the first step.

    Parameters
    ----------
    optimizer : KFC
    net : Graph

    Returns
    -------
    dict of str to numpy.ndarray
        ``layer_ratio/<layer>`` and ``layer_scale/<layer>``, and ``layer_ratio_weight``; nothing
        where layers are not balanced, or where there is but one.
    """
    names = [placed.name for placed in net.parameter_layers()]
    if len(names) < 2 or not is_balanced(optimizer):
        return {}
    ratios = {RATIO + name: np.zeros(()) for name in names}
    return ratios | {SCALE + name: np.ones(()) for name in names} | {_WEIGHT: np.zeros(())}


def next_balance(
    state: Mapping[str, np.ndarray], forms: Mapping[str, float], slopes: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """State after the ratios have been computed.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
    forms, slopes : mapping of str to float
        u_l^T F u_l and u_l^T g_l, by layer.

    Returns
    -------
    dict of str to numpy.ndarray
        Nothing where there is no telling. A layer of which alone there is none (its gradient is
        zero, or not finite) counts as it did before.
    """
    known = {
        name: slopes[name]
        for name, form in forms.items()
        if 0 < form < math.inf and 0 < slopes[name] < math.inf
    }
    if not known:
        return {}
    # Below one it is damping that holds a layer back, and is to. A quotient could be zero.
    logs = {n: max(math.log(forms[n]) - math.log(slope), 0.0) for n, slope in known.items()}
    mean = sum(logs.values()) / len(logs)
    now = {
        RATIO + name: np.array(logs[name] - mean) if name in logs else state[RATIO + name]
        for name in forms
    }
    found = average(state, now, EMA, weight=_WEIGHT)
    scales = {name: math.exp(-float(found[RATIO + name]) / 2) for name in forms}
    promised = sum(scales[name] * slope for name, slope in known.items())
    common = sum(known.values()) / promised
    return found | {SCALE + name: np.array(common * scale) for name, scale in scales.items()}


def forms_by_layer(
    net: Graph, trace: Trace, x: np.ndarray, loss: Loss, direction: Arrays, *, seed: int, step: int
) -> dict[str, float]:
    """u_l^T F u_l of each layer's part of a direction, from a few examples and sampled targets.

    Parameters
    ----------
    net, trace, x, loss
        As in `kfc_numba.optim.exact_forms.precise_forms`.
    direction : mapping of str to numpy.ndarray
        u.
    seed, step : int
        Key of the targets.

    Returns
    -------
    dict of str to float
        By layer.
    """
    rng = generator(seed, "targets of layers", step)
    return layer_forms(net, trace, x, loss, direction, EXAMPLES, rng)


def balanced(
    precondition: Callable[[float], dict[str, np.ndarray]],
    forms: Callable[[Arrays], Mapping[str, float]] | None,
    net: Graph,
    gradients: Arrays,
    state: Mapping[str, np.ndarray],
    changes: dict[str, np.ndarray],
) -> Callable[[float], dict[str, np.ndarray]]:
    """Preconditioning with balanced layers.

    Parameters
    ----------
    precondition : callable of gamma
        Fhat(gamma)^-1 g.
    forms : callable of u, optional
        `forms_by_layer`; None: at this step the ratios are left as they are.
    net : Graph
    gradients : mapping of str to numpy.ndarray
        g.
    state : mapping of str to numpy.ndarray
        Without entries for it (`initial_balance`) nothing is balanced.
    changes : dict of str to numpy.ndarray
        What the step changes of the state, to which this adds, when it is called.

    Returns
    -------
    callable of gamma
    """
    if _WEIGHT not in state:
        return precondition

    def direction(gamma: float) -> dict[str, np.ndarray]:
        natural = precondition(gamma)
        layers = {f"{p.name}.{short}": p.name for p in net.parameter_layers() for short in p.names}
        if forms is not None:
            slopes = dict.fromkeys(layers.values(), 0.0)
            for name, product in inners(natural, gradients).items():
                slopes[layers[name]] += product
            changes.update(next_balance(state, forms(natural), slopes))
        now = {**state, **changes}
        return scaled(natural, {name: float(now[SCALE + layers[name]]) for name in natural})

    return direction
