"""What a step of KFC goes by: its numbers, as the settings and the state have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kfc_numba.curvature.inverses import DAMPING, STEPS, STRATEGY
from kfc_numba.graph import Graph
from kfc_numba.optim.adaptation import is_adaptive
from kfc_numba.optim.default_damping import damping_by_examples
from kfc_numba.optim.exact_forms import form_due
from kfc_numba.optim.momentum import momentum_at
from kfc_numba.optim.periods import INVERSE_GROWTH, steps_until
from kfc_numba.optim.restraint import held, is_restrained, part_left
from kfc_numba.optim.step_size import bound_by_loss
from kfc_numba.optim.update import Setting

if TYPE_CHECKING:
    from kfc_numba.optim.kfc import KFC

#: How damped Kronecker factors are inverted.
INVERSIONS = ("cholesky", "eigen")
#: Examples of a batch from which on v^T F v is computed up to `STEADY_PERIOD` steps apart: the
#: larger the batch, the steadier its ratio to what the approximation has for it. With batches of up
#: to 32 training was slower for it, after the same number of steps, and from 128 on it was not. Of
#: a hundred steps up to nine go beyond twice the bound (docs/bound.md); a longer one saves little.
#: So does less care about when it is computed, but steps that go too far make others shrink
#: (`kfc_numba.optim.restraint`): after a thousand steps training on the Poisson equation stood, at
#: a time when these could shrink to nothing.
STEADY_EXAMPLES = 128
STEADY_PERIOD = 4
#: Of a large batch this part is looked at, at the least. With 64 examples of 512 more steps were
#: beyond twice the bound than with 128, and further.
LARGE_SHARE = 4
#: Structures that need no eigenvectors.
_WITHOUT_EIGENVECTORS = {"kronecker", "diagonal"}


def inversion_of(optimizer: KFC) -> str:
    """How an optimizer inverts factors: by Cholesky where that is wanted, and possible.

    The factors must be damped one by one, with what stays until the next inversion.
    """
    structure = optimizer.structure
    structures = {structure} if isinstance(structure, str) else {*structure.values(), "kronecker"}
    possible = (
        structures <= _WITHOUT_EIGENVECTORS
        and optimizer.damping_strategy == STRATEGY
        and not optimizer.use_adaptive_damping
        and not optimizer.decomposition_lag
    )
    return optimizer.inversion if possible else "eigen"


def damping_at(optimizer: KFC, net: Graph, examples: int, step: int, batches: int) -> float:
    """Damping where it is not adaptive, in units of the Fisher matrix.

    Parameters
    ----------
    optimizer : KFC
    net : Graph
    examples : int
        Of the batch.
    step : int
    batches : int
        From which curvature has been estimated so far.

    Returns
    -------
    float
    """
    if optimizer.damping is None:
        return damping_by_examples(net, examples, optimizer.curvature_examples, batches)
    return optimizer.scheduled("damping", step)


def inversion_setting(
    optimizer: KFC, net: Graph, examples: int, step: int, batches: int
) -> dict[str, np.ndarray]:
    """Entries of the state by which a step inverts factors, where it does so by Cholesky.

    Parameters
    ----------
    optimizer : KFC
    net : Graph
    examples, step, batches : int
        As `damping_at`.

    Returns
    -------
    dict of str to numpy.ndarray
    """
    period, growth = optimizer.inverse_update_period, optimizer.period_growth
    # What a card takes for a solution, beside a product, was never measured.
    steps = steps_until(step, period, INVERSE_GROWTH["cholesky"] * growth)
    return {
        DAMPING: np.array(damping_at(optimizer, net, examples, step, batches)),
        STEPS: np.array(float(steps) if net.device == "cpu" else 0.0),
    }


def exact_examples_at(optimizer: KFC, examples: int) -> int | None:
    """How many examples v^T F v is computed on.

    Parameters
    ----------
    optimizer : KFC
    examples : int
        Of the batch.

    Returns
    -------
    int or None
        None: all.
    """
    least = optimizer.exact_examples
    return None if least is None else max(least, -(-examples // LARGE_SHARE))


def exact_period_at(optimizer: KFC, examples: int) -> int:
    """Most steps between two computations of v^T F v.

    Parameters
    ----------
    optimizer : KFC
    examples : int
        Of the batch.

    Returns
    -------
    int
    """
    if optimizer.exact_period is not None:
        return optimizer.exact_period
    # A model of each step needs the form, and what it adapts is not to hang on an old one.
    if is_adaptive(optimizer):
        return 1
    return STEADY_PERIOD if examples >= STEADY_EXAMPLES else 1


def keeps_ratio(optimizer: KFC) -> bool:
    """Whether v^T F v is wanted: what it was helps to foresee it, or to do without."""
    return (optimizer.kl_bound, optimizer.loss_bound) != (None, None)


def bound_at(
    optimizer: KFC, state: Mapping[str, np.ndarray], step: int, examples: int
) -> float | None:
    """Bound of v^T F v at a step, the smaller of `kl_bound` and `loss_bound`.

    Parameters
    ----------
    optimizer : KFC
    state : mapping of str to numpy.ndarray
        After the step: the loss of its batch is in the average.
    step : int
    examples : int
        Of the batch.

    Returns
    -------
    float or None
        None: there is no bound.
    """
    bounds = []
    if optimizer.kl_bound is not None:
        bounds.append(optimizer.scheduled("kl_bound", step))
    if optimizer.loss_bound is not None:
        part, left = optimizer.scheduled("loss_bound", step), part_left(state)
        bounds.append(left * bound_by_loss(part, examples, float(state["loss_average"])))
    return min(bounds, default=None)


def setting_of(
    optimizer: KFC,
    net: Graph,
    state: Mapping[str, np.ndarray],
    step: int,
    examples: int,
    renewed: bool,
    rise: float = 0.0,
) -> Setting:
    """What the update of a step is computed with.

    Parameters
    ----------
    optimizer : KFC
    net : Graph
    state : mapping of str to numpy.ndarray
        With the curvature and the momentum of the step.
    step : int
    examples : int
        Of the batch.
    renewed : bool
        Whether factors were inverted at this step, or layers' ratios measured.
    rise : float
        `kfc_numba.optim.restraint.rise_by_momentum`.

    Returns
    -------
    Setting
    """
    adapted = optimizer.use_adaptive_learning_rate or optimizer.use_adaptive_momentum
    l2_reg = optimizer.scheduled("l2_reg", step)
    if optimizer.use_adaptive_damping:
        damping = float(state["damping"])
        gammas = [damping + l2_reg]
        if optimizer.adaptation.preconditioner_damping_interval is not None:
            gamma = float(state["preconditioner_damping"])
            gammas = optimizer.adaptation.preconditioner_dampings(gamma, step)
        adapted |= len(gammas) > 1 or optimizer.adaptation.damping_due(step)
    else:
        if inversion_of(optimizer) == "cholesky":
            damping = float(state[DAMPING])
        else:
            batches = int(state["factor_batches"])
            damping = damping_at(optimizer, net, examples, step, batches)
        gammas = [damping]
    return Setting(
        learning_rate=None
        if optimizer.use_adaptive_learning_rate
        else optimizer.scheduled("learning_rate", step),
        momentum=None
        if optimizer.use_adaptive_momentum
        else held(momentum_at(optimizer, state, step), rise, state),
        damping=damping,
        l2_reg=l2_reg,
        preconditioner_dampings=gammas,
        kl_bound=bound_at(optimizer, state, step, examples),
        norm_constraint=None
        if optimizer.norm_constraint is None
        else optimizer.scheduled("norm_constraint", step),
        fall=float(state["loss_average"]) if is_restrained(optimizer) else None,
        form_ratio=float(state.get("form_ratio", 0)),
        form_length=float(state.get("form_length", 0)),
        form_due=not keeps_ratio(optimizer) or form_due(state, renewed),
        model=adapted,
    )
