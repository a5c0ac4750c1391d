"""The page and the figures of `invariance`, made of its results."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.experiments import figures
from benchmarks.experiments.invariance_proof import (
    DEFAULT,
    EXAMPLES,
    LEARNING_RATE,
    LOSS_BOUND,
    MOMENTUM,
    RATES,
    SIZE,
)
from benchmarks.experiments.records import Records
from benchmarks.experiments.results import DIVERGED, Result, Store
from benchmarks.peers.timing import describe
from kfc_numba.history import Row

NAME, CURVES = "invariance", "curves"
SAME = 1e-6  # a difference above it is none of rounding, whatever was inverted
DIFFERENT = 1e-2  # one below it is none that theory speaks of, in steps as long as these
SLOPES = {"exact": 1.0, "pi": 0.5}  # of the difference against damping, both logarithms
SLOPE_ERROR = 0.1
LINEAR = (1e-9, 1e-2)  # differences that are neither of rounding nor of order 1
COINCIDE = 0.05  # curves whose losses differ by less than this part coincide
HOLDS, IN_PART, NOT = "holds", "holds in part", "does not hold here"


def worst(found: Mapping[str, Any]) -> float:
    """The largest difference of a method on a twin; infinite where it failed."""
    return max(float(d) for d in found["differences"])


def to_rounding(found: Mapping[str, Any]) -> bool:
    """Whether a twin agrees as far as the condition of what was inverted lets it."""
    condition = found["condition"]
    limit = SAME if condition is None else sys.float_info.epsilon * float(condition)
    return worst(found) <= min(limit, SAME)


@dataclass(frozen=True)
class Proof:
    """What the twins show, by the rules above."""

    twins: list[dict[str, Any]]

    @classmethod
    def read(cls, records: Records) -> Proof | None:
        names = (n for n in records.names() if n.startswith("twin-"))
        twins = [records.get(n, dict) for n in sorted(names, key=lambda n: int(n[5:]))]
        return cls([t for t in twins if t]) if twins else None

    @property
    def methods(self) -> list[str]:
        return list(self.twins[0]["methods"])

    def cells(self, *, invariant: bool, holds: bool) -> list[tuple[str, str, dict[str, Any]]]:
        """Twin, method and what was found, for those methods on those twins."""
        return [
            (twin["name"], method, found)
            for twin in self.twins
            if twin["holds"] == holds
            for method, found in twin["methods"].items()
            if found["invariant"] == invariant
        ]

    @property
    def agreeing(self) -> tuple[int, int]:
        """Of the cells where theory says so, how many agree to rounding."""
        cells = self.cells(invariant=True, holds=True)
        return sum(to_rounding(f) for *_, f in cells), len(cells)

    @property
    def differing(self) -> tuple[int, int]:
        """Of the cells where theory says nothing, how many differ."""
        cells = [
            *self.cells(invariant=False, holds=True),
            *self.cells(invariant=True, holds=False),
            *self.cells(invariant=False, holds=False),
        ]
        return sum(worst(f) >= DIFFERENT for *_, f in cells), len(cells)

    @property
    def verdict(self) -> str:
        agreeing, expected = self.agreeing
        if agreeing == expected and self.differing[0] == self.differing[1]:
            return HOLDS
        return IN_PART if agreeing else NOT


def slope(dampings: Sequence[float], differences: Sequence[Any]) -> float | None:
    """Exponent of the difference as a power of damping, where it is small and not rounding."""
    points = [
        (math.log(x), math.log(float(y)))
        for x, y in zip(dampings, differences, strict=True)
        if LINEAR[0] <= float(y) <= LINEAR[1]
    ]
    return float(np.polyfit(*zip(*points, strict=True), 1)[0]) if len(points) > 1 else None


# Curves.


def coordinates(run: Result) -> str:
    """Name of a run's coordinates, with the words of its task."""
    return run.plan.task.partition("-on-")[2].replace("-", " ")


def way(run: Result) -> str:
    """``"KFC"`` for the default one, ``"SGD"``, or KFC with its damping."""
    damping = run.plan.optimizer.get("damping", DEFAULT.damping)
    return run.name if damping == DEFAULT.damping else f"{run.name}, damping {damping:g}"


