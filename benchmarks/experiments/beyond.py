"""Beyond the paper: EKFAC, adaptive KFC, the block-tridiagonal inverse, and a residual network.

By iterations alone, so it may run beside other programs. Results are kept, so that it can be
stopped and called again.

Run: python -m benchmarks.experiments beyond [--data FOLDER] [--seeds N] [--fast]
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Mapping, Sequence

import kfc_numba as kfc
from benchmarks.experiments.beyond_report import (
    NAME,
    TASKS,
    VARIANTS,
    claims,
    draw,
    section,
)
from benchmarks.experiments.defaults import rival
from benchmarks.experiments.options import (
    arguments,
    available,
    describe,
    folders,
    parse_common,
)
from benchmarks.experiments.results import (
    DIVERGED,
    DONE,
    TRAINING_SAMPLE,
    Plan,
    Result,
    Store,
    finished,
    plan_for,
)
from benchmarks.experiments.runs import OwnTraining, load_kernels, uncompiled
from benchmarks.experiments.tasks import Task

__all__ = ["SHOWS", "TAKES", "claims", "draw", "main", "section"]

SHOWS = (
    "What came after the paper or before it: EKFAC, adaptive KFC, the block-tridiagonal inverse, "
    "and a residual network, by iterations."
)
TAKES = "about 30 minutes of one core; only iterations count, so other programs may run beside it"
BATCH = 256
EVALUATIONS = 10  # of a run
#: Learning rates that are tried beyond these, as long as the best is at an end of those tried.
WIDER = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


# Runs.


def run(task: Task, optimizer: kfc.Optimizer, plan: Plan) -> Result:
    """Do what a plan with a number of epochs says."""
    load_kernels(task, optimizer, plan.batch_size)
    epochs = plan.epochs or 1
    steps = epochs * (len(task.train[0]) // plan.batch_size)

    def once() -> Result:
        training = OwnTraining(task, optimizer, plan.batch_size, plan.seed)
        training.sample = plan.sample
        try:
            training.train_epochs(epochs, max(1, steps // EVALUATIONS))
        except FloatingPointError as error:
            return finished(plan, DIVERGED, str(error), training.rows)
        return finished(plan, DONE, None, training.rows)

    return uncompiled(once)


def run_task(task: Task, options: argparse.Namespace, store: Store) -> None:
    """All variants on a task, and SGD with its best rate, where it has any."""
    _, epochs, variants, rates = TASKS[task.name]
    first, *others = options.seeds
    if options.fast:
        epochs, rates = 1, rates[:1]
    wider = rates if options.fast else WIDER

    def one(optimizer: kfc.Optimizer, seed: int) -> Result:
        batch = options.batches[0]
        plan = plan_for(task, optimizer, batch, seed, epochs=epochs, sample=options.sample)
        new = plan not in store
        result = store.get(plan, functools.partial(run, task, optimizer, plan))
        if new:
            print(describe(result), flush=True)
        return result

    losses: dict[float, float] = {}
    while rates and (rate := next_rate(rates, losses, wider)):
        losses[rate] = one(rival("sgd", rate), first).loss
    for label in variants:
        for seed in options.seeds:
            one(kfc.KFC(**VARIANTS[label]), seed)
    best = min(losses, key=losses.__getitem__, default=None)
    for seed in others if best and math.isfinite(losses[best]) else ():
        one(rival("sgd", best), seed)


def next_rate(
    rates: Sequence[float], losses: Mapping[float, float], wider: Sequence[float]
) -> float | None:
    """The next learning rate to try: all of `rates`, then beyond the end that the best is at.

    Parameters
    ----------
    rates : sequence of float
    losses : mapping of float to float
        Training losses of those that were tried, by rate.
    wider : sequence of float
        Rates to go on with.

    Returns
    -------
    float or None
        None where the best is between two others, or nothing is left.
    """
    for rate in rates:
        if rate not in losses:
            return rate
    best = min(losses, key=losses.__getitem__)
    if best == max(losses):
        return min((rate for rate in wider if rate > best), default=None)
    if best == min(losses):
        return max((rate for rate in wider if rate < best), default=None)
    return None


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, (BATCH,))
    parser.set_defaults(seeds=1)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="NAME")
    options = parse_common(parser, words)
    options.sample = TRAINING_SAMPLE
    if options.fast:
        options.seeds, options.batches, options.sample = range(1), [64], 64
        options.tasks = ["autoencoder"]
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    with folders(options) as (results, output):
        if not options.report_only:
            store = Store(results / NAME, any_machine=True)
            for task in available(options.tasks, options.data):
                run_task(task.first(256, 64) if options.fast else task, options, store)
        if section(results) is None:
            print("no results")
            return 1
        draw(results, output)
        for claim in claims(results):
            print(f"{claim.text}: {claim.verdict}: {claim.ours}")
        print(f"figures in {output}; python -m benchmarks.experiments page writes docs/results.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
