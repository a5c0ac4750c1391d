"""Damping in the eigenbases: a change of it needs no new decomposition."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.checks import check_choice
from kfc_numba.kernels.backend import on_device

#: See `damped_eigenvalues`.
DAMPING_STRATEGIES = ("pi", "exact", "uniform")


def check_strategy(strategy: str) -> None:
    """Raise ValueError where `strategy` is not one of `DAMPING_STRATEGIES`."""
    check_choice("damping_strategy", strategy, DAMPING_STRATEGIES)


def trace_ratio(omega_values: np.ndarray, gamma_values: np.ndarray) -> np.ndarray:
    """pi = sqrt((tr Omega / dim Omega) / (tr Gamma / dim Gamma)), and 1 if a trace is zero.

    Martens and Grosse (2015), section 6.3.

    Parameters
    ----------
    omega_values, gamma_values : numpy.ndarray
        Eigenvalues, (..., D) and (..., I).

    Returns
    -------
    numpy.ndarray
        (...), float64, finite and above zero.
    """
    xp = array_namespace(omega_values)
    omega = xp.sum(omega_values, axis=-1, dtype=xp.float64) / omega_values.shape[-1]
    gamma = xp.sum(gamma_values, axis=-1, dtype=xp.float64) / gamma_values.shape[-1]
    # Roots before the quotient, and no denormal numbers: neither pi nor 1 / pi can overflow.
    least = float(np.finfo(np.float64).tiny)
    usable = (omega >= least) & (gamma >= least)
    one = xp.ones_like(omega)
    quotient = xp.sqrt(xp.where(usable, omega, one)) / xp.sqrt(xp.where(usable, gamma, one))
    return xp.where(usable, quotient, one)


def factored_damping(
    omega_values: np.ndarray, gamma_values: np.ndarray, damping: float, strategy: str = "pi"
) -> tuple[np.ndarray, np.ndarray]:
    """What factored damping adds to Omega and to Gamma: pi sqrt(damping), sqrt(damping) / pi.

    Parameters
    ----------
    omega_values, gamma_values : numpy.ndarray
        Eigenvalues, (..., D) and (..., I).
    damping : float
    strategy : {"pi", "uniform"}
        "uniform": pi = 1.

    Returns
    -------
    omega, gamma : numpy.ndarray
        (...), float64.

    Raises
    ------
    ValueError
        Another strategy: "exact" damping has no factors.
    """
    check_strategy(strategy)
    if strategy == "exact":
        raise ValueError(f"damping_strategy (={strategy!r}) must be 'pi' or 'uniform' here")
    pi = trace_ratio(omega_values, gamma_values)
    if strategy == "uniform":
        pi = array_namespace(pi).ones_like(pi)
    root = float(np.sqrt(damping))
    return root * pi, root / pi


def damped_eigenvalues(
    omega_values: np.ndarray,
    gamma_values: np.ndarray,
    damping: float,
    strategy: str = "pi",
    *,
    products: np.ndarray | None = None,
) -> np.ndarray:
    """Eigenvalues of the damped block, for each pair of eigenvectors.

    "pi", factored Tikhonov damping: (g + sqrt(damping) / pi) (o + pi sqrt(damping)).
    "uniform": the same with pi = 1. "exact": g o + damping, the damped product itself.

    Parameters
    ----------
    omega_values, gamma_values : numpy.ndarray
        Eigenvalues o and g, (..., D) and (..., I).
    damping : float
        Added to eigenvalues of the block, in units of the Fisher matrix.
    strategy : {"pi", "exact", "uniform"}
    products : numpy.ndarray, optional
        (..., I, D): what takes the place of g o, such as the second moments of EKFAC; the terms
        that damping adds to it stay those above.

    Returns
    -------
    numpy.ndarray
        (..., I, D), of the dtype of the eigenvalues. On a card it may be the array of an earlier
        call with the same eigenvalues: not to be written to.

    Raises
    ------
    ValueError
        An unknown strategy.
    """
    check_strategy(strategy)

    def compute() -> np.ndarray:
        return _damped(omega_values, gamma_values, damping, strategy, products)

    if products is None and on_device(omega_values):
        return _remembered(omega_values, gamma_values, (float(damping), strategy), compute)
    return compute()


def _damped(
    omega_values: np.ndarray,
    gamma_values: np.ndarray,
    damping: float,
    strategy: str,
    products: np.ndarray | None,
) -> np.ndarray:
    xp = array_namespace(omega_values)
    o = xp.astype(omega_values[..., None, :], xp.float64)
    g = xp.astype(gamma_values[..., :, None], xp.float64)
    result = g * o if products is None else xp.astype(products, xp.float64)
    result += float(damping)
    if strategy != "exact":
        more_omega, more_gamma = factored_damping(omega_values, gamma_values, damping, strategy)
        # No term is negative: nothing cancels.
        result += g * more_omega[..., None, None]
        result += o * more_gamma[..., None, None]
    return xp.astype(result, omega_values.dtype)


class _Last(NamedTuple):
    omega: weakref.ref
    gamma: weakref.ref
    settings: tuple
    result: Any


#: What was computed last, by the identity of eigenvalues of Omega that are alive.
_last: dict[int, _Last] = {}


def _remembered(omega: Any, gamma: Any, settings: tuple, compute: Callable[[], Any]) -> Any:
    """The last result, if it was for the same arrays and settings, or a new one.

    Eigenvalues change when factors are decomposed, and are asked for at each step: on a card the
    twenty operations on them were a sixth of the host's time for a step.
    """
    key = id(omega)
    last = _last.get(key)
    if (
        last is None
        or last.omega() is not omega
        or last.gamma() is not gamma
        or last.settings != settings
    ):
        forgotten = weakref.ref(omega, lambda _: _last.pop(key, None))
        last = _last[key] = _Last(forgotten, weakref.ref(gamma), settings, compute())
    return last.result
