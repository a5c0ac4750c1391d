"""One training run within a budget of seconds, and when it ends early.

Seconds are those of training alone: compilation, evaluation and files are in none.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numba.core import event

import kfc_numba as kfc
from benchmarks.experiments.results import (
    DIVERGED,
    DONE,
    GIVEN_UP,
    REACHED,
    TRAINING_SAMPLE,
    Plan,
    Result,
    finished,
)
from benchmarks.experiments.tasks import Task
from kfc_numba.history import Row

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)  # learning rates that rivals are tuned over
GROWTH = 1.2  # of the seconds from one evaluation to the next
MOST_GAP = 0.1  # of the budget, between two evaluations
LEAST_STEPS = 20  # before a run is judged by where its training loss is
HIGHEST = 100  # a training loss above this many times its first has diverged

RULES = (
    f"A run has diverged when a training step fails, when its training loss is not finite or above "
    f"{HIGHEST} times its first, or when it is above its first after a quarter of the budget and "
    f"{LEAST_STEPS} steps; it stops there. A run of the search for a rival's settings is given up "
    "when its training loss after half of the budget is above what the best run of the same "
    "optimizer so far had after a quarter of it."
)


class Training(Protocol):
    """What can be trained in steps; `rows` gets one before the first step and after each call."""

    rows: list[Row]

    def train_to(self, steps: int) -> None: ...


class CompiledError(Exception):
    """Kernels were compiled within the seconds of a training."""


class OwnTraining:
    """A task and an optimizer of ours."""

    def __init__(self, task: Task, optimizer: kfc.Optimizer, batch_size: int, seed: int):
        self.task, self.batch_size = task, batch_size
        self.trainer = kfc.Trainer(task.build(seed), task.loss, optimizer, seed=seed)
        self.rows = self.trainer.history.rows
        self.sample = TRAINING_SAMPLE

    def train_to(self, steps: int) -> None:
        self._fit(total_steps=steps, evaluate_every=steps)

    def train_epochs(self, epochs: int, evaluate_every: int) -> None:
        self._fit(total_epochs=epochs, evaluate_every=evaluate_every)

    def _fit(self, **limits: Any) -> None:
        with event.install_recorder("numba:compile") as compiled:
            self.trainer.fit(
                *self.task.train,
                batch_size=self.batch_size,
                validation=self.task.validation,
                progress=False,
                training_sample=self.sample,
                **limits,
            )
        if compiled.buffer:
            raise CompiledError


def uncompiled(run: Callable[[], Result]) -> Result:
    """What a run gives when nothing is compiled in it; until then it begins anew."""
    while True:
        try:
            return run()
        except CompiledError:
            continue  # what was compiled is compiled now


def train_for(
    training: Training,
    budget: float,
    *,
    level: float | None = None,
    reference: Sequence[Row] | None = None,
    give_up_after: float = math.inf,
    growth: float = GROWTH,
) -> tuple[str, str | None]:
    """Train until a budget of seconds is used up, or there is a reason to stop.

    Evaluations are the closer, the earlier: curves are looked at in ratios of seconds.

    Parameters
    ----------
    training : Training
    budget : float
        Seconds.
    level : float, optional
        A training loss to stop at.
    reference : sequence of rows, optional
        Of the best run so far; see `RULES`.
    give_up_after : float
        Seconds after which the run cannot be the best any more.
    growth : float
        Of the seconds from one evaluation to the next.

    Returns
    -------
    outcome : str
    problem : str or None
    """
    steps, due = 1, budget / 200
    while True:
        try:
            training.train_to(steps)
        except FloatingPointError as error:
            return DIVERGED, str(error)
        row = training.rows[-1]
        seconds, loss = row["seconds"], row["training_loss"]
        problem = divergence(training.rows, budget)
        if problem:
            return DIVERGED, problem
        if level is not None and loss <= level:
            return REACHED, None
        if seconds >= budget:
            return DONE, None
        if seconds >= give_up_after:
            return GIVEN_UP, f"not reached after {seconds:.3g} s"
        if reference is not None and seconds >= budget / 2:
            quarter = next(r["training_loss"] for r in reference if r["seconds"] >= budget / 4)
            if loss > quarter:
                return GIVEN_UP, f"training loss {loss:.4g} after {seconds:.3g} s"
        while due <= seconds:
            due += min(max((growth - 1) * due, budget / 200), MOST_GAP * budget)
        last = training.rows[-2]
        a_step = (seconds - last["seconds"]) / (row["step"] - last["step"])
        more = (min(due, budget, give_up_after) - seconds) / a_step
        # The first steps say little about those that follow: never more than twice as many.
        steps = row["step"] + max(1, min(math.ceil(more), 2 * row["step"]))


def divergence(rows: Sequence[Row], budget: float) -> str | None:
    """Why the last row means that a run has diverged; None if it does not."""
    first, row = rows[0]["training_loss"], rows[-1]
    loss, where = row["training_loss"], f"at step {row['step']}"
    if not math.isfinite(loss) or loss > HIGHEST * first:
        return f"training loss {loss:.4g} {where}, {first:.4g} at first"
    if row["seconds"] >= budget / 4 and row["step"] >= LEAST_STEPS and loss > first:
        return f"training loss {loss:.4g} {where}, still above {first:.4g}, the first"
    return None


def own_run(
    task: Task,
    optimizer: kfc.Optimizer,
    plan: Plan,
    *,
    reference: Sequence[Row] | None = None,
    give_up_after: float = math.inf,
    growth: float = GROWTH,
) -> Result:
    """Do what a plan with a budget says.

    Parameters
    ----------
    task : Task
    optimizer : Optimizer
        That the plan describes.
    plan : Plan
    reference, give_up_after, growth
        See `train_for`.

    Returns
    -------
    Result
    """
    load_kernels(task, optimizer, plan.batch_size)
    budget = plan.budget
    if budget is None:
        raise ValueError("plan.budget is None; required: a number of seconds")

    def run() -> Result:
        training = OwnTraining(task, optimizer, plan.batch_size, plan.seed)
        training.sample = plan.sample
        outcome, problem = train_for(
            training,
            budget,
            level=plan.level,
            reference=reference,
            give_up_after=give_up_after,
            growth=growth,
        )
        return finished(plan, outcome, problem, training.rows)

    return uncompiled(run)


_loaded: set[tuple[str, str, int]] = set()


def load_kernels(task: Task, optimizer: kfc.Optimizer, batch_size: int) -> None:
    """Train a little and throw it away, so that kernels are in memory."""
    key = task.name, type(optimizer).__name__, batch_size
    if key in _loaded:
        return
    trainer = kfc.Trainer(task.build(0), task.loss, optimizer)
    x, y = (array[: 4 * batch_size] for array in task.train)
    # What becomes of this training is nobody's business: the real one will say if it fails.
    with contextlib.suppress(FloatingPointError):
        trainer.fit(x, y, batch_size=batch_size, max_steps=3, progress=False)
    _loaded.add(key)
