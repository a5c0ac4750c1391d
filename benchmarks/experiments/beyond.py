"""Beyond the paper: EKFAC, adaptive KFC, the block-tridiagonal inverse, and a residual network.

By iterations alone, so it may run beside other programs. Results are kept, so that it can be
stopped and called again.

Run: python -m benchmarks.experiments beyond [--data FOLDER] [--seeds N] [--fast]
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

import kfc_numba as kfc
from benchmarks.experiments import figures, tasks
from benchmarks.experiments.claims import Claim, verdict
from benchmarks.experiments.defaults import rival
from benchmarks.experiments.defaults_report import best_of
from benchmarks.experiments.optimisation_report import STEPS_BOUNDS, listed, machines
from benchmarks.experiments.options import (
    arguments,
    available,
    describe,
    folders,
    parse_common,
)
from benchmarks.experiments.race import medians
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

NAME = "beyond"
SHOWS = (
    "What came after the paper or before it: EKFAC, adaptive KFC, the block-tridiagonal inverse, "
    "and a residual network, by iterations."
)
TAKES = "about 45 minutes of one core; only iterations count, so other programs may run beside it"
BATCH = 256
EVALUATIONS = 16  # of a run
ADAPTIVE = {
    "use_adaptive_damping": True,
    "use_adaptive_learning_rate": True,
    "use_adaptive_momentum": True,
}
#: What KFC is constructed with, by the label of its results.
VARIANTS: dict[str, dict[str, Any]] = {
    "KFC": {},
    "KFC ekfac": {"structure": "ekfac"},
    "KFC tridiagonal": {"structure": "tridiagonal"},
    "KFC adaptive": ADAPTIVE,
}
#: What the page calls them.
NAMES = {
    "KFC ekfac": "EKFAC",
    "KFC tridiagonal": "tridiagonal KFC",
    "KFC adaptive": "adaptive KFC",
}
#: Of each task: its name on the page, epochs, variants, and learning rates of SGD to begin with.
TASKS: dict[str, tuple[str, int, tuple[str, ...], tuple[float, ...]]] = {
    "autoencoder": (
        "an autoencoder of dense layers on Fashion-MNIST",
        10,
        ("KFC", "KFC ekfac", "KFC tridiagonal", "KFC adaptive"),
        (0.001, 0.003, 0.01),
    ),
    "cifar-resnet": (
        "a residual network with batch normalisation on CIFAR-10",
        2,
        ("KFC", "KFC ekfac", "KFC adaptive"),
        (0.03, 0.1, 0.3),
    ),
    "cifar-quick": ("`quick` on CIFAR-10", 2, ("KFC", "KFC ekfac", "KFC adaptive"), ()),
}
#: Learning rates that are tried beyond these, as long as the best is at an end of those tried.
WIDER = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# Claim, what is compared with what, and the most for "holds" and for "holds in part".
CLAIMS: tuple[tuple[str, str, str, tuple[str, ...] | None, dict[str, float]], ...] = (
    (
        "EKFAC (George and others, 2018) takes fewer iterations than Kronecker factors",
        *("KFC ekfac", "KFC", None, {"holds": 1.0, "part": 1.1}),
    ),
    (
        "The block-tridiagonal inverse (Martens and Grosse, 2015) takes fewer iterations than the "
        "block-diagonal one",
        *("KFC tridiagonal", "KFC", None, {"holds": 1.0, "part": 1.1}),
    ),
    (
        "With damping, learning rate and momentum that adapt (Martens and Grosse, 2015) nothing "
        "has to be tuned",
        *("KFC adaptive", "KFC", None, {"holds": 1.0, "part": 2.0}),
    ),
    (
        "10 to 20 times fewer iterations than SGD on other kinds of networks too",
        *("KFC", "SGD", ("autoencoder", "cifar-resnet"), STEPS_BOUNDS),
    ),
)


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


# Report.


def runs_of(results: Sequence[Result], task: str, label: str) -> list[Result]:
    """Of a variant of KFC all runs on a task, of SGD those with the best rate."""
    if label == "SGD":
        return best_of(results, task, "SGD")
    return [r for r in results if (r.plan.task, r.label) == (task, label)]


def level_of(runs: Sequence[Result]) -> float:
    """The training loss that runs end with, the median over seeds."""
    return statistics.median(r.loss for r in runs)


def ratio(ours: Sequence[Result], theirs: Sequence[Result]) -> tuple[float, float]:
    """The higher of two losses that runs end with, and the ratio of iterations to it.

    Of two optimizers the worse has taken all its iterations to its last loss.
    """
    level = max(level_of(ours), level_of(theirs))
    own, other = (medians(runs, level)[0] for runs in (ours, theirs))
    return level, own / other


def claims(results: Path) -> list[Claim]:
    """What is claimed of each, as far as there are results."""
    found, made = load(results), []
    for text, ours, theirs, names, bounds in CLAIMS:
        parts, ratios = [], []
        for task in names or TASKS:
            own, other = (runs_of(found, task, label) for label in (ours, theirs))
            if not own or not other:
                continue
            if math.isinf(level_of(own)) or math.isinf(level_of(other)):
                bad = ours if math.isinf(level_of(own)) else theirs
                ratios.append(math.inf if bad == ours else 0.0)
                parts.append(f"{name_of(bad)} diverges on {TASKS[task][0]}")
                continue
            level, value = ratio(own, other)
            ratios.append(value)
            parts.append(f"{value:.2f} on {TASKS[task][0]} (loss {level:.3g})")
        if ratios:
            what = f"Iterations of {name_of(ours)}, over those of {name_of(theirs)}: "
            decided = verdict(statistics.median(ratios), **bounds)
            made.append(Claim(text, what + ", ".join(parts), decided, NAME))
    return made


def load(results: Path) -> list[Result]:
    """All results, of each kind the newest."""
    found = Store(results / NAME, read_only=True).newest()
    return [r for r in found if r.plan.task in TASKS]


def labels_of(results: Sequence[Result], task: str) -> list[str]:
    """What there are runs of on a task, SGD first."""
    return [label for label in ("SGD", *VARIANTS) if runs_of(results, task, label)]


def section(results: Path) -> str | None:
    """The part of docs/results.md about what lies beyond the paper, None without results."""
    found = load(results)
    if not found:
        return None
    parts = [
        "## Beyond the paper",
        f"By iterations, with batches of {listed(_batches(found))}; KFC() with its defaults but "
        "for what is named, adaptive KFC with all three switches. SGD has momentum 0.9 and the "
        "best of the "
        "learning rates in the table. Seconds are in no number of this section. "
        "[experiments.md](experiments.md#tasks) has the tasks and their data: CIFAR-10's batches 1 "
        "to 4, and Fashion-MNIST or, where it is not at hand, the bundled part of it.",
        _figure(found),
    ]
    if lines := [f"- {c.text}: **{c.verdict}**. {c.ours}." for c in claims(results)]:
        rule = (
            "Compared are the iterations to the higher of the two training losses at the end; the "
            "median over tasks decides, by bounds that are in the code."
        )
        parts += ["\n".join(lines), rule]
    parts.append(table(found))
    missing = [
        f"{name_of(label)} on {TASKS[task][0]}"
        for task, (_, _, variants, rates) in TASKS.items()
        for label in (*variants, *(["SGD"] if rates else []))
        if not any((r.label, r.plan.task) == (label, task) for r in found)
        and not (label == "SGD" and runs_of(found, task, label))
    ]
    if missing:
        parts.append(f"Missing: {'; '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def table(results: Sequence[Result]) -> str:
    """A line for each setting: where it ended, medians over seeds, and iterations to SGD's loss."""
    lines = []
    for task in TASKS:
        there = [r for r in results if r.plan.task == task]
        kfc_runs = runs_of(there, task, "KFC")
        level = level_of(kfc_runs) if kfc_runs else math.inf
        by_rate = sorted(there, key=lambda r: (r.name == "KFC", _rate(r), r.label))
        for label in dict.fromkeys(r.label for r in by_rate):
            runs = [r for r in there if r.label == label]
            bad = sum(r.outcome == DIVERGED for r in runs)
            steps = medians(runs, level)[0] if math.isfinite(level) else math.inf
            rows = [r.rows[-1] for r in runs]
            loss, error = (
                statistics.median(row[name] for row in rows)
                for name in ("training_loss", "validation_error")
            )
            shown = f"{100 * error:.1f}%" if task not in tasks.UNBOUNDED else f"{error:.3g}"
            reached = f"{steps:,.0f}" if math.isfinite(steps) else "not reached"
            cells = (len(runs), rows[0]["step"], f"{loss:.4g}", shown, reached, bad or "none")
            lines.append((TASKS[task][0], name_of(label), *cells))
    headers = ("task", "optimizer", "seeds", "iterations", "training loss", "validation error",
               "iterations to the loss of KFC", "diverged")  # fmt: skip
    return tabulate(lines, headers, "github", disable_numparse=True)


