"""`KFC()` with no argument on every task, beside SGD and Adam, each tuned.

Writes defaults.md and defaults.png. Results are kept, so that it can be stopped and called again;
docs/experiments.md says how it compares.

Run: python -m benchmarks.experiments.defaults [--tasks NAME...] [--batches N...] [--fast]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import kfc_numba as kfc
from benchmarks.experiments import tasks
from benchmarks.experiments.defaults_report import COMPARED, write_report
from benchmarks.experiments.options import (
    arguments,
    available,
    describe,
    parse_common,
    store_and_output,
)
from benchmarks.experiments.results import TRAINING_SAMPLE, Plan, Result, Store, plan_for
from benchmarks.experiments.runs import RATES, own_run
from benchmarks.experiments.tasks import Task

SHOWS = "KFC() with no argument on every task beside SGD and Adam, each tuned (docs/defaults.md)."
TAKES = "about ten hours; --tasks, --batches and --seeds choose parts"
BATCHES = (32, 128, 512, 2048, 8)  # the last is not compared
OPTIMIZERS = ("kfc", "sgd", "adam")
FAST_TASKS = ("digits", "poisson", "autoencoder", "few-images")


class Runner:
    """Runs what the options ask for of one task after the other, or takes it from the store."""

    def __init__(self, options: argparse.Namespace, store: Store):
        self.options, self.store = options, store
        self.results: list[Result] = []

    def run_task(self, task: Task) -> None:
        """All runs of a task: KFC, then the search and the best settings of each rival."""
        batches = [batch for batch in self.options.batches if batch <= len(task.train[0])]
        seeds = self.options.seeds
        if "kfc" in self.options.optimizers:
            for batch in batches:
                for seed in seeds:
                    self._run(task, kfc.KFC(), batch, seed)
        for name in ("sgd", "adam"):
            if name not in self.options.optimizers:
                continue
            best: tuple[Result, float] | None = None
            for batch in (batch for batch in batches if batch >= COMPARED):
                for rate in self.options.rates:
                    reference = best[0] if best else None
                    optimizer = rival(name, rate)
                    result = self._run(task, optimizer, batch, seeds[0], reference)
                    if result.loss < (best[0].loss if best else math.inf):
                        best = result, rate
            if best:
                batch = best[0].plan.batch_size
                for seed in seeds[1:]:
                    self._run(task, rival(name, best[1]), batch, seed)

    def _run(
        self,
        task: Task,
        optimizer: kfc.Optimizer,
        batch: int,
        seed: int,
        reference: Result | None = None,
    ) -> Result:
        plan = plan_for(
            task,
            optimizer,
            batch,
            seed,
            budget=task.budget * self.options.budget_factor,
            sample=self.options.sample,
        )
        new = plan not in self.store
        rows = reference.rows if reference else None
        result = self.store.get(plan, lambda: own_run(task, optimizer, plan, reference=rows))
        if new:
            print(describe(result), flush=True)
        self.results.append(result)
        return result


def rival(name: str, rate: float) -> kfc.Optimizer:
    """SGD with momentum 0.9 or Adam, averaging as `KFC()` does."""
    averaging = kfc.KFC().averaging
    if name == "sgd":
        return kfc.SGD(learning_rate=rate, momentum=0.9, averaging=averaging)
    return kfc.Adam(learning_rate=rate, averaging=averaging)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, BATCHES)
    parser.add_argument("--tasks", nargs="+", choices=tasks.names(), metavar="NAME")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="of the rivals")
    parser.add_argument("--budget-factor", type=float, default=1.0, help="of the seconds (1)")
    options = parse_common(parser, words)
    if not options.budget_factor > 0:
        parser.error(f"--budget-factor is {options.budget_factor}; required: above 0")
    options.sample = TRAINING_SAMPLE
    options.tasks = options.tasks or (FAST_TASKS if options.fast else tasks.names())
    if options.fast:
        options.batches, options.seeds = options.batches[:1], options.seeds[:1]
        options.rates, options.sample = options.rates[1:3], 200
    return options


def is_own(plan: Plan) -> bool:
    """Whether a kept run is of this experiment, as it is without options."""
    return plan.budget is not None and plan.level is None


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    with store_and_output(options) as (store, output):
        runner = Runner(options, store)
        if options.report_only:
            runner.results = [r for r in store.newest() if _asked_for(r, options)]
        else:
            for task in available(options.tasks, options.data):
                if options.fast:
                    task = task.first(400, 100)
                    options.budget_factor = 0.5 / task.budget
                runner.run_task(task)
        if not runner.results:
            print("no results")
            return 1
        print(write_report(runner.results, output))
    return 0


def _asked_for(result: Result, options: argparse.Namespace) -> bool:
    plan: Plan = result.plan
    return (
        plan.budget is not None
        and plan.level is None
        and plan.task in options.tasks
        and plan.batch_size in options.batches
        and plan.seed in options.seeds
        and result.name.lower() in options.optimizers
    )


if __name__ == "__main__":
    sys.exit(main())
