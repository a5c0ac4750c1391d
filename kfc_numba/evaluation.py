"""Mean loss and error of a network on given data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kfc_numba.checks import check_integer, check_real
from kfc_numba.devices import owned, to_host
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
    x, y = check_data(net, loss, x, y, "x", "y")
    check_integer("batch_size", batch_size)
    total = wrong = 0.0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            outputs = net.forward(x[part]).outputs
            total += float(to_host(loss.values(outputs, y[part])).sum())
            wrong += loss.error(outputs, y[part]) * len(outputs)
    return total / len(x), wrong / len(x)


def check_data(
    net: Graph, loss: Loss, x: Any, y: Any, x_name: str, y_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets as arrays, if they fit the network, the loss and each other."""
    x, y = owned(x), owned(y)
    check_real(x_name, x)
    if x.ndim != len(net.input_shape) + 1 or x.shape[1:] != net.input_shape or not len(x):
        expected = ", ".join(map(str, ("examples", *net.input_shape)))
        raise ValueError(f"{x_name} has shape {x.shape}, the network takes ({expected})")
    try:
        loss.check_targets((len(x), *net.output_shape), y)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{y_name}: {error}") from None
    return x, y
