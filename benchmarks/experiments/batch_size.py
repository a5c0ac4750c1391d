"""Batch size and machines: loss against iterations, and seconds to a loss by a model of workers.

Run: python -m benchmarks.experiments.batch_size [--data FOLDER] [--fast]
     python -m benchmarks.experiments.batch_size --measure    # seconds: nothing may run beside it
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kfc_numba as kfc
from benchmarks.experiments import batch_size_report as report
from benchmarks.experiments import figures, step_costs, tasks
from benchmarks.experiments.batch_size_report import COMMAND, Found, found_in
from benchmarks.experiments.data_parallel import Job
from benchmarks.experiments.defaults import rival
from benchmarks.experiments.iterations import RULES, run_steps, steps_to
from benchmarks.experiments.options import arguments, available, parse_common
from benchmarks.experiments.records import Records
from benchmarks.experiments.results import (
    RESULTS,
    ROOT,
    TRAINING_SAMPLE,
    Result,
    Store,
    plan_for,
)
from benchmarks.experiments.tasks import Task
from benchmarks.experiments.workers import Costs

if TYPE_CHECKING:
    from benchmarks.experiments.claims import Claim

SHOWS = (
    "How many iterations larger batches save SGD and KFC, and seconds to a loss of 1 to 1,024 "
    "workers by a model, which is held against one and two processes."
)
TAKES = "about 15 minutes, and 5 for --measure, beside which nothing may run"

NAME, COSTS = "batch_size", "batch_size_costs"
TASK = "cifar-quick"
#: Most steps by batch size.
STEPS = {128: 700, 512: 400, 2048: 250}
#: Learning rates of SGD. The first are tried, the likeliest first; then others while the best is
#: the largest or the least of those that were.
RATES = (0.03, 0.1, 0.01)
WIDER = (0.001, 0.003, 0.3, 1.0)
#: Training losses that iterations are counted to; runs end at the last.
LEVELS = (1.6, 1.4, 1.2, 1.0)


class Search:
    """KFC as it is, and SGD with the best of its learning rates, for each batch size."""

    def __init__(self, task: Task, options: argparse.Namespace, store: Store):
        self.task, self.options, self.store = task, options, store

    def run(self) -> None:
        first, *others = self.options.seeds
        chosen: list[tuple[int, float | None]] = []
        for batch in self.options.steps:
            self._run(batch, None, first)
            chosen.append((batch, None))
        for batch in self.options.steps:
            rate = self._best_rate(batch, first)
            if rate is not None:
                chosen.append((batch, rate))
        for seed in others:
            for batch, rate in chosen:
                self._run(batch, rate, seed)

    def _best_rate(self, batch: int, seed: int) -> float | None:
        """The learning rate of SGD with fewest steps."""
        best: Result | None = None
        winner, fewest = None, math.inf
        tried: list[float] = []
        while rate := self._next_rate(tried, winner):
            tried.append(rate)
            result = self._run(batch, rate, seed, best)
            steps = steps_to(result, self.options.levels[-1])
            if steps < fewest:
                best, winner, fewest = result, rate, steps
        return winner

    def _next_rate(self, tried: list[float], winner: float | None) -> float | None:
        for rate in self.options.rates:
            if rate not in tried:
                return rate
        if winner == max(tried):
            return min((rate for rate in WIDER if rate > winner), default=None)
        if winner == min(tried):
            return max((rate for rate in WIDER if rate < winner), default=None)
        return None

    def _run(self, batch: int, rate: float | None, seed: int, best: Result | None = None) -> Result:
        o = self.options
        optimizer = kfc.KFC() if rate is None else rival("sgd", rate)
        limits = {"steps": o.steps[batch], "level": o.levels[-1], "sample": o.sample}
        plan = plan_for(self.task, optimizer, batch, seed, **limits)
        new = plan not in self.store
        result = self.store.get(plan, lambda: run_steps(self.task, optimizer, plan, best=best))
        if new:
            row = result.rows[-1]
            print(
                f"  {result.label}, batch {batch}, seed {seed}: {result.outcome}, "
                f"{row['step']} steps, training loss {row['training_loss']:.4g}"
                + (f" ({result.problem})" if result.problem else ""),
                flush=True,
            )
        return result


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, tuple(STEPS))
    parser.set_defaults(seeds=1)
    parser.add_argument("--measure", action="store_true", help="seconds of steps, and no trainings")
    options = parse_common(parser, words)
    for batch in options.batches:
        if batch not in STEPS:
            parser.error(f"--batches is {batch}; required: some of {tuple(STEPS)}")
    options.rates, options.levels, options.sample = RATES, LEVELS, TRAINING_SAMPLE
    options.steps = {batch: STEPS[batch] for batch in options.batches}
    options.measuring = {"costs": {"job": Job(kfc.KFC(), 1, 1)}, "two": {}}
    if options.fast:
        options.seeds, options.rates, options.levels = range(1), (0.01, 0.03), (3.5, 3.0)
        options.sample, options.steps = 64, {16: 8, 64: 4}
        shape = {"network": "small", "shape": (28, 28, 1)}
        jobs = [Job(o, 8, 2, **shape) for o in (kfc.SGD(), kfc.KFC())]
        options.measuring = {
            "costs": {"job": jobs[0], "examples": (1, 8, 64), "rounds": 1},
            "two": {"jobs": jobs, "rounds": 1, "sums": (8, 8000)},
        }
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if options.fast else None
        results = options.results or kept or RESULTS
        output = options.output or kept or ROOT / "docs"
        if not options.report_only:
            if not options.measure:
                _train(options, results)
            if options.measure or options.fast:
                _measure(options, results)
        text = section(results)
        if text is None:
            print("no results")
            return 1
        draw(results, output)
        print(f"\n{text}\nfigures written to {output / figures.FOLDER}")
    return 0


def _train(options: argparse.Namespace, results: Path) -> None:
    # No seconds are kept: runs of several machines go together.
    store = Store(results / NAME, read_only=True)
    if options.fast:
        found = [tasks.load("fashion-bundled").first(256, 64)]
    else:
        found = [*available([TASK], options.data)]
    for task in found:
        Search(task, options, store).run()


def _measure(options: argparse.Namespace, results: Path) -> None:
    records, how = Records(COSTS, results), options.measuring
    records.get("costs", lambda: step_costs.measure(**how["costs"]))
    print("  costs of steps", flush=True)
    records.get("two_processes", lambda: step_costs.measure_two(**how["two"]))
    print("  one process and two", flush=True)


# The report.


def _found(results: Path) -> tuple[Found, tuple[float, ...]] | None:
    """Steps to the losses, and these, in descending order."""
    runs = Store(results / NAME, read_only=True).newest()
    last = min((r.plan.level for r in runs if r.plan.level is not None), default=None)
    if last is None:
        return None
    levels = (*(level for level in LEVELS if level > last), last)
    found = found_in([r for r in runs if r.plan.level == last], levels)
    return (found, levels) if found else None


def _costs(results: Path) -> tuple[Costs, dict[str, Any], dict[str, Any]] | None:
    """Costs of a worker, the record that they are of, and that of two processes."""
    records = Records(COSTS, results, read_only=True)
    costs, two = (records.get(name, dict) for name in ("costs", "two_processes"))
    return (Costs.from_record(costs), costs, two) if costs and two else None


def section(results: Path) -> str | None:
    """The section of docs/results.md, None where nothing was run.

    Parameters
    ----------
    results : path
        Folder of all results.

    Returns
    -------
    str or None
    """
    there = _found(results)
    if there is None:
        return None
    found, levels = there
    parts = [
        "## Batch size and machines",
        report.batch_claim(found),
        figures.link(report.ITERATIONS, report.iterations_caption(found)),
        report.steps_table(found, levels),
        f"SGD has the learning rate with fewest steps, for each batch size. The search: {RULES}",
        report.search_table(found, levels),
    ]
    if found.level is not None:
        parts += _machines_section(found, found.level, results)
    return "\n\n".join([*parts, report.deviations(found)])


def _machines_section(found: Found, level: float, results: Path) -> list[str]:
    measured = _costs(results)
    claim = (
        "Larger batches in fewer iterations are a case for many machines: with these, KFC is "
        "further ahead of SGD than with one"
    )
    if measured is None:
        return [
            f"**Claim: {claim}.** Not known yet: the seconds of steps have not been measured. "
            f"`{COMMAND} --measure`, on a machine that does nothing else, measures them."
        ]
    costs, record, two = measured
    modelled = report.machines(found, costs)
    verdict = report.machines_verdict([m.ratios for m in modelled])
    memory, checks = report.checks(two, costs)
    return [
        f"**Claim: {claim}. By a model, it {verdict}.** "
        + report.machines_text(modelled, level)
        + "\n\nThe claim is taken to hold where the ratio with the best numbers of workers is "
        "above 1 and above that with one worker, for both networks, and in part where it is above "
        "1 for any of them.",
        figures.link(report.MACHINES, report.machines_caption(found, record, level)),
        report.machines_table(modelled),
        "The model, which `benchmarks/experiments/workers.py` states: workers have equal shares of "
        "each batch, gradients and factors are added up (a reduce-scatter and an allgather), "
        "layers are divided among workers for decompositions and for preconditioning, and nothing "
        "is sent while something is computed. Costs of a worker, one thread, are measured.",
        "### One worker and two",
        report.checks_text(memory, checks),
        report.checks_table(checks),
    ]


def claims(results: Path) -> list[Claim]:
    """What was found on the claims of the abstract."""
    from benchmarks.experiments.claims import ABSTRACT, Claim

    there = _found(results)
    if there is None:
        return []
    found = there[0]
    if found.level is None:
        return []
    text, verdict = report.batch_text(found, found.level)
    return [Claim(ABSTRACT["batches"], text, verdict, report.ITERATIONS)]


def draw(results: Path, output: Path) -> None:
    """The figures, as far as there are results.

    Parameters
    ----------
    results : path
        Folder of all results.
    output : path
        Folder of the pages.
    """
    there = _found(results)
    if there is None:
        return
    found, _ = there
    report.draw_iterations(found, output)
    measured = _costs(results)
    if measured and found.level is not None:
        report.draw_machines(report.machines(found, measured[0]), found.level, output)


if __name__ == "__main__":
    sys.exit(main())