def gap(run: Result, usual: Result) -> float:
    """Largest relative difference of training losses, at the evaluations of both.

    Infinite where only one of them diverged.
    """
    if DIVERGED in (run.outcome, usual.outcome):
        return 0.0 if run.outcome == usual.outcome else math.inf
    pairs = zip(_losses(run.rows), _losses(usual.rows), strict=True)
    return max(abs(a - b) / b for a, b in pairs)


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
        first = coordinates(self.results[0])
        rated = [r for r in self.results if r.name == "SGD" and coordinates(r) == first]
        best = min(rated, key=lambda r: (r.loss, r.plan.optimizer["learning_rate"]))
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
        return max(self.gaps(name).values(), default=0.0)

    @property
    def verdict(self) -> str:
        kfc, sgd = self.spread("KFC"), self.spread("SGD")
        if kfc <= COINCIDE < sgd:
            return HOLDS
        return IN_PART if kfc < sgd else NOT


# The page.


def section(results: Path) -> str | None:
    """Markdown for the page of results; None where there are none."""
    records = Records(NAME, results, read_only=True)
    proof, curves = Proof.read(records), Curves.read(results / NAME / CURVES)
    if proof is None and curves is None:
        return None
    parts = ["## Invariance"]
    if proof is not None:
        parts += _proof_parts(proof)
    damping = records.get("damping", dict)
    if damping is not None:
        parts += _damping_parts(damping)
    if proof is not None and damping is not None:
        parts.append(figures.link("invariance-proof", _proof_caption(proof, damping)))
    if curves is not None:
        parts += curves_parts(curves)
    return "\n\n".join(parts) + "\n"


def _proof_parts(proof: Proof) -> list[str]:
    agreeing, expected = proof.agreeing
    differing, others = proof.differing
    invariant = proof.cells(invariant=True, holds=True)
    largest = {m: max(worst(f) for _, name, f in invariant if name == m) for m in _names(invariant)}
    listed = ", ".join(f"{value:.1e} ({name})" for name, value in largest.items())
    headers = ["twin", *proof.methods]
    lines = [
        [twin["name"], *(_cell(twin["methods"][m]) for m in proof.methods)] for twin in proof.twins
    ]
    steps = proof.twins[0]["steps"]
    parts = [
        "**Claim**: where activations of a layer undergo an affine map of channels, the same at "
        "all locations, there is a network that computes the same function, and undamped steps of "
        "KFC, as those of the exact Fisher matrix, keep the two alike; those of SGD do not.",
        f"**Verdict: {proof.verdict}.** In {agreeing} of {expected} cases where the theorem says "
        f"so, twins agree to rounding over {steps} steps; the largest differences are {listed}. "
        f"In {differing} of {others} cases of which it says nothing, or the contrary, they differ "
        f"by {DIFFERENT:.0%} or more.",
        f"A number is the largest difference, in {steps} steps, between outputs of a network and "
        "of its twin in other coordinates, as a part of how far these outputs have come from the "
        "first ones; on images that are not trained on, in float64. To rounding, and printed in "
        "bold: below the rounding error times the condition number of what was inverted, and below "
        f"{SAME:g}.",
        tabulate(lines, headers, "github", disable_numparse=True),
    ]
    untrue = [t["name"] for t in proof.twins if not t["holds"]]
    if untrue:
        parts.append(
            f"The theorem is not about {', '.join(untrue)}: there zeros around the images are not "
            "what zeros around the original's become, and the two networks are not the same "
            "function even at first. A map without offset leaves zeros as they are, and a border "
            "can be mapped as images are."
        )
    others_named = _names(proof.cells(invariant=False, holds=True))
    parts.append(
        f"Nor is it about {', '.join(others_named)}. EKFAC takes second moments along eigenvectors "
        "of the factors, which depend on coordinates; damping is added in the coordinates that "
        f"there are (as by default: {DEFAULT.damping:g}, "
        f'`damping_strategy="{DEFAULT.damping_strategy}"`).'
    )
    return parts


def _names(cells: Sequence[tuple[str, str, Any]]) -> list[str]:
    return list(dict.fromkeys(method for _, method, _ in cells))


