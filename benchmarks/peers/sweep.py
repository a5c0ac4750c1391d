"""Convolutions over a grid of shapes beside PyTorch's, to find the ones that fall off a cliff.

Kernel, stride, channels, image size and batch are varied; shapes above a limit of arithmetic or
memory are left out. Filters are as many as channels, 32 where there are 1 or 3 channels.
`--sample N` takes N shapes at random; `--publish FOLDER` writes the ratio of every shape to
`sweep.csv` there, and what they come to, to `sweep.md`.

Run: python -m benchmarks.peers.sweep [--sample N] [--seed S] [--only TEXT] [--publish FOLDER]
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
from tabulate import tabulate

from benchmarks.experiments.results import commit
from benchmarks.peers.convolution import Convolution, Shape
from benchmarks.peers.pytorch import torch
from benchmarks.peers.timing import (
    Report,
    Row,
    arguments,
    describe,
    environment,
    geometric_mean,
    use_threads,
)

MOST_FLOP = 8e9  # of one pass
MOST_NUMBERS = 2**25  # of input and output
HIGH = 1.5  # ratios above it are to be explained or mended


def grid() -> list[Shape]:
    """All shapes within the limits."""
    axes = (
        (1, 3, 5, 7),
        (1, 2),
        (1, 3, 16, 32, 48, 64, 96, 128, 256),
        (7, 8, 14, 16, 28, 32, 56),
        (1, 32, 128, 512),
    )
    shapes = [
        Shape(batch, size, channels, channels if channels > 3 else 32, kernel, stride)
        for kernel, stride, channels, size, batch in itertools.product(*axes)
    ]
    return [s for s in shapes if s.flop <= MOST_FLOP and s.numbers <= MOST_NUMBERS]


Found = list[tuple[Shape, Row]]

# How shapes are counted in the summary: a heading, and what its lines are.
GROUPS = {
    "batch": lambda shape, row: shape.batch,
    "kernel and stride": lambda shape, row: f"{shape.kernel}x{shape.kernel}, {shape.stride}",
    "channels": lambda shape, row: shape.channels,
    "time of the faster rival": lambda shape, row: (
        "under 0.05 ms" if row.fastest.median < 5e-5 else
        "0.05 to 1 ms" if row.fastest.median < 1e-3 else "1 ms and more"
    ),
}  # fmt: skip


def summary(rows: Found, heading: str, style: str = "simple") -> str:
    """Geometric mean, quantiles and how many ratios are high, by group."""
    group = GROUPS[heading]
    names = sorted({group(shape, row) for shape, row in rows})
    lines = []
    for name in (*names, None):
        ratios = [row.ratio for shape, row in rows if name is None or group(shape, row) == name]
        quantiles = np.quantile(ratios, [0.1, 0.5, 0.9, 1.0])
        high = sum(ratio > HIGH for ratio in ratios)
        label = "all" if name is None else name
        lines.append((label, len(ratios), geometric_mean(ratios), *quantiles, high))
    headers = (heading, "shapes", "mean", "10%", "median", "90%", "most", f"above {HIGH}")
    return tabulate(lines, headers, style, floatfmt=".2f")


def publish(folder: Path, found: dict[str, Found]) -> None:
    """Write every ratio as CSV, and the summary as a page."""
    with (folder / "sweep.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ("pass", "batch", "size", "channels", "filters", "kernel", "stride",
             "ours_ms", "torch_ms", "ratio")
        )  # fmt: skip
        for name, rows in found.items():
            for s, row in rows:
                times = (f"{1e3 * t.median:.4g}" for t in (row.ours, row.fastest))
                shape = (s.batch, s.size, s.channels, s.filters, s.kernel, s.stride)
                writer.writerow((name, *shape, *times, f"{row.ratio:.2f}"))
    count = len(next(iter(found.values())))
    lines = [
        "# Convolutions of all shapes beside PyTorch",
        "Written by `python -m benchmarks.peers.sweep --publish docs`: "
        f"{describe(environment() | {'commit': commit()})}. {count} shapes, each forward and "
        "backward (both gradients); a ratio is our time divided by that of PyTorch in its faster "
        "memory format, the median of rounds that take turns, and means are geometric. Every ratio "
        "is in [sweep.csv](sweep.csv).",
    ]
    for name, rows in found.items():
        lines.append(f"## {name.capitalize()}")
        lines += [summary(rows, heading, "github") for heading in GROUPS]
        high = sorted(
            ((row.ratio, 1e3 * row.ours.median, str(shape)) for shape, row in rows), reverse=True
        )
        high = [(shape, ms, ratio) for ratio, ms, shape in high if ratio > HIGH and ms > 0.05]
        lines.append(f"Ratios above {HIGH} of calls that take us more than 0.05 ms:")
        lines.append(
            tabulate(high, ("shape", "ours, ms", "ratio"), "github", floatfmt=".2f")
            if high
            else "none."
        )
    (folder / "sweep.md").write_text("\n\n".join(lines) + "\n")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sample", type=int, help="number of shapes (all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (0)")
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help="write sweep.csv, sweep.md")
    parser.set_defaults(rounds=3)
    options = parser.parse_args()
    use_threads(options.threads)
    torch.set_grad_enabled(False)
    shapes = [shape for shape in grid() if options.only in str(shape)]
    if options.sample is not None and options.sample < len(shapes):
        order = np.random.default_rng(options.seed).permutation(len(shapes))
        shapes = [shapes[i] for i in order[: options.sample]]
    report = Report(f"Sweep over {len(shapes)} shapes of convolutions")
    found: dict[str, Found] = {"forward": [], "backward": []}
    for shape in shapes:
        case = Convolution(shape, rounds=options.rounds, turn=0.005)
        found["forward"].append((shape, Row.of(str(shape), case.forward(), shape.flop)))
        found["backward"].append((shape, Row.of(str(shape), case.backward(), 2 * shape.flop)))
        print(f"  {shape}: {', '.join(f'{rows[-1][1].ratio:.2f}' for rows in found.values())}")
    for name, rows in found.items():
        report.tables[name] = sorted((row for _, row in rows), key=lambda row: -row.ratio)
    report.finish(options.json)
    for name, rows in found.items():
        print(f"\n{name}: ratios (mean is the geometric one)")
        for heading in GROUPS:
            print(summary(rows, heading))
    if options.publish is not None:
        publish(options.publish, found)


if __name__ == "__main__":
    main()
