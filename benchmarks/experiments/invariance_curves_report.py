"""The part of the page of `invariance` that is about training curves, and its figure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

import kfc_numba as kfc
from benchmarks.experiments import figures
from benchmarks.experiments.claims import HOLDS, NOT, PART
from benchmarks.experiments.results import DIVERGED, Result, Store
from benchmarks.peers.timing import describe
from kfc_numba.history import Row

SGD_MOMENTUM = kfc.SGD().momentum
COINCIDE = 0.05  # curves whose losses differ by less than this part coincide


def coordinates(run: Result) -> str:
    """Name of a run's coordinates, with the words of its task."""
    return run.plan.task.partition("-on-")[2].replace("-", " ").replace("ycbcr", "YCbCr")


def way(run: Result) -> str:
    """``"KFC"`` for the default one, ``"SGD"``, or KFC with its damping."""
    damping = run.plan.optimizer.get("damping")
    return run.name if damping is None else f"{run.name}, damping {damping:g}"


def gap(run: Result, usual: Result) -> float:
    """Largest relative difference of training losses, at the evaluations of both.

    Infinite where only one of them diverged.
    """
    if DIVERGED in (run.outcome, usual.outcome):
        return 0.0 if run.outcome == usual.outcome else math.inf
    pairs = zip(_losses(run.rows), _losses(usual.rows), strict=True)
    return max(abs(a - b) / b for a, b in pairs)


def steps_ratio(run: Result, usual: Result) -> float:
    """Steps over those of the usual run, to the larger of the losses that the two end with.

    Infinite where one diverged, or ended with no lower loss than it began with.
    """
    level = max(run.loss, usual.loss)
    if not math.isfinite(level):
        return math.inf
    first, second = run.reached(level), usual.reached(level)
    return first[0] / second[0] if first and second and second[0] else math.inf


def _losses(rows: Sequence[Row]) -> list[float]:
    return [row["training_loss"] for row in rows]


@dataclass(frozen=True)
class Curves:
    """Runs of KFC and of SGD in several coordinates; the first are the usual ones.

    By `way`: one of KFC and one of SGD there always are.
    """

    results: list[Result]

    @classmethod
    def read(cls, folder: Path) -> Curves | None:
        store = Store(folder, read_only=True)
        runs = [r for r in store.newest() if "-on-" in r.plan.task]
        runs.sort(key=lambda r: (not coordinates(r).startswith("standard"), coordinates(r)))
        found = cls(runs)
        return found if all(len(found.of(name)) > 1 for name in ("KFC", "SGD")) else None

    @property
    def rate(self) -> float:
        """SGD's learning rate: the best on the usual inputs."""
        best = self.best(coordinates(self.results[0]))
        assert best is not None
        return best.plan.optimizer["learning_rate"]

    def of(self, name: str, seed: int | None = 0) -> list[Result]:
        """Runs of a way, those of SGD with the rate of the usual inputs."""
        return [
            r
            for r in self.results
            if way(r) == name
            and (seed is None or r.plan.seed == seed)
            and (name != "SGD" or r.plan.optimizer["learning_rate"] == self.rate)
        ]

    @property
    def ways(self) -> list[str]:
        """Of which there are runs in several coordinates: KFC, SGD, and others."""
        others = sorted({way(r) for r in self.results} - {"KFC", "SGD"})
        return ["KFC", *(name for name in others if len(self.of(name)) > 1), "SGD"]

    def best(self, key: str) -> Result | None:
        """The run of SGD with the least training loss in coordinates, with the first seed."""
        runs = [
            r
            for r in self.results
            if way(r) == "SGD" and coordinates(r) == key and r.plan.seed == 0
        ]
        return min(runs, key=lambda r: (r.loss, -r.plan.optimizer["learning_rate"]), default=None)

    def rates(self, key: str) -> int:
        """How many learning rates SGD was run with in coordinates."""
        runs = [r for r in self.results if way(r) == "SGD" and coordinates(r) == key]
        return len({r.plan.optimizer["learning_rate"] for r in runs})

    def gaps(self, name: str) -> dict[str, float]:
        """Largest relative difference from the usual inputs, by coordinates, over seeds."""
        runs = self.of(name, None)
        usual = {r.plan.seed: r for r in runs if coordinates(r) == coordinates(runs[0])}
        found: dict[str, float] = {}
        for run in runs:
            if coordinates(run) != coordinates(runs[0]) and run.plan.seed in usual:
                key = coordinates(run)
                found[key] = max(found.get(key, 0.0), gap(run, usual[run.plan.seed]))
        return found

    def spread(self, name: str) -> float:
        """Largest of `gaps`."""
        return max(self.gaps(name).values(), default=0.0)

    def usual(self, name: str) -> Result:
        """The run of a way on the usual inputs, with the first seed."""
        return self.of(name)[0]

    @property
    def verdict(self) -> str:
        kfc, sgd = self.spread("KFC"), self.spread("SGD")
        if kfc <= COINCIDE < sgd:
            return HOLDS
        return PART if kfc < sgd else NOT


