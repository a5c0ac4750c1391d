"""Networks: topology, parameters, and the three passes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import DTypeLike

from kfc_numba.arrays import cast, contiguous, zeros_like
from kfc_numba.checks import check_examples, check_instance, check_integer, check_real
from kfc_numba.devices import DeviceMemory, check_device, device_of, owned, to_device
from kfc_numba.foreign_names import Explained, explained
from kfc_numba.input_scale import warn_of_pixels
from kfc_numba.kernels.backend import kernels, on_device
from kfc_numba.layers.base import Arrays, Context, Node, Saved, Shape
from kfc_numba.memory import step_memory, told
from kfc_numba.random import generator
from kfc_numba.summary import line, table
from kfc_numba.topology import Input, PlacedLayer, order_layers
from kfc_numba.trace import Trace
from kfc_numba.workspace import Workspace

if TYPE_CHECKING:
    from kfc_numba.losses import Loss
    from kfc_numba.optim.base import Optimizer

__all__ = ["Graph", "Input", "Node", "PlacedLayer", "Trace"]

Capture = Callable[["PlacedLayer", Saved, np.ndarray], None]


class Graph(Explained):
    """A network whose layers form a directed acyclic graph.

    Parameters
    ----------
    inputs : Node
        What `Input` returned.
    outputs : Node
        The node whose value the network computes; it depends on `inputs` alone.
    seed : int
        Seed of the initial parameters.
    dtype : dtype
        float32 or float64.
    device : {"cpu", "cuda"}
        Where the network computes: see `to`.

    Attributes
    ----------
    params : dict of str to numpy.ndarray
        Parameters by name (``conv1.weight``), in layer order, weight before bias.
    buffers : dict of str to numpy.ndarray
        Running statistics by name (``norm1.mean``).
    input_shape, output_shape : tuple of int
        Shapes of one example.
    dtype : numpy.dtype
    layers : list of PlacedLayer
        Layers in order of computation.
    workspace : Workspace
    """

    def __init__(
        self,
        inputs: Node,
        outputs: Node,
        *,
        seed: int = 0,
        dtype: DTypeLike = np.float32,
        device: str = "cpu",
    ):
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"dtype (={dtype!r}) must be float32 or float64")
        for name, node in (("inputs", inputs), ("outputs", outputs)):
            check_instance(name, node, Node, "a node")
        if inputs.layer is not None:
            raise ValueError("inputs must come from Input(...), got the output of a layer")
        seed = check_integer("seed", seed, least=0)
        self.input_shape = inputs.shape
        self.output_shape = outputs.shape
        self.device = "cpu"
        self.workspace: Workspace | DeviceMemory = Workspace()
        self.layers = order_layers(inputs, outputs)
        self.params: dict[str, np.ndarray] = {}
        self.buffers: dict[str, np.ndarray] = {}
        for placed in self.layers:
            rng = generator(seed, "parameters", placed.index)
            for short, value in placed.layer.parameters(rng, *placed.input_shapes).items():
                self.params[f"{placed.name}.{short}"] = np.ascontiguousarray(value, self.dtype)
            for short, value in placed.layer.buffers(*placed.input_shapes).items():
                self.buffers[f"{placed.name}.{short}"] = np.ascontiguousarray(value, self.dtype)
        self._shapes = {name: value.shape for name, value in self.params.items()}
        self._buffer_names = {s.name: tuple(s.layer.buffers(*s.input_shapes)) for s in self.layers}
        self._buffer_shapes = {name: value.shape for name, value in self.buffers.items()}
        self.to(device)

    def to(self, device: str) -> Self:
        """Move parameters and running statistics, and compute there from now on.

        Inputs and targets may be arrays of either place. A trainer moves with `Trainer.to`.

        Parameters
        ----------
        device : {"cpu", "cuda"}
            ``"cuda"``: CuPy's current NVIDIA card.

        Returns
        -------
        Graph
            This network.

        Raises
        ------
        DeviceError
            A package, the driver or the card is missing; the message says which.
        """
        device = check_device(device)
        if device != self.device:
            for arrays in (self.params, self.buffers):
                arrays.update({name: to_device(value, device) for name, value in arrays.items()})
            self.device = device
            self.workspace = Workspace() if device == "cpu" else DeviceMemory()
        return self

    @explained
    def predict(self, x: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
        """Outputs of the network in evaluation mode: logits, where the loss takes them.

        Parameters
        ----------
        x : numpy.ndarray
            Inputs, (examples, *input_shape).
        batch_size : int
            Examples computed at a time; changes the use of memory, not the result.

        Returns
        -------
        numpy.ndarray
            (examples, *output_shape), of the network's dtype.
        """
        x = self.check_inputs(x)
        warn_of_pixels("x", x)
        batch_size = check_integer("batch_size", batch_size)
        result = array_namespace(x).empty((len(x), *self.output_shape), dtype=self.dtype)
        for start in range(0, len(x), batch_size):
            part = x[start : start + batch_size]
            outputs = told(partial(self.forward, part), self, part).outputs
            result[start : start + batch_size] = to_device(outputs, device_of(x))
        return result

    def predict_proba(self, x: np.ndarray, loss: Loss, *, batch_size: int = 256) -> np.ndarray:
        """Mean of the distribution that `loss` reads from the outputs, in evaluation mode.

        Parameters
        ----------
        x : numpy.ndarray
            Inputs, (examples, *input_shape).
        loss : Loss
            What the network was trained with.
        batch_size : int
            Examples computed at a time.

        Returns
        -------
        numpy.ndarray
            As `predict`: probabilities of classes (`SoftmaxCrossEntropy`) or of ones
            (`SigmoidCrossEntropy`), or the outputs themselves (`SquaredError`).
        """
        return loss.predictive_mean(self.predict(x, batch_size=batch_size))

    def value_and_grad(
        self, x: np.ndarray, y: np.ndarray, loss: Loss
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Mean loss of a batch, and its gradient, in training mode.

        Parameters
        ----------
        x : numpy.ndarray
            Inputs, (examples, *input_shape).
        y : numpy.ndarray
            Targets, as `loss` takes them.
        loss : Loss

        Returns
        -------
        value : float
            Mean over examples.
        gradients : dict of str to numpy.ndarray
            One array for each of `params`, of its shape and dtype.
        """
        trace = self.forward(x, training=True)
        value, derivative = loss.value_and_derivative(trace.outputs, y)
        kernels(derivative).scale(derivative, 1 / len(derivative), out=derivative)
        return value, self.backward(trace, derivative)

    def summary(self) -> str:
        """Table of layers, output shapes and parameter counts, at most 100 columns wide."""
        return table(self.layers, self.input_shape, self.params)

    def __repr__(self) -> str:
        name, ends = type(self).__name__, (self.input_shape, self.output_shape)
        return f"<{line(name, ends, len(self.layers), self.params, self.dtype)}>"

    def memory(self, batch_size: int, optimizer: Optimizer | None = None) -> dict[str, int]:
        """Bytes that a step of training needs.

        Parameters
        ----------
        batch_size : int
        optimizer : Optimizer, optional
            Its state is counted too.

        Returns
        -------
        dict of str to int
            ``parameters``, ``buffers``, ``activations`` (with their derivatives, where these take
            most), ``optimizer_state``, ``changes`` (gradients, and new values of parameters and
            state while a step is under way), ``kernels`` (what those of a card take for a moment;
            0 on the CPU, where that is little) and ``total``.
        """
        return step_memory(self, check_integer("batch_size", batch_size), optimizer)

    # The three passes.

    def forward(
        self,
        x: np.ndarray,
        *,
        training: bool = False,
        seed: int = 0,
        step: int = 0,
        like: Trace | None = None,
    ) -> Trace:
        """Compute the outputs and keep what the other passes need.

        Parameters
        ----------
        x : numpy.ndarray
            Inputs, (examples, *input_shape).
        training : bool
            Whether dropout and batch statistics are in force.
        seed, step : int
            Key of the random numbers drawn.
        like : Trace, optional
            An earlier pass on the same examples: its key and random numbers are taken.

        Returns
        -------
        Trace
        """
        x = to_device(self.check_inputs(x), self.device)
        context = Context(training=training, seed=seed, step=step, workspace=self.workspace)
        if like is not None:
            context = like.again(len(x))
        values: dict[int, np.ndarray] = {-1: x}
        saved: list[Saved] = []
        for s in self.layers:
            context.node = s.index
            inputs = tuple(values[p] for p in s.parents)
            values[s.index], kept = s.layer.forward(self.arrays(s), inputs, context)
            saved.append(kept)
            del inputs
            for parent in s.last_of:
                del values[parent]
        return Trace(values[len(self.layers) - 1], saved, context)

    def backward(
        self,
        trace: Trace,
        doutputs: np.ndarray,
        *,
        parameters: bool = True,
        capture: Capture | None = None,
    ) -> dict[str, np.ndarray]:
        """Gradients of ``sum(doutputs * outputs)`` by the parameters.

        Parameters
        ----------
        trace : Trace
        doutputs : numpy.ndarray
            Derivative by the outputs, of their shape.
        parameters : bool
            Whether gradients are computed; without them the pass costs about half.
        capture : callable, optional
            Called as ``capture(placed, saved, dy)`` at each layer with parameters, the last one
            first.

        Returns
        -------
        dict of str to numpy.ndarray
            Gradients by name in the order of `params`; empty without `parameters`.
        """
        gradients: dict[str, np.ndarray] = {}
        pending: dict[int, np.ndarray] = {len(self.layers) - 1: doutputs}
        for s in reversed(self.layers):
            dy = pending.pop(s.index, None)
            if dy is None or not s.trained:
                continue
            trace.context.node = s.index
            saved = trace.saved[s.index]
            if capture is not None and s.names:
                capture(s, saved, dy)
            need_inputs = any(p >= 0 and self.layers[p].trained for p in s.parents)
            dinputs, found = s.layer.backward(
                self.arrays(s),
                saved,
                dy,
                trace.context,
                need_inputs=need_inputs,
                need_parameters=parameters,
            )
            gradients |= {f"{s.name}.{short}": value for short, value in found.items()}
            for parent, dinput in zip(s.parents, dinputs, strict=True):
                if parent < 0 or dinput is None:
                    continue
                if parent in pending:
                    # Not in place: a merge may have handed the same array to several parents.
                    both = trace.context.empty(dinput.shape, dinput.dtype)
                    pending[parent] = kernels(dinput).add(pending[parent], dinput, out=both)
                else:
                    pending[parent] = dinput
        if not parameters:
            return {}
        return {name: gradients[name] for name in self.params}

    def tangent(self, trace: Trace, direction: Arrays) -> np.ndarray:
        """Derivative of the outputs along a direction of the parameters (forward mode).

        Parameters
        ----------
        trace : Trace
        direction : mapping of str to numpy.ndarray
            One array for each of `params`.

        Returns
        -------
        numpy.ndarray
            J v, of the shape of the outputs.
        """
        values: dict[int, np.ndarray | None] = {-1: None}
        for s in self.layers:
            trace.context.node = s.index
            inputs = tuple(values[p] for p in s.parents)
            if not s.trained:
                values[s.index] = None
            else:
                if not s.names and any(value is None for value in inputs):
                    inputs = tuple(
                        self.workspace.zeros((len(trace.outputs), *shape), self.dtype)
                        if value is None
                        else value
                        for value, shape in zip(inputs, s.input_shapes, strict=True)
                    )
                values[s.index] = s.layer.tangent(
                    self.arrays(s),
                    trace.saved[s.index],
                    inputs,
                    {short: direction[f"{s.name}.{short}"] for short in s.names},
                    trace.context,
                )
            for parent in s.last_of:
                del values[parent]
        result = values[len(self.layers) - 1]
        return zeros_like(trace.outputs) if result is None else result

    @property
    def couples_examples(self) -> bool:
        """Whether, in training, outputs of an example depend on others (batch normalisation)."""
        return any(s.layer.couples_examples for s in self.layers)

    def part(self, trace: Trace, x: np.ndarray, chosen: np.ndarray) -> Trace:
        """Trace of some examples of a batch.

        Taken out of the trace where examples do not act on each other; otherwise (batch
        normalisation in training) computed anew on those examples.

        Parameters
        ----------
        trace : Trace
        x : numpy.ndarray
            The inputs that `trace` came from.
        chosen : numpy.ndarray
            (n,), int64: numbers of the examples, at least one.

        Returns
        -------
        Trace
        """
        context = trace.context
        if context.training and self.couples_examples:
            return self.forward(x[chosen], training=True, seed=context.seed, step=context.step)
        return trace.taken(chosen)

    def commit(self, trace: Trace) -> None:
        """Take over the running statistics of a training pass that ended well."""
        for s in (s for s in self.layers if self._buffer_names[s.name]):
            for short, value in s.layer.update_buffers(
                self.arrays(s), trace.saved[s.index]
            ).items():
                self.buffers[f"{s.name}.{short}"] = value

    # What the other files of the library use.

    def arrays(self, placed: PlacedLayer) -> dict[str, np.ndarray]:
        """Parameters and running statistics of a layer by short name."""
        found = {}
        for short in placed.names:
            name = f"{placed.name}.{short}"
            found[short] = self._check("params", name, self.params, self._shapes)
        for short in self._buffer_names[placed.name]:
            name = f"{placed.name}.{short}"
            found[short] = self._check("buffers", name, self.buffers, self._buffer_shapes)
        return found

    def parameter_layers(self) -> Iterator[PlacedLayer]:
        """The layers that have parameters, in order."""
        return (s for s in self.layers if s.names)

    def check_inputs(self, x: Any) -> np.ndarray:
        """Inputs as a C-contiguous array of the network's dtype; ValueError if they do not fit."""
        x = owned("x", x)
        check_real("x", x)
        check_examples("x", x, self.input_shape)
        return contiguous(cast(x, self.dtype))

    def _check(
        self, mapping: str, name: str, arrays: dict[str, np.ndarray], shapes: dict[str, Shape]
    ) -> np.ndarray:
        value: Any = arrays.get(name)
        array = isinstance(value, np.ndarray) or on_device(value)
        if (
            not array
            or device_of(value) != self.device
            or value.shape != shapes[name]
            or value.dtype != self.dtype
            or not value.flags.c_contiguous
        ):
            got = type(value).__name__
            if array:
                got = f"{value.dtype} {value.shape} on {device_of(value)}"
            raise ValueError(
                f"{mapping}[{name!r}] must be a C-contiguous {self.dtype} array of shape "
                f"{shapes[name]} on the device {self.device!r}, got {got}"
            )
        return value
