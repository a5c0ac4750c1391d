"""The figures of `assumptions`, from what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments import figures
from benchmarks.experiments.assumptions_claims import Found, read
from benchmarks.experiments.assumptions_matrices import APPROXIMATIONS
from benchmarks.experiments.assumptions_report import BLACK, COMPARED, MOMENTS

KINDS = ("activation", "derivative")
#: What panels of the small networks show, and how their axis is named.
SHOWN = {
    "cosine": "cosine with exact block",
    "error": "relative error",
    "gain": "part of the decrease",
}


def draw(results: Path, output: Path) -> None:
    """The figures of what is kept in the folder of all results.

    Parameters
    ----------
    results, output : path
        Folders of all results, and of the pages.
    """
    found = read(results)
    if all(found.quick.values()):
        _offsets(found, output)
        _maps(found, output)
    if all(found.small.values()):
        for pool, parts in found.small.items():
            _small(parts, pool, output)
    if found.report:
        _training(found.report, output)


def _offsets(found: Found, output: Path) -> None:
    """A row for each moment, a column for each layer."""
    first = next(iter(found.quick.values()))[0]
    moments, layers = first["moments"], list(first["moments"][0]["layers"])
    figure, panels = figures.new(len(moments), len(layers), width=3.0, height=2.5)
    for row, moment in enumerate(moments):
        for column, layer in enumerate(layers):
            panel = panels[row, column]
            lines = ((pool, kind) for kind in KINDS for pool in found.quick)
            for style, (pool, kind) in zip(figures.STYLES, lines, strict=False):
                at = [
                    np.array(part["moments"][row]["layers"][layer]["by_offset"][kind])
                    for part in found.quick[pool]
                ]
                mean = np.mean(at, axis=0)
                beside = mean[mean.shape[0] // 2, mean.shape[1] // 2 :]
                panel.plot(beside, label=f"{kind}s, {pool} pooling", markersize=4, **style)
            panel.set_title(f"{layer}, {_when(row, moment)}", fontsize=9)
            panel.set_ylim(-0.15, 1.05)
            panel.axhline(0, color="0.7", linewidth=0.8, zorder=0)
            panel.set_xticks(range(len(beside)))
            if row == len(moments) - 1:
                panel.set_xlabel("horizontal offset (pixels)")
            if column == 0:
                panel.set_ylabel("correlation")
    _legend(figure, panels, 2)
    figures.save(figure, output, "assumptions-offsets")


def _maps(found: Found, output: Path) -> None:
    """A row for each kind of pooling, a column for each layer."""
    layers = list(next(iter(found.quick.values()))[0]["moments"][-1]["layers"])
    figure, panels = figures.new(len(found.quick), len(layers), width=2.8, height=2.7)
    for row, (pool, parts) in enumerate(found.quick.items()):
        for column, layer in enumerate(layers):
            panel = panels[row, column]
            matrix = np.abs(parts[0]["moments"][-1]["layers"][layer]["maps"])
            image = panel.imshow(matrix, vmin=0, vmax=BLACK, cmap="Greys")
            panel.set_title(f"{layer}, {pool} pooling", fontsize=9)
            panel.set_xlabel("map")
            panel.set_ylabel("map")
    figure.colorbar(image, ax=panels, label="absolute correlation", shrink=0.7, extend="max")
    figures.save(figure, output, "assumptions-maps")


def _small(parts: Sequence[Mapping[str, Any]], pool: str, output: Path) -> None:
    """A row for each of `SHOWN`, a column for each layer."""
    moments = parts[0]["moments"]
    layers = list(moments[0]["layers"])
    figure, panels = figures.new(len(SHOWN), len(layers), width=3.0, height=2.5)
    for row, (what, axis) in enumerate(SHOWN.items()):
        for column, layer in enumerate(layers):
            panel = panels[row, column]
            for place, name in enumerate(APPROXIMATIONS):
                numbers = np.array(
                    [[m["layers"][layer][name][what] for m in part["moments"]] for part in parts]
                )
                mean = numbers.mean(axis=0)
                # Beside each other, so that those of equal height are seen.
                at = np.arange(len(moments)) + 0.08 * (place - (len(APPROXIMATIONS) - 1) / 2)
                bars = [mean - numbers.min(axis=0), numbers.max(axis=0) - mean]
                style = figures.STYLES[place]
                panel.errorbar(at, mean, bars, label=name, markersize=4, capsize=2, **style)
            panel.set_xticks(range(len(moments)), [_when(*pair) for pair in enumerate(moments)])
            panel.tick_params(axis="x", labelsize=8)
            panel.set_ylim(0, 1.05 if what == "cosine" else None)
            if row == 0:
                panel.set_title(layer, fontsize=10)
            if column == 0:
                panel.set_ylabel(axis)
    _legend(figure, panels, 3)
    figures.save(figure, output, f"assumptions-small-{pool}")


def _training(parts: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Error above cosine, a column for each layer."""
    moments = parts[0]["moments"]
    layers = list(moments[0]["layers"])
    steps = [moment["step"] for moment in moments]
    figure, panels = figures.new(2, len(layers), width=2.8, height=2.5)
    axes = {"relative_error": "relative error", "cosine": "cosine with exact block"}
    for row, (what, axis) in enumerate(axes.items()):
        for column, layer in enumerate(layers):
            panel = panels[row, column]
            for style, (name, label) in zip(figures.STYLES, COMPARED.items(), strict=False):
                numbers = [
                    [m["layers"][layer][what][name] for m in part["moments"]] for part in parts
                ]
                panel.plot(steps, np.mean(numbers, axis=0), label=label, markersize=4, **style)
            # Moments are denser at first, and the first is zero.
            panel.set_xscale("symlog", linthresh=max(1, steps[1]))
            panel.set_xticks(steps, map(str, steps))
            panel.tick_params(axis="x", labelsize=8)
            panel.minorticks_off()
            panel.set_ylim(0, 1.05 if what == "cosine" else None)
            if row == 0:
                panel.set_title(layer, fontsize=10)
            else:
                panel.set_xlabel("steps")
            if column == 0:
                panel.set_ylabel(axis)
    _legend(figure, panels, len(COMPARED))
    figures.save(figure, output, "assumptions-training")


def _when(place: int, moment: Mapping[str, Any]) -> str:
    word = MOMENTS[place]
    return f"{word}\n({moment['step']} steps)" if moment["step"] else word


def _legend(figure: Any, panels: Any, columns: int) -> None:
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)
