"""What is claimed of the assumptions behind KFC, and how each claim fares: rules, from numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.assumptions_matrices import GRADIENT, WHITE, WHITE_ACTIVATIONS
from benchmarks.experiments.assumptions_parts import POOLS
from benchmarks.experiments.claims import ABSTRACT, HOLDS, NOT, OURS, PAPER, PART, Claim
from benchmarks.experiments.records import Records

#: Mean absolute correlations: nearly none up to the first, strong from the second.
NEARLY, STRONGLY = 0.1, 0.3
STRONGER = 2.0  # times a correlation, from which on another one is stronger
CONVOLUTION = "conv"  # how names of such layers begin
Parts = Sequence[Mapping[str, Any]]


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


def count(cases: Sequence[bool]) -> str:
    return f"{sum(cases)} of {len(cases)} cases"


def span(numbers: Sequence[float]) -> str:
    """The least and the greatest."""
    return f"{min(numbers):.2g} to {max(numbers):.2g}"


def walk(parts: Parts, *path: str, layers: str = "") -> Iterator[tuple[int, str, Any]]:
    """Moment, layer and number; of layers whose names begin so."""
    for part in parts:
        for moment, about in enumerate(part["moments"]):
            for layer, row in about["layers"].items():
                if layer.startswith(layers):
                    value: Any = row
                    for key in path:
                        value = value[key]
                    yield moment, layer, value


def values(parts: Parts, *path: str, layers: str = "") -> list[float]:
    """A number of all layers that have it, of all moments, of all seeds."""
    return [value for _, _, value in walk(parts, *path, layers=layers)]


def below(parts: Parts, what: str, one: str, other: str, layers: str = "") -> list[bool]:
    """Of each case, whether a number of one approximation is below that of another."""
    pairs = (values(parts, name, what, layers=layers) for name in (one, other))
    return [a < b for a, b in zip(*pairs, strict=True)]


def ratios(parts: Parts, what: str, one: str, other: str, layers: str = "") -> list[float]:
    """Of each case, a number of one approximation over that of another."""
    pairs = (values(parts, name, what, layers=layers) for name in (one, other))
    return [a / b for a, b in zip(*pairs, strict=True)]


# Claims.


@dataclass(frozen=True)
class Statement:
    """A claim with its cases.

    Attributes
    ----------
    text : str
        A sentence without its full stop.
    cases : sequence of bool
        Whether it is so, in each.
    numbers : str
        Sentences about them.
    figure : str
        Name of the figure that shows it.
    source : str
        Whose claim it is.
    abstract : str or None
        A key of `ABSTRACT`, where it says what a claim of the abstract comes to.
    """

    text: str
    cases: Sequence[bool]
    numbers: str
    figure: str
    source: str = PAPER
    abstract: str | None = None

    @property
    def markdown(self) -> str:
        words = f"{verdict(self.cases)} ({count(self.cases)})"
        return f"**{self.text}.** *Verdict: {words}.* {self.numbers}"

    @property
    def claim(self) -> Claim:
        """As a row of the page's table."""
        ours = f"{count(self.cases)}. {self.numbers}"
        text = self.text
        if self.abstract:
            text, ours = ABSTRACT[self.abstract], f"{text}: {ours}"
        return Claim(text, ours.removesuffix("."), verdict(self.cases), self.figure, self.source)


