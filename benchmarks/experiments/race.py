"""CIFAR-10, network `quick`: seconds and steps to a training loss, beside our own and PyTorch's.

Each rival has the best of its learning rates and batch sizes, KFC its best batch size. Writes
race.md. Results are kept, so that it can be stopped and called again; PyTorch's optimizers need the
extra ``peers``. docs/experiments.md says how it compares.

Run: python -m benchmarks.experiments.race [--optimizers NAME...] [--batches N...] [--fast]
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

import kfc_numba as kfc
from benchmarks.common import random_batch
from benchmarks.experiments.defaults import rival
from benchmarks.experiments.options import (
    arguments,
    available,
    describe,
    parse_common,
    store_and_output,
)
from benchmarks.experiments.results import (
    DIVERGED,
    GIVEN_UP,
    TRAINING_SAMPLE,
    Plan,
    Result,
    Store,
    plan_for,
)
from benchmarks.experiments.runs import RATES, own_run
from benchmarks.experiments.tasks import Task
from benchmarks.peers.timing import Claim, claims_table
from benchmarks.peers.timing import describe as describe_environment
from kfc_numba import networks
from kfc_numba.checkpoint import write_bytes

SHOWS = (
    "Seconds and iterations of KFC() to a training loss on CIFAR-10, beside our SGD and Adam and "
    "PyTorch's optimizers, each tuned (docs/race.md)."
)
TAKES = "about two hours"
TASK = "cifar-quick"
LEVEL = 0.6
LIMIT = 300.0
BATCHES = (32, 128, 512)
GROWTH = 1.1  # of the seconds between evaluations
OWN = ("kfc", "sgd", "adam")
TORCH = ("torch-sgd", "torch-adam", "torch-adamw", "torch-muon", "torch-soap")
# Goals: KFC / the best of these, in seconds or steps.
GOALS: tuple[tuple[str, tuple[str, ...] | None, int, float], ...] = (
    ("seconds, KFC() / best of our SGD and Adam", ("SGD", "Adam"), 1, 1 / 4),
    ("seconds, KFC() / best of PyTorch's", None, 1, 1 / 8),
    ("steps, KFC() / our best SGD", ("SGD",), 0, 1 / 10),
)

Run = Callable[[float], Result]


class Racer:
    """Finds the best settings of each optimizer, and runs these with all seeds."""

    def __init__(self, task: Task, options: argparse.Namespace, store: Store):
        self.task, self.options, self.store = task, options, store
        self.results: list[Result] = []

    def race(self, name: str) -> None:
        """All runs of one optimizer.

        With the first seed, a run is given up when it has taken longer than the best so far: it
        could not be chosen any more.
        """
        rates = (None,) if name == "kfc" else self.options.rates
        seeds, best = self.options.seeds, math.inf
        chosen: tuple[int, float | None] | None = None
        for batch in self.options.batches:
            for rate in rates:
                reached = self._run(name, batch, rate, seeds[0], best).reached(self.options.level)
                if reached and reached[1] < best:
                    best, chosen = reached[1], (batch, rate)
        if chosen:
            for seed in seeds[1:]:
                self._run(name, *chosen, seed, math.inf)

    def _run(self, name: str, batch: int, rate: float | None, seed: int, best: float) -> Result:
        plan, run = self._plan(name, batch, rate, seed)
        new = plan not in self.store
        result = self.store.get(plan, lambda: run(best))
        if new:
            print(describe(result), flush=True)
        self.results.append(result)
        return result

    def _plan(self, name: str, batch: int, rate: float | None, seed: int) -> tuple[Plan, Run]:
        task, limits = self.task, self._limits()
        if name in OWN:
            optimizer = kfc.KFC() if rate is None else rival(name, rate)
            plan = plan_for(task, optimizer, batch, seed, **limits)
            return plan, lambda best: own_run(
                task, optimizer, plan, give_up_after=best, growth=GROWTH
            )
        from benchmarks.experiments import pytorch_runs

        assert rate is not None
        kind = next(n for n in pytorch_runs.NAMES if f"torch-{n.lower()}" == name)
        settings = pytorch_runs.config_of(kind, rate, kfc.KFC().averaging)
        plan = Plan(task.name, task.checksum, settings, batch, seed, **limits)
        return plan, lambda best: pytorch_runs.torch_run(
            task, plan, give_up_after=best, growth=GROWTH
        )

    def _limits(self) -> dict[str, Any]:
        o = self.options
        return {"budget": o.limit, "level": o.level, "sample": o.sample}


def chosen_runs(results: Sequence[Result], name: str, level: float) -> list[Result]:
    """Runs of an optimizer with the settings that reached a loss soonest with the first seed."""
    runs = [r for r in results if r.name == name]
    first = min((r.plan.seed for r in runs), default=0)
    there = [(r.reached(level), r) for r in runs if r.plan.seed == first]
    finishers = [(reached[1], r) for reached, r in there if reached]
    if not finishers:
        return []
    _, best = min(finishers, key=lambda pair: pair[0])
    return [r for r in runs if (r.label, r.plan.batch_size) == (best.label, best.plan.batch_size)]


def medians(runs: Sequence[Result], level: float) -> tuple[float, float]:
    """Median steps and seconds to a loss; infinite where it is not reached."""
    reached = [r.reached(level) or (math.inf, math.inf) for r in runs]
    return statistics.median(s for s, _ in reached), statistics.median(s for _, s in reached)


def names_of(results: Sequence[Result]) -> list[str]:
    """Optimizers of the results, KFC first."""
    return sorted(dict.fromkeys(r.name for r in results), key=lambda name: name != "KFC")


def table(results: Sequence[Result], level: float, style: str) -> str:
    """A line for each optimizer, with its best settings."""
    ours = medians(chosen, level)[1] if (chosen := chosen_runs(results, "KFC", level)) else None
    lines: list[tuple[Any, ...]] = []
    for name in names_of(results):
        runs = chosen_runs(results, name, level)
        everything = [r for r in results if r.name == name]
        bad = sum(r.outcome == DIVERGED for r in everything)
        left = sum(r.outcome == GIVEN_UP for r in everything)
        counts = f"{len(everything)}, {bad}, {left}"
        if not runs:
            lines.append((name, *["-"] * 6, counts))
            continue
        steps, seconds = medians(runs, level)
        if math.isinf(seconds):
            cells = ("not reached", "not reached", "-")
        else:
            ratio = "-" if ours is None else f"{ours / seconds:.2f}"
            cells = (f"{steps:,.0f}", f"{seconds:.3g}", ratio)
        error = statistics.median(r.rows[-1]["validation_error"] for r in runs)
        label, batch = runs[0].label, runs[0].plan.batch_size
        lines.append((label, batch, len(runs), *cells, f"{100 * error:.1f}%", counts))
    headers = ("optimizer", "batch", "seeds", "steps", "seconds", "seconds, KFC() / it",
               "validation error there", "runs, diverged, given up")  # fmt: skip
    return tabulate(lines, headers, style, disable_numparse=True)


def search_table(results: Sequence[Result], level: float, style: str) -> str:
    """Seconds of each of the settings, with the first seed."""
    first = min(r.plan.seed for r in results)
    runs = [r for r in results if r.plan.seed == first]
    batches = sorted({r.plan.batch_size for r in runs})
    lines = []
    for label in dict.fromkeys(r.label for r in runs):
        cells = []
        for batch in batches:
            run = next((r for r in runs if (r.label, r.plan.batch_size) == (label, batch)), None)
            reached = run.reached(level) if run else None
            if run is None:
                cells.append("")
            elif reached:
                cells.append(f"{reached[1]:.3g}")
            elif run.outcome == DIVERGED:
                cells.append("diverged")
            else:
                cells.append(f"more than {run.rows[-1]['seconds']:.3g}")
        lines.append((label, *cells))
    headers = ("optimizer", *(f"batch {batch}" for batch in batches))
    return tabulate(lines, headers, style, disable_numparse=True)


def claims(results: Sequence[Result], level: float) -> list[Claim]:
    """What was aimed at, as far as there are results."""
    ours = chosen_runs(results, "KFC", level)
    if not ours:
        return []
    found = []
    own = medians(ours, level)
    for what, names, index, bound in GOALS:
        rivals = names or [n for n in names_of(results) if n.startswith("torch")]
        theirs = [medians(r, level)[index] for n in rivals if (r := chosen_runs(results, n, level))]
        if theirs and math.isfinite(min(theirs)):
            found.append(Claim(what, own[index] / min(theirs), bound))
    return found


def page(results: Sequence[Result], level: float) -> str:
    """The report in Markdown."""
    names = ("processor", "threads", "numba", "numpy", "torch", "commit")
    abouts = {
        describe_environment({name: r.environment.get(name) for name in names}): None
        for r in results
    }
    limit = results[0].plan.budget
    parts = [
        f"# Seconds to a training loss of {level:g}",
        "Written by `python -m benchmarks.experiments.race`, which "
        "[experiments.md](experiments.md) describes: CIFAR-10's batches 1 to 4, network `quick`; "
        + "; ".join(abouts)
        + ".",
    ]
    if goals := claims(results, level):
        parts.append(claims_table(goals, "github"))
    ran = {r.name.lower().replace(" ", "-") for r in results}
    if left := [f"`{name}`" for name in (*OWN, *TORCH) if name not in ran]:
        parts.append(f"Not run, and in no ratio: {', '.join(left)}.")
    parts += [
        "Each with its best learning rate and batch size; `KFC()` with its best batch size. "
        "Medians over seeds.",
        table(results, level, "github"),
        "## The search",
        "Seconds with the first seed. A run was given up when it had taken longer than the best of "
        f"the same optimizer so far; none had more than {limit:g} seconds.",
        search_table(results, level, "github"),
    ]
    return "\n\n".join(parts) + "\n"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, BATCHES)
    every = (*OWN, *TORCH)
    parser.add_argument("--optimizers", nargs="+", choices=every, default=every)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="of the rivals")
    parser.add_argument("--level", type=float, default=LEVEL, help=f"training loss ({LEVEL})")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds of a run ({LIMIT:g})")
    options = parse_common(parser, words)
    for name in ("level", "limit"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} is {getattr(options, name)}; required: above 0")
    options.sample = TRAINING_SAMPLE
    if options.fast:
        options.batches, options.seeds, options.rates = [16], range(1), [0.003]
        options.level, options.limit, options.sample = 2.2, 1.0, 64
    return options


def made_task() -> Task:
    """Random images in place of CIFAR-10's."""
    x, y = random_batch(128)
    return Task(
        TASK,
        lambda seed: networks.build("quick", (32, 32, 3), 10, seed=seed),
        kfc.SoftmaxCrossEntropy(),
        (x[:96], y[:96]),
        (x[96:], y[96:]),
        1.0,
        "random images",
    )


