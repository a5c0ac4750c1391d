"""Mean loss and error of a network on given data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kfc_numba.checks import check_examples, check_integer, check_real, counted
from kfc_numba.devices import owned, taken, to_host
from kfc_numba.foreign_names import explained
from kfc_numba.graph import Graph
from kfc_numba.input_scale import warn_of_pixels, warn_of_tiny
from kfc_numba.kernels.backend import kernels
from kfc_numba.losses import Loss
from kfc_numba.memory import told


@explained
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

    Raises
    ------
    ValueError
        Something does not fit, or `x` has a value that is not finite.
    """
    x, y = check_data(net, loss, x, y, "x", "y")
    check_integer("batch_size", batch_size)
    total = wrong = 0.0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            numbers = np.arange(start, min(start + batch_size, len(x)))
            inputs = finite_inputs(net, x[part], "x", numbers=numbers)
            outputs = told(partial(net.forward, inputs), net, inputs).outputs
            total += float(to_host(loss.values(outputs, y[part])).sum())
            wrong += loss.error(outputs, y[part]) * len(outputs)
    return total / len(x), wrong / len(x)


def check_data(
    net: Graph, loss: Loss, x: Any, y: Any, x_name: str, y_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets as arrays, if they fit the network, the loss and each other."""
    x, y = owned(x_name, x), owned(y_name, y)
    check_real(x_name, x)
    check_examples(x_name, x, net.input_shape)
    try:
        loss.check_targets((len(x), *net.output_shape), y)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{y_name}: {error}") from None
    return x, y


def check_training_data(
    net: Graph, loss: Loss, x: Any, y: Any, validation: tuple[ArrayLike, ArrayLike] | None
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """What is trained and validated on as arrays, if it fits; a warning tells of other scales.

    Raises
    ------
    TypeError, ValueError
        Something does not fit, or an input to validate on is not finite.
    """
    x, y = check_data(net, loss, x, y, "x", "y")
    warn_of_pixels("x", x)
    warn_of_tiny("x", x)
    if validation is None:
        return x, y, None
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise TypeError("validation must be a pair (x, y) of inputs and targets")
    names = "inputs of validation", "targets of validation"
    held_out = check_data(net, loss, *validation, *names)
    warn_of_pixels(names[0], held_out[0])
    check_finite(net, held_out[0], names[0])
    return x, y, held_out


def finite_inputs(
    net: Graph, x: ArrayLike, name: str, of: str = "the data", numbers: np.ndarray | None = None
) -> np.ndarray:
    """Inputs as the network computes on them, if all of them are finite.

    Not everything that is not finite shows in a loss: pooling takes the larger of two, a stride
    steps over pixels.

    Parameters
    ----------
    net : Graph
    x : array_like
        Inputs, (examples, *input_shape).
    name, of : str
        What they are, and what the examples are counted in, for the message.
    numbers : numpy.ndarray, optional
        Numbers of the examples; 0, 1, ... if none are given.

    Returns
    -------
    numpy.ndarray
        C-contiguous, of the network's dtype.

    Raises
    ------
    ValueError
        Inputs do not fit the network, or a value is not finite; the message names the first
        example with one.
    """
    with np.errstate(over="ignore"):  # what the dtype cannot hold becomes infinite
        inputs = net.check_inputs(x)
    # A sum, which is much cheaper than to look at each value.
    if not kernels(inputs).all_finite(inputs):
        bad = ~np.isfinite(to_host(inputs))
        given = np.asarray(to_host(x))
        lost = given.dtype.kind in "fiu" and np.isfinite(given)[bad].all()
        after = " that {be} not finite" + f" in {inputs.dtype}" * bool(lost)
        raise ValueError(f"{counted(name, 'value', bad, after, numbers)} of {of}")
    return inputs


def check_finite(
    net: Graph, x: np.ndarray, name: str, numbers: np.ndarray | None = None, batch_size: int = 256
) -> None:
    """Raise as `finite_inputs` does, for a whole data set; a part is copied at a time.

    Parameters
    ----------
    net : Graph
    x : numpy.ndarray
    name : str
    numbers : numpy.ndarray, optional
    batch_size : int
    """
    numbers = np.arange(len(x)) if numbers is None else numbers
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        finite_inputs(net, x[part], name, numbers=numbers[part])


@contextmanager
def naming_examples(net: Graph, x: np.ndarray, drawn: Callable[[], np.ndarray]) -> Iterator[None]:
    """Let an error that comes of bad inputs in a batch name them by their numbers in the data.

    Parameters
    ----------
    net : Graph
    x : numpy.ndarray
        The data.
    drawn : callable
        Gives the numbers of the examples in the batch.
    """
    try:
        yield
    except (ValueError, FloatingPointError):
        numbers = drawn()
        if len(numbers):
            try:
                finite_inputs(net, taken(x, numbers), "x", numbers=numbers)
            except ValueError as error:
                raise error from None
        raise
