"""Mean loss and error of a network on given data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kfc_numba.graph import Graph
from kfc_numba.losses import Loss


def evaluate(
    net: Graph, loss: Loss, x: ArrayLike, y: ArrayLike, *, batch_size: int = 256
) -> tuple[float, float]:
    """Mean loss and error of a network in evaluation mode.

    Parameters
    ----------
    net : Graph
    loss : Loss
    x : array_like
        Inputs, (examples, *input_shape).
    y : array_like
        Targets, as `loss` takes them.
    batch_size : int
        Examples computed at a time.

    Returns
    -------
    loss, error : float
        Means over examples, added up in float64; `error` as the loss defines it.
    """
    x, y = checked_data(net, loss, x, y, "x", "y")
    check_integer("batch_size", batch_size)
    total = wrong = 0.0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            outputs = net.forward(x[part]).outputs
            total += float(loss.values(outputs, y[part]).sum())
            wrong += loss.error(outputs, y[part]) * len(outputs)
    return total / len(x), wrong / len(x)


def checked_data(
    net: Graph, loss: Loss, x: ArrayLike, y: ArrayLike, x_name: str, y_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets as arrays, if they fit the network, the loss and each other."""
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype.kind not in "fiub":
        raise TypeError(f"{x_name} must hold real numbers, got dtype {x.dtype}")
    if x.ndim != len(net.input_shape) + 1 or x.shape[1:] != net.input_shape or not len(x):
        expected = ", ".join(map(str, ("examples", *net.input_shape)))
        raise ValueError(f"{x_name} has shape {x.shape}, the network takes ({expected})")
    try:
        loss.check_targets((len(x), *net.output_shape), y)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{y_name}: {error}") from None
    return x, y


def check_integer(name: str, value: Any, *, least: int = 1) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`."""
    good = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not good or value < least:
        raise ValueError(f"{name} (={value!r}) must be an integer of at least {least}")
