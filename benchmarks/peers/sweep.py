"""Convolutions over a grid of shapes beside PyTorch's, to find the ones that fall off a cliff.

Kernel, stride, channels, image size and batch are varied; shapes above a limit of arithmetic or
memory are left out. Filters are as many as channels, 32 where there are 1 or 3 channels.
`--sample N` takes N shapes at random.

Run: python -m benchmarks.peers.sweep [--sample N] [--seed S] [--only TEXT] [--json FILE]
"""

from __future__ import annotations

import itertools

import numpy as np
from tabulate import tabulate

from benchmarks.peers.convolution import Convolution, Shape
from benchmarks.peers.pytorch import torch
from benchmarks.peers.timing import Report, Row, arguments, geometric_mean, use_threads

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


def summary(rows: list[tuple[Shape, Row]]) -> str:
    """Geometric mean, quantiles and how many ratios are high, by batch size."""
    lines = []
    for batch in (*sorted({shape.batch for shape, _ in rows}), None):
        ratios = [row.ratio for shape, row in rows if batch in (None, shape.batch)]
        quantiles = np.quantile(ratios, [0.1, 0.5, 0.9, 1.0])
        high = sum(ratio > HIGH for ratio in ratios)
        lines.append((batch or "all", len(ratios), geometric_mean(ratios), *quantiles, high))
    headers = ("batch", "shapes", "mean", "10%", "median", "90%", "most", f"above {HIGH}")
    return tabulate(lines, headers, "simple", floatfmt=".2f")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sample", type=int, help="number of shapes (all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (0)")
    parser.set_defaults(rounds=3)
    options = parser.parse_args()
    use_threads(options.threads)
    torch.set_grad_enabled(False)
    shapes = [shape for shape in grid() if options.only in str(shape)]
    if options.sample is not None and options.sample < len(shapes):
        order = np.random.default_rng(options.seed).permutation(len(shapes))
        shapes = [shapes[i] for i in order[: options.sample]]
    report = Report(f"Sweep over {len(shapes)} shapes of convolutions")
    found: dict[str, list[tuple[Shape, Row]]] = {"forward": [], "backward": []}
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
        print(summary(rows))


if __name__ == "__main__":
    main()
