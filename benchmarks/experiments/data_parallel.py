"""Data-parallel steps by processes that share memory: what the model of workers is held against.

A small program for measuring. Each worker has all parameters, a share of each batch, and some of
the layers, as `benchmarks.experiments.workers` describes.
"""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

import kfc_numba as kfc
from benchmarks.common import random_batch
from benchmarks.experiments.workers import division
from kfc_numba import networks
from kfc_numba.optim.balance import EXAMPLES, balance_due, balanced
from kfc_numba.optim.base import shift
from kfc_numba.optim.exact_forms import form, layer_forms, next_ratio
from kfc_numba.optim.examples import curvature_sample
from kfc_numba.optim.momentum import next_momentum, slope_along
from kfc_numba.optim.periods import INVERSE_GROWTH, is_due
from kfc_numba.optim.restraint import next_restraint, rise_by_momentum
from kfc_numba.optim.setting import (
    bound_at,
    exact_examples_at,
    exact_period_at,
    inversion_of,
    inversion_setting,
    keeps_ratio,
    setting_of,
)
from kfc_numba.optim.step_size import is_by_noise, next_loss
from kfc_numba.optim.update import propose, settled
from kfc_numba.random import generator

Arrays = Mapping[str, np.ndarray]

PATIENCE = 600.0  # seconds that a worker waits for another


class Board:
    """Memory where workers put what others need.

    Parameters
    ----------
    workers : int
    numbers : int
        Most numbers that are exchanged at once.
    dtype : dtype
    context : multiprocessing context, optional
        Of the processes; None for a single worker.
    """

    def __init__(self, workers: int, numbers: int, dtype: Any, context: Any = None):
        self.workers, self.numbers, self.dtype = workers, numbers, np.dtype(dtype)
        if workers > 1:
            self.memory = context.RawArray("b", workers * numbers * self.dtype.itemsize)
            self.barrier = context.Barrier(workers)

    def sum(self, rank: int, arrays: Arrays) -> dict[str, np.ndarray]:
        """Sums over the workers, of arrays that each of them has: the same bits for all."""
        if self.workers == 1:
            return dict(arrays)
        rows, flat = self._rows(), np.concatenate([array.reshape(-1) for array in arrays.values()])
        rows[rank, : len(flat)] = flat
        self.wait()
        total = rows[:, : len(flat)].sum(axis=0)
        self.wait()
        return _shaped(total, arrays)

    def gather(self, rank: int, mine: Arrays, like: Arrays) -> dict[str, np.ndarray]:
        """All arrays of some names and shapes, each of which one worker has."""
        if self.workers == 1:
            return {name: mine[name] for name in like}
        row, start = self._rows()[0], 0
        for name, array in like.items():
            if name in mine:
                row[start : start + array.size] = mine[name].reshape(-1)
            start += array.size
        self.wait()
        everything = row[:start].copy()
        self.wait()
        return _shaped(everything, like)

    def wait(self) -> None:
        """Until all workers are here."""
        if self.workers > 1:
            self.barrier.wait(PATIENCE)

    def _rows(self) -> np.ndarray:
        return np.frombuffer(self.memory, self.dtype).reshape(self.workers, self.numbers)


def _shaped(flat: np.ndarray, like: Arrays) -> dict[str, np.ndarray]:
    found, start = {}, 0
    for name, array in like.items():
        found[name] = flat[start : start + array.size].reshape(array.shape)
        start += array.size
    return found


