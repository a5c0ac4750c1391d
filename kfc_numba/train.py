"""The training loop: batches, evaluation, progress, checkpoints."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kfc_numba import checkpoint as files
from kfc_numba.checks import check_instance, check_integer
from kfc_numba.evaluation import check_data, evaluate
from kfc_numba.graph import Graph
from kfc_numba.history import History, Row
from kfc_numba.losses import Loss
from kfc_numba.optim.base import Optimizer
from kfc_numba.progress import progress as show_progress
from kfc_numba.random import generator


class Trainer:
    """A network, a loss, an optimizer and its state, and how far training has come.

    Parameters
    ----------
    net : Graph
        Its parameters and running statistics are trained in place.
    loss : Loss
    optimizer : Optimizer
    seed : int
        Seed of shuffling, dropout and sampled targets; at least 0.

    Attributes
    ----------
    net, loss, optimizer, seed
        As given.
    optimizer_state : dict of str to numpy.ndarray
        State of the optimizer.
    history : History
    """

    def __init__(self, net: Graph, loss: Loss, optimizer: Optimizer, *, seed: int = 0):
        check_instance("net", net, Graph, "a network")
        check_instance("loss", loss, Loss, "a loss such as SoftmaxCrossEntropy()")
        check_instance("optimizer", optimizer, Optimizer, "an optimizer such as SGD()")
        self.net = net
        self.loss = loss
        self.optimizer = optimizer
        self.seed = check_integer("seed", seed, least=0)
        self.optimizer_state = optimizer.init(net)
        self.history = History()
        self._epoch = 0  # passes completed
        self._position = 0  # examples of the current pass already used
        self._examples = 0  # in a pass
        self._seconds = 0.0
        self._prepared = False

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return int(self.optimizer_state["step"])

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        """One optimizer step on one batch.

        Parameters
        ----------
        x : numpy.ndarray
            Inputs, (M, *input_shape).
        y : numpy.ndarray
            Targets, as the loss takes them.

        Returns
        -------
        float
            Mean loss of the batch before the step.

        Raises
        ------
        FloatingPointError
            Something is not finite; parameters and state are those of the last good step.
        """
        with self._time():
            return self.optimizer.step(
                self.net, self.loss, x, y, self.optimizer_state, seed=self.seed
            )

    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        batch_size: int,
        epochs: int | None = None,
        max_steps: int | None = None,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        evaluate_every: int | None = None,
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        stop: Callable[[Row], Any] | None = None,
        training_sample: int = 5000,
    ) -> History:
        """Train until `epochs` or `max_steps` is reached, whichever comes first.

        Both count from the start of training, so that a trainer that was loaded from a
        checkpoint, called with the same arguments, does what is left and ends with the
        parameters, bit for bit, of a run without interruption. Each pass over the data is
        shuffled by the seed and its number; its last batch holds what is left over. In a network
        with `BatchNorm`, for which one example is no batch, a single example that is left over
        joins the batch before it (unless `batch_size` is 1). An optimizer that wants statistics
        before its first step (`num_burnin_steps`) gets them from the first batches, which are used
        again for training.

        Evaluations come before the first step, every `evaluate_every` steps, and at the end. They
        use the averaged parameters if the optimizer averages.

        Parameters
        ----------
        x : array_like
            Inputs, (examples, *input_shape); a memory map is read batch by batch.
        y : array_like
            Targets, as the loss takes them.
        batch_size : int
        epochs, max_steps : int, optional
            At least one of the two.
        validation : (x, y), optional
        evaluate_every : int, optional
            In steps; None for each epoch.
        progress : bool
            Whether standard error shows how far it is: a bar in a terminal or notebook, elsewhere
            a line for each evaluation; nothing is written without it.
        checkpoint : path, optional
            File that the trainer is saved to after each evaluation. An existing one is replaced:
            use `load` to continue from it.
        stop : callable, optional
            Called with each row of the history; training ends when it returns true.
        training_sample : int
            The training loss of a row is the mean over this many examples, the same for all rows
            and drawn by the seed.

        Returns
        -------
        History
            With rows of earlier calls, and of before a checkpoint, too.

        Raises
        ------
        FloatingPointError
            Something is not finite; parameters and state are those of the last good step.
        """
        check_integer("batch_size", batch_size)
        if epochs is None and max_steps is None:
            raise ValueError("epochs or max_steps must be given, got None for both")
        for name, number in (("epochs", epochs), ("max_steps", max_steps)):
            if number is not None:
                check_integer(name, number)
        if evaluate_every is not None:
            check_integer("evaluate_every", evaluate_every)
        check_integer("training_sample", training_sample)
        x, y = check_data(self.net, self.loss, x, y, "x", "y")
        if self._position and len(x) != self._examples:
            raise ValueError(
                f"x has {len(x)} examples, the pass that training stopped in has {self._examples}"
            )
        self._examples = len(x)
        held_out = self._checked_validation(validation)
        order = generator(self.seed, "training sample").permutation(len(x))
        chosen = np.sort(order[:training_sample])
        sample = x[chosen], y[chosen]

        def finished() -> bool:
            return (epochs is not None and self._epoch >= epochs) or (
                max_steps is not None and self.steps >= max_steps
            )

        def evaluated() -> bool:
            """Add a row; whether training is to stop."""
            row = self._evaluate(sample, held_out)
            if checkpoint is not None:
                self.save(checkpoint)
            shown.evaluated(row)
            return bool(stop is not None and stop(row))

        rows = self.history.rows
        total = self._total_steps(batch_size, epochs, max_steps)
        with show_progress(progress, self.steps, total, epochs) as shown:
            if rows and rows[-1]["step"] == self.steps:
                stopping = stop is not None and stop(rows[-1])
            else:
                stopping = evaluated()
            if stopping or finished():
                return self.history
            if not self._prepared:
                with self._time():
                    self._prepare(x, y, batch_size)
            for batch in self._batches(x, y, batch_size):
                shown.step(self.step(*batch), self._epoch + 1)
                self._position += len(batch[0])
                if self._position == self._examples:
                    self._epoch, self._position = self._epoch + 1, 0
                done = finished()
                if evaluate_every is None:
                    due = self._position == 0
                else:
                    due = self.steps % evaluate_every == 0
                stopping = (due or done) and evaluated()
                if stopping or done:
                    break
        return self.history

    def evaluation_net(self) -> Graph:
        """The network with the parameters to evaluate with: averaged ones where averaging is on.

        Returns
        -------
        Graph
            A copy whose parameters do not change with further training; topology, running
            statistics and memory are shared with `net`.
        """
        net = copy.copy(self.net)
        params = self.optimizer.evaluation_params(self.net, self.optimizer_state)
        net.params = {
            name: value.copy() if value is self.net.params[name] else value
            for name, value in params.items()
        }
        return net

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that `load` needs to continue to one file, whole or not at all.

        Parameters
        ----------
        path : path
            A safetensors file; an existing one is replaced.
        """
        arrays = {f"params/{name}": value for name, value in self.net.params.items()}
        arrays |= {f"buffers/{name}": value for name, value in self.net.buffers.items()}
        arrays |= {f"optimizer/{name}": value for name, value in self.optimizer_state.items()}
        header = {
            "network": files.describe(self.net),
            "loss": repr(self.loss),
            "optimizer": self.optimizer.config(),
            "trainer": {
                "seed": self.seed,
                "epoch": self._epoch,
                "position": self._position,
                "examples": self._examples,
                "seconds": self._seconds,
                "prepared": self._prepared,
            },
            "history": self.history.to_header(),
        }
        files.save(path, arrays, header)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], net: Graph, loss: Loss, optimizer: Optimizer
    ) -> Trainer:
        """Trainer that continues from a checkpoint.

        Parameters
        ----------
        path : path
            What `save` or `fit` wrote.
        net : Graph
            A network of the same layers; its parameters and running statistics are overwritten.
        loss : Loss
            The same loss.
        optimizer : Optimizer
            Of the same class. Its hyperparameters count, not those at the time of saving: they
            have to be the same for the run to go on as if uninterrupted.

        Returns
        -------
        Trainer
            With the seed, the history and the optimizer's state of the checkpoint.

        Raises
        ------
        ValueError
            The file is no whole checkpoint, or one of another network, loss or optimizer; `net`
            is then left as it was.
        """
        arrays, header = files.load(path)
        saved = header["trainer"]
        trainer = cls(net, loss, optimizer, seed=saved["seed"])
        parts: dict[str, dict[str, np.ndarray]] = {"params": {}, "buffers": {}, "optimizer": {}}
        for name, value in arrays.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value
        kind, given = header["optimizer"]["optimizer"], type(optimizer).__name__
        problem = (
            files.difference(header["network"], files.describe(net))
            or _mismatch("loss", header["loss"], repr(loss))
            or _mismatch("optimizer", kind, given)
            or files.array_difference(parts["params"], net.params)
            or files.array_difference(parts["buffers"], net.buffers)
            or files.array_difference(parts["optimizer"], trainer.optimizer_state)
        )
        if problem:
            raise ValueError(f"{os.fspath(path)} does not fit: {problem}")
        for name, value in parts["params"].items():
            np.copyto(net.params[name], value)
        # Copies: arrays of a safetensors file lie in memory as they do in the file.
        net.buffers.update({name: value.copy() for name, value in parts["buffers"].items()})
        trainer.optimizer_state.update(
            {name: value.copy() for name, value in parts["optimizer"].items()}
        )
        trainer.history = History.from_header(header["history"])
        trainer._epoch = saved["epoch"]
        trainer._position = saved["position"]
        trainer._examples = saved["examples"]
        trainer._seconds = saved["seconds"]
        trainer._prepared = saved["prepared"]
        return trainer

    @contextmanager
    def _time(self) -> Iterator[None]:
        """Count what runs inside as training; where these are nested, the outer one counts."""
        before, start = self._seconds, time.perf_counter()
        try:
            yield
        finally:
            self._seconds = before + time.perf_counter() - start

    def _batches(
        self, x: np.ndarray, y: np.ndarray, batch_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches without end, from the current place of the current pass."""
        epoch, start = self._epoch, self._position
        while True:
            with self._time():
                order = generator(self.seed, "shuffle", epoch).permutation(len(x))
            while start < len(x):
                with self._time():
                    last = len(x) - start <= batch_size + self._spare(batch_size)
                    chosen = order[start : None if last else start + batch_size]
                    inputs = self.net.workspace.empty((len(chosen), *x.shape[1:]), x.dtype)
                    # Without mode="clip" NumPy makes a copy first, in case an index is wrong.
                    np.take(x, chosen, axis=0, out=inputs, mode="clip")
                    targets = y[chosen]
                yield inputs, targets
                start += len(chosen)
            epoch, start = epoch + 1, 0

    def _spare(self, batch_size: int) -> int:
        """Examples that the last batch of a pass takes beyond `batch_size`, to leave none alone."""
        return int(self.net.couples_examples and batch_size > 1)

    def _batches_of(self, examples: int, batch_size: int) -> int:
        """Number of batches of the examples that are left of a pass."""
        return max(1, math.ceil((examples - self._spare(batch_size)) / batch_size))

    def _prepare(self, x: np.ndarray, y: np.ndarray, batch_size: int) -> None:
        batches = islice(self._batches(x, y, batch_size), self.optimizer.num_burnin_steps)
        self.optimizer.prepare(self.net, self.loss, batches, self.optimizer_state, seed=self.seed)
        self._prepared = True

    def _evaluate(
        self,
        sample: tuple[np.ndarray, np.ndarray],
        held_out: tuple[np.ndarray, np.ndarray] | None,
    ) -> Row:
        net = self.evaluation_net()
        loss = error = None
        training_loss, _ = evaluate(net, self.loss, *sample)
        if held_out is not None:
            loss, error = evaluate(net, self.loss, *held_out)
        row = {
            "step": self.steps,
            "epoch": self._epoch + self._position / self._examples,
            "seconds": self._seconds,
            "training_loss": training_loss,
            "validation_loss": loss,
            "validation_error": error,
        }
        self.history.rows.append(row)
        return row

    def _total_steps(self, batch_size: int, epochs: int | None, max_steps: int | None) -> int:
        limits = [] if max_steps is None else [max_steps]
        if epochs is not None:
            rest = self._batches_of(self._examples - self._position, batch_size)
            passes = max(epochs - self._epoch, 0)
            whole = self._batches_of(self._examples, batch_size) * (passes - 1)
            limits.append(self.steps + (rest + whole if passes else 0))
        return max(min(limits), self.steps)

    def _checked_validation(
        self, validation: tuple[ArrayLike, ArrayLike] | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        if validation is None:
            return None
        if not isinstance(validation, (tuple, list)) or len(validation) != 2:
            raise TypeError("validation must be a pair (x, y) of inputs and targets")
        return check_data(
            self.net, self.loss, *validation, "inputs of validation", "targets of validation"
        )


def _mismatch(what: str, saved: str, given: str) -> str | None:
    return None if saved == given else f"its {what} is {saved}, the one given is {given}"