def curves_parts(curves: Curves) -> list[str]:
    words = {name: differ(curves.gaps(name).values()) for name in curves.ways}
    others = [
        f" With damping {name.rpartition(' ')[2]} those of KFC {words[name]}."
        for name in curves.ways
        if name not in ("KFC", "SGD")
    ]
    return [
        "**Claim**: training by KFC goes the same way in all coordinates of the inputs, from the "
        "same function; SGD's does not.",
        f"**Verdict: {curves.verdict}.** Beside training losses with standardised inputs those in "
        f"other coordinates {words['KFC']} for `KFC()`, with its default damping and sampled "
        f"targets; those of SGD {words['SGD']}.{''.join(others)} Curves that differ by at most "
        f"{COINCIDE:.0%} are said to coincide.",
        curves_table(curves, "github"),
        "Of each the last training loss; the largest relative difference from standardised inputs "
        "on the way; and the steps to the larger of the two last losses, over those that "
        "standardised inputs take to it.",
        figures.link("invariance-curves", _curves_caption(curves)),
        "**What deviates**: images have the padding of the first layer around them, of the mean "
        "colour, which is zero where inputs are standardised: the theorem needs it mapped as the "
        "image is. Losses are of averaged parameters; training is of one pass over a part of the "
        "training set, on a processor, by `KFC()` with its damping and its bound on steps.",
    ]


def differ(gaps: Collection[float]) -> str:
    """Words for differences by coordinates, infinite ones of runs that diverged."""
    finite = [g for g in gaps if math.isfinite(g)]
    words = f"differ by at most {max(finite, default=0.0):.1%}"
    diverged = len(gaps) - len(finite)
    return f"diverge in {diverged} of {len(gaps)} and otherwise {words}" if diverged else words


def curves_table(curves: Curves, style: str) -> str:
    """A line for each of the coordinates."""
    lines = []
    gaps = {name: curves.gaps(name) for name in curves.ways}
    runs = {name: {coordinates(r): r for r in curves.of(name)} for name in curves.ways}
    for key in runs["KFC"]:
        line: list[str] = [key]
        for name in curves.ways:
            other = runs[name].get(key)
            if other is None:
                line += ["", "", ""]
                continue
            line += [_loss(other), _part(gaps[name].get(key))]
            usual = curves.usual(name)
            ratio = steps_ratio(other, usual)
            line.append(f"{ratio:.2f}" if other is not usual and math.isfinite(ratio) else "")
        best = curves.best(key)
        if best is not None:
            rate = best.plan.optimizer["learning_rate"]
            line.append(f"{_loss(best)} ({rate:g} of {curves.rates(key)})")
        lines.append(line)
    headers = ["inputs"]
    for name in curves.ways:
        shown = f"SGD {curves.rate:g}" if name == "SGD" else name
        headers += [shown, "largest difference", "steps"]
    headers.append("least of SGD (its rate, of how many)")
    return tabulate(lines, headers, style, disable_numparse=True)


def _loss(run: Result) -> str:
    return f"{run.loss:.3g}" if math.isfinite(run.loss) else "diverged"


def _part(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if math.isfinite(value) else "diverged"


def _curves_caption(curves: Curves) -> str:
    run = curves.of("KFC")[0]
    seeds = sorted({r.plan.seed for r in curves.of("KFC", None)})
    return (
        f"Training loss of the network quick in {len(curves.of('KFC'))} coordinates of the same "
        "images, from the same function, and how much it differs: "
        f"{run.rows[-1]['step']} batches of {run.plan.batch_size}, "
        f"averaged parameters, the mean over {run.plan.sample:,} training images; KFC() and SGD "
        f"with momentum {SGD_MOMENTUM:g} and learning rate {curves.rate:g}, the best on "
        "standardised inputs, or the best of smaller ones where it diverges; "
        f"seed 0 of {len(seeds)}. " + machine(run.environment)
    )


def machine(about: Mapping[str, Any]) -> str:
    names = ("processor", "threads", "numba", "numpy", "commit")
    return describe({name: about.get(name) for name in names}) + "."


def draw_curves(curves: Curves, output: Path) -> None:
    figure, (panels, below) = figures.new(2, len(curves.ways), height=2.9)
    shown = [[_shown(curves, run) for run in curves.of(name)] for name in curves.ways]
    finished = [r.loss for runs in shown for r in runs if math.isfinite(r.loss)]
    lowest, highest = min(finished), max(_losses(runs[0].rows)[0] for runs in shown)
    gaps = [curves.spread(name) for name in curves.ways]
    widest = 100 * max((g for g in gaps if math.isfinite(g)), default=0.1)
    for upper, lower, name, runs in zip(panels, below, curves.ways, shown, strict=True):
        usual = np.array(_losses(runs[0].rows))
        for run, style in zip(runs, figures.STYLES, strict=False):
            label, steps = coordinates(run), [row["step"] for row in run.rows]
            look = {"markevery": 4, "markersize": 4, **style}
            losses = np.array(_losses(run.rows))
            if name == "SGD" and run.plan.optimizer["learning_rate"] != curves.rate:
                label += f", rate {run.plan.optimizer['learning_rate']:g}"
            upper.plot(steps, losses, label=label, **look)
            if len(losses) == len(usual):
                lower.plot(steps, 100 * (losses / usual - 1), **look)
        upper.set(ylabel="training loss (nats)", ylim=(0.9 * lowest, 1.4 * highest))
        lower.set(
            xlabel="steps", ylabel="relative to standardised (%)", ylim=(-2 * widest, 2 * widest)
        )
        title = f"SGD, learning rate {curves.rate:g}" if name == "SGD" else name
        upper.set_title(title, fontsize="medium")
        upper.legend(fontsize="small", loc="upper right")
    figures.save(figure, output, "invariance-curves")


def _shown(curves: Curves, run: Result) -> Result:
    """A run, or that of SGD with its best rate where the usual one diverged."""
    best = curves.best(coordinates(run))
    return best if run.outcome == DIVERGED and run.name == "SGD" and best else run
