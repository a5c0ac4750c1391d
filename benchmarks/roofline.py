"""Where the kernels stand between the machine's arithmetic and its memory: one picture, one table.

Measures the register tile on operands that stay in L1 (the ceiling of arithmetic), a copy of a
large array (the ceiling of memory), and the convolutions and second moments of the network
`quick`, in one run, medians; writes docs/roofline.png and docs/measured.md.

Run: python -m benchmarks.roofline [--folder docs]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numba
import numpy as np
from tabulate import tabulate

from benchmarks.common import normal
from benchmarks.experiments.results import commit
from benchmarks.peers.timing import describe, environment
from kfc_numba.kernels import cpu
from kfc_numba.kernels.cpu.jit import parallel
from kfc_numba.kernels.cpu.tile import TILE_ROWS, tile, tile_lanes
from kfc_numba.kernels.cpu.vector import VECTOR_BYTES

BATCH = 512
LAYERS = {"conv1": (32, 3, 32), "conv2": (16, 32, 32), "conv3": (8, 32, 64)}  # size, in, out
KERNEL, PADDING = 5, 2


@parallel
def _tile_in_cache(a, b, zero, out, sizes):  # type: ignore[no-untyped-def]
    depth, repeats, lanes, none, one = sizes
    for task in numba.prange(out.shape[0]):
        target = out[task]
        for _ in range(repeats):
            tile(
                a, none, one, none, TILE_ROWS, b, none, none, lanes, zero, none, none,
                target, none, lanes, one, depth, TILE_ROWS, lanes,
            )  # fmt: skip


def seconds(function: Callable[[], object], rounds: int = 9) -> float:
    """Median seconds of a call, after one that warms up."""
    function()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def arithmetic_ceiling() -> float:
    """GFLOP/s of the tile on operands in L1, on all threads."""
    depth, repeats, lanes = 256, 20_000, tile_lanes(np.float32)
    threads = numba.get_num_threads()
    a, b = normal(depth * TILE_ROWS), normal(depth * lanes)
    out = np.zeros((threads, TILE_ROWS * lanes), np.float32)
    zero = np.zeros(lanes, np.float32)
    taken = seconds(lambda: _tile_in_cache(a, b, zero, out, (depth, repeats, lanes, 0, 1)))
    return 2 * depth * TILE_ROWS * lanes * repeats * threads / taken / 1e9


def memory_ceiling() -> float:
    """GB/s that are read and written by a large copy."""
    x = normal(1 << 26)
    y = np.empty_like(x)
    return 2 * x.nbytes / seconds(lambda: np.copyto(y, x)) / 1e9


def measure() -> list[dict[str, float | str]]:
    """Rate and intensity of each kernel: multiply-adds in the padding are not counted."""
    rows: list[dict[str, float | str]] = []
    for name, (size, channels, filters) in LAYERS.items():
        x, weight = normal(BATCH, size, size, channels), normal(KERNEL, KERNEL, channels, filters)
        y, dx = normal(BATCH, size, size, filters), np.empty_like(x)
        taps = sum(size - abs(tap - PADDING) for tap in range(KERNEL)) ** 2  # inside, per image
        flop = 2.0 * BATCH * taps * channels * filters
        traffic = x.nbytes + y.nbytes
        cases: dict[str, Callable[[], object]] = {
            "forward": lambda x=x, w=weight, y=y: cpu.conv2d_forward(x, w, padding=PADDING, out=y),
            "weight gradient": lambda x=x, y=y: cpu.conv2d_grad_weight(
                x, y, KERNEL, padding=PADDING
            ),
            "input gradient": lambda x=x, y=y, w=weight, dx=dx: cpu.conv2d_grad_input(
                y, w, x.shape, padding=PADDING, out=dx
            ),
        }
        if channels < 8:
            del cases["input gradient"]  # of the first layer: training does not need it
        for what, function in cases.items():
            rate = flop / seconds(function) / 1e9
            rows.append({"kernel": f"{name} {what}", "rate": rate, "intensity": flop / traffic})
    return rows


def picture(rows: list[dict[str, float | str]], peak: float, bandwidth: float, path: Path) -> None:
    """The roofline, and each kernel as a point."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    intensity = np.geomspace(1, 1000, 200)
    axes.loglog(intensity, np.minimum(peak, bandwidth * intensity), "k-", label="ceiling")
    for row, marker in zip(rows, "ovs^Dp*Xh", strict=False):
        axes.loglog(row["intensity"], row["rate"], marker, label=row["kernel"])
    axes.set_xlabel("FLOP per byte of images in memory")
    axes.set_ylabel("GFLOP/s")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("docs"))
    folder = parser.parse_args().folder
    peak, bandwidth = arithmetic_ceiling(), memory_ceiling()
    rows = measure()
    picture(rows, peak, bandwidth, folder / "roofline.png")
    table = tabulate(
        [(r["kernel"], r["rate"], r["rate"] / peak, r["intensity"]) for r in rows],
        ("kernel", "GFLOP/s", "of the tile's rate in L1", "FLOP/byte"),
        "github",
        floatfmt=("", ".0f", ".2f", ".0f"),
    )
    (folder / "measured.md").write_text(
        "# Rates of the kernels\n\n"
        f"Written by `python -m benchmarks.roofline`: batch {BATCH}, float32, "
        f"vectors of {VECTOR_BYTES} bytes; {describe(environment() | {'commit': commit()})}. The "
        f"tile on operands in L1: {peak:.0f} GFLOP/s; a large copy: {bandwidth:.1f} GB/s. "
        "Multiply-adds are counted by the definition of a convolution, without those with the "
        "padding. Minimal filtering needs fewer, so rates above the tile's own, and points above "
        "the roof, are possible.\n\n"
        f"{table}\n\n![roofline](roofline.png)\n"
    )
    print(table)


if __name__ == "__main__":
    main()