def _cell(found: Mapping[str, Any]) -> str:
    value = worst(found)
    if not math.isfinite(value):
        return "failed"
    return f"**{value:.0e}**" if to_rounding(found) else f"{value:.2g}"


def _damping_parts(damping: Mapping[str, Any]) -> list[str]:
    lines, good = [], []
    for strategy, differences in damping["differences"].items():
        found = slope(damping["dampings"], differences)
        good.append(found is not None and abs(found - SLOPES[strategy]) <= SLOPE_ERROR)
        text = "no exponent to be seen" if found is None else f"exponent {found:.2f}"
        lines.append(f'{text} with `damping_strategy="{strategy}"` ({SLOPES[strategy]:g})')
    verdict = HOLDS if all(good) else IN_PART if any(good) else NOT
    return [
        "**What damping costs**: the difference should grow with damping itself where it is added "
        "to the block, and with its square root where it is divided between the factors. "
        f"**Verdict: {verdict}**: {'; '.join(lines)}, "
        f"fitted where differences are between {LINEAR[0]:g} and {LINEAR[1]:g}."
    ]


def _proof_caption(proof: Proof, damping: Mapping[str, Any]) -> str:
    twin = next(t for t in proof.twins if t["name"] == damping["case"])
    return (
        f"Difference between a network and its twin ({twin['name']}), by steps and by KFC's "
        f"damping (the largest of {twin['steps']} steps). {EXAMPLES} images of {SIZE}x{SIZE} in "
        "three colours, each made of three bundled Fashion-MNIST images; two convolutions and two "
        "dense layers, tanh; sigmoid cross-entropy, all images at once, one seed, float64; natural "
        f"gradients with learning rate {LEARNING_RATE:g}, momentum {MOMENTUM:g}, loss_bound "
        f"{LOSS_BOUND:g}, all targets in place of sampled ones; learning rate of Adam "
        f"{RATES['Adam']:g}, of SGD {RATES['SGD']:g}. " + _machine(twin["environment"])
    )


def _machine(about: Mapping[str, Any]) -> str:
    names = ("processor", "threads", "numba", "numpy", "commit")
    return describe({name: about.get(name) for name in names}) + "."


def curves_parts(curves: Curves) -> list[str]:
    words = {name: _part(curves.spread(name)) for name in curves.ways}
    others = [
        f" With damping {name.rpartition(' ')[2]} the difference of KFC is at most {words[name]}."
        for name in curves.ways
        if name not in ("KFC", "SGD")
    ]
    return [
        "**Claim**: training by KFC goes the same way in all coordinates of the inputs, from the "
        "same function; SGD's does not.",
        f"**Verdict: {curves.verdict}.** Training losses in other coordinates differ from those of "
        f"standardised inputs by at most {words['KFC']} of these for `KFC()`, with its default "
        f"damping and sampled targets, and for SGD by at most {words['SGD']}. (Curves that differ "
        f"by at most {COINCIDE:.0%} are said to coincide.)" + "".join(others),
        curves_table(curves, "github"),
        figures.link("invariance-curves", _curves_caption(curves)),
        "**What deviates**: images have the padding of the first layer around them, of the mean "
        "colour, which is zero where inputs are standardised: the theorem needs it mapped as the "
        "image is. Losses are of averaged parameters; training is of one pass over a part of the "
        "training set.",
    ]


def curves_table(curves: Curves, style: str) -> str:
    """A line for each of the coordinates."""
    lines = []
    gaps = {name: curves.gaps(name) for name in curves.ways}
    runs = {name: {coordinates(r): r for r in curves.of(name)} for name in curves.ways}
    for key in runs["KFC"]:
        line: list[str] = [key]
        for name in curves.ways:
            other = runs[name].get(key)
            line += ["" if other is None else _loss(other), _part(gaps[name].get(key))]
        rated = [r for r in curves.results if r.name == "SGD" and coordinates(r) == key]
        best = min(rated, key=lambda r: r.loss, default=None)
        if best is not None and math.isfinite(best.loss):
            rate = best.plan.optimizer["learning_rate"]
            line.append(f"{best.loss:.3g} ({rate:g} of {len(rated)})")
        lines.append(line)
    headers = ["inputs"]
    for name in curves.ways:
        headers += [f"SGD {curves.rate:g}" if name == "SGD" else name, "largest difference"]
    headers.append("least of SGD (its rate, of how many)")
    return tabulate(lines, headers, style, disable_numparse=True)


