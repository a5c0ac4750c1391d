"""The training loop: batches, evaluation, progress, checkpoints."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kfc_numba import interrupts, runs, saving
from kfc_numba.averaged import Aside
from kfc_numba.batches import batches, number_of_batches
from kfc_numba.checks import check_instance, check_integer
from kfc_numba.devices import check_device, taken, to_device
from kfc_numba.evaluation import check_finite, check_training_data, evaluate, naming_examples
from kfc_numba.foreign_names import Explained, explained
from kfc_numba.graph import Graph
from kfc_numba.history import History, Row
from kfc_numba.limits import Limits
from kfc_numba.losses import Loss
from kfc_numba.normalization import Normalization
from kfc_numba.optim.base import Optimizer, State
from kfc_numba.progress import described
from kfc_numba.progress import progress as show_progress
from kfc_numba.random import generator
from kfc_numba.warming import warm

#: Examples of a batch if nothing is said.
BATCH_SIZE = 128


class Trainer(Explained):
    """A network, a loss, an optimizer and its state, and how far training has come.

    Between calls of `fit` the network holds what evaluations use: averages of parameters and
    running statistics, if the optimizer averages. So `net.predict` after `fit` gives what the
    history promised. The trainer keeps the raw ones, of the last step, and puts them back before it
    goes on, in `fit` or `step`. If the network was changed by hand in between, it goes on from what
    it holds instead, all of it, and the average begins anew: a change is never lost. `step` leaves
    the raw ones in the network, for whoever writes a loop; `evaluation_net` has the average at any
    time.

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
    run : str
        Name of the run, in its checkpoints too: `fit` overwrites none of another run.
    normalization : Normalization, optional
        What inputs have been through before they were given here, and `classes` (tuple of str,
        optional), the names of the outputs: nothing is done with them but that they are saved, for
        `kfc_numba.load`.
    notes : dict
        What JSON can hold, saved too.
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
        self.run = runs.new_run()
        self.normalization: Normalization | None = None
        self.classes: tuple[str, ...] | None = None
        self.notes: dict[str, Any] = {}
        self._epoch = 0  # passes completed
        self._position = 0  # examples of the current pass already used
        self._examples = 0  # in a pass
        self._seconds = 0.0
        self._prepared = False
        self._drawn = np.arange(0)  # numbers of the examples of the last batch in `fit`
        self._aside = Aside()

    def __repr__(self) -> str:
        lines = [
            f"<Trainer of {self.net!r}",
            f" by {type(self.optimizer).__name__}, {self.loss!r}, seed {self.seed}: "
            f"{self.steps:,} steps, {self._epochs_done():.2f} epochs",
        ]
        if self.history.rows:
            lines.append(
                f" step {self.history.rows[-1]['step']}: {described(self.history.rows[-1])}"
            )
        return "\n".join(lines) + ">"

    def to(self, device: str) -> Trainer:
        """Move the network and the optimizer's state, and train there from now on.

        Parameters
        ----------
        device : {"cpu", "cuda"}

        Returns
        -------
        Trainer
            This trainer. Where the device cannot be used (`Graph.to`), it is as it was.
        """
        check_device(device)
        averages, state = self._aside.in_use, self.optimizer_state
        self._aside.go_on(*self._trained)
        try:
            moved = {n: to_device(v, device) if v.ndim else v for n, v in state.items()}
            self.net.to(device)
            state.update(moved)
        finally:
            if averages:
                self._aside.leave_averages(*self._trained)
        return self

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return int(self.optimizer_state["step"])

    @property
    def raw_params(self) -> dict[str, np.ndarray]:
        """Parameters that training goes on from: of the last step, without averaging."""
        raw = self._aside.raw(*self._trained)
        return {name: raw[name] for name in self.net.params}

    @property
    def raw_buffers(self) -> dict[str, np.ndarray]:
        """Running statistics that training goes on from: of the last step, without averaging."""
        raw = self._aside.raw(*self._trained)
        return {name: raw[name] for name in self.net.buffers}

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        """One optimizer step on one batch; the raw parameters are in the network after it.

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
        ValueError
            The batch does not fit, or an input is not finite.
        FloatingPointError
            Something else is not finite. After any error all is as after the last good step.
        """
        averages = self._aside.in_use
        self._aside.go_on(*self._trained)
        try:
            with self._time():
                return self.optimizer.step(
                    self.net, self.loss, x, y, self.optimizer_state, seed=self.seed
                )
        except Exception:
            if averages:  # what fails changes nothing
                self._aside.leave_averages(*self._trained)
            raise

    @explained
    @interrupts.kept()
    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        batch_size: int = BATCH_SIZE,
        epochs: int | None = None,
        max_steps: int | None = None,
        total_epochs: int | None = None,
        total_steps: int | None = None,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        evaluate_every: int | None = None,
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        stop: Callable[[Row], Any] | None = None,
        training_sample: int = 5000,
    ) -> History:
        """Train for some epochs or steps, or until there are so many in total.

        With `total_epochs` or `total_steps` a trainer that was loaded from a checkpoint, called
        with the same arguments, does what is left and ends with the parameters, bit for bit, of a
        run without interruption. Each pass over the data is
        shuffled by the seed and its number; its last batch holds what is left over. In a network
        with `BatchNorm`, for which one example is no batch, a single example that is left over
        joins the batch before it (unless `batch_size` is 1). An optimizer that wants statistics
        before its first step (`num_burnin_steps`) gets them from the first batches, which are used
        again for training.

        Evaluations come before the first step, every `evaluate_every` steps, and at the end. They
        use the averaged parameters if the optimizer averages, and leave them in the network: it
        holds them when `stop` is called, and when this returns or raises.

        Parameters
        ----------
        x : array_like
            Inputs, (examples, *input_shape); a memory map is read batch by batch.
        y : array_like
            Targets, as the loss takes them.
        batch_size : int
        epochs, max_steps : int, optional
            Passes, and steps, of this call. A pass that training stopped in is ended first, and
            counts as one.
        total_epochs, total_steps : int, optional
            The same counted from the start of training, those before a checkpoint included. Of the
            four at least one is given; the first that is reached ends training.
        validation : (x, y), optional
        evaluate_every : int, optional
            In steps; None for each epoch.
        progress : bool
            Whether standard error shows how far it is: a bar in a terminal or notebook, elsewhere
            a line for each evaluation; nothing is written without it.
        checkpoint : path, optional
            File that the trainer is saved to after each evaluation. An existing one is replaced if
            it is of this trainer, or what it was loaded from; use `load` to continue from it.
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
        ValueError
            Something does not fit, an input is not finite, or `checkpoint` is of another run.
        FloatingPointError
            Something else is not finite. Parameters and state are those of the last good step.
        """
        check_integer("batch_size", batch_size)
        limits = Limits.of(
            self._epoch,
            self.steps,
            epochs=epochs,
            max_steps=max_steps,
            total_epochs=total_epochs,
            total_steps=total_steps,
        )
        if evaluate_every is not None:
            check_integer("evaluate_every", evaluate_every)
        check_integer("training_sample", training_sample)
        x, y, held_out = check_training_data(self.net, self.loss, x, y, validation)
        if self._position and len(x) != self._examples:
            raise ValueError(
                f"x has {len(x)} examples, the pass that training stopped in has {self._examples}"
            )
        order = generator(self.seed, "training sample").permutation(len(x))
        chosen = np.sort(order[:training_sample])
        sample = taken(x, chosen), taken(y, chosen)
        check_finite(self.net, sample[0], "x", numbers=chosen)
        if checkpoint is not None:
            runs.check_own(checkpoint, self.run)
        self._examples = len(x)
        self._aside.accept_changes(*self._trained)

        def evaluated() -> bool:
            """Add a row; whether training is to stop."""
            row = self._evaluate(sample, held_out)
            if checkpoint is not None:
                runs.check_own(checkpoint, self.run)
                self.save(checkpoint)
            shown.evaluated(row)
            return bool(stop is not None and stop(row))

        warm(self.net, self.loss, self.optimizer, x, y, batch_size=batch_size, progress=progress)
        rows = self.history.rows
        total = self._last_step(batch_size, limits)
        showing = show_progress(progress, self.steps, total, limits.epochs)
        with self._aside.leaving(*self._trained), showing as shown:
            seen = bool(rows) and rows[-1]["step"] == self.steps
            stopping = (stop is not None and stop(rows[-1])) if seen else evaluated()
            if stopping or limits.reached(self._epoch, self.steps):
                if seen and checkpoint is not None:  # of a row whose saving may have failed
                    self.save(checkpoint)
                return self.history
            if not self._prepared:
                with naming_examples(self.net, x, lambda: self._drawn), self._time():
                    self._prepare(x, y, batch_size)
            for batch in self._batches(x, y, batch_size):
                epoch, steps = self._epoch, self.steps
                try:
                    with naming_examples(self.net, x, lambda: self._drawn):
                        loss = self.step(*batch)
                finally:
                    if self.steps > steps:  # an interrupt may come when the step has been done
                        self._position += len(batch[0])
                        if self._position == self._examples:
                            self._epoch, self._position = epoch + 1, 0
                shown.step(loss, epoch + 1)
                done = limits.reached(self._epoch, self.steps)
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
            A copy that does not change with further training; topology and memory are shared.
        """
        net = copy.copy(self.net)
        held = {**net.params, **net.buffers}
        found = held
        if not self._aside.in_use:
            found = self.optimizer.evaluation_arrays(net, self.optimizer_state)
        own = {n: value.copy() if value is held[n] else value for n, value in found.items()}
        net.params = {name: own[name] for name in net.params}
        net.buffers = {name: own[name] for name in net.buffers}
        return net

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that `load` needs to continue to one file, whole or not at all.

        Parameters
        ----------
        path : path
            A safetensors file; an existing one is replaced.
        """
        saving.save_trainer(self, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], net: Graph, loss: Loss, optimizer: Optimizer
    ) -> Trainer:
        """Trainer that continues from a checkpoint.

        Parameters
        ----------
        path : path
            What `save` or `fit` wrote, or a run folder of the command line.
        net : Graph
            A network of the same layers; its parameters and running statistics are overwritten,
            and it holds what it held after `fit`: the averaged ones.
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
            The file is no whole checkpoint, or one of another network, loss or optimizer, or has
            values that none can have; the message names it, and `net` is left as it was.
        OSError
            There is no such file or folder, or it cannot be read.
        """
        return saving.load_trainer(cls, path, net, loss, optimizer)

    @property
    def _trained(self) -> tuple[Graph, Optimizer, State]:
        return self.net, self.optimizer, self.optimizer_state

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
        place = {"seed": self.seed, "epoch": self._epoch, "start": self._position}
        found = batches(self.net, x, y, batch_size, **place, timed=self._time)
        for inputs, targets, numbers in found:
            self._drawn = numbers
            yield inputs, targets

    def _prepare(self, x: np.ndarray, y: np.ndarray, batch_size: int) -> None:
        batches = islice(self._batches(x, y, batch_size), self.optimizer.num_burnin_steps)
        self._aside.go_on(*self._trained)
        state = dict(self.optimizer_state)  # what an error leaves half done is thrown away
        self.optimizer.prepare(self.net, self.loss, batches, state, seed=self.seed)
        self.optimizer_state.update(state)
        self._prepared = True

    def _evaluate(
        self,
        sample: tuple[np.ndarray, np.ndarray],
        held_out: tuple[np.ndarray, np.ndarray] | None,
    ) -> Row:
        self._aside.leave_averages(*self._trained)
        loss = error = None
        training_loss, _ = evaluate(self.net, self.loss, *sample)
        if held_out is not None:
            loss, error = evaluate(self.net, self.loss, *held_out)
        row = {
            "step": self.steps,
            "epoch": self._epochs_done(),
            "seconds": self._seconds,
            "training_loss": training_loss,
            "validation_loss": loss,
            "validation_error": error,
        }
        self.history.rows.append(row)
        return row

    def _epochs_done(self) -> float:
        return self._epoch + self._position / max(self._examples, 1)

    def _last_step(self, batch_size: int, limits: Limits) -> int:
        passes = self._examples - self._position, self._examples
        left, whole = (number_of_batches(self.net, examples, batch_size) for examples in passes)
        return limits.last_step(self._epoch, self.steps, left, whole)
