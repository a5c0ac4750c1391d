"""What has to be finite in a step, looked at where it costs least."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from kfc_numba.arrays import together
from kfc_numba.evaluation import finite_inputs
from kfc_numba.graph import Graph
from kfc_numba.kernels.backend import kernels, on_device
from kfc_numba.layers.base import Arrays
from kfc_numba.losses import Loss


def require_finite(what: str, arrays: Arrays, step: int) -> None:
    """Raise FloatingPointError that names the first array with an entry that is not finite.

    Parameters
    ----------
    what : str
        What precedes the array's name in the message, with its space.
    arrays : mapping of str to numpy.ndarray
    step : int
        Number of the step, for the message.
    """
    checks = StepChecks(step)
    checks.arrays(what, arrays)
    checks.read()


class StepChecks:
    """What one step computes, as far as it has to be finite, and its loss.

    An array of the host is looked at when it is given. A card has to be waited for at each look,
    and has nothing to do until it is asked for more: its arrays are remembered, and `read` looks at
    all of them and at the loss together. What was given first is told first, in the same words.

    Parameters
    ----------
    step : int
        Number of the step, for the messages.
    """

    def __init__(self, step: int):
        self._step = step
        self._noted: list[tuple[Any, Callable[[], Exception]]] = []
        self._losses: Any = None
        self._value = math.nan

    def inputs(self, net: Graph, x: Any) -> Any:
        """Inputs as `kfc_numba.evaluation.finite_inputs` returns them."""
        check = partial(finite_inputs, net, x, "x", "the batch")
        there = net.device != "cpu" and on_device(x)
        if not there or x.size > kernels(x).many.LARGEST:
            return check()
        with np.errstate(over="ignore"):  # what the dtype cannot hold becomes infinite
            inputs = net.check_inputs(x)
        self._noted.append((inputs, partial(_raised, check)))
        return inputs

    def loss(self, loss: Loss, outputs: Any, targets: Any) -> Any:
        """Derivative of the loss, whose mean over examples `read` returns."""
        found = loss.deferred(outputs, targets) if on_device(outputs) else None
        if found is not None:
            self._losses, derivative = found
            self._noted.append((None, self._bad_loss))
            return derivative
        self._value, derivative = loss.value_and_derivative(outputs, targets)
        if not math.isfinite(self._value):
            raise self._bad_loss()
        return derivative

    def arrays(self, what: str, arrays: Mapping[str, Any]) -> None:
        """Arrays by name; see `require_finite`. Counts, which are integers, always are finite."""
        for name, value in arrays.items():
            if np.dtype(value.dtype).kind != "f":
                continue
            if on_device(value):
                self._noted.append((value, partial(self._bad_array, what, name)))
            elif not (kernels(value).all_finite(value) if value.ndim else math.isfinite(value)):
                raise self._bad_array(what, name)

    def read(self) -> float:
        """The loss, if all that was given is finite. Waits for the card, at most once.

        Raises
        ------
        ValueError
            An input is not finite.
        FloatingPointError
            Something else is not.
        """
        noted, self._noted = self._noted, []
        losses, self._losses = self._losses, None
        many = together(value for value, _ in noted if value is not None)
        if many is not None:
            good, read = many.finite([v for v, _ in noted if v is not None], besides=losses)
            if losses is not None:
                self._value = float(read.mean())
            flags = iter(good)
            for value, problem in noted:
                if not (math.isfinite(self._value) if value is None else next(flags)):
                    raise problem()
        return self._value

    def _bad_array(self, what: str, name: str) -> Exception:
        return FloatingPointError(f"{what}{name} is not finite at step {self._step}")

    def _bad_loss(self) -> Exception:
        return FloatingPointError(f"loss is {self._value} at step {self._step}")


def _raised(check: Callable[[], Any]) -> Exception:
    """The error that a check has to raise."""
    try:
        check()
    except ValueError as error:
        return error
    raise AssertionError("nothing was wrong")