def about_space(found: Found) -> list[Statement]:
    """On correlations over space and between maps."""
    every = [part for parts in found.quick.values() for part in parts]
    space = {pool: values(parts, "derivatives") for pool, parts in found.quick.items()}
    maps = {pool: values(parts, "between_maps") for pool, parts in found.quick.items()}
    stronger = [
        average / most if most else math.inf
        for one in found.quick["average"]
        for other in found.quick["max"]
        if one["seed"] == other["seed"]
        for average, most in zip(*(values([p], "between_maps") for p in (one, other)), strict=True)
    ]
    activations = values(every, "activations")
    offsets, between = "assumptions-offsets", "assumptions-maps"
    statements = [
        Statement(
            "Max pooling leaves derivatives nearly uncorrelated over space (SUD)",
            [value <= NEARLY for value in space["max"]],
            f"With max pooling the mean absolute correlation of neighbours is "
            f"{span(space['max'])}; nearly uncorrelated is up to {NEARLY:g}.",
            offsets,
        ),
        Statement(
            "Average pooling violates SUD",
            [value >= STRONGLY for value in space["average"]],
            f"With average pooling it is {span(space['average'])}; strongly correlated is from "
            f"{STRONGLY:g}.",
            offsets,
        ),
        Statement(
            "Max pooling leaves derivatives of different maps nearly uncorrelated, too",
            [value <= NEARLY for value in maps["max"]],
            "Mean absolute correlation of two maps at one location, with max pooling: "
            f"{span(maps['max'])}; nearly uncorrelated is up to {NEARLY:g}. KFC does not rest on "
            "it: Gamma has the correlations between maps.",
            between,
        ),
        Statement(
            "Activations are strongly correlated over space",
            [value >= STRONGLY for value in activations],
            f"Mean absolute correlation of neighbours with either pooling: {span(activations)}.",
            offsets,
        ),
    ]
    if stronger:  # seeds that both poolings have
        strengthened = Statement(
            "Average pooling strengthens correlations between maps",
            [value >= STRONGER for value in stronger],
            f"With average pooling {span(maps['average'])}, {span(stronger)} times those with max "
            f"pooling of the same layer at the same moment; stronger is from {STRONGER:g} times.",
            between,
        )
        statements.insert(-1, strengthened)
    return statements


def about_matrices(found: Found) -> list[Statement]:
    """On the blocks of small networks, and on steps by them."""
    every = [part for parts in found.small.values() for part in parts]
    pairs = zip(
        below(every, "cosine", WHITE_ACTIVATIONS, "KFC", CONVOLUTION),
        below(every, "gain", WHITE_ACTIVATIONS, "KFC", CONVOLUTION),
        strict=True,
    )
    parts = ratios(every, "gain", WHITE_ACTIVATIONS, "KFC", CONVOLUTION)
    figure = "assumptions-small-max"
    statements = [
        Statement(
            "White activations (SUA, as in PRONG) are a poorer approximation than KFC",
            [one and other for one, other in pairs],
            "A case is a convolution: without correlations of activations over space the matrix "
            "has a smaller cosine with the exact block than KFC's, and its step a smaller part of "
            f"the decrease. That part is {span(parts)} of KFC's, median {np.median(parts):.2g}.",
            figure,
        ),
        Statement(
            "White derivatives besides make it poorer still",
            below(every, "gain", WHITE, WHITE_ACTIVATIONS),
            "A case is a layer: the step reaches a smaller part of the decrease than with white "
            "activations alone.",
            figure,
            OURS,
        ),
    ]
    for one, other, source in (
        ("EKFAC", "KFC", "George and others (2018)"),
        ("KFC", "diagonal", OURS),
    ):
        closer = below(every, "error", one, other)
        reaching = below(every, "gain", other, one)
        statements.append(
            Statement(
                f"{one} is closer to the exact block than {other} is",
                below(every, "cosine", other, one),
                "A case is a layer: the cosine is greater. The relative error is smaller in "
                f"{count(closer)}; the step reaches a greater part of the decrease in "
                f"{count(reaching)}.",
                figure,
                source,
            )
        )
    whole = [moment["whole"] for part in every for moment in part["moments"]]
    times = {
        name: [gains["KFC"] / gains[name] for gains in whole] for name in (GRADIENT, "diagonal")
    }
    numbers = " and ".join(
        f"{span(found)} times that of the {name}, median {np.median(found):.2g}"
        for name, found in times.items()
    )
    better = Statement(
        "KFC's steps are better than the gradient's and the diagonal's",
        [min(pair) > 1 for pair in zip(*times.values(), strict=True)],
        "A case is a network at a moment: the blocks of all layers together reach a greater "
        f"part of the decrease of the quadratic model by the whole matrix, {numbers}.",
        figure,
        abstract="curvature",
    )
    return [*statements, better]


def about_training(found: Found) -> list[Statement]:
    """On the blocks of `quick`."""
    rows = walk(found.report)
    return [
        Statement(
            "KFC's blocks point closer to the exact ones than diagonals do",
            [row["cosine"]["expand"] > row["cosine"]["diagonal"] for _, _, row in rows],
            "A case is a layer of `quick` at a moment.",
            "assumptions-training",
            abstract="curvature",
        )
    ]


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
    found = read(results)
    statements: list[Statement] = []
    if all(found.quick.values()):
        statements += about_space(found)
    if all(found.small.values()):
        statements += about_matrices(found)
    if found.report:
        statements += about_training(found)
    return [statement.claim for statement in statements]
