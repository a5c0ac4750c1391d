"""The page and the picture of `defaults`, made of results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.experiments import tasks
from benchmarks.experiments.results import DIVERGED, GIVEN_UP, Result
from benchmarks.experiments.runs import RULES
from benchmarks.peers.timing import Claim, claims_table, describe, geometric_mean
from kfc_numba import plot
from kfc_numba.checkpoint import write_bytes

#: Least batch that is compared by seconds; smaller ones only show that runs do not diverge.
COMPARED = 32
NOT_REACHED = 2.0  # times the budget: what a run counts that did not reach the level in it


@dataclass(frozen=True)
class Comparison:
    """KFC at one batch size of a task beside the best SGD of any batch size.

    Attributes
    ----------
    task : str
    batch_size : int
    kfc : list of Result
        A run for each seed.
    level : float
        Training loss to reach, the median over seeds.
    sgd_seconds, kfc_seconds : float
        To the level of each seed, medians; for KFC infinite where it was not reached.
    ratio : float
        Median over seeds of the two seconds' ratio, a level not reached counted as
        `NOT_REACHED` times the budget.
    """

    task: str
    batch_size: int
    kfc: list[Result]
    level: float
    sgd_seconds: float
    kfc_seconds: float
    ratio: float

    @property
    def bad(self) -> int:
        """Runs of KFC that diverged."""
        return sum(run.outcome == DIVERGED for run in self.kfc)


def best_of(results: Sequence[Result], task: str, name: str) -> list[Result]:
    """The runs with the settings of an optimizer that had the least loss with the first seed."""
    runs = [r for r in results if r.plan.task == task and r.name == name]
    if not runs:
        return []
    first = min(r.plan.seed for r in runs)
    best = min((r for r in runs if r.plan.seed == first), key=lambda r: r.loss)
    if math.isinf(best.loss):
        return []  # all diverged
    same = best.label, best.plan.batch_size
    return sorted(
        (r for r in runs if (r.label, r.plan.batch_size) == same), key=lambda r: r.plan.seed
    )


def compare(results: Sequence[Result]) -> list[Comparison]:
    """All comparisons that the results allow, in the order of tasks and batch sizes."""
    found = []
    for task in task_names(results):
        sgd = {r.plan.seed: r for r in best_of(results, task, "SGD") if math.isfinite(r.loss)}
        if not sgd:
            continue
        own = [r for r in results if r.plan.task == task and r.name == "KFC"]
        for batch in _compared(own):
            runs = [r for r in own if r.plan.batch_size == batch and r.plan.seed in sgd]
            if runs:
                found.append(_comparison(task, batch, runs, sgd))
    return found


def _compared(runs: Sequence[Result]) -> list[int]:
    """Batch sizes that are compared."""
    return sorted({r.plan.batch_size for r in runs if r.plan.batch_size >= COMPARED})


def _comparison(task: str, batch: int, runs: list[Result], sgd: dict[int, Result]) -> Comparison:
    levels, theirs, ours, ratios = [], [], [], []
    for run in runs:
        rival, budget = sgd[run.plan.seed], run.plan.budget
        assert budget is not None
        level = max(rival.loss, tasks.least(task))
        reached = rival.reached(level)
        assert reached is not None  # by its last row at the latest
        mine = None if run.outcome == DIVERGED else run.reached(level)
        levels.append(level)
        theirs.append(reached[1])
        ours.append(mine[1] if mine else math.inf)
        ratios.append((mine[1] if mine else NOT_REACHED * budget) / reached[1])
    medians = (statistics.median(values) for values in (levels, theirs, ours, ratios))
    return Comparison(task, batch, runs, *medians)


def task_names(results: Sequence[Result]) -> list[str]:
    """Tasks that there are results of."""
    there = {r.plan.task for r in results}
    return [name for name in tasks.names() if name in there]


def error_claim(results: Sequence[Result]) -> Claim | None:
    """Validation errors at the end of the same seconds: where KFC is worst beside the best rival.

    Runs of KFC that diverged have a claim of their own.
    """
    found: list[tuple[float, str]] = []
    for task in task_names(results):
        best = [runs for name in ("SGD", "Adam") if (runs := best_of(results, task, name))]
        own = [r for r in results if r.plan.task == task and r.name == "KFC"]
        for batch in _compared(own) if best else ():
            runs = [r for r in own if r.plan.batch_size == batch and r.outcome != DIVERGED]
            if runs:
                rival = min(_error(rows) for rows in best)
                ratio = _error(runs) / rival if rival else (math.inf if _error(runs) else 1.0)
                found.append((ratio, f"{task}, batch {batch}"))
    if not found:
        return None
    ratio, where = max(found)
    return Claim(f"validation error, KFC() / best rival, worst: {where}", ratio, 1.0)


def _error(runs: Sequence[Result]) -> float:
    return statistics.median(r.rows[-1]["validation_error"] for r in runs)


def claims(results: Sequence[Result], comparisons: Sequence[Comparison]) -> list[Claim]:
    """What was aimed at."""
    runs = [r for r in results if r.name == "KFC"]
    bad = sum(r.outcome == DIVERGED for r in runs)
    least = min((r.plan.batch_size for r in runs), default=0)
    what = f"diverged runs of KFC(), of {len(runs)} with batches of {least} or more"
    found = [Claim(what, float(bad), 0.0)]
    if comparisons:
        ratios = [c.ratio for c in comparisons]
        worst = max(comparisons, key=lambda c: c.ratio)
        where = f"worst: {worst.task}, batch {worst.batch_size}"
        found = [
            Claim("seconds, KFC() / best SGD, geometric mean", geometric_mean(ratios), 0.5),
            Claim(where, worst.ratio, 1.0),
            *found,
        ]
    if error := error_claim(results):
        found.append(error)
    return found


def comparison_table(comparisons: Sequence[Comparison], style: str) -> str:
    """Seconds to what the best SGD reached."""
    lines = []
    for c in comparisons:
        reached = "-" if math.isinf(c.kfc_seconds) else f"{c.kfc_seconds:.3g}"
        bad = f"{c.bad} of {len(c.kfc)}" if c.bad else "none"
        line = (c.task, c.batch_size, f"{c.level:.4g}", f"{c.sgd_seconds:.3g}", reached)
        lines.append((*line, f"{c.ratio:.2f}", bad))
    headers = ("task", "batch", "training loss", "best SGD, s", "KFC(), s", "ratio", "diverged")
    return tabulate(lines, headers, style, disable_numparse=True)


def ends_table(results: Sequence[Result], style: str) -> str:
    """What each had at the end of the same seconds."""
    lines = []
    for task in task_names(results):
        own = [r for r in results if r.plan.task == task and r.name == "KFC"]
        rows: list[tuple[str, int, list[Result]]] = []
        for batch in sorted({r.plan.batch_size for r in own}):
            rows.append(("KFC", batch, [r for r in own if r.plan.batch_size == batch]))
        for name in ("SGD", "Adam"):
            if best := best_of(results, task, name):
                rows.append((f"best {best[0].label}", best[0].plan.batch_size, best))
        usual = [r for r in results if r.plan.task == task and r.label == "Adam 0.001"]
        if usual:
            best_usual = min(usual, key=lambda r: r.loss)
            rows.append(("usual Adam 0.001", best_usual.plan.batch_size, [best_usual]))
        for label, batch, runs in rows:
            whole = [r for r in runs if r.outcome != DIVERGED]
            bad = f"{len(runs) - len(whole)} of {len(runs)}" if len(whole) < len(runs) else "none"
            cells = ["-"] * 3
            if whole:
                medians = [
                    statistics.median(r.rows[-1][column] for r in whole)
                    for column in ("step", "training_loss", "validation_error")
                ]
                cells = [f"{medians[0]:.0f}", f"{medians[1]:.4g}", f"{medians[2]:.4g}"]
            budget = runs[0].plan.budget
            lines.append((task, label, batch, len(runs), f"{budget:g}", *cells, bad))
    headers = ("task", "optimizer", "batch", "runs", "seconds", "steps", "training loss",
               "validation error", "diverged")  # fmt: skip
    return tabulate(lines, headers, style, disable_numparse=True)


def bad_runs(results: Sequence[Result]) -> str:
    """A line about each run of KFC that diverged, and how many of the rivals' ended early."""
    lines = [
        f"- {r.plan.task}, batch {r.plan.batch_size}, seed {r.plan.seed}: {r.problem}"
        for r in results
        if r.name == "KFC" and r.outcome == DIVERGED
    ]
    others = [r for r in results if r.name != "KFC"]
    diverged, given_up = (
        sum(r.outcome == outcome for r in others) for outcome in (DIVERGED, GIVEN_UP)
    )
    return "\n".join(
        [
            *(lines or ["No run of KFC diverged."]),
            "",
            f"Of {len(others)} runs of rivals {diverged} diverged and {given_up} were given up.",
        ]
    )


