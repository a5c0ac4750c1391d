"""Peak memory of a KFC run on the network `quick` beside a PyTorch SGD run.

Each run is a process of its own; what counts is the most memory that it ever held (VmHWM), with
the libraries. Our kernels come from the cache: compiling them first is shown apart.

Run: python -m benchmarks.peers.memory [--json FILE]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate

from benchmarks.peers.timing import Claim, arguments, claims_table

BATCH = 512
BATCHES = 10  # of data
STEPS = 25  # with three updates of the statistics and two decompositions


def resident(entry: str) -> float:
    """Megabytes of this process: "VmHWM", the most so far, or "VmRSS", now.

    Not `resource.getrusage`, whose figure a child process inherits from its parent.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(entry + ":"))
    return int(line.split()[1]) / 1024


def run_ours(threads: int | None) -> float:
    """KFC; returns the memory at the start, in megabytes."""
    import numba

    import kfc_numba as kfc
    from benchmarks.common import quick, random_batch

    if threads is not None:
        numba.set_num_threads(threads)
    start = resident("VmRSS")
    x, y = random_batch(BATCH * BATCHES)
    trainer = kfc.Trainer(quick(), kfc.SoftmaxCrossEntropy(), kfc.KFC(learning_rate=1e-3))
    for step in range(STEPS):
        part = slice(step % BATCHES * BATCH, (step % BATCHES + 1) * BATCH)
        trainer.step(x[part], y[part])
    return start


def run_torch(name: str, threads: int | None) -> float:
    """PyTorch's SGD in a memory format; returns the memory at the start, in megabytes."""
    import torch

    from benchmarks.peers import pytorch

    if threads is not None:
        torch.set_num_threads(threads)
    start = resident("VmRSS")
    layout = pytorch.FORMATS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH * BATCHES, 3, 32, 32, generator=generator)
    x = x.contiguous(memory_format=layout)
    y = torch.randint(10, (BATCH * BATCHES,), generator=generator)
    net = pytorch.quick(layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    for step in range(STEPS):
        part = slice(step % BATCHES * BATCH, (step % BATCHES + 1) * BATCH)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[part]), y[part]).backward()
        optimizer.step()
    return start


def child(side: str, threads: int | None) -> None:
    """Run one side and print its figures."""
    runs: dict[str, Callable[[], float]] = {
        "ours": lambda: run_ours(threads),
        "torch": lambda: run_torch("torch", threads),
        "torch channels_last": lambda: run_torch("torch channels_last", threads),
    }
    start = runs[side]()
    print(json.dumps({"peak_mb": resident("VmHWM"), "start_mb": start}))


def measured(side: str, threads: int | None, environment: dict[str, str]) -> dict[str, float]:
    """Figures of one side from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.peers.memory", "--side", side]
    if threads is not None:
        command += ["--threads", str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--side", help="run one side in this process and print its figures")
    options = parser.parse_args()
    if options.side is not None:
        child(options.side, options.threads)
        return
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        for name in ("ours, compiling", "ours", "torch", "torch channels_last"):
            figures[name] = measured(name.split(",")[0], options.threads, environment)
    rows = [
        (name, f["peak_mb"], f["peak_mb"] - f["start_mb"], f["start_mb"])
        for name, f in figures.items()
    ]
    headers = ("run", "peak", "of it above the start", "start, libraries loaded")
    print("Memory of a run on quick, batch 512, in MB: ours KFC, PyTorch's SGD")
    print(tabulate(rows, headers, "simple", floatfmt=".0f"))
    rival = min(figures["torch"]["peak_mb"], figures["torch channels_last"]["peak_mb"])
    claim = Claim("peak memory, KFC run on quick", figures["ours"]["peak_mb"] / rival, 0.8)
    print()
    print(claims_table([claim]))
    if options.json is not None:
        content = {
            "title": "Memory",
            "figures": figures,
            "claims": [vars(claim) | {"met": claim.met}],
        }
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
