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
from benchmarks.experiments.claims import ABSTRACT, HOLDS, NOT, PART, Claim
from benchmarks.experiments.invariance_curves_report import (
    Curves,
    curves_parts,
    differ,
    draw_curves,
    machine,
)
from benchmarks.experiments.invariance_proof import (
    DAMPING,
    EXAMPLES,
    LEARNING_RATE,
    LOSS_BOUND,
    MOMENTUM,
    RATES,
    SIZE,
    STRATEGY,
)
from benchmarks.experiments.records import Records

NAME, CURVES = "invariance", "curves"
SAME = 1e-6  # a difference above it is none of rounding, whatever was inverted
DIFFERENT = 1e-2  # one below it is none that theory speaks of, in steps as long as these
SLOPES = {"exact": 1.0, "pi": 0.5}  # of the difference against damping, both logarithms
SLOPE_ERROR = 0.1
LINEAR = (1e-9, 1e-2)  # differences that are neither of rounding nor of order 1


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
        return PART if agreeing else NOT


def slope(dampings: Sequence[float], differences: Sequence[Any]) -> float | None:
    """Exponent of the difference as a power of damping, where it is small and not rounding."""
    points = [
        (math.log(x), math.log(float(y)))
        for x, y in zip(dampings, differences, strict=True)
        if LINEAR[0] <= float(y) <= LINEAR[1]
    ]
    return float(np.polyfit(*zip(*points, strict=True), 1)[0]) if len(points) > 1 else None


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


def claims(results: Path) -> list[Claim]:
    """What was found on the claim of the abstract: of steps in numbers, and of whole trainings."""
    records, found = Records(NAME, results, read_only=True), []
    proof, curves = Proof.read(records), Curves.read(results / NAME / CURVES)
    if proof is not None:
        (agreeing, expected), (differing, others) = proof.agreeing, proof.differing
        words = (
            f"Undamped steps of a network and its twin in other coordinates, in float64: in "
            f"{agreeing} of {expected} cases where theory says so they agree to rounding, in "
            f"{differing} of {others} others (SGD and Adam among them) they differ"
        )
        # Without the damping experiment there is no figure.
        figure = "invariance-proof" if "damping" in records.names() else None
        found.append(Claim(ABSTRACT["invariance"], words, proof.verdict, figure))
    if curves is not None:
        by = {name: differ(curves.gaps(name).values()) for name in ("KFC", "SGD")}
        text = (
            "Training losses on CIFAR-10 in other coordinates of the pixels, damped and with "
            f"sampled targets: those of KFC() {by['KFC']}, those of SGD {by['SGD']}"
        )
        found.append(Claim(ABSTRACT["invariance"], text, curves.verdict, "invariance-curves"))
    return found


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
        f"there are ({DAMPING:g}, and as by default "
        f'`damping_strategy="{STRATEGY}"`).'
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
        lines.append(f'{text} with `damping_strategy="{strategy}"`, expected {SLOPES[strategy]:g}')
    verdict = HOLDS if all(good) else PART if any(good) else NOT
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
        f"{RATES['Adam']:g}, of SGD {RATES['SGD']:g}. " + machine(twin["environment"])
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
        draw_curves(curves, output)


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
    right.axvline(DAMPING, color="0.6", linewidth=1, zorder=0, label=f"damping {DAMPING:g}")
    right.set(
        xlabel="damping (of the Fisher matrix)",
        ylabel="relative difference from the twin",
        xscale="log",
        yscale="log",
    )
    right.legend(fontsize="small")
    figures.save(figure, output, "invariance-proof")