def page(results: Sequence[Result], picture: bool) -> str:
    """The report in Markdown."""
    comparisons = compare(results)
    names = ("processor", "threads", "python", "numba", "numpy", "commit")
    abouts = {describe({name: r.environment.get(name) for name in names}): None for r in results}
    parts = [
        "# KFC() with no argument beside tuned SGD and Adam",
        "Written by `python -m benchmarks.experiments.defaults`, which "
        "[experiments.md](experiments.md) describes: " + "; ".join(abouts) + ".",
        claims_table(claims(results, comparisons), "github"),
    ]
    if picture:
        parts.append("![Training loss against seconds, a panel for each task](defaults.png)")
    if comparisons:
        parts += [
            "## Seconds to what the best SGD reached in its budget",
            "The best of all learning rates and batch sizes; medians over seeds, each seed's runs "
            "from the same initial parameters. A level that was not reached counts as "
            f"{NOT_REACHED:g} times the budget.",
            comparison_table(comparisons, "github"),
        ]
    parts += [
        "## At the end of the same seconds",
        "Medians over the runs that did not diverge.",
        ends_table(results, "github"),
        "## Runs that ended early",
        RULES,
        bad_runs(results),
    ]
    return "\n\n".join(parts) + "\n"


def figure(results: Sequence[Result]) -> Any:
    """Training loss against seconds, a panel for each task; the first seed of each."""
    from matplotlib.figure import Figure

    names = task_names(results)
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    drawing = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    panels = drawing.subplots(lines, columns, squeeze=False).ravel()
    for panel, task in zip(panels, names, strict=False):
        own = [r for r in results if r.plan.task == task and r.name == "KFC"]
        batches = sorted({r.plan.batch_size for r in own})
        for place, batch in enumerate(batches):
            run = min((r for r in own if r.plan.batch_size == batch), key=lambda r: r.plan.seed)
            shade = 0.35 + 0.6 * (place + 1) / len(batches)
            _draw(panel, run, f"KFC(), batch {batch}", color=(0.0, 0.3, 0.7, shade))
        for name, color in (("SGD", "C1"), ("Adam", "C2")):
            if best := best_of(results, task, name):
                label = f"{best[0].label}, batch {best[0].plan.batch_size}"
                _draw(panel, best[0], label, color=color, linestyle="--")
        panel.set(title=task, xscale="log", yscale="log", xlabel="seconds of training")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=6)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    for panel in panels[::columns]:
        panel.set_ylabel("training loss")
    return drawing


def _draw(panel: Any, run: Result, label: str, **style: Any) -> None:
    if run.outcome == DIVERGED:
        label += ": diverged"
    rows = [row for row in run.rows if row["seconds"] > 0 and 0 < row["training_loss"] < math.inf]
    panel.plot(*([row[name] for row in rows] for name in ("seconds", "training_loss")),
               label=label, linewidth=1.2, **style)  # fmt: skip


def write_report(results: Sequence[Result], folder: Path) -> str:
    """Write defaults.md and, if matplotlib is there, defaults.png; returns the tables as text."""
    try:
        write_bytes(folder / "defaults.png", plot.png(figure(results)))
        picture, missing = True, ""
    except ImportError:
        picture, missing = False, 'no picture without matplotlib: pip install "kfc_numba[plot]"\n'
    write_bytes(folder / "defaults.md", page(results, picture).encode())
    comparisons = compare(results)
    tables = [comparison_table(comparisons, "simple")] if comparisons else []
    tables += [ends_table(results, "simple"), claims_table(claims(results, comparisons))]
    return "\n" + "\n\n".join(tables) + f"\n{missing}written to {folder}"
