"""The update that one step of KFC proposes: a preconditioned gradient, and the step before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import combine
from kfc_numba.layers.base import Arrays
from kfc_numba.optim.quadratic import QuadraticModel, inner, quadratic_model

#: Where u^T g has grown by more than this factor since u^T F u was computed, it is computed again:
#: a direction so different has another ratio of the two. Of 100 steps with batches of 256 one had a
#: v^T F v of 15 times its bound without this; with it docs/bound.md has less than six times.
FAR = 1.5
#: Part of a step over which u^T F u is looked at, as a rule. Over the whole of it terms of higher
#: order made steps shorter: the loss was 2% higher after as many steps of 128 (CIFAR-10, the
#: autoencoder), over this part it was not.
REACH = 0.3
#: Where a step turns out longer than expected by more than this factor, as the first one does, it
#: is looked at again, over the whole of it.
FURTHER = 3.0
#: How far beyond the bound is near enough, where a step is tried.
LEEWAY = 1.5
#: How often it is, at most, and how much of its length before it then has, at least.
TRIALS, LEAST_TRIED = 60, 0.1


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Hyperparameters at one step.

    Attributes
    ----------
    learning_rate, momentum : float or None
        None: that of the least model.
    damping, l2_reg : float
        lambda and eta of the model.
    preconditioner_dampings : sequence of float
        Values of gamma; the one of the least model is taken, the first if there is no model.
    kl_bound, norm_constraint : float or None
        Bounds of the step.
    fall : float or None
        By how much the loss can fall, at most: no step is as long as its gradient promises more
        for, where it is bounded (`kfc_numba.optim.restraint`). None: not known.
    form_ratio : float
        What u^T F u was last, u = Fhat^-1 g, as a multiple of u^T g; 0: not known. Not used where
        there is a model, which has it.
    form_length : float
        What u^T g was then.
    form_due : bool
        Whether u^T F u is computed in any case, and not taken for what the ratio makes of u^T g.
    model : bool
        Whether the model is computed; it has to be where something is adaptive.
    """

    learning_rate: float | None
    momentum: float | None
    damping: float
    l2_reg: float
    preconditioner_dampings: Sequence[float]
    kl_bound: float | None
    norm_constraint: float | None
    fall: float | None
    form_ratio: float
    form_length: float
    form_due: bool
    model: bool


@dataclass(frozen=True, kw_only=True)
class Update:
    """A proposed update.

    Attributes
    ----------
    deltas : dict of str to numpy.ndarray
        What it adds to the parameters.
    learning_rate, momentum : float
        Its coefficients, the learning rate as shortened by the bounds.
    preconditioner_damping : float
        Gamma.
    form_ratio, form_length : float or None
        u^T F u as a multiple of u^T g, 0 where there is no telling, and u^T g, if it was computed.
    change, undamped_change : float
        M(delta) - M(0) with lambda and without; NaN without a model.
    """

    deltas: dict[str, np.ndarray]
    learning_rate: float
    momentum: float
    preconditioner_damping: float
    form_ratio: float | None = None
    form_length: float | None = None
    change: float = math.nan
    undamped_change: float = math.nan


def propose(
    forms: Callable[[Sequence[Arrays]], np.ndarray],
    form: Callable[[Arrays, float], float],
    precondition: Callable[[float], dict[str, np.ndarray]],
    gradients: Arrays,
    previous: Arrays,
    setting: Setting,
) -> Update:
    """The update of one step.

    Parameters
    ----------
    forms : callable of a sequence of directions
        All v_i^T F v_j by the exact Fisher matrix; called only for a model.
    form : callable of a direction and a number
        u^T F u of one direction, and what about u is multiplied by in the step, 0 where there is no
        telling; called only for a bound.
    precondition : callable of gamma
        Fhat(gamma)^-1 g.
    gradients : mapping of str to numpy.ndarray
        g, with the l2 penalty.
    previous : mapping of str to numpy.ndarray
        The step before, zero if there was none.
    setting : Setting

    Returns
    -------
    Update

    Raises
    ------
    FloatingPointError
        The model, or the length of the step, is not finite.
    """
    naturals = [precondition(gamma) for gamma in setting.preconditioner_dampings]
    if not setting.model:
        natural = naturals[0]
        computed: dict[str, float] = {}
        approximate = 0.0

        def length() -> float:
            nonlocal approximate
            approximate = inner(natural, gradients)
            expected = setting.form_ratio * approximate
            if not (setting.form_due or approximate > FAR * setting.form_length):
                return expected
            exact = form(natural, _expected(setting, expected))
            computed.update(form_ratio=ratio_of_forms(exact, approximate), form_length=approximate)
            return exact

        assert setting.learning_rate is not None
        assert setting.momentum is not None
        scale = bounded_scale(setting, natural, gradients, length)
        if setting.fall is not None and -scale * approximate > setting.fall:
            scale = -setting.fall / approximate
        return _update(setting, 0, natural, previous, scale, setting.momentum, **computed)

    moving = any(bool(array_namespace(value).any(value)) for value in previous.values())
    directions = [*naturals, previous] if moving else naturals
    model = quadratic_model(
        forms(directions),
        directions,
        gradients,
        damping=setting.damping,
        l2_reg=setting.l2_reg,
    )
    found = []
    for index, natural in enumerate(naturals):
        here = model.part([index, len(naturals)] if moving else [index])
        coefficients = _coefficients(setting, here, natural, gradients)
        found.append((here.change(coefficients), index, here, coefficients))
    change, index, here, coefficients = min(found, key=lambda item: item[0])
    momentum = float(coefficients[1]) if moving else (setting.momentum or 0.0)
    return _update(
        setting,
        index,
        naturals[index],
        previous,
        float(coefficients[0]),
        momentum,
        form_ratio=ratio_of_forms(float(here.fisher[0, 0]), float(here.slopes[0])),
        form_length=float(here.slopes[0]),
        change=change,
        undamped_change=here.change(coefficients, damped=False),
    )


