"""Hyperparameters that change with the step.

A schedule is any callable of the number of steps done, from 0, that returns a number; these are
the common ones. They compare by value, and their repr says all there is to know about them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kfc_numba.checks import check_number


@dataclass(frozen=True, kw_only=True)
class ExponentialDecay:
    """``initial * rate ** (step / steps)``.

    Parameters
    ----------
    initial : float
        Value at step 0.
    rate : float
        Factor over `steps` steps, positive.
    steps : float
        Positive.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    initial: float
    rate: float
    steps: float = 1

    def __post_init__(self) -> None:
        check_number("rate", self.rate, "(0, inf)")
        check_number("steps", self.steps, "(0, inf)")

    def __call__(self, step: int) -> float:
        return self.initial * self.rate ** (step / self.steps)


@dataclass(frozen=True, kw_only=True)
class CosineDecay:
    """Half a period of a cosine from `initial` at step 0 to `final` at step `steps`, then `final`.

    Parameters
    ----------
    initial, final : float
        Values at step 0, and from step `steps` on.
    steps : float
        Positive.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    initial: float
    final: float = 0.0
    steps: float

    def __post_init__(self) -> None:
        check_number("steps", self.steps, "(0, inf)")

    def __call__(self, step: int) -> float:
        part = min(step / self.steps, 1.0)
        return self.final + (self.initial - self.final) * (1 + math.cos(math.pi * part)) / 2


@dataclass(frozen=True, kw_only=True)
class PiecewiseConstant:
    """``values[i]`` from step ``boundaries[i - 1]`` on, before step ``boundaries[i]``.

    Parameters
    ----------
    values : sequence of float
        One for each stretch of steps.
    boundaries : sequence of int
        First steps of the stretches after the first, ascending: one fewer than `values`.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    values: Sequence[float]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        # Tuples, so that equality and hashes are those of the numbers.
        for name in ("values", "boundaries"):
            given = getattr(self, name)
            try:
                object.__setattr__(self, name, tuple(given))
            except TypeError:
                raise TypeError(f"{name} (={given!r}) must be a sequence of numbers") from None
            for value in getattr(self, name):
                check_number(f"an entry of {name}", value)
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"values (={self.values}) must be one more than boundaries (={self.boundaries})"
            )
        if any(a >= b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ValueError(f"boundaries (={self.boundaries}) must be ascending")

    def __call__(self, step: int) -> float:
        return self.values[sum(step >= boundary for boundary in self.boundaries)]


@dataclass(frozen=True, kw_only=True)
class LinearWarmup:
    """`after` times ``(step + 1) / steps`` while that is below 1, then `after` itself.

    Parameters
    ----------
    after : float or callable of the step
        Value after the warm-up.
    steps : float
        Positive.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    after: float | Callable[[int], float]
    steps: float

    def __post_init__(self) -> None:
        check_number("steps", self.steps, "(0, inf)")

    def __call__(self, step: int) -> float:
        value = self.after(step) if callable(self.after) else self.after
        return value * min((step + 1) / self.steps, 1.0)
