"""What all optimizers share: hyperparameters, one checked step, iterate averaging."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import combine, together
from kfc_numba.checks import check_number
from kfc_numba.devices import check_places
from kfc_numba.foreign_names import Explained
from kfc_numba.graph import Capture, Graph, Trace
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Arrays
from kfc_numba.losses import Loss
from kfc_numba.memory import told
from kfc_numba.optim.averaging import average, initial_average, timescale_at, update_average
from kfc_numba.optim.calls import written
from kfc_numba.optim.finite import StepChecks

Scheduled = float | Callable[[int], float]
State = dict[str, np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]


class Optimizer(Explained):
    """Base class of optimizers: hyperparameters only.

    What changes from step to step is in `state`, a flat mapping of names to arrays that `init`
    makes and a checkpoint can hold. Each hyperparameter is an attribute of its own name; those
    that may be schedules are read with `scheduled`. A subclass defines `intervals`, `delta`, and
    `initial_state` where it keeps anything.

    Parameters
    ----------
    l2_reg : float or callable of the step
        Weight of a penalty on all parameters, against overfitting; usually 1e-5 to 1e-3. eta:
        ``eta * theta`` is added to the gradient of every parameter, biases included. The loss that
        `step` returns does not include the penalty.
    weight_decay : float or callable of the step
        What each step takes away of all parameters, against overfitting; usually 1e-3 to 0.1. w:
        ``theta = (1 - learning_rate w) theta + delta``, apart from the gradient and from momentum
        (Loshchilov and Hutter, 2019). PyTorch's `weight_decay` is this in AdamW, and `l2_reg` in
        SGD and Adam.
    averaging : float, optional
        Steps, or below 1 the part of all steps, whose parameters and running statistics are
        averaged for evaluation; usually 0.05 to 0.2. The timescale of an exponentially weighted
        average; below 1, the average always is over the latest part of training. None for none.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    #: Range of each hyperparameter that is a number, in the notation of intervals.
    intervals: ClassVar[dict[str, str]] = {
        "l2_reg": "[0, inf)",
        "weight_decay": "[0, inf)",
        "averaging": "(0, inf)",
    }
    #: Whether `delta` looks at `value`: on a card that takes a wait before it, and not only after.
    needs_loss: ClassVar[bool] = True
    #: Batches that `prepare` wants to see before the first step.
    num_burnin_steps: int = 0

    def __init__(
        self,
        *,
        l2_reg: Scheduled = 0.0,
        weight_decay: Scheduled = 0.0,
        averaging: float | None = 0.1,
    ):
        self.l2_reg = self.check("l2_reg", l2_reg)
        self.weight_decay = self.check("weight_decay", weight_decay)
        self.averaging = self.check("averaging", averaging, schedule=False, optional=True)

    # What trainers and users call.

    def init(self, net: Graph) -> State:
        """State before the first step.

        Parameters
        ----------
        net : Graph

        Returns
        -------
        dict of str to numpy.ndarray
            ``step`` (int64 scalar, the number of steps done) and what the optimizer keeps.
        """
        state = {"step": np.zeros((), np.int64)}
        if self.averaging is not None:
            state |= initial_average(net)
        return state | self.initial_state(net)

    def prepare(
        self, net: Graph, loss: Loss, batches: Iterable[Batch], state: State, *, seed: int = 0
    ) -> None:
        """Look at batches before the first step, without a change of parameters.

        Parameters
        ----------
        net : Graph
        loss : Loss
        batches : iterable of (x, y)
            `num_burnin_steps` of them.
        state : dict of str to numpy.ndarray
            Entries are replaced by new arrays; all of them, or none if an error is raised.
        seed : int
            Key of random numbers.

        Raises
        ------
        ValueError
            An input is not finite.
        FloatingPointError
            Something else is not.
        """

    def step(
        self,
        net: Graph,
        loss: Loss,
        x: np.ndarray,
        y: np.ndarray,
        state: State,
        *,
        seed: int = 0,
    ) -> float:
        """One step on one batch.

        Parameters
        ----------
        net : Graph
            Its parameters and running statistics are updated.
        loss : Loss
        x : numpy.ndarray
            Inputs, (M, *input_shape).
        y : numpy.ndarray
            Targets, as `loss` takes them.
        state : dict of str to numpy.ndarray
            From `init`; updated in place.
        seed : int
            Key of random numbers, together with the number of the step.

        Returns
        -------
        float
            Mean loss of the batch before the step, without the l2 penalty.

        Raises
        ------
        ValueError
            An input is not finite. `net` and `state` are then what they were before the call.
        FloatingPointError
            The loss, a gradient, or an updated array is not; the same holds.
        MemoryError
            A card has too little memory; the message says how much is needed, and how many examples
            fit. The same holds.
        """
        check_places(net.device, state)
        return told(partial(self._step, net, loss, x, y, state, seed), net, x, self)

    def _step(
        self, net: Graph, loss: Loss, x: np.ndarray, y: np.ndarray, state: State, seed: int
    ) -> float:
        step = int(state["step"])
        checks = StepChecks(step)
        x = checks.inputs(net, x)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            trace = net.forward(x, training=True, seed=seed, step=step)
            derivative = checks.loss(loss, trace.outputs, y)
            kernels(derivative).scale(derivative, 1 / len(derivative), out=derivative)
            gradients = net.backward(trace, derivative, capture=self.watch(trace, step))
            checks.arrays("gradient of ", gradients)
            value = checks.read() if self.needs_loss else math.nan
            l2_reg = self.scheduled("l2_reg", step)
            if l2_reg:
                # Not in place: a layer may own the array it returned.
                gradients = combine(1.0, gradients, l2_reg, net.params)
            try:
                deltas, changes = self.delta(
                    net, loss, trace, x, y, value, gradients, state, step, seed
                )
            except OverflowError as error:  # Python's numbers raise where those of arrays do not
                raise FloatingPointError(f"update is not finite at step {step}: {error}") from error
            decay = self.decay(net, loss, state, changes, step, len(x))
            params = shift(net.params, deltas, decay)
            checks.arrays("update of ", params)
            checks.arrays("optimizer state ", changes)
            changes = changes | {"step": np.array(step + 1, np.int64)}
            # From here on things are changed, the statistics first: they can still be refused.
            before, writing = dict(net.buffers), False
            try:
                net.commit(trace)
                checks.arrays("running statistic ", net.buffers)
                if self.averaging is not None:
                    timescale = timescale_at(self.averaging, step + 1)
                    changes |= update_average(state, net, params, timescale)
                value = checks.read()
                writing = True
                _take_over(net, params, state, changes)
            except BaseException:
                if writing:  # an interrupt: half a step is none
                    _take_over(net, params, state, changes)
                else:
                    net.buffers.update(before)
                raise
        return value

    def evaluation_arrays(self, net: Graph, state: Mapping[str, np.ndarray]) -> dict:
        """Parameters and running statistics to evaluate with: averages where averaging is on.

        Parameters
        ----------
        net : Graph
        state : mapping of str to numpy.ndarray

        Returns
        -------
        dict of str to numpy.ndarray
            In the order of ``net.params`` and ``net.buffers``; these themselves without an average.
        """
        return average(state, net) if self.averaging is not None else {**net.params, **net.buffers}

    def config(self) -> dict[str, Any]:
        """Hyperparameters as JSON can hold them; a schedule as its repr."""
        values = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        plain = (bool, int, float, str, type(None))
        return {"optimizer": type(self).__name__} | {
            name: value if isinstance(value, plain) else repr(value)
            for name, value in values.items()
        }

    def __repr__(self) -> str:
        """As a program would write it: what is not the default."""
        try:
            usual = vars(type(self)())
        except (TypeError, ValueError):  # it needs arguments
            usual = {}
        return written(self, usual)

    # What subclasses define.

    def initial_state(self, net: Graph) -> State:
        """Entries of the state besides ``step`` and the average."""
        return {}

    def delta(
        self,
        net: Graph,
        loss: Loss,
        trace: Trace,
        x: np.ndarray,
        y: np.ndarray,
        value: float,
        gradients: Arrays,
        state: Mapping[str, np.ndarray],
        step: int,
        seed: int,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What a step adds to the parameters, and the new entries of the state.

        Nothing given may be changed: what is returned takes effect only if all of it is finite.

        Parameters
        ----------
        net : Graph
        loss : Loss
        trace : Trace
            Of the forward pass on the batch, in training mode.
        x, y : numpy.ndarray
            The batch.
        value : float
            Its mean loss, without the l2 penalty; NaN without `needs_loss`.
        gradients : mapping of str to numpy.ndarray
            Of the mean loss, with the l2 penalty.
        state : mapping of str to numpy.ndarray
        step : int
            Number of steps done before this one.
        seed : int

        Returns
        -------
        deltas : dict of str to numpy.ndarray
            One array for each parameter.
        changes : dict of str to numpy.ndarray
            New arrays for entries of the state.
        """
        raise NotImplementedError

    def decay(
        self, net: Graph, loss: Loss, state: Arrays, changes: Arrays, step: int, examples: int
    ) -> dict[str, float]:
        """Parts of parameters that a step takes away.

        Parameters
        ----------
        net : Graph
        loss : Loss
        state, changes : mapping of str to numpy.ndarray
            Before the step, and as `delta` returned them.
        step, examples : int
            Its number, and examples of the batch.

        Returns
        -------
        dict of str to float
            By name, from 0 to 1: the learning rate times the weight decay. Others remain whole.

        Raises
        ------
        ValueError
            That is more than 1.
        """
        return dict.fromkeys(net.params, self._decayed(self.scheduled("weight_decay", step), step))

    def watch(self, trace: Trace, step: int) -> Capture | None:
        """What looks on while the gradients of a step are computed: `capture` of `Graph.backward`.

        Parameters
        ----------
        trace : Trace
        step : int

        Returns
        -------
        callable or None
            None: nothing.
        """
        return None

    # Hyperparameters.

    def check(self, name: str, value: Any, *, schedule: bool = True, optional: bool = False) -> Any:
        """A hyperparameter as given, if it is in its interval.

        Parameters
        ----------
        name : str
            A key of `intervals`.
        value : float, callable or None
        schedule : bool
            Whether a callable of the step is accepted; its values are checked when used.
        optional : bool
            Whether None is accepted.

        Returns
        -------
        float, callable or None

        Raises
        ------
        TypeError, ValueError
        """
        if (optional and value is None) or (schedule and callable(value)):
            return value
        also = " or a callable of the step" * schedule + " or None" * optional
        return check_number(name, value, self.intervals[name], also)

    def _decayed(self, weight_decay: float, step: int) -> float:
        if not weight_decay:  # nor has every optimizer a learning rate
            return 0.0
        name = f"learning_rate * weight_decay at step {step}"
        return check_number(name, self.scheduled("learning_rate", step) * weight_decay, "[0, 1]")

    def scheduled(self, name: str, step: int) -> float:
        """Value of a hyperparameter at a step.

        Parameters
        ----------
        name : str
            A key of `intervals`.
        step : int

        Returns
        -------
        float

        Raises
        ------
        TypeError, ValueError
            A schedule returned something that is no number, or out of range.
        """
        value = getattr(self, name)
        if not callable(value):
            return float(value)
        return check_number(f"{name} at step {step}", value(step), self.intervals[name])


def _take_over(net: Graph, params: Arrays, state: State, changes: Arrays) -> None:
    """Write what a step has found."""
    many = together(params.values())
    if many is not None:
        many.copy(list(params.values()), [net.params[name] for name in params])
    else:
        for name, new in params.items():
            net.params[name][...] = new
    state.update(changes)


def shift(
    params: Arrays, deltas: Arrays, taken: Mapping[str, float] = MappingProxyType({})
) -> dict[str, np.ndarray]:
    """New arrays, ``(1 - taken) params + deltas``, of the dtypes of the parameters.

    Parameters
    ----------
    params, deltas : mapping of str to numpy.ndarray
    taken : mapping of str to float
        Parts of parameters, 0 for those that it lacks.

    Returns
    -------
    dict of str to numpy.ndarray
    """
    kept = {name: 1.0 - taken.get(name, 0.0) for name in params}
    moved = combine(kept, params, 1.0, deltas)
    return {
        name: array_namespace(old).astype(moved[name], old.dtype, copy=False)
        for name, old in params.items()
    }