def bounded_scale(
    setting: Setting, natural: Arrays, gradients: Arrays, form: Callable[[], float]
) -> float:
    """What a preconditioned gradient is multiplied by: -learning_rate, within the bounds.

    Parameters
    ----------
    setting : Setting
        With a learning rate.
    natural, gradients : mapping of str to numpy.ndarray
        u = Fhat(gamma)^-1 g, and g.
    form : callable
        u^T F u; called only if there is a bound by it.

    Returns
    -------
    float

    Raises
    ------
    FloatingPointError
        A squared length is not finite: there is no telling by how much to shorten.
    """
    assert setting.learning_rate is not None
    scale = -setting.learning_rate
    factor = 1.0
    if setting.norm_constraint is not None:
        length = scale**2 * inner(natural, gradients)
        factor = min(factor, _shortening("g^T Fhat^-1 g", length, setting.norm_constraint))
    if setting.kl_bound is not None:
        factor = min(factor, _shortening("v^T F v", scale**2 * form(), setting.kl_bound))
    return scale * factor


def reach(setting: Setting, form: float) -> float:
    """What a direction u is multiplied by within the bound of v^T F v.

    Parameters
    ----------
    setting : Setting
        With a learning rate.
    form : float
        u^T F u.

    Returns
    -------
    float
        Below zero.
    """
    assert setting.learning_rate is not None
    bound = setting.kl_bound
    within = math.inf if bound is None or form <= 0 else math.sqrt(bound / form)
    return -min(setting.learning_rate, within)


def settled(
    form: Callable[[float], float], setting: Setting, expected: float, part: float = REACH
) -> float:
    """u^T F u, looked at along the step that it leads to.

    The Fisher matrix says how predictions change to first order. Where a step is much longer than
    was expected, or nothing was, the curvature here says little of them there: with targets of 1e4
    weights are to become a thousand times what they are, and three layers raise the loss by their
    product. So it is looked at over the whole step, and that is shortened until what it does to
    predictions is within the bound, too.

    Parameters
    ----------
    form : callable of a number
        u^T F u by what predictions change by over so many times u; 0: of an infinitely short way.
        Infinite where that is not finite.
    setting : Setting
        With a learning rate and a bound.
    expected : float
        What u is about multiplied by in the step; 0: no telling.
    part : float
        Over how much of that it is looked at first, and as a rule at last.

    Returns
    -------
    float
        `reach` makes the step of it.
    """
    found = form(part * expected)
    scale = reach(setting, found)
    if math.isfinite(found):
        if abs(scale) <= FURTHER * abs(expected):
            return found
    elif expected:
        scale = expected
    else:
        return found
    for _ in range(TRIALS):
        found = form(scale)
        within = reach(setting, found)
        if scale**2 <= LEEWAY * within**2:
            break
        scale = min(within, LEAST_TRIED * scale)
    if setting.kl_bound is None or abs(within) <= abs(scale):
        return found
    return setting.kl_bound / scale / scale  # no further than was looked


def _expected(setting: Setting, form: float) -> float:
    """The same, if u^T F u is about `form`; 0: no telling."""
    if not (setting.kl_bound is not None and setting.learning_rate and 0 < form < math.inf):
        return 0.0
    return reach(setting, form)


def ratio_of_forms(exact: float, approximate: float) -> float:
    """u^T F u as a multiple of u^T g.

    Parameters
    ----------
    exact, approximate : float
        u^T F u, and u^T g.

    Returns
    -------
    float
        Finite, at least 0; 0 where there is no telling.
    """
    ratio = exact / approximate if approximate > 0 else 0.0
    # A quotient of tiny numbers is infinite; rounding takes a form of sure predictions below zero.
    return ratio if 0 < ratio < math.inf else 0.0


def _shortening(what: str, length: float, bound: float) -> float:
    """Factor that brings a squared length within a bound."""
    if not math.isfinite(length):
        raise FloatingPointError(f"{what} of the step is {length}")
    return math.sqrt(bound / length) if length > bound else 1.0


def _coefficients(
    setting: Setting, model: QuadraticModel, natural: Arrays, gradients: Arrays
) -> np.ndarray:
    """Coefficients of the preconditioned gradient and, if the model has it, of the step before."""
    scale = None
    if setting.learning_rate is not None:
        scale = bounded_scale(setting, natural, gradients, lambda: float(model.fisher[0, 0]))
    coefficients = model.minimum([scale, setting.momentum][: len(model.slopes)])
    if scale is None and setting.kl_bound is not None:
        length = float(coefficients @ model.fisher @ coefficients)
        coefficients = coefficients * _shortening("v^T F v", length, setting.kl_bound)
    return coefficients


def _update(
    setting: Setting,
    index: int,
    natural: Arrays,
    previous: Arrays,
    scale: float,
    momentum: float,
    **more: Any,
) -> Update:
    return Update(
        deltas=combine(scale, natural, momentum, previous),
        learning_rate=-scale,
        momentum=momentum,
        preconditioner_damping=setting.preconditioner_dampings[index],
        **more,
    )
