"""Training runs that are measured in steps: they may share the machine with others.

Their rows have no seconds (NaN), so nobody can compare what the clock said on a busy machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import kfc_numba as kfc
from benchmarks.experiments.results import (
    DIVERGED,
    DONE,
    GIVEN_UP,
    REACHED,
    Plan,
    Result,
    finished,
)
from benchmarks.experiments.runs import divergence
from benchmarks.experiments.tasks import Task
from kfc_numba.history import Row

GROWTH = 1.25  # of the steps from one evaluation to the next

RULES = (
    "A run ends at the loss; one of the search may end before, when it has taken more steps than "
    "the best of the same batch size so far, or half as many with a training loss above what that "
    "one had after a quarter."
)


def evaluations(steps: int) -> Iterator[int]:
    """Steps after which the training loss is computed, the closer, the earlier."""
    due = 1
    while due < steps:
        yield due
        due = max(due + 1, int(GROWTH * due))
    yield steps


def run_steps(
    task: Task, optimizer: kfc.Optimizer, plan: Plan, *, best: Result | None = None
) -> Result:
    """Do what a plan with a number of steps says.

    Parameters
    ----------
    task : Task
    optimizer : Optimizer
        That the plan describes.
    plan : Plan
    best : Result, optional
        The run with fewest steps to the plan's level so far; see `RULES`.

    Returns
    -------
    Result
        Without validation, and without seconds.
    """
    if plan.steps is None:
        raise ValueError("plan.steps is None; required: a number of steps")
    trainer = kfc.Trainer(task.build(plan.seed), task.loss, optimizer, seed=plan.seed)
    outcome, problem = DONE, None
    for steps in evaluations(plan.steps):
        try:
            trainer.fit(
                *task.train,
                batch_size=plan.batch_size,
                total_steps=steps,
                evaluate_every=steps,
                progress=False,
                training_sample=plan.sample,
            )
        except FloatingPointError as error:
            outcome, problem = DIVERGED, str(error)
            break
        loss = trainer.history.rows[-1]["training_loss"]
        problem = divergence(trainer.history.rows, math.inf)
        if problem:
            outcome = DIVERGED
            break
        if plan.level is not None and loss <= plan.level:
            outcome = REACHED
            break
        if best is not None and (problem := _hopeless(trainer.history.rows[-1], best, plan)):
            outcome = GIVEN_UP
            break
    rows: list[Row] = [row | {"seconds": math.nan} for row in trainer.history.rows]
    return finished(plan, outcome, problem, rows)


def _hopeless(row: Row, best: Result, plan: Plan) -> str | None:
    """Why a run that is at a row will not be the best; None if it may be."""
    assert plan.level is not None
    steps, needed = row["step"], steps_to(best, plan.level)
    if steps >= needed:
        return f"not reached after {steps} steps"
    quarter = next(r["training_loss"] for r in best.rows if r["step"] >= needed / 4)
    if steps >= needed / 2 and row["training_loss"] > quarter:
        return f"training loss {row['training_loss']:.4g} after {steps} steps"
    return None


def steps_to(result: Result, level: float) -> float:
    """Steps to a training loss; infinite where it was not reached, or the run diverged."""
    reached = None if result.outcome == DIVERGED else result.reached(level)
    return reached[0] if reached else math.inf
