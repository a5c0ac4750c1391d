"""Kernels of categorical distributions: each row of outputs (..., K) holds the logits of K classes.

Outputs that are not finite give results that are not, for those rows, and no warning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from kfc_numba.kernels.cpu.arguments import alike, checked, output_array
from kfc_numba.kernels.cpu.exponential import exponentials
from kfc_numba.kernels.cpu.jit import inlined, parallel
from kfc_numba.kernels.cpu.loss_arguments import by_example, component, launch, shaped

_PLACES = 32  # largest numbers, or sums, that are kept side by side: vector instructions
_INTEGER, _DOUBLE = np.dtype(np.int64), np.dtype(np.float64)


def softmax(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """``exp(x_k) / sum_j exp(x_j)`` along the last axis.

    Parameters
    ----------
    x : numpy.ndarray
        (..., K), float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous; may be `x`.

    Returns
    -------
    numpy.ndarray
        Of the shape and dtype of `x`.
    """
    x = _with_classes(checked("x", x, None), "x")
    out = output_array(out, x.shape, x.dtype)
    launch(_softmax, _rows(x), _rows(out))
    return out


def softmax_loss(
    outputs: np.ndarray, targets: np.ndarray, *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``log(sum_k exp(z_k)) - z_t`` of outputs z and target t, and its derivative by z.

    Parameters
    ----------
    outputs : numpy.ndarray
        (examples, ..., K), float32 or float64.
    targets : numpy.ndarray
        (examples, ...), int64, from 0 to K - 1.
    out : numpy.ndarray, optional
        Where the derivative goes, C-contiguous; may be `outputs`.

    Returns
    -------
    values : numpy.ndarray
        (examples,), float64: sums over an example's rows.
    derivative : numpy.ndarray
        Of each example's own value, of the shape and dtype of `outputs`.
    """
    outputs, targets = _classified(outputs, targets)
    out = output_array(out, outputs.shape, outputs.dtype)
    values = np.empty(targets.size)
    launch(_softmax_loss, _rows(outputs), _rows(out), targets.reshape(-1), values)
    return by_example(values, len(outputs)), out


