"""What `assumptions` found, as a section of docs/results.md: verdicts by rules, from numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.experiments import figures
from benchmarks.experiments.assumptions_claims import (
    CONVOLUTION,
    Found,
    Parts,
    about_matrices,
    about_space,
    about_training,
    below,
    count,
    read,
    walk,
)
from benchmarks.experiments.assumptions_matrices import (
    APPROXIMATIONS,
    EXACT,
    FACTORED,
    GRADIENT,
)

MOMENTS = ("before", "during", "after")  # training
BLACK = 0.3  # from this correlation on maps are drawn in black
DEVIATES = (
    "What deviates from the paper: damping and schedules of `KFC()`, few passes over the "
    "data, a part of the training set held out in place of the test set, `quick` with all pools of "
    "one kind, parameters as they are and not their averages, a processor, and the means over few "
    "training images that are named above. The small networks and the report on `quick` are not in "
    "it, nor are its figures at hand: thresholds are ours."
)
#: Approximations as the report on `quick` names them, and as the page does.
COMPARED = {"expand": "KFC", "reduce": "reduce", "ekfac": "EKFAC", "diagonal": "diagonal"}


def means(parts: Parts, *path: str) -> dict[tuple[str, int], float]:
    """Means over seeds of a number, by layer and moment."""
    found: dict[tuple[str, int], list[float]] = {}
    for moment, layer, value in walk(parts, *path):
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
    every = [part for parts in found.quick.values() for part in parts]
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
        *(statement.markdown for statement in about_space(found)),
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
        *(statement.markdown for statement in about_matrices(found)),
        _expand_and_reduce(found),
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
    heads += [f"{name}, {what}" for name in COMPARED.values() for what in ("error", "cosine")]
    caption = (
        "Approximations of the exact block of each layer through training, as `check_curvature` "
        f"reports them: relative error in Frobenius norm, and cosine; {_caption(parts, '`quick`')}"
    )
    lines = [
        "### Where it is used",
        figures.link("assumptions-training", caption),
        *(statement.markdown for statement in about_training(found)),
        f"Before and after training ({_steps(parts[0], ends=True)} steps):",
        tabulate(rows, heads, "github", disable_numparse=True),
    ]
    return "\n\n".join(lines)


def _expand_and_reduce(found: Found) -> str:
    """KFC beside what came after it, by pooling; of dense layers both are the same."""
    parts = []
    for pool, small in found.small.items():
        cosine = below(small, "cosine", "reduce", "KFC", CONVOLUTION)
        error = below(small, "error", "KFC", "reduce", CONVOLUTION)
        reaching = below(small, "gain", "reduce", "KFC", CONVOLUTION)
        parts.append(
            f"with {pool} pooling its cosine is greater in {count(cosine)}, its relative error "
            f"smaller in {count(error)}, the part of the decrease greater in {count(reaching)}"
        )
    return (
        "KFC is what Eschenhagen and others (2023) call `expand`; beside it `reduce`, which they "
        "derive for locations whose outputs are averaged: a comparison, not a claim. A case is a "
        f"convolution. Of KFC, {'; '.join(parts)}."
    )


def _layers(parts: Parts) -> list[str]:
    return list(parts[0]["moments"][0]["layers"])


def _steps(part: Mapping[str, Any], *, ends: bool = False) -> str:
    steps = [str(moment["step"]) for moment in part["moments"]]
    return " and ".join((steps[0], steps[-1])) if ends else ", ".join(steps)


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
