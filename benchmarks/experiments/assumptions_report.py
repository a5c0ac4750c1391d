"""What `assumptions` found, as a section of docs/results.md: verdicts by rules, from numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tabulate import tabulate

from benchmarks.experiments import figures
from benchmarks.experiments.assumptions_matrices import (
    APPROXIMATIONS,
    EXACT,
    FACTORED,
    GRADIENT,
    WHITE,
    WHITE_ACTIVATIONS,
)
from benchmarks.experiments.assumptions_parts import POOLS
from benchmarks.experiments.claims import HOLDS, NOT, PART
from benchmarks.experiments.records import Records

if TYPE_CHECKING:
    from benchmarks.experiments.claims import Claim

#: Mean absolute correlations of neighbours: nearly none up to the first, strong from the second.
NEARLY, STRONGLY = 0.1, 0.3
MOMENTS = ("before", "during", "after")  # training
CONVOLUTION = "conv"  # how names of such layers begin
BLACK = 0.3  # from this correlation on maps are drawn in black
DEVIATES = (
    "What deviates from the paper: damping and schedules of `KFC()`, few passes over the "
    "data, a part of the training set held out in place of the test set, `quick` with all pools of "
    "one kind, and the means over few training images that are named above. The small networks and "
    "the report on `quick` are not in it, nor are its figures at hand: thresholds are ours."
)
Parts = Sequence[Mapping[str, Any]]
COMPARED = ("expand", "reduce", "ekfac", "diagonal")  # as the report has them


@dataclass
class Found:
    """The parts that there are, by seed.

    Attributes
    ----------
    quick, small : dict of str to list
        By pools.
    report : list
    """

    quick: dict[str, list[dict[str, Any]]]
    small: dict[str, list[dict[str, Any]]]
    report: list[dict[str, Any]]


def read(results: Path) -> Found:
    """What is kept in the folder of all results."""
    records = Records("assumptions", results, read_only=True)
    found = Found({pool: [] for pool in POOLS}, {pool: [] for pool in POOLS}, [])
    for name in records.names():
        match = re.fullmatch(r"(quick|small)(?:-(max|average))?-(\d+)", name)
        part = records.get(name, dict)
        if not match or part is None:
            continue
        kind, pool, seed = match.groups()
        part["seed"] = int(seed)
        (getattr(found, kind)[pool] if pool else found.report).append(part)
    return found


# Rules.


def verdict(cases: Sequence[bool]) -> str:
    """In words: whether something is so in all cases, in half of them, or in fewer."""
    if all(cases):
        return HOLDS
    return PART if 2 * sum(cases) >= len(cases) else NOT


def _count(cases: Sequence[bool]) -> str:
    return f"{sum(cases)} of {len(cases)} cases"


def values(parts: Parts, *path: str, layers: str = "") -> list[float]:
    """A number of all layers that have it, of all moments, of all seeds."""
    return [value for _, _, value in _walk(parts, *path, layers=layers)]


def below(parts: Parts, what: str, one: str, other: str, layers: str = "") -> list[bool]:
    """Of each case, whether a number of one approximation is below that of another."""
    pairs = (values(parts, name, what, layers=layers) for name in (one, other))
    return [a < b for a, b in zip(*pairs, strict=True)]


def ratios(parts: Parts, what: str, one: str, other: str, layers: str = "") -> list[float]:
    """Of each case, a number of one approximation over that of another."""
    pairs = (values(parts, name, what, layers=layers) for name in (one, other))
    return [a / b for a, b in zip(*pairs, strict=True)]


def _walk(parts: Parts, *path: str, layers: str = "") -> Iterator[tuple[int, str, Any]]:
    """Moment, layer and number; of layers whose names begin so."""
    for part in parts:
        for moment, about in enumerate(part["moments"]):
            for layer, row in about["layers"].items():
                if layer.startswith(layers):
                    value: Any = row
                    for key in path:
                        value = value[key]
                    yield moment, layer, value


def means(parts: Parts, *path: str) -> dict[tuple[str, int], float]:
    """Means over seeds of a number, by layer and moment."""
    found: dict[tuple[str, int], list[float]] = {}
    for moment, layer, value in _walk(parts, *path):
        found.setdefault((layer, moment), []).append(value)
    return {key: float(np.mean(numbers)) for key, numbers in found.items()}


# The section.


def section(results: Path) -> str | None:
    """Markdown of what is kept in the folder of all results; None without anything.

    Parameters
    ----------
    results : path

    Returns
    -------
    str or None
    """
    found = read(results)
    written = [
        _space(found) if all(found.quick.values()) else None,
        _matrices(found) if all(found.small.values()) else None,
        _training(found) if found.report else None,
    ]
    if not any(written):
        return None
    head = (
        "## Assumptions\n\nHow far the assumptions behind KFC hold, and how far its blocks are "
        "from those of the exact Fisher matrix, before, during and after training. A claim holds "
        "if it is so in all cases (layers, moments, seeds), in part if in at least half of them. "
        "All is without noise of sampling: expectations over the network's own predictions "
        "(`fisher_exact`)."
    )
    return "\n\n".join([head, *filter(None, written), DEVIATES])


def _space(found: Found) -> str:
    pooled = {pool: values(parts, "derivatives") for pool, parts in found.quick.items()}
    every = [part for parts in found.quick.values() for part in parts]
    activations, maps = values(every, "activations"), values(every, "between_maps")
    about = _caption(every, "`quick` with all pools of one kind")
    rows = []
    for pool, parts in found.quick.items():
        for layer in _layers(parts):
            row: list[Any] = [pool, layer]
            for what in ("derivatives", "activations", "between_maps"):
                row.append(_over_moments(means(parts, what), layer))
            for what in ("derivative_spread", "activation_spread"):
                row.append(_over_moments(means(parts, what), layer, "{:.2f}"))
            rows.append(row)
    heads = ["pools", "layer", "derivatives", "activations", "derivatives of two maps"]
    heads += ["spread, derivatives", "spread, activations"]
    lines = [
        "### Correlations",
        figures.link(
            "assumptions-offsets",
            f"Correlation at a horizontal offset, of activations (inputs of a layer, less the mean "
            f"of each map) and of derivatives by its outputs; {about}",
        ),
        _claim(
            "Max pooling leaves derivatives nearly uncorrelated over space (SUD).",
            [value <= NEARLY for value in pooled["max"]],
            f"With max pooling the mean absolute correlation of neighbours is "
            f"{_range(pooled['max'])}; nearly uncorrelated is up to {NEARLY:g}.",
        ),
        _claim(
            "Average pooling violates SUD.",
            [value >= STRONGLY for value in pooled["average"]],
            f"With average pooling it is {_range(pooled['average'])}; strongly correlated is from "
            f"{STRONGLY:g}.",
        ),
        _claim(
            "Activations are strongly correlated over space.",
            [value >= STRONGLY for value in activations],
            f"Mean absolute correlation of neighbours with either pooling: {_range(activations)}.",
        ),
        _claim(
            "Derivatives of different maps are correlated (Gamma is not diagonal).",
            [value > NEARLY for value in maps],
            f"Mean absolute correlation of two maps at one location: {_range(maps)}; correlated is "
            f"above {NEARLY:g}.",
        ),
        figures.link(
            "assumptions-maps",
            "Absolute correlation of the derivatives of two maps at one location, after training "
            f"(black: {BLACK:g} and above); "
            f"seed {every[0]['seed']}; {about}",
        ),
        f"Before, during and after training ({_steps(every[0])} steps), means over seeds. Spread "
        "is the standard deviation over locations of the second moment, over its mean: 0 if it did "
        "not depend on the location (SH).",
        tabulate(rows, heads, "github", disable_numparse=True),
        _errors(found.quick),
    ]
    return "\n\n".join(lines)


def _matrices(found: Found) -> str:
    every = [part for parts in found.small.values() for part in parts]
    first = every[0]
    network = f"two convolutions and a dense layer, {first['parameters']:,} parameters"
    about = _caption(every, f"images of half the size; {network}")
    nearer = below(every, "cosine", WHITE_ACTIVATIONS, "KFC", CONVOLUTION)
    better = below(every, "gain", WHITE_ACTIVATIONS, "KFC", CONVOLUTION)
    parts = ratios(every, "gain", WHITE_ACTIVATIONS, "KFC", CONVOLUTION)
    lines = [
        "### Against the exact Fisher matrix",
        *(
            figures.link(
                f"assumptions-small-{pool}",
                f"Approximations of the exact block of each layer, {pool} pooling: cosine of the "
                "angle between the matrices, relative error in Frobenius norm, and part of the "
                "greatest decrease of the layer's quadratic model that a step by the approximation "
                f"reaches, with damping {first['damping']:g} added to the matrix (means over "
                f"seeds, bars from least to greatest); {about}",
            )
            for pool in found.small
        ),
        _claim(
            "White activations (SUA, as in PRONG) are a poorer approximation than KFC.",
            [one and other for one, other in zip(nearer, better, strict=True)],
            "A case is a convolution: without correlations of activations over space the matrix "
            "has a smaller cosine with the exact block than KFC's, and its step a smaller part of "
            f"the decrease. That part is {_range(parts)} of KFC's, median {np.median(parts):.2g}.",
        ),
        _claim(
            "White derivatives besides make it poorer still.",
            below(every, "gain", WHITE, WHITE_ACTIVATIONS),
            "A case is a layer: the step reaches a smaller part of the decrease than with white "
            "activations alone.",
        ),
    ]
    # Of dense layers "reduce" is the same.
    for one, other, kind in (
        ("EKFAC", "KFC", ""),
        ("KFC", "diagonal", ""),
        ("KFC", "reduce", CONVOLUTION),
    ):
        nearer = below(every, "cosine", other, one, kind)
        closer = below(every, "error", one, other, kind)
        reaching = below(every, "gain", other, one, kind)
        lines.append(
            _claim(
                f"{one} is closer to the exact block than {other} is.",
                nearer,
                f"A case is a {'convolution' if kind else 'layer'}: the cosine is greater. The "
                "relative error is smaller in "
                f"{_count(closer)}; the step reaches a greater part of the decrease in "
                f"{_count(reaching)}.",
            )
        )
    whole = [moment["whole"] for part in every for moment in part["moments"]]
    times = [gains["KFC"] / gains[GRADIENT] for gains in whole]
    lines += [
        _claim(
            "KFC's steps are better than the gradient's.",
            [ratio > 1 for ratio in times],
            "A case is a network at a moment: the blocks of all layers together reach a greater "
            f"part of the decrease of the quadratic model by the whole matrix, {_range(times)} "
            f"times that of the gradient, median {np.median(times):.2g}.",
        ),
        "Part of the greatest decrease of the quadratic model by the whole Fisher matrix, with "
        "correlations between layers, that all blocks together reach, before, during and after "
        f"training ({_steps(first)} steps; means over seeds):",
        tabulate(_whole(found.small), ["step by", *found.small], "github", disable_numparse=True),
        f"`{FACTORED}` is what `KFC()` does; in all others damping is added to the matrix. "
        "`reduce` sums derivatives over locations first. The cosine leaves the scale out, the "
        "relative error does not: where derivatives are correlated over space their sums are "
        "larger than `expand` takes them to be. Matrices and gradient are of the same examples, "
        f"which favours the exact blocks. {_errors(found.small)}",
    ]
    return "\n\n".join(lines)


def _training(found: Found) -> str:
    parts = found.report
    cases = [row["cosine"]["expand"] > row["cosine"]["diagonal"] for _, _, row in _walk(parts)]
    rows = []
    for layer in _layers(parts):
        row: list[Any] = [layer, f"{parts[0]['moments'][0]['layers'][layer]['parameters']:,}"]
        for name in COMPARED:
            for what in ("relative_error", "cosine"):
                numbers = means(parts, what, name)
                last = len(parts[0]["moments"]) - 1
                row.append(f"{numbers[layer, 0]:.2f}, {numbers[layer, last]:.2f}")
        rows.append(row)
    heads = ["layer", "parameters"]
    heads += [f"{name}, {what}" for name in COMPARED for what in ("error", "cosine")]
    caption = (
        "Approximations of the exact block of each layer through training, as `check_curvature` "
        f"reports them: relative error in Frobenius norm, and cosine; {_caption(parts, '`quick`')}"
    )
    lines = [
        "### Where it is used",
        figures.link("assumptions-training", caption),
        _claim(
            "KFC's blocks point closer to the exact ones than diagonals do.",
            cases,
            "A case is a layer of `quick` at a moment.",
        ),
        f"Before and after training ({_steps(parts[0], ends=True)} steps):",
        tabulate(rows, heads, "github", disable_numparse=True),
    ]
    return "\n\n".join(lines)


def _claim(claim: str, cases: Sequence[bool], numbers: str) -> str:
    return f"**{claim}** *Verdict: {verdict(cases)} ({_count(cases)}).* {numbers}"


def claims(results: Path) -> list[Claim]:
    """The claims of the section, as rows of the page's table.

    Parameters
    ----------
    results : path
        Folder of all results.

    Returns
    -------
    list of Claim
    """
    from benchmarks.experiments.claims import Claim

    text = section(results) or ""
    pattern = r"^\*\*(.+)\.\*\* \*Verdict: ([a-z ]+) \((.+)\)\.\*"
    return [Claim(*line.group(1, 3, 2)) for line in re.finditer(pattern, text, re.MULTILINE)]


def _layers(parts: Parts) -> list[str]:
    return list(parts[0]["moments"][0]["layers"])


def _steps(part: Mapping[str, Any], *, ends: bool = False) -> str:
    steps = [str(moment["step"]) for moment in part["moments"]]
    return " and ".join((steps[0], steps[-1])) if ends else ", ".join(steps)


def _range(numbers: Sequence[float]) -> str:
    return f"{min(numbers):.2g} to {max(numbers):.2g}"


def _over_moments(
    numbers: Mapping[tuple[str, int], float], layer: str, form: str = "{:.3f}"
) -> str:
    return ", ".join(form.format(value) for (own, _), value in numbers.items() if own == layer)


def _whole(small: Mapping[str, Parts]) -> list[list[str]]:
    rows = []
    for name in (EXACT, FACTORED, *APPROXIMATIONS, GRADIENT):
        row = [name]
        for parts in small.values():
            gains = [[moment["whole"][name] for moment in part["moments"]] for part in parts]
            row.append(", ".join(f"{value:.2g}" for value in np.mean(gains, axis=0)))
        rows.append(row)
    return rows


def _errors(by_pool: Mapping[str, Parts]) -> str:
    errors = {
        pool: np.mean([part["moments"][-1]["held_out_error"] for part in parts])
        for pool, parts in by_pool.items()
    }
    listed = ", ".join(f"{100 * error:.1f}% with {pool} pooling" for pool, error in errors.items())
    return f"Held-out error after training: {listed}."


def _caption(parts: Parts, network: str) -> str:
    """Data, network, batch, settings, seeds and machine."""
    first = parts[0]
    seeds = sorted({part["seed"] for part in parts})
    machines = dict.fromkeys(
        f"{e['processor']}, {e['threads']} thread{'s' * (e['threads'] > 1)}"
        for e in (part["environment"] for part in parts)
    )
    commits = dict.fromkeys(str(part["environment"]["commit"]) for part in parts)
    return (
        f"{first['data']}; {network}; batch {first['batch']}, KFC() of commit "
        f"{' and '.join(commits)}, seed"
        f"{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; curvature of the first "
        f"{first['examples']} training images; {'; '.join(machines)}."
    )