def softmax_sample(outputs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The class at which the cumulative distribution first exceeds a uniform number.

    Parameters
    ----------
    outputs : numpy.ndarray
        (examples, ..., K), float32 or float64.
    uniform : numpy.ndarray
        (examples, ...), float64, from 0 and below 1.

    Returns
    -------
    numpy.ndarray
        (examples, ...), int64; 0 where an output is NaN.
    """
    outputs = _with_classes(checked("outputs", outputs, None), "outputs")
    uniform = shaped("uniform", uniform, _DOUBLE, outputs.shape[:-1])
    labels = np.empty(uniform.shape, np.int64)
    launch(_softmax_sample, _rows(outputs), uniform.reshape(-1), labels.reshape(-1))
    return labels


def softmax_fisher_product(
    outputs: np.ndarray, v: np.ndarray, *, out: np.ndarray | None = None
) -> np.ndarray:
    """``p_k v_k - p_k sum_j p_j v_j`` with the probabilities p of the outputs.

    Parameters
    ----------
    outputs, v : numpy.ndarray
        (examples, ..., K), float32 or float64.
    out : numpy.ndarray, optional
        C-contiguous; may be `outputs`, not `v`.

    Returns
    -------
    numpy.ndarray
        Of the shape and dtype of `outputs`.
    """
    outputs, v = alike(outputs=outputs, v=v)
    _with_classes(outputs, "outputs")
    out = output_array(out, outputs.shape, outputs.dtype)
    if np.may_share_memory(v, out):
        raise ValueError("out must not share memory with v")
    launch(_softmax_fisher, _rows(outputs), _rows(v), _rows(out))
    return out


def softmax_fisher_column(
    probabilities: np.ndarray, *, index: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Column `index` of a root of ``diag(p) - p p^T``: ``sqrt(p_i) (e_i - p)``.

    Parameters
    ----------
    probabilities : numpy.ndarray
        (examples, ..., K), float32 or float64.
    index : int
        Of a component of an example; its column is zero in rows that it is not of.
    out : numpy.ndarray, optional
        C-contiguous; not `probabilities`.

    Returns
    -------
    numpy.ndarray
        Of the shape and dtype of `probabilities`.
    """
    p = _with_classes(checked("probabilities", probabilities, None), "probabilities")
    row, k = divmod(component(p, index), p.shape[-1])
    out = output_array(out, p.shape, p.dtype)
    out.fill(0)
    here, own = (array.reshape(len(p), -1, p.shape[-1])[:, row] for array in (out, p))
    np.negative(own, out=here)
    here[:, k] += 1
    here *= np.sqrt(own[:, k, None])
    return out


def softmax_error(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Fraction of rows whose first largest output (or first NaN) is not that of the target.

    Parameters
    ----------
    outputs : numpy.ndarray
        (examples, ..., K), float32 or float64.
    targets : numpy.ndarray
        (examples, ...), int64, from 0 to K - 1.

    Returns
    -------
    float
    """
    outputs, targets = _classified(outputs, targets)
    return float(np.mean(outputs.argmax(axis=-1) != targets))


# Arguments.


def _with_classes(array: Any, name: str) -> Any:
    if np.ndim(array) < 2:
        raise ValueError(f"{name} must have classes as its last axis, got shape {np.shape(array)}")
    return array


def _classified(outputs: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    outputs = _with_classes(checked("outputs", outputs, None), "outputs")
    targets = shaped("targets", targets, _INTEGER, outputs.shape[:-1])
    least, greatest, last = targets.min(), targets.max(), outputs.shape[-1] - 1
    if least < 0 or greatest > last:
        raise ValueError(f"targets must be from 0 to {last}, got {least} to {greatest}")
    return outputs, targets


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


# Loops, over slices: indices that start elsewhere than at zero are not vectorised, since they might
# be negative. Rows are taken some at a time, so that few classes fill vectors too.


@inlined
def _greatest(row):
    """Largest number, NaN apart."""
    found = row[0]
    if row.size < 2 * _PLACES:
        for k in range(1, row.size):
            found = max(found, row[k])
        return found
    places = row[:_PLACES].copy()
    whole = row.size // _PLACES * _PLACES
    for start in range(_PLACES, whole, _PLACES):
        part = row[start : start + _PLACES]
        for i in range(_PLACES):
            places[i] = part[i] if part[i] > places[i] else places[i]
    for i in range(_PLACES):
        found = max(found, places[i])
    for k in range(whole, row.size):
        found = max(found, row[k])
    return found


@inlined
def _total(row):
    """Sum in float64."""
    total = 0.0
    if row.size < 2 * _PLACES:
        for k in range(row.size):
            total += row[k]
        return total
    places = np.zeros(_PLACES)
    whole = row.size // _PLACES * _PLACES
    for start in range(0, whole, _PLACES):
        part = row[start : start + _PLACES]
        for i in range(_PLACES):
            places[i] += part[i]
    for i in range(_PLACES):
        total += places[i]
    for k in range(whole, row.size):
        total += row[k]
    return total


@inlined
def _shifted_exponentials(x, first, stop, result):
    """Exponentials of some rows less their largest number."""
    for r in range(first, stop):
        source, target = x[r], result[r - first]
        greatest = _greatest(source)
        for k in range(source.size):
            target[k] = source[k] - greatest
    exponentials(result[: stop - first].reshape(-1))


@inlined
def _softmax_rows(x, first, stop, result):
    _shifted_exponentials(x, first, stop, result)
    for r in range(stop - first):
        total = x.dtype.type(_total(result[r]))
        for k in range(x.shape[1]):
            result[r, k] /= total


@parallel
def _softmax(x, y, chunk):
    for c in prange(-(-len(x) // chunk)):
        first = np.int64(c) * chunk
        stop = min(first + chunk, len(x))
        _softmax_rows(x, first, stop, y[first:stop])


@parallel
def _softmax_loss(x, dx, targets, values, chunk):
    for c in prange(-(-len(x) // chunk)):
        first = np.int64(c) * chunk
        stop = min(first + chunk, len(x))
        for r in range(first, stop):
            values[r] = x[r, targets[r]] - np.float64(_greatest(x[r]))
        _shifted_exponentials(x, first, stop, dx[first:stop])
        for r in range(first, stop):
            exact = _total(dx[r])
            values[r] = np.log(exact) - values[r]
            total = x.dtype.type(exact)
            row = dx[r]
            for k in range(row.size):
                row[k] /= total
            row[targets[r]] -= x.dtype.type(1)


@parallel
def _softmax_sample(x, uniform, labels, chunk):
    classes = x.shape[1]
    for c in prange(-(-len(x) // chunk)):
        first = np.int64(c) * chunk
        stop = min(first + chunk, len(x))
        terms = np.empty((stop - first, classes), x.dtype)
        _shifted_exponentials(x, first, stop, terms)
        for r in range(first, stop):
            row = terms[r - first]
            total = 0.0
            for k in range(classes):
                total += row[k]
            limit, below, label = uniform[r] * total, 0.0, 0
            # The last class needs no comparison.
            for k in range(classes - 1):
                below += row[k]
                label += below <= limit
            labels[r] = label


@parallel
def _softmax_fisher(x, v, result, chunk):
    for c in prange(-(-len(x) // chunk)):
        first = np.int64(c) * chunk
        stop = min(first + chunk, len(x))
        _softmax_rows(x, first, stop, result[first:stop])
        product = np.empty(x.shape[1], x.dtype)
        for r in range(first, stop):
            row, direction = result[r], v[r]
            for k in range(row.size):
                product[k] = row[k] * direction[k]
            mean = x.dtype.type(_total(product))
            for k in range(row.size):
                row[k] = product[k] - row[k] * mean
