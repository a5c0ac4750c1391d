"""Rules by which damping follows how well the quadratic model predicts the objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from kfc_numba.checks import check_flag, check_integer, check_number
from kfc_numba.optim.calls import written
from kfc_numba.optim.default_damping import FIRST

if TYPE_CHECKING:
    from kfc_numba.optim.kfc import KFC


@dataclass(frozen=True, kw_only=True, repr=False)
class Adaptation:
    """Settings of adaptive damping (Martens and Grosse, 2015, sections 6.5 and 6.6).

    Lambda, the damping of the quadratic model, follows the rule of Levenberg and Marquardt: every
    `damping_adaptation_interval` (T1) steps ``rho = (h(theta + delta) - h(theta)) / (M(delta) -
    M(0))`` compares the change of the objective (loss and l2 penalty, on the batch of the step)
    with what the model predicts. Above the upper threshold lambda is multiplied by
    ``w1 = damping_adaptation_decay ** T1``, below the lower one divided by it.

    Gamma, the damping of the approximate Fisher matrix, is tried at its value, at ``w`` times
    and at ``1 / w`` times that every `preconditioner_damping_interval` (T2) steps, and the one of
    least M is kept, ``w = preconditioner_damping_decay ** T2``. It is in units of the Fisher
    matrix, the square of what the source calls gamma: w is the square of the source's w2.

    Parameters
    ----------
    damping_adaptation_interval : int
        T1.
    damping_adaptation_decay : float
        w1 for one step, above 0 and below 1.
    damping_lower_threshold, damping_upper_threshold : float
        Of rho; the first below the second.
    min_damping, max_damping : float
        Bounds of lambda and of gamma.
    include_damping_in_quad_change : bool
        Whether M in rho has the damping lambda; the l2 penalty it has always.
    preconditioner_damping_interval : int, optional
        T2; None: gamma is lambda + eta at every step.
    preconditioner_damping_decay : float
        w for one step, above 0 and below 1.
    reject_damping_increase_factor : float
        By what a rejected step multiplies lambda and gamma, at least 1.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    damping_adaptation_interval: int = 5
    damping_adaptation_decay: float = 19 / 20
    damping_lower_threshold: float = 0.25
    damping_upper_threshold: float = 0.75
    min_damping: float = 1e-8
    max_damping: float = 1e8
    include_damping_in_quad_change: bool = True
    preconditioner_damping_interval: int | None = 20
    preconditioner_damping_decay: float = 19 / 20
    reject_damping_increase_factor: float = 2.0

    def __post_init__(self) -> None:
        for name, interval in {
            "damping_adaptation_decay": "(0, 1)",
            "damping_lower_threshold": "(-inf, inf)",
            "damping_upper_threshold": "(-inf, inf)",
            "min_damping": "(0, inf)",
            "max_damping": "(0, inf]",
            "preconditioner_damping_decay": "(0, 1)",
            "reject_damping_increase_factor": "[1, inf)",
        }.items():
            object.__setattr__(self, name, check_number(name, getattr(self, name), interval))
        for name in ("damping_adaptation_interval", "preconditioner_damping_interval"):
            value = getattr(self, name)
            if value is not None or name == "damping_adaptation_interval":
                object.__setattr__(self, name, check_integer(name, value))
        check_flag("include_damping_in_quad_change", self.include_damping_in_quad_change)
        for low, high in (
            ("damping_lower_threshold", "damping_upper_threshold"),
            ("min_damping", "max_damping"),
        ):
            if not getattr(self, low) < getattr(self, high):
                raise ValueError(
                    f"{low} (={getattr(self, low)!r}) must be below {high} "
                    f"(={getattr(self, high)!r})"
                )

    def __repr__(self) -> str:
        return written(self, {field.name: field.default for field in fields(self)})

    def first(self, damping: float | Callable[[int], float] | None) -> float:
        """Lambda before the first step.

        Parameters
        ----------
        damping : float or callable of the step, optional
            As given; None for `kfc_numba.optim.default_damping.FIRST`.

        Returns
        -------
        float

        Raises
        ------
        TypeError
            A callable.
        ValueError
            Out of the bounds.
        """
        if callable(damping):
            raise TypeError(f"damping (={damping!r}) must be a number with use_adaptive_damping")
        damping = FIRST if damping is None else damping
        if self.bound(damping) != damping:
            raise ValueError(
                f"damping (={damping!r}) must be from min_damping (={self.min_damping!r}) to "
                f"max_damping (={self.max_damping!r})"
            )
        return float(damping)

    def bound(self, damping: float) -> float:
        """Damping within its bounds.

        Parameters
        ----------
        damping : float

        Returns
        -------
        float
        """
        return min(max(damping, self.min_damping), self.max_damping)

    def damping_due(self, step: int) -> bool:
        """Whether lambda is adapted after a step.

        Parameters
        ----------
        step : int
            Number of steps done before it.

        Returns
        -------
        bool
        """
        return (step + 1) % self.damping_adaptation_interval == 0

    def next_damping(self, damping: float, ratio: float) -> float:
        """Lambda after a step.

        Parameters
        ----------
        damping : float
            Lambda at the step.
        ratio : float
            rho.

        Returns
        -------
        float
        """
        decay = self.damping_adaptation_decay**self.damping_adaptation_interval
        if ratio > self.damping_upper_threshold:
            damping *= decay
        elif ratio < self.damping_lower_threshold:
            damping /= decay
        return self.bound(damping)

    def preconditioner_dampings(self, damping: float, step: int) -> list[float]:
        """Values of gamma to try at a step, the present one first.

        Parameters
        ----------
        damping : float
            Gamma so far.
        step : int
            Number of steps done before.

        Returns
        -------
        list of float
        """
        interval = self.preconditioner_damping_interval
        if interval is None or (step + 1) % interval:
            return [damping]
        decay = self.preconditioner_damping_decay**interval
        return [damping, self.bound(damping * decay), self.bound(damping / decay)]


def adaptation_from(value: Any) -> Adaptation:
    """An `Adaptation` from one, from a mapping of its settings, or the usual one from None.

    Parameters
    ----------
    value : Adaptation, mapping of str to object, or None

    Returns
    -------
    Adaptation

    Raises
    ------
    TypeError, ValueError
    """
    if value is None:
        return Adaptation()
    if isinstance(value, Adaptation):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            f"adaptation (={value!r}) must be an Adaptation, a mapping of its settings, or None"
        )
    known = [field.name for field in fields(Adaptation)]
    for name in value:
        if name not in known:
            raise ValueError(f"adaptation has {name!r}, its settings are {', '.join(known)}")
    return Adaptation(**value)


def reduction_ratio(actual: float, predicted: float) -> float:
    """rho, for a model that predicts a decrease; 0 for one that does not.

    Parameters
    ----------
    actual, predicted : float
        Changes of the objective and of the model.

    Returns
    -------
    float
        Finite.
    """
    if not predicted < 0:
        return 0.0
    largest = np.finfo(np.float64).max
    return float(np.clip(np.divide(actual, predicted), -largest, largest))


def is_adaptive(optimizer: KFC) -> bool:
    """Whether a model of each step finds its coefficients, or judges the damping.

    Parameters
    ----------
    optimizer : KFC

    Returns
    -------
    bool
    """
    return (
        optimizer.use_adaptive_learning_rate
        or optimizer.use_adaptive_momentum
        or optimizer.use_adaptive_damping
    )
