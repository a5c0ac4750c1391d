"""Damping in the eigenbases: a change of it needs no new decomposition."""

from __future__ import annotations

import numpy as np

#: See `damped_eigenvalues`.
DAMPING_STRATEGIES = ("pi", "exact", "uniform")


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
        (...), float64.
    """
    omega = omega_values.mean(axis=-1, dtype=np.float64)
    gamma = gamma_values.mean(axis=-1, dtype=np.float64)
    usable = (omega > 0) & (gamma > 0)
    ratio = np.divide(omega, gamma, out=np.ones_like(omega), where=usable)
    return np.sqrt(ratio)


def damped_eigenvalues(
    omega_values: np.ndarray, gamma_values: np.ndarray, damping: float, strategy: str = "pi"
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

    Returns
    -------
    numpy.ndarray
        (..., I, D), of the dtype of the eigenvalues.

    Raises
    ------
    ValueError
        An unknown strategy.
    """
    if strategy not in DAMPING_STRATEGIES:
        raise ValueError(f"damping_strategy (={strategy!r}) must be one of {DAMPING_STRATEGIES}")
    o = omega_values[..., None, :].astype(np.float64)
    g = gamma_values[..., :, None].astype(np.float64)
    if strategy == "exact":
        result = g * o + damping
    else:
        root = np.sqrt(damping)
        pi = 1.0
        if strategy == "pi":
            pi = trace_ratio(omega_values, gamma_values)[..., None, None]
        result = (g + root / pi) * (o + pi * root)
    return result.astype(omega_values.dtype)
