"""Claims, table and figure of `beyond`, made of results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.experiments import figures, tasks
from benchmarks.experiments.claims import OURS, Claim, verdict
from benchmarks.experiments.defaults_report import best_of
from benchmarks.experiments.optimisation_report import STEPS_BOUNDS, listed, machines
from benchmarks.experiments.race import medians
from benchmarks.experiments.results import DIVERGED, Result, Store

NAME = "beyond"
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
        1,
        ("KFC", "KFC ekfac", "KFC adaptive"),
        (0.03, 0.1, 0.3),
    ),
    "cifar-quick": ("`quick` on CIFAR-10", 1, ("KFC", "KFC ekfac", "KFC adaptive"), ()),
}


@dataclass(frozen=True)
class Question:
    """A claim on iterations.

    Attributes
    ----------
    text, source : str
        The claim, and whose it is.
    ours, theirs : str
        Labels of what is compared.
    bounds : dict
        The largest ratio for "holds" and for "part".
    tasks : tuple of str
    """

    text: str
    source: str
    ours: str
    theirs: str
    bounds: dict[str, float]
    tasks: tuple[str, ...] = tuple(TASKS)


BEFORE = "Martens and Grosse (2015)"
QUESTIONS = (
    Question(
        "EKFAC takes fewer iterations than Kronecker factors",
        *("George and others (2018)", "KFC ekfac", "KFC", {"holds": 1.0, "part": 1.1}),
    ),
    Question(
        "The block-tridiagonal inverse takes fewer iterations than the block-diagonal one",
        *(BEFORE, "KFC tridiagonal", "KFC", {"holds": 1.0, "part": 1.1}),
    ),
    Question(
        "Damping, learning rate and momentum that adapt leave nothing to tune",
        *(BEFORE, "KFC adaptive", "KFC", {"holds": 1.0, "part": 2.0}),
    ),
    Question(
        "10 to 20 times fewer iterations than SGD on other kinds of networks too",
        *(OURS, "KFC", "SGD", STEPS_BOUNDS, ("autoencoder", "cifar-resnet")),
    ),
)


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
    for asked in QUESTIONS:
        parts, ratios = [], []
        for task in asked.tasks:
            own, other = (runs_of(found, task, label) for label in (asked.ours, asked.theirs))
            if not own or not other:
                continue
            if math.isinf(level_of(own)) or math.isinf(level_of(other)):
                bad = asked.ours if math.isinf(level_of(own)) else asked.theirs
                ratios.append(math.inf if bad == asked.ours else 0.0)
                parts.append(f"{name_of(bad)} diverges on {TASKS[task][0]}")
                continue
            level, value = ratio(own, other)
            ratios.append(value)
            parts.append(f"{value:.2f} on {TASKS[task][0]} (loss {level:.3g})")
        if ratios:
            what = f"Iterations of {name_of(asked.ours)}, over those of {name_of(asked.theirs)}: "
            decided = verdict(statistics.median(ratios), **asked.bounds)
            made.append(Claim(asked.text, what + ", ".join(parts), decided, NAME, asked.source))
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
    if made := claims(results):
        parts.append(
            "\n".join(f"- {c.text} ({c.source}): **{c.verdict}**. {c.ours}." for c in made)
        )
        parts.append(_rule())
    parts += [table(found), _deviations(found)]
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


def _rule() -> str:
    bounds = "; ".join(
        f"{name_of(q.ours)} over {name_of(q.theirs)} at most {q.bounds['holds']:.2g}, and up to "
        f"{q.bounds['part']:.2g} in part"
        for q in QUESTIONS
    )
    return (
        "Compared are the iterations to the higher of the two training losses at the end; the "
        f"median over tasks decides. A claim holds with a ratio of {bounds}. A run that diverges "
        "loses."
    )


def _deviations(results: Sequence[Result]) -> str:
    dampings = {r.plan.optimizer.get("damping") for r in results if r.name == "KFC"} - {None}
    damping = f" with damping {listed([f'{d:g}' for d in sorted(dampings)])}" if dampings else ""
    return (
        "What deviates from the papers named: their networks, data and schedules are others, here "
        f"is a processor, and few passes over the data; KFC is `KFC()`{damping}, which adaptive "
        "KFC changes from there on; all average parameters over the last tenth of the iterations; "
        "a part of the training images is held out in place of the test images."
    )


def name_of(label: str) -> str:
    return NAMES.get(label, label)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _examples(result: Result) -> int:
    """Training examples, from where a run was in its first epoch."""
    row = next(row for row in result.rows if row["step"])
    return round(row["step"] * result.plan.batch_size / row["epoch"])


def _batches(results: Sequence[Result]) -> list[int]:
    return sorted({r.plan.batch_size for r in results})


def _rate(result: Result) -> float:
    return float(result.plan.optimizer["learning_rate"])


def _figure(results: Sequence[Result]) -> str:
    shown = []
    for task in TASKS:
        if labels := labels_of(results, task):
            runs = [min(runs_of(results, task, x), key=lambda r: r.plan.seed) for x in labels]
            first = max(runs, key=lambda r: r.rows[-1]["step"])
            shown.append(
                f"{_sentence(TASKS[task][0])}, {_examples(first):,} images, "
                f"{first.rows[-1]['step']} iterations (epochs: {first.plan.epochs}): "
                f"{listed([name_of(r.label) for r in runs])}, seed {first.plan.seed}."
            )
    return figures.link(
        NAME,
        "Training loss of averaged parameters against iterations, batches of "
        f"{listed(_batches(results))}. {' '.join(shown)} SGD with momentum 0.9 and the best of its "
        f"learning rates, KFC() with its defaults but for what is named. "
        f"{_sentence(machines(results))}.",
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