def is_own(plan: Plan) -> bool:
    """Whether a kept run is of this experiment, as it is without options."""
    return plan.level == LEVEL


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    with store_and_output(options) as (store, output):
        if options.report_only:
            results = [r for r in store.newest() if _asked_for(r, options)]
        else:
            found = [made_task()] if options.fast else [*available([TASK], options.data)]
            results = []
            for task in found:
                racer = Racer(task, options, store)
                for name in options.optimizers:
                    if name in TORCH and importlib.util.find_spec("torch") is None:
                        print(f'skipped {name}: no torch; pip install -e ".[peers]"', flush=True)
                        continue
                    racer.race(name)
                results = racer.results
        if not results:
            print("no results")
            return 1
        write_bytes(output / "race.md", page(results, options.level).encode())
        print(f"\n{table(results, options.level, 'simple')}")
        if goals := claims(results, options.level):
            print(claims_table(goals))
        print(f"written to {output / 'race.md'}")
    return 0


def _asked_for(result: Result, options: argparse.Namespace) -> bool:
    plan = result.plan
    return (
        plan.level == options.level
        and plan.batch_size in options.batches
        and plan.seed in options.seeds
        and result.name.lower().replace(" ", "-") in options.optimizers
    )


if __name__ == "__main__":
    sys.exit(main())
