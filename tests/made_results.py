"""Results of training runs that never were: losses are functions of the steps.

Importing it puts benchmarks, which are not installed, on the import path.
"""

import math
from pathlib import Path

from benchmarks.experiments.results import Plan, Result, Store
from benchmarks.experiments.runs import train_for

ABOUT = {"processor": "p", "threads": 2, "commit": "c0ffee", "finished": "2026-01-01T00:00:00"}


class MadeTraining:
    """A training whose loss falls from `first` by a factor ``exp(-rate)`` at each step."""

    def __init__(self, rate, cost, first=2.0):
        self.rate, self.cost, self.first = rate, cost, first
        self.rows = [self.row(0)]

    def row(self, step):
        loss = self.first * math.exp(-self.rate * step)
        return {
            "step": step,
            "epoch": step / 10,
            "seconds": step * self.cost,
            "training_loss": loss,
            "validation_loss": loss,
            "validation_error": 0.1 + 0.1 * loss,
        }

    def train_to(self, steps):
        self.rows.append(self.row(steps))


def made(
    name, rate, *, task="cifar-quick", batch=128, seed=0, learning_rate=0.03, cost=0.01,
    budget=10.0, finished=ABOUT["finished"], **settings,
) -> Result:  # fmt: skip
    """A run whose loss falls at `rate`, of steps that take `cost` seconds."""
    training = MadeTraining(rate, cost)
    outcome, problem = train_for(training, budget)
    config = {"optimizer": name, "learning_rate": learning_rate, **settings}
    plan = Plan(task, 0, config, batch, seed, budget)
    return Result(plan, outcome, problem, training.rows, ABOUT | {"finished": finished})


def keep(folder: Path, results) -> Path:
    """Put results into a folder, as a program does that ran them."""
    store = Store(folder, read_only=True)
    for result in results:
        store.get(result.plan, lambda result=result: result)
    return folder
