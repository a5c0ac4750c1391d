"""CIFAR-10: KFC() beside SGD and Adam, each tuned by one protocol, by seconds and by iterations.

Three networks: `quick`, with response normalisation, with batch normalisation. Results are kept,
so that it can be stopped and called again; docs/experiments.md says how it compares.

Run: python -m benchmarks.experiments optimisation [--data FOLDER] [--minutes N] [--fast]
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import kfc_numba as kfc
from benchmarks.experiments import optimisation_report, tasks
from benchmarks.experiments.defaults import rival
from benchmarks.experiments.optimisation_report import (
    BATCHES,
    NAME,
    RATES,
    RIVALS,
    TASKS,
    claims,
    draw,
    section,
)
from benchmarks.experiments.options import (
    arguments,
    available,
    describe,
    folders,
    parse_common,
)
from benchmarks.experiments.results import TRAINING_SAMPLE, Result, Store, plan_for
from benchmarks.experiments.runs import own_run
from benchmarks.experiments.tasks import Task

SHOWS = (
    "KFC() beside SGD and Adam on CIFAR-10, each tuned: training loss and validation error against "
    "seconds and iterations, without and with response and batch normalisation."
)
TAKES = (
    "about 35 minutes, --minutes 25 does all but the last seeds; seconds count, so run nothing "
    "beside it"
)
BUDGET = 40.0
# Of the seconds from one evaluation to the next: evaluations are few, they take time themselves.
GROWTH = 1.6

__all__ = ["SHOWS", "TAKES", "claims", "draw", "main", "section"]


class OutOfTimeError(Exception):
    """The minutes that were given are used up."""


class Runner:
    """Does the parts of the experiment, or takes them from the store."""

    def __init__(
        self,
        options: argparse.Namespace,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.options, self.store, self.clock = options, store, clock
        self.end = clock() + 60 * options.minutes

    def run_all(self, found: Sequence[Task]) -> None:
        """The parts by what they are worth: whoever stops has the most important ones.

        Parameters
        ----------
        found : sequence of Task
        """
        best: dict[tuple[str, str], Result] = {}
        first, second = ("KFC", RIVALS[0]), RIVALS[1:]
        for names in (first, second):
            for task, name in itertools.product(found, names):
                if chosen := self.search(task, name):
                    best[task.name, name] = chosen
        for names in (first, second):
            for seed, task, name in itertools.product(self.options.seeds[1:], found, names):
                if chosen := best.get((task.name, name)):
                    self._run(task, name, chosen.plan.batch_size, _rate(chosen), seed)

    def search(self, task: Task, name: str) -> Result | None:
        """The best run of an optimizer with the first seed, None if all diverged.

        Learning rates at the first batch size, then the other batch sizes with the best of them.
        """
        seed, (first, *others) = self.options.seeds[0], self.options.batches
        best: Result | None = None
        for rate in self.options.rates.get(name, (math.nan,)):
            best = _better(self._run(task, name, first, rate, seed, best), best)
        if best:
            rate = _rate(best)
            for batch in others:
                best = _better(self._run(task, name, batch, rate, seed, best), best)
        return best

    def _run(
        self,
        task: Task,
        name: str,
        batch: int,
        rate: float,
        seed: int,
        reference: Result | None = None,
    ) -> Result:
        optimizer = kfc.KFC() if name == "KFC" else rival(name.lower(), rate)
        o = self.options
        plan = plan_for(task, optimizer, batch, seed, budget=o.budget, sample=o.sample)
        if plan in self.store:
            return self.store.get(plan, _never)
        if self.clock() >= self.end:
            raise OutOfTimeError
        rows = reference.rows if reference else None
        result = self.store.get(
            plan, lambda: own_run(task, optimizer, plan, reference=rows, growth=GROWTH)
        )
        print(describe(result), flush=True)
        return result


def _rate(result: Result) -> float:
    return float(result.plan.optimizer["learning_rate"])


def _better(result: Result, best: Result | None) -> Result | None:
    return result if result.loss < (best.loss if best else math.inf) else best


def _never() -> Result:
    raise AssertionError("it is in the store")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, BATCHES)
    parser.set_defaults(seeds=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="NAME")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="SECONDS", help=f"of a run ({BUDGET:g})"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        metavar="N",
        help="begin no run after so many; the next call goes on",
    )
    options = parse_common(parser, words)
    for name in ("budget", "minutes"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} is {getattr(options, name)}; required: above 0")
    options.sample, options.rates = TRAINING_SAMPLE, RATES
    if options.fast:
        options.batches, options.seeds, options.budget, options.sample = [16, 32], range(1), 0.2, 64
        options.rates = {name: rates[:1] for name, rates in RATES.items()}
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    with folders(options) as (results, output):
        if not options.report_only:
            store = Store(results / NAME)
            if options.fast:
                found = [tasks.load("few-images").first(128, 64)]
            else:
                found = list(available(options.tasks, options.data))
            try:
                Runner(options, store).run_all(found)
            except OutOfTimeError:
                print(f"stopped after {options.minutes:g} minutes; the same command goes on")
        return _report(results, output)


def _report(results: Path, output: Path) -> int:
    found = claims(results)
    if section(results) is None:
        print("no results")
        return 1
    draw(results, output)
    for claim in found:
        print(f"{claim.text}: {claim.verdict}: {claim.ours}")
    print(optimisation_report.missing(results))
    print(f"figures in {output}; python -m benchmarks.experiments page writes docs/results.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
