"""Kronecker factors of a batch, and their running averages.

The scale contract of the library (Grosse and Martens, 2016, section 3) is in `scaled`, and nowhere
else: Omega is a mean over examples of sums over locations, Gamma a mean over examples and locations.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kfc_numba.graph import Graph, Step, Trace
from kfc_numba.layers.base import KroneckerLayer, Saved
from kfc_numba.losses import Loss

#: How the factors of a batch are estimated; see `batch_factors`.
ESTIMATION_MODES = ("fisher_gradients", "fisher_exact", "fisher_empirical")
#: How locations that share weights enter; see `scaled`.
APPROXIMATIONS = ("expand", "reduce")


def scaled(
    omega: np.ndarray, gamma: np.ndarray, examples: int, locations: int, approx: str
) -> tuple[np.ndarray, np.ndarray]:
    """Omega and Gamma from raw sums: the scale contract.

    "expand": Omega = omega / M and Gamma = gamma / (M |T|), of sums over examples and locations, so
    that Omega (x) Gamma estimates the Fisher block and the last entry of Omega is |T|.
    "reduce" (Eschenhagen et al., 2023): inputs are averaged and derivatives summed over locations
    before; both are divided by M.

    Parameters
    ----------
    omega : numpy.ndarray
        Raw sum of abar abar^T, (D, D).
    gamma : numpy.ndarray
        Raw sum of Ds Ds^T, (I, I), with derivatives of each example's own loss.
    examples, locations : int
        M and |T|.
    approx : {"expand", "reduce"}

    Returns
    -------
    omega, gamma : numpy.ndarray
    """
    per_location = locations if approx == "expand" else 1
    return omega / examples, gamma / (examples * per_location)


def initial_factors(net: Graph) -> dict[str, np.ndarray]:
    """Running averages before the first estimate: zeros, with a weight of zero.

    Parameters
    ----------
    net : Graph

    Returns
    -------
    dict of str to numpy.ndarray
        ``omega/<layer>`` and ``gamma/<layer>`` of each layer with Kronecker factors,
        ``diagonal/<parameter>`` of all other parameters, and ``factor_weight``.
    """
    state: dict[str, np.ndarray] = {"factor_weight": np.zeros(())}
    for step in net.parameter_steps():
        if isinstance(step.layer, KroneckerLayer):
            shape = step.layer.to_matrix(net.arrays(step)).shape
            *groups, outputs, inputs = shape
            state[f"omega/{step.name}"] = np.zeros((*groups, inputs, inputs), net.dtype)
            state[f"gamma/{step.name}"] = np.zeros((*groups, outputs, outputs), net.dtype)
        else:
            for short in step.names:
                name = f"{step.name}.{short}"
                state[f"diagonal/{name}"] = np.zeros_like(net.params[name])
    return state


def batch_factors(
    net: Graph,
    trace: Trace,
    loss: Loss,
    *,
    mode: str = "fisher_gradients",
    approx: str = "expand",
    rng: np.random.Generator | None = None,
    targets: np.ndarray | None = None,
    samples: int = 1,
) -> dict[str, np.ndarray]:
    """Factors estimated from one batch.

    Parameters
    ----------
    net : Graph
    trace : Trace
        Forward pass of the batch.
    loss : Loss
    mode : {"fisher_gradients", "fisher_exact", "fisher_empirical"}
        Derivatives of targets sampled from the network's own predictive distribution; or of all
        columns of a square root of its Fisher matrix, without the noise of sampling, at the cost
        of one backward pass a column; or of the given targets (the *empirical* Fisher, another
        matrix).
    approx : {"expand", "reduce"}
        See `scaled`.
    rng : numpy.random.Generator, optional
        For ``"fisher_gradients"``.
    targets : numpy.ndarray, optional
        For ``"fisher_empirical"``.
    samples : int
        Targets sampled for each example, one backward pass each.

    Returns
    -------
    dict of str to numpy.ndarray
        ``omega/<layer>``, ``gamma/<layer>``, ``diagonal/<parameter>`` as in `initial_factors`.

    Raises
    ------
    ValueError
        An unknown mode or approximation, or one without what it needs.
    """
    if approx not in APPROXIMATIONS:
        raise ValueError(f"kfac_approx (={approx!r}) must be one of {APPROXIMATIONS}")
    outputs = trace.outputs
    examples = len(outputs)
    passes: float = 1
    if mode == "fisher_gradients":
        if rng is None:
            raise ValueError("mode 'fisher_gradients' needs rng")
        derivatives = (loss.derivative(outputs, loss.sample(outputs, rng)) for _ in range(samples))
        passes = samples
    elif mode == "fisher_exact":
        derivatives = (column for column in loss.fisher_columns(outputs))
    elif mode == "fisher_empirical":
        if targets is None:
            raise ValueError("mode 'fisher_empirical' needs targets")
        derivatives = (loss.derivative(outputs, targets) for _ in range(1))
    else:
        raise ValueError(f"estimation_mode (={mode!r}) must be one of {ESTIMATION_MODES}")

    omegas: dict[str, np.ndarray] = {}
    gammas: dict[str, np.ndarray] = {}
    diagonals: dict[str, np.ndarray] = {}
    locations: dict[str, int] = {}

    def capture(step: Step, saved: Saved, dy: np.ndarray) -> None:
        layer = step.layer
        if isinstance(layer, KroneckerLayer):
            if step.name not in omegas:
                omegas[step.name] = layer.input_moment(saved, approx)
                locations[step.name] = layer.locations(saved, dy)
            _add(gammas, step.name, layer.output_moment(dy, approx))
        else:
            squares = layer.squared_gradients(net.arrays(step), saved, dy, trace.context)
            for short, value in squares.items():
                _add(diagonals, f"{step.name}.{short}", value)

    for derivative in derivatives:
        net.backward(trace, derivative, parameters=False, capture=capture)

    found: dict[str, np.ndarray] = {}
    for name, omega in omegas.items():
        omega, gamma = scaled(omega, gammas[name] / passes, examples, locations[name], approx)
        found[f"omega/{name}"] = omega.astype(net.dtype, copy=False)
        found[f"gamma/{name}"] = gamma.astype(net.dtype, copy=False)
    for name, value in diagonals.items():
        found[f"diagonal/{name}"] = (value / (passes * examples)).astype(net.dtype, copy=False)
    return found


def averaged(
    state: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray], ema: float
) -> dict[str, np.ndarray]:
    """Running averages with a new estimate, unbiased from the first one on.

    With k estimates x_1 ... x_k the average is sum_i ema^(k-i) x_i / sum_i ema^(k-i); it never
    mixes in what it started from.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
        With the averages and ``factor_weight``.
    new : mapping of str to numpy.ndarray
        From `batch_factors`.
    ema : float
        Weight of the old value, from 0 to below 1.

    Returns
    -------
    dict of str to numpy.ndarray
        New entries of the state; `state` is left as it is.
    """
    old_weight = ema * float(state["factor_weight"])
    weight = old_weight + (1 - ema)
    keep = old_weight / weight
    found: dict[str, np.ndarray] = {"factor_weight": np.array(weight)}
    for name, value in new.items():
        found[name] = (keep * state[name] + (1 - keep) * value).astype(value.dtype, copy=False)
    return found


def _add(sums: dict[str, np.ndarray], name: str, value: np.ndarray) -> None:
    if name in sums:
        sums[name] = sums[name] + value
    else:
        sums[name] = value
