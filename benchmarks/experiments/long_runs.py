"""`KFC()` for twenty passes over the data of each task: does the training loss ever rise?

A run fails if its training loss rises above twice its least so far, or above twice what is as good
as any lower one (`tasks.least`) where it had been below that. Writes long_runs.md and ends with
status 1 if a run failed.

Run: python -m benchmarks.experiments.long_runs [--tasks NAME...] [--batches N...] [--fast]
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

import kfc_numba as kfc
from benchmarks.experiments import tasks
from benchmarks.experiments.options import (
    arguments,
    available,
    describe,
    parse_common,
    store_and_output,
)
from benchmarks.experiments.results import DIVERGED, DONE, Plan, Result, finished, plan_for
from benchmarks.experiments.runs import OwnTraining, load_kernels, uncompiled
from benchmarks.experiments.tasks import Task
from benchmarks.peers.timing import describe as describe_environment
from kfc_numba.checkpoint import write_bytes

SHOWS = (
    "Whether the training loss of KFC() ever rises in 20 passes over the data of each task "
    "(docs/long_runs.md)."
)
TAKES = "about two hours"
EPOCHS = 20
EVALUATIONS_PER_EPOCH = 4
MOST_RISE = 2.0


@dataclass(frozen=True)
class Rise:
    """The largest rise of a run: the step, and the loss there over the least before."""

    step: int
    ratio: float


def largest_rise(result: Result) -> Rise:
    """Largest training loss over the least before it, a loss below `tasks.least` taken for that."""
    floor = max(tasks.least(result.plan.task), sys.float_info.min)
    least, largest = math.inf, Rise(0, 1.0)
    for row in result.rows:
        loss = max(row["training_loss"], floor)  # NaN stays: it is the first argument
        ratio = loss / least if least < math.inf else 1.0
        if math.isnan(ratio):
            return Rise(row["step"], ratio)
        if ratio > largest.ratio:
            largest = Rise(row["step"], ratio)
        least = min(least, loss)
    return largest


def failed(result: Result) -> bool:
    return result.outcome == DIVERGED or not largest_rise(result).ratio <= MOST_RISE


def long_run(task: Task, plan: Plan) -> Result:
    """Do what a plan with a number of epochs says."""
    optimizer, epochs = kfc.KFC(), plan.epochs
    if epochs is None:
        raise ValueError("plan.epochs is None; required: a number of passes")
    load_kernels(task, optimizer, plan.batch_size)
    every = math.ceil(len(task.train[0]) / plan.batch_size / EVALUATIONS_PER_EPOCH)

    def run() -> Result:
        training = OwnTraining(task, optimizer, plan.batch_size, plan.seed)
        training.sample = plan.sample
        try:
            training.train_epochs(epochs, every)
        except FloatingPointError as error:
            return finished(plan, DIVERGED, str(error), training.rows)
        return finished(plan, DONE, None, training.rows)

    return uncompiled(run)


def table(results: Sequence[Result], style: str) -> str:
    """A line for each run."""
    lines = []
    for r in results:
        losses = [row["training_loss"] for row in r.rows]
        rise, row = largest_rise(r), r.rows[-1]
        cells = (r.plan.task, r.plan.batch_size, r.plan.seed, row["step"])
        more = (f"{losses[0]:.4g}", f"{min(losses):.4g}", f"{losses[-1]:.4g}")
        where = f"{rise.ratio:.3g} at step {rise.step}"
        lines.append((*cells, *more, where, r.problem or ("too high" if failed(r) else "none")))
    headers = ("task", "batch", "seed", "steps", "first loss", "least", "last",
               "largest rise, over the least so far", "failure")  # fmt: skip
    return tabulate(lines, headers, style, disable_numparse=True)


def page(results: Sequence[Result], epochs: int) -> str:
    """The report in Markdown."""
    names = ("processor", "threads", "numba", "numpy", "commit")
    abouts = {
        describe_environment({name: r.environment.get(name) for name in names}): None
        for r in results
    }
    bad = sum(map(failed, results))
    return (
        "\n\n".join(
            [
                f"# KFC() for {epochs} epochs",
                "Written by `python -m benchmarks.experiments.long_runs`, which "
                "[experiments.md](experiments.md) describes: " + "; ".join(abouts) + ".",
                f"{bad} of {len(results)} runs failed: the training loss rose above {MOST_RISE:g} "
                "times its least so far, or a step failed. Losses of labels below "
                f"{tasks.LEAST:g} count as {tasks.LEAST:g}.",
                table(results, "github"),
            ]
        )
        + "\n"
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, (128,))
    parser.set_defaults(seeds=1)
    parser.add_argument("--tasks", nargs="+", choices=tasks.names(), metavar="NAME")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes ({EPOCHS})")
    options = parse_common(parser, words)
    if options.epochs < 1:
        parser.error(f"--epochs is {options.epochs}; required: at least 1")
    options.tasks = options.tasks or (("few-images",) if options.fast else tasks.names())
    return options


def is_own(plan: Plan) -> bool:
    """Whether a kept run is of this experiment, as it is without options."""
    return plan.epochs == EPOCHS


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    with store_and_output(options) as (store, output):
        results = []
        if options.report_only:
            results = [r for r in store.newest() if _asked_for(r, options)]
        else:
            for task in available(options.tasks, options.data):
                if options.fast:
                    task = task.first(128, 64)
                for batch in options.batches:
                    for seed in options.seeds:
                        epochs = 2 if options.fast else options.epochs
                        plan = plan_for(task, kfc.KFC(), batch, seed, epochs=epochs)
                        results.append(store.get(plan, functools.partial(long_run, task, plan)))
                        print(describe(results[-1]), flush=True)
        if not results:
            print("no results")
            return 1
        write_bytes(output / "long_runs.md", page(results, options.epochs).encode())
        print(f"\n{table(results, 'simple')}\nwritten to {output / 'long_runs.md'}")
        # A look at whether it runs says nothing about the optimizer.
        return int(not options.fast and any(map(failed, results)))


def _asked_for(result: Result, options: argparse.Namespace) -> bool:
    plan = result.plan
    return (
        plan.epochs == options.epochs
        and plan.task in options.tasks
        and plan.batch_size in options.batches
        and plan.seed in options.seeds
    )


if __name__ == "__main__":
    sys.exit(main())