def name_of(label: str) -> str:
    return NAMES.get(label, label)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _batches(results: Sequence[Result]) -> list[int]:
    return sorted({r.plan.batch_size for r in results})


def _rate(result: Result) -> float:
    return float(result.plan.optimizer["learning_rate"])


def _figure(results: Sequence[Result]) -> str:
    shown = []
    for task in TASKS:
        if labels := labels_of(results, task):
            names = listed([name_of(label) for label in labels])
            first = min((r for r in results if r.plan.task == task), key=lambda r: r.plan.seed)
            shown.append(
                f"{_sentence(TASKS[task][0])}, {first.plan.epochs} epochs with "
                f"{first.rows[-1]['step']} iterations: {names}, seed {first.plan.seed}."
            )
    return figures.link(
        NAME,
        "Training loss of averaged parameters against iterations, batches of "
        f"{listed(_batches(results))}. {' '.join(shown)} {_sentence(machines(results))}.",
    )


def draw(results: Path, output: Path) -> None:
    """Training losses against iterations, a panel for each task."""
    found = load(results)
    there = [task for task in TASKS if labels_of(found, task)]
    if not there:
        return
    figure, panels = figures.new(1, len(there))
    styles = dict(zip(("KFC", "SGD", *list(VARIANTS)[1:]), figures.STYLES, strict=False))
    for axes, task in zip(panels[0], there, strict=True):
        for label in labels_of(found, task):
            result = min(runs_of(found, task, label), key=lambda r: r.plan.seed)
            rows = [row for row in result.rows if row["step"]]
            losses = [row["training_loss"] for row in rows]
            axes.plot(
                [row["step"] for row in rows],
                losses,
                label=name_of(result.label),
                markersize=3,
                **styles[label],
            )
        title = TASKS[task][0].replace("`", "")
        axes.set(xlabel="iterations", ylabel="training loss (nats)")
        axes.set_title(_sentence(title), fontsize="small")
        figures.logarithmic(axes)
        axes.legend(fontsize="small")
    figures.save(figure, output, NAME)


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
