"""The block-diagonal curvature of a network: factors, their eigenvectors, its damped inverse.

State is a flat mapping of names to arrays, as optimizers keep it: ``omega/<layer>``,
``gamma/<layer>``, their ``omega_values``, ``omega_vectors``, ``gamma_values``, ``gamma_vectors``,
and ``diagonal/<parameter>`` for parameters of layers without Kronecker factors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kfc_numba.curvature.damping import damped_eigenvalues
from kfc_numba.curvature.eigen import decompose, rotate
from kfc_numba.graph import Graph
from kfc_numba.layers.base import Arrays, KroneckerLayer

_FACTORS = ("omega", "gamma")


def initial_eigen(factors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Eigenvalues and eigenvectors before the first decomposition: zeros.

    Parameters
    ----------
    factors : mapping of str to numpy.ndarray
        From `initial_factors`.

    Returns
    -------
    dict of str to numpy.ndarray
    """
    state = {}
    for name, value in factors.items():
        kind, _, layer = name.partition("/")
        if kind in _FACTORS:
            state[f"{kind}_values/{layer}"] = np.zeros_like(value[..., 0])
            state[f"{kind}_vectors/{layer}"] = np.zeros_like(value)
    return state


def decomposed(factors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Eigenvalues and eigenvectors of all Kronecker factors.

    Parameters
    ----------
    factors : mapping of str to numpy.ndarray
        With ``omega/<layer>`` and ``gamma/<layer>``; other entries are passed over.

    Returns
    -------
    dict of str to numpy.ndarray

    Raises
    ------
    FloatingPointError, numpy.linalg.LinAlgError
        As `decompose`, naming the factor.
    """
    state = {}
    for name, value in factors.items():
        kind, _, layer = name.partition("/")
        if kind in _FACTORS:
            state[f"{kind}_values/{layer}"], state[f"{kind}_vectors/{layer}"] = decompose(
                value, name
            )
    return state


def preconditioned(
    net: Graph,
    state: Mapping[str, np.ndarray],
    gradients: Arrays,
    damping: float,
    strategy: str = "pi",
) -> dict[str, np.ndarray]:
    """Damped inverse of the curvature times a vector: rotate, divide, rotate back.

    ``U = Q_G [ (Q_G^T V Q_O) / damped eigenvalues ] Q_O^T`` for a layer with Kronecker factors;
    ``u = v / (diagonal + damping)`` for other parameters.

    Parameters
    ----------
    net : Graph
    state : mapping of str to numpy.ndarray
        With the eigendecompositions and diagonals.
    gradients : mapping of str to numpy.ndarray
        V, one array for each parameter.
    damping : float
        Above zero, or zero where the curvature has full rank.
    strategy : {"pi", "exact", "uniform"}
        See `damped_eigenvalues`.

    Returns
    -------
    dict of str to numpy.ndarray
        One array for each parameter, in order.
    """
    result: dict[str, np.ndarray] = {}
    for step in net.parameter_steps():
        own = {short: gradients[f"{step.name}.{short}"] for short in step.names}
        if isinstance(step.layer, KroneckerLayer):
            left = state[f"gamma_vectors/{step.name}"]
            right = state[f"omega_vectors/{step.name}"]
            inner = rotate(step.layer.to_matrix(own), left, right)
            inner /= damped_eigenvalues(
                state[f"omega_values/{step.name}"],
                state[f"gamma_values/{step.name}"],
                damping,
                strategy,
            )
            found = step.layer.from_matrix(rotate(inner, left, right, back=True), own)
        else:
            found = {
                short: (value / (state[f"diagonal/{step.name}.{short}"] + damping)).astype(
                    value.dtype, copy=False
                )
                for short, value in own.items()
            }
        for short in step.names:
            result[f"{step.name}.{short}"] = found[short]
    return result