class Worker:
    """One of the workers of a training by SGD, or by KFC without burn-in and adaptive settings.

    Parameters
    ----------
    board : Board
    rank : int
        Its number, from 0.
    net : Graph
        Without layers that draw random numbers or couple examples.
    loss : Loss
        One that draws a number for each example where targets are sampled.
    optimizer : SGD or KFC
    seed : int
        Of sampled targets.
    """

    def __init__(
        self,
        board: Board,
        rank: int,
        net: kfc.Graph,
        loss: kfc.Loss,
        optimizer: kfc.Optimizer,
        seed: int = 0,
    ):
        self.board, self.rank, self.net, self.loss = board, rank, net, loss
        self.optimizer, self.seed = optimizer, seed
        self.state = optimizer.init(net)
        self.steps = 0
        if isinstance(optimizer, kfc.KFC):
            self.curvature = optimizer.curvature(net)
            costs = {
                block.name: math.prod(block.matrix_shape[:-2])
                * sum(float(size) ** 3 for size in block.matrix_shape[-2:])
                for block in self.curvature.blocks
            }
            owners = division(costs, board.workers)
            self.own = [block for block in self.curvature.blocks if owners[block.name] == rank]

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        """One step.

        Parameters
        ----------
        x, y : numpy.ndarray
            The whole batch, of which the worker takes its share.

        Returns
        -------
        float
            Mean loss of the batch before the step.
        """
        workers = self.board.workers
        share, left = divmod(len(x), workers)
        if left:
            raise ValueError(f"x has {len(x)} examples; required: a multiple of {workers}")
        here = slice(self.rank * share, (self.rank + 1) * share)
        x, y = x[here], y[here]
        trace = self.net.forward(x, training=True)
        value, derivative = self.loss.value_and_derivative(trace.outputs, y)
        derivative *= 1 / (share * workers)
        terms = {"": np.array(value / workers)} | self.net.backward(trace, derivative)
        gradients = self.board.sum(self.rank, terms)
        value = float(gradients.pop(""))
        if isinstance(self.optimizer, kfc.KFC):
            deltas, changes = self._natural(self.optimizer, trace, x, y, value, gradients), {}
        else:
            deltas, changes = self.optimizer.delta(
                self.net, self.loss, trace, x, y, value, gradients, self.state, self.steps, 0
            )
        decay = self.optimizer.decay(
            self.net, self.loss, self.state, changes, self.steps, len(x) * self.board.workers
        )
        for name, value in shift(self.net.params, deltas, decay).items():
            np.copyto(self.net.params[name], value)
        self.state |= changes
        self.steps += 1
        return value

    def _natural(
        self,
        o: kfc.KFC,
        trace: kfc.graph.Trace,
        x: np.ndarray,
        y: np.ndarray,
        value: float,
        gradients: Arrays,
    ) -> dict[str, np.ndarray]:
        """What a step of KFC adds to the parameters: `KFC.delta`, divided."""
        board, rank, step, state = self.board, self.rank, self.steps, self.state
        if is_due(step, o.curvature_update_period, o.period_growth):
            rng = generator(self.seed, "targets", step)
            rng.random(rank * len(x))  # those of the workers before
            most = o.curvature_examples
            wanted = None if most is None else -(-most // board.workers)
            part, how = curvature_sample(self.curvature, trace, x, y, wanted)
            new = self.curvature.estimate(
                part, self.loss, state, mode=o.estimation_mode, rng=rng, **how
            )
            new = board.sum(rank, {name: a / board.workers for name, a in new.items()})
            state |= self.curvature.average(state, new, o.scheduled("curvature_ema", step))
        examples, inversion = len(x) * board.workers, inversion_of(o)
        period, growth = o.inverse_update_period, INVERSE_GROWTH[inversion] * o.period_growth
        if renewed := is_due(step, period, growth):
            if inversion == "cholesky":
                batches = int(state["factor_batches"])
                state |= inversion_setting(o, self.net, examples, step, batches)
            mine = _together(block.decompose(state) for block in self.own)
            like = {name: array for name, array in state.items() if _is_inverted(name)}
            state |= board.gather(rank, mine, like)
        if o.loss_bound is not None:
            noisy = is_by_noise(o.scheduled("loss_bound", step), examples)
            state["loss_average"] = np.array(next_loss(float(state["loss_average"]), value, noisy))

        def precondition(damping: float) -> dict[str, np.ndarray]:
            mine = {}
            for block in self.own:
                part = {short: gradients[f"{block.name}.{short}"] for short in block.shapes}
                found = block.apply(state, part, damping, o.damping_strategy)
                mine |= {f"{block.name}.{short}": array for short, array in found.items()}
            return board.gather(rank, mine, self.net.params)

        previous = {name: state[f"momentum/{name}"] for name in self.net.params}
        slope = slope_along(o, gradients, previous, step)
        bound = bound_at(o, state, step, examples)
        state |= next_momentum(o, state, slope, bound, step, examples)
        rise = rise_by_momentum(o, self.loss, state, slope, bound, step, examples)
        state |= next_restraint(o, state, rise)
        wanted = exact_examples_at(o, len(x))

        measured = balance_due(o, step)
        setting = setting_of(o, self.net, state, step, examples, renewed or measured, rise)

        def length(direction: Arrays, scale: float) -> float:
            def along(over: float) -> float:
                mine = form(self.net, trace, x, self.loss, direction, wanted, over)
                return float(board.sum(rank, {"": np.array([mine / board.workers])})[""][0])

            return settled(along, setting, scale)

        def by_layer(direction: Arrays) -> dict[str, float]:
            rng = generator(self.seed, "targets of layers", step)
            rng.random(rank * len(x))
            some = -(-EXAMPLES // board.workers)
            mine = layer_forms(self.net, trace, x, self.loss, direction, some, rng)
            shares = {name: np.array(form / board.workers) for name, form in mine.items()}
            return {name: float(form) for name, form in board.sum(rank, shares).items()}

        layers = by_layer if measured else None
        update = propose(
            precondition=balanced(precondition, layers, self.net, gradients, state, state),
            forms=_no_model,
            form=length,
            gradients=gradients,
            previous=previous,
            setting=setting,
        )
        if keeps_ratio(o):
            period = exact_period_at(o, examples)
            state |= next_ratio(state, update.form_ratio, update.form_length, period)
        state |= {f"momentum/{name}": delta for name, delta in update.deltas.items()}
        return update.deltas


def _no_model(directions: Sequence[Arrays]) -> np.ndarray:
    raise NotImplementedError("nothing is adaptive here")


def _is_inverted(name: str) -> bool:
    """Whether an entry of the state is part of an inverse, or of a decomposition."""
    return name.partition("/")[0].endswith(("_values", "_vectors", "_inverse"))


def _together(parts: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for part in parts:
        found |= part
    return found


# What processes do.


@dataclass(frozen=True)
class Job:
    """A training on one batch of random images, again and again.

    Attributes
    ----------
    optimizer : SGD or KFC
    batch, steps : int
    network : str
        A name of `kfc_numba.networks`.
    shape : tuple of int
        Of an image.
    dtype : str
    """

    optimizer: kfc.Optimizer
    batch: int
    steps: int
    network: str = "quick"
    shape: tuple[int, ...] = (32, 32, 3)
    dtype: str = "float32"

    def worker(self, board: Board, rank: int) -> Worker:
        """A worker before its first step."""
        net = networks.build(self.network, self.shape, 10, dtype=self.dtype)
        return Worker(board, rank, net, kfc.SoftmaxCrossEntropy(), self.optimizer)

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """The batch."""
        return random_batch(self.batch, self.shape)

    def numbers(self) -> int:
        """Most numbers that its workers exchange at once."""
        net = networks.build(self.network, self.shape, 10, dtype=self.dtype)
        second_order = isinstance(self.optimizer, kfc.KFC)
        state = (self.optimizer if second_order else kfc.KFC()).init(net)
        return sum(array.size for name, array in state.items() if _is_inverted(name))


Task = Callable[[Board, int, Any], Any]


def in_processes(task: Task, board: Board, context: Any, argument: Any) -> list[Any]:
    """What ``task(board, rank, argument)`` returns in each of as many processes as workers.

    Parameters
    ----------
    task : callable
        A function of a module.
    board : Board
    context : multiprocessing context
    argument : object

    Returns
    -------
    list

    Raises
    ------
    RuntimeError
        A process failed; the message is its own.
    """
    processes, pending, results = [], {}, {}
    try:
        for rank in range(board.workers):
            here, there = context.Pipe(duplex=False)
            process = context.Process(
                target=_run, args=(task, board, rank, argument, there), daemon=True
            )
            process.start()
            there.close()  # or its end would not be seen when the process dies
            processes.append(process)
            pending[here] = rank
        while pending:
            for end in multiprocessing.connection.wait(list(pending)):
                rank = pending.pop(end)
                try:
                    problem, results[rank] = end.recv()
                except EOFError:
                    problem = "it ended without a result"
                if problem:
                    raise RuntimeError(f"worker {rank}: {problem}")
        for process in processes:
            process.join()
        return [results[rank] for rank in range(board.workers)]
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()


def _run(task: Task, board: Board, rank: int, argument: Any, end: Any) -> None:
    numba.set_num_threads(1)
    try:
        end.send((None, task(board, rank, argument)))
    except Exception as error:
        if board.workers > 1:
            board.barrier.abort()
        end.send((f"{type(error).__name__}: {error}", None))


def train(board: Board, rank: int, jobs: Sequence[Job]) -> list[dict[str, np.ndarray]]:
    """Parameters at the end of each job."""
    found = []
    for job in jobs:
        worker, (x, y) = job.worker(board, rank), job.data()
        for _ in range(job.steps):
            worker.step(x, y)
        found.append(worker.net.params)
    return found


def time_jobs(board: Board, rank: int, argument: tuple[Sequence[Job], int]) -> list[Any]:
    """Seconds of each job by one worker alone, and by all, in turn: a pair of lists each."""
    jobs, rounds = argument
    alone, found = Board(1, 0, board.dtype), []
    for job in jobs:
        x, y = job.data()
        times: tuple[list[float], list[float]] = ([], [])
        for again in range(rounds + 1):
            for which, (place, number) in enumerate(((alone, 0), (board, rank))):
                board.wait()
                if place is alone and rank:
                    continue
                worker = job.worker(place, number)
                place.wait()
                start = time.perf_counter()
                for _ in range(job.steps):
                    worker.step(x, y)
                if again:  # the first time kernels were loaded
                    times[which].append(time.perf_counter() - start)
        found.append(times)
    return found


def time_sums(board: Board, rank: int, sizes: Sequence[int]) -> dict[int, float]:
    """Seconds of a sum over the workers by its numbers: medians."""
    found = {}
    for size in sizes:
        terms = {"": np.ones(size, board.dtype)}
        times = []
        for _ in range(30):
            board.wait()
            start = time.perf_counter()
            board.sum(rank, terms)
            times.append(time.perf_counter() - start)
        found[size] = float(np.median(times))
    return found


def board_for(jobs: Sequence[Job], workers: int, context: Any) -> Board:
    """Memory that is enough for some jobs of one dtype."""
    return Board(workers, max(job.numbers() for job in jobs), jobs[0].dtype, context)


def spawning() -> Any:
    """New processes that inherit no threads."""
    return multiprocessing.get_context("spawn")
