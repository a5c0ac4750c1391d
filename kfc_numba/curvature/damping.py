"""Damping in the eigenbases: a change of it needs no new decomposition."""

from __future__ import annotations

import numpy as np

from kfc_numba.checks import check_choice

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
    omega = omega_values.mean(axis=-1, dtype=np.float64)
    gamma = gamma_values.mean(axis=-1, dtype=np.float64)
    # Roots before the quotient, and no denormal numbers: neither pi nor 1 / pi can overflow.
    least = np.finfo(np.float64).tiny
    usable = (omega >= least) & (gamma >= least)
    return np.divide(np.sqrt(omega), np.sqrt(gamma), out=np.ones_like(omega), where=usable)


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
    pi = np.ones(omega_values.shape[:-1])
    if strategy == "pi":
        pi = trace_ratio(omega_values, gamma_values)
    root = np.sqrt(damping)
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
        (..., I, D), of the dtype of the eigenvalues.

    Raises
    ------
    ValueError
        An unknown strategy.
    """
    check_strategy(strategy)
    o = omega_values[..., None, :].astype(np.float64)
    g = gamma_values[..., :, None].astype(np.float64)
    result = g * o if products is None else products.astype(np.float64)
    result += damping
    if strategy != "exact":
        more_omega, more_gamma = factored_damping(omega_values, gamma_values, damping, strategy)
        # No term is negative: nothing cancels.
        result += g * more_omega[..., None, None]
        result += o * more_gamma[..., None, None]
    return result.astype(omega_values.dtype)
