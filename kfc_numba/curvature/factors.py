"""Kronecker factors of a batch, and their running averages.

The scale contract of the library (Grosse and Martens, 2016, section 3) is in `scale` and nowhere
else: Omega is a mean over examples of sums over locations, Gamma one over examples and locations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import combine
from kfc_numba.checks import check_choice, check_integer
from kfc_numba.losses import Loss

#: How the curvature of a batch is estimated; see `output_derivatives`.
ESTIMATION_MODES = ("fisher_gradients", "fisher_exact", "fisher_empirical")
#: How locations that share weights enter; see `scale`.
APPROXIMATIONS = ("expand", "reduce")


def check_samples(mode: str, samples: int) -> None:
    """Raise (ValueError) where more than one target is asked for, and none is sampled."""
    if samples > 1 and mode != "fisher_gradients":
        raise ValueError(
            f"num_estimator_samples (={samples!r}) must be 1 with estimation_mode {mode!r}, which "
            "samples no targets"
        )


def scale(
    omega: np.ndarray,
    gamma: np.ndarray,
    examples: int,
    locations: int,
    approx: str,
    *,
    inputs: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Omega and Gamma from raw sums: the scale contract.

    "expand": Omega = omega / M and Gamma = gamma / (M |T|), of sums over examples and locations, so
    that Omega (x) Gamma estimates the Fisher block and the last entry of Omega is |T|.
    "reduce" (Eschenhagen et al., 2023): inputs are averaged and derivatives summed over locations
    before; both are divided by M.

    Parameters
    ----------
    omega : numpy.ndarray
        Raw sum of abar abar^T, (D, D); divided in place, since a wide one takes a while.
    gamma : numpy.ndarray
        Raw sum of Ds Ds^T, (I, I), with derivatives of each example's own loss; in place too.
    examples, locations : int
        M and |T|.
    approx : {"expand", "reduce"}
    inputs : int, optional
        M of `omega`, where it is of other examples.

    Returns
    -------
    omega, gamma : numpy.ndarray
    """
    per_location = locations if approx == "expand" else 1
    omega /= inputs or examples
    gamma /= examples * per_location
    return omega, gamma


def output_derivatives(
    loss: Loss,
    outputs: np.ndarray,
    *,
    mode: str = "fisher_gradients",
    rng: np.random.Generator | None = None,
    targets: np.ndarray | None = None,
    samples: int = 1,
) -> tuple[Iterator[np.ndarray], int]:
    """Derivatives by the outputs whose outer products add up to the Fisher of the prediction.

    Parameters
    ----------
    loss : Loss
    outputs : numpy.ndarray
        (examples, ...).
    mode : {"fisher_gradients", "fisher_exact", "fisher_empirical"}
        Derivatives of targets sampled from the network's own predictive distribution; or all
        columns of a square root of its Fisher matrix, without the noise of sampling, at the cost
        of one backward pass a column; or derivatives of the given targets (the *empirical* Fisher,
        another matrix).
    rng : numpy.random.Generator, optional
        For ``"fisher_gradients"``.
    targets : numpy.ndarray, optional
        For ``"fisher_empirical"``.
    samples : int
        Targets sampled for each example, one derivative each.

    Returns
    -------
    derivatives : iterator of numpy.ndarray
        Arrays like `outputs`.
    repeats : int
        What the sum over the derivatives is divided by.

    Raises
    ------
    ValueError
        An unknown mode, or one without what it needs.
    """
    check_choice("estimation_mode", mode, ESTIMATION_MODES)
    if mode == "fisher_gradients":
        if rng is None:
            raise ValueError("estimation_mode 'fisher_gradients' needs rng, got None")
        samples = check_integer("samples", samples)
        sampled = (loss.derivative(outputs, loss.sample(outputs, rng)) for _ in range(samples))
        return sampled, samples
    if mode == "fisher_exact":
        return iter(loss.fisher_columns(outputs)), 1
    if targets is None:
        raise ValueError("estimation_mode 'fisher_empirical' needs targets, got None")
    return iter([loss.derivative(outputs, targets)]), 1


def average(
    state: Mapping[str, np.ndarray],
    new: Mapping[str, np.ndarray],
    ema: float,
    *,
    weight: str = "factor_weight",
    equal: int | None = None,
) -> dict[str, np.ndarray]:
    """Running averages with a new estimate, unbiased from the first one on.

    With k estimates x_1 ... x_k the average is sum_i ema^(k-i) x_i / sum_i ema^(k-i); it never
    mixes in what it started from. Estimates that are to weigh the same have together the weight
    that they would have had otherwise.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
        With the averages and `weight`.
    new : mapping of str to numpy.ndarray
        The estimate.
    ema : float
        Weight of the old value, from 0 to below 1.
    weight : str
        Entry of the state with the weight that the averages carry.
    equal : int, optional
        Number of estimates before this one, for it to weigh as much as each of them.

    Returns
    -------
    dict of str to numpy.ndarray
        New entries of the state; `state` is left as it is.
    """
    old_weight = ema * float(state[weight])
    total = old_weight + (1 - ema)
    keep = old_weight / total if equal is None else equal / (equal + 1)
    mixed = combine(1 - keep, new, keep, state)
    return {weight: np.array(total)} | {
        name: array_namespace(value).asarray(mixed[name], dtype=value.dtype)
        for name, value in new.items()
    }
