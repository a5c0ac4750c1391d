"""Kernels of independent distributions of each output: Bernoulli (`sigmoid_*`) or normal.

Outputs that are not finite give results that are not, for those examples, and no warning.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import alike, checked, output_array
from kfc_numba.kernels.cpu.exponential import exponentials, logistic
from kfc_numba.kernels.cpu.jit import inlined, parallel
from kfc_numba.kernels.cpu.loss_arguments import by_example, component, launch, shaped


def squared_loss(
    outputs: np.ndarray, targets: np.ndarray, *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``(z - t)^2 / 2`` of outputs z and targets t, in float64, and its derivative by z.

    Parameters
    ----------
    outputs : numpy.ndarray
        (examples, ...), float32 or float64.
    targets : numpy.ndarray
        Of the same shape, float32 or float64.
    out : numpy.ndarray, optional
        Where the derivative goes, C-contiguous; may be `outputs`.

    Returns
    -------
    values : numpy.ndarray
        (examples,), float64: sums over an example's components.
    derivative : numpy.ndarray
        Of each example's own value, of the shape and dtype of `outputs`.
    """
    values, out = _componentwise(_squared_loss, outputs, targets, out)
    return by_example(values, len(out)), out


def squared_error(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Mean of ``(z - t)^2``, in float64.

    Parameters
    ----------
    outputs : numpy.ndarray
        float32 or float64.
    targets : numpy.ndarray
        Of the same shape, float32 or float64.

    Returns
    -------
    float
    """
    values, _ = _componentwise(_squared_loss, outputs, targets, None)
    with np.errstate(over="ignore"):
        return float(2 * (values.sum() / values.size))


def sigmoid_loss(
    outputs: np.ndarray, targets: np.ndarray, *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``log(1 + exp(z)) - t z`` of outputs z and targets t, and its derivative by z.

    Parameters
    ----------
    outputs : numpy.ndarray
        (examples, ...), float32 or float64.
    targets : numpy.ndarray
        Of the same shape, float32 or float64, from 0 to 1.
    out : numpy.ndarray, optional
        Where the derivative goes, C-contiguous; may be `outputs`.

    Returns
    -------
    values : numpy.ndarray
        (examples,), float64: sums over an example's components.
    derivative : numpy.ndarray
        Of each example's own value, of the shape and dtype of `outputs`.
    """
    values, out = _componentwise(_sigmoid_loss, outputs, targets, out)
    return by_example(values, len(out)), out


def sigmoid_sample(
    outputs: np.ndarray, uniform: np.ndarray, *, out: np.ndarray | None = None
) -> np.ndarray:
    """1 where a uniform number is below the probability, elsewhere 0 (for an output of NaN too).

    Parameters
    ----------
    outputs : numpy.ndarray
        float32 or float64.
    uniform : numpy.ndarray
        Of the same shape, float64, from 0 and below 1.
    out : numpy.ndarray, optional
        C-contiguous; may be `outputs`.

    Returns
    -------
    numpy.ndarray
        Of the shape and dtype of `outputs`.
    """
    outputs = checked("outputs", outputs, None)
    uniform = shaped("uniform", uniform, np.dtype(np.float64), outputs.shape)
    out = output_array(out, outputs.shape, outputs.dtype)
    launch(_sigmoid_sample, *(array.reshape(-1) for array in (outputs, uniform, out)))
    return out


def sigmoid_fisher_product(
    outputs: np.ndarray, v: np.ndarray, *, out: np.ndarray | None = None
) -> np.ndarray:
    """``p (1 - p) v`` with the probabilities p of the outputs.

    Parameters
    ----------
    outputs, v : numpy.ndarray
        float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous; may be `outputs`, not `v`.

    Returns
    -------
    numpy.ndarray
        Of the shape and dtype of `outputs`.
    """
    outputs, v = alike(outputs=outputs, v=v)
    out = output_array(out, outputs.shape, outputs.dtype)
    if np.may_share_memory(v, out):
        raise ValueError("out must not share memory with v")
    launch(_sigmoid_fisher, *(array.reshape(-1) for array in (outputs, v, out)))
    return out


def sigmoid_deviation(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """``sqrt(p (1 - p))`` with the probability p of a logit: a root of the Fisher matrix.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous; may be `x`.

    Returns
    -------
    numpy.ndarray
        Of the shape and dtype of `x`.
    """
    x = checked("x", x, None)
    out = output_array(out, x.shape, x.dtype)
    launch(_sigmoid_deviation, x.reshape(-1), out.reshape(-1))
    return out


def sigmoid_error(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Fraction of components where "output above 0" and "target above 1/2" are not the same.

    Parameters
    ----------
    outputs : numpy.ndarray
        float32 or float64.
    targets : numpy.ndarray
        Of the same shape, float32 or float64.

    Returns
    -------
    float
    """
    outputs, targets = _paired(outputs, targets)
    return float(np.mean((outputs > 0) != (targets > 0.5)))


def single_component(x: np.ndarray, *, index: int, out: np.ndarray | None = None) -> np.ndarray:
    """`x` at component `index` of each example, elsewhere 0.

    Parameters
    ----------
    x : numpy.ndarray
        (examples, ...), float32 or float64.
    index : int
    out : numpy.ndarray, optional
        C-contiguous; not `x`.

    Returns
    -------
    numpy.ndarray
    """
    x = checked("x", x, None)
    index = component(x, index)
    out = output_array(out, x.shape, x.dtype)
    out.fill(0)
    out.reshape(len(x), -1)[:, index] = x.reshape(len(x), -1)[:, index]
    return out


# Arguments.


def _paired(outputs: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    outputs = checked("outputs", outputs, None)
    return outputs, shaped("targets", targets, None, outputs.shape)


def _componentwise(
    kernel: Any, outputs: Any, targets: Any, out: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The value of each component, and the derivative."""
    outputs, targets = _paired(outputs, targets)
    out = output_array(out, outputs.shape, outputs.dtype)
    values = np.empty(outputs.size)
    launch(kernel, *(array.reshape(-1) for array in (outputs, targets, out)), values)
    return values, out


# Loops, over slices: see `categorical`.


@parallel
def _squared_loss(x, targets, dx, values, chunk):
    for c in prange(-(-len(x) // chunk)):
        here = slice(np.int64(c) * chunk, (np.int64(c) + 1) * chunk)
        z, t, value, d = x[here], targets[here], values[here], dx[here]
        for i in range(z.size):
            difference = np.float64(z[i]) - np.float64(t[i])
            value[i] = 0.5 * (difference * difference)
            d[i] = difference


@inlined
def _small_exponentials(x):
    """Exponentials of ``-|x|``."""
    result = -np.abs(x)
    exponentials(result)
    return result


@parallel
def _sigmoid_loss(x, targets, dx, values, chunk):
    one = x.dtype.type(1)
    for c in prange(-(-len(x) // chunk)):
        here = slice(np.int64(c) * chunk, (np.int64(c) + 1) * chunk)
        z, t, value, d = x[here], targets[here], values[here], dx[here]
        small = _small_exponentials(z)
        for i in range(z.size):
            logit, target = np.float64(z[i]), np.float64(t[i])
            # max(z, 0) - t z, without the difference of two large numbers.
            linear = (1.0 - target) * logit if logit > 0 else -target * logit
            value[i] = linear + math.log1p(np.float64(small[i]))
        for i in range(z.size):
            d[i] = np.float64(logistic(z[i], small[i], one)) - np.float64(t[i])


@parallel
def _sigmoid_sample(x, uniform, result, chunk):
    one = x.dtype.type(1)
    for c in prange(-(-len(x) // chunk)):
        here = slice(np.int64(c) * chunk, (np.int64(c) + 1) * chunk)
        z, u, y = x[here], uniform[here], result[here]
        small = _small_exponentials(z)
        for i in range(z.size):
            y[i] = 1 if u[i] < logistic(z[i], small[i], one) else 0


@parallel
def _sigmoid_fisher(x, v, result, chunk):
    one = x.dtype.type(1)
    for c in prange(-(-len(x) // chunk)):
        here = slice(np.int64(c) * chunk, (np.int64(c) + 1) * chunk)
        u, y = v[here], result[here]
        small = _small_exponentials(x[here])
        for i in range(u.size):
            y[i] = small[i] / ((one + small[i]) * (one + small[i])) * u[i]


@parallel
def _sigmoid_deviation(x, result, chunk):
    one = x.dtype.type(1)
    for c in prange(-(-len(x) // chunk)):
        here = slice(np.int64(c) * chunk, (np.int64(c) + 1) * chunk)
        y = result[here]
        small = _small_exponentials(x[here])
        for i in range(y.size):
            y[i] = np.sqrt(small[i]) / (one + small[i])