def _loss(run: Result) -> str:
    return f"{run.loss:.3g}" if math.isfinite(run.loss) else "diverged"


def _part(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if math.isfinite(value) else "all (it diverged)"


def _curves_caption(curves: Curves) -> str:
    run = curves.of("KFC")[0]
    seeds = sorted({r.plan.seed for r in curves.of("KFC", None)})
    return (
        f"Training loss of the network quick in {len(curves.of('KFC'))} coordinates of the same "
        f"images, from the same function: {run.rows[-1]['step']} batches of {run.plan.batch_size}, "
        f"averaged parameters, the mean over {run.plan.sample:,} training images; KFC() and SGD "
        f"with momentum 0.9 and learning rate {curves.rate:g}, the best on standardised inputs; "
        f"seed 0 of {len(seeds)}. " + _machine(run.environment)
    )


# The figures.


def draw(results: Path, output: Path) -> None:
    """The figures, of what results there are."""
    records = Records(NAME, results, read_only=True)
    proof, damping = Proof.read(records), records.get("damping", dict)
    if proof is not None and damping is not None:
        _draw_proof(proof, damping, output)
    curves = Curves.read(results / NAME / CURVES)
    if curves is not None:
        _draw_curves(curves, output)


SHOWN = ("SGD", "Adam", "EKFAC", "KFC, damped", "KFC", "exact Fisher")


def _draw_proof(proof: Proof, damping: Mapping[str, Any], output: Path) -> None:
    figure, ((left, right),) = figures.new(1, 2)
    twin = next(t for t in proof.twins if t["name"] == damping["case"])
    shown = [name for name in SHOWN if name in twin["methods"]]
    for name, style in zip(shown, figures.STYLES, strict=False):
        values = [float(d) for d in twin["methods"][name]["differences"]]
        left.plot(range(1, len(values) + 1), values, label=name, markersize=4, **style)
    left.set(xlabel="steps", ylabel="relative difference from the twin", yscale="log")
    left.legend(fontsize="small")
    for (strategy, values), style in zip(
        damping["differences"].items(), figures.STYLES, strict=False
    ):
        numbers = [float(v) for v in values]
        label = f'"{strategy}", in theory as its power {SLOPES[strategy]:g}'
        right.plot(damping["dampings"], numbers, label=label, markersize=4, **style)
    right.axvline(DEFAULT.damping, color="0.6", linewidth=1, zorder=0, label="default damping")
    right.set(
        xlabel="damping (of the Fisher matrix)",
        ylabel="relative difference from the twin",
        xscale="log",
        yscale="log",
    )
    right.legend(fontsize="small")
    figures.save(figure, output, "invariance-proof")


def _draw_curves(curves: Curves, output: Path) -> None:
    figure, (panels,) = figures.new(1, len(curves.ways))
    shown = [curves.of(name) for name in curves.ways]
    finished = [r.loss for runs in shown for r in runs if math.isfinite(r.loss)]
    lowest, highest = min(finished), max(_losses(runs[0].rows)[0] for runs in shown)
    for panel, name, runs in zip(panels, curves.ways, shown, strict=True):
        for run, style in zip(runs, figures.STYLES, strict=False):
            label = coordinates(run) + (" (diverged)" if run.outcome == DIVERGED else "")
            steps = [row["step"] for row in run.rows]
            panel.plot(steps, _losses(run.rows), label=label, markevery=4, markersize=4, **style)
        panel.set(xlabel="steps", ylabel="training loss (nats)", ylim=(0.9 * lowest, 1.1 * highest))
        title = f"SGD, learning rate {curves.rate:g}" if name == "SGD" else name
        panel.set_title(title, fontsize="medium")
        panel.legend(fontsize="small")
    figures.save(figure, output, "invariance-curves")
