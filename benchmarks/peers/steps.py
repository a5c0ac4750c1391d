"""Optimizer steps on the network `quick` beside PyTorch's SGD step.

A KFC step is amortised: the time of a whole cycle (statistics every 10 steps, decomposition every
20, exact step bound at every step) divided by its number of steps. All steps of one batch size
train on one batch.

Run: python -m benchmarks.peers.steps [--only TEXT] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import kfc_numba as kfc
from benchmarks.common import quick, random_batch
from benchmarks.peers import pytorch
from benchmarks.peers.pytorch import torch
from benchmarks.peers.timing import Claim, Report, Row, Timing, arguments, in_turn, use_threads

CYCLE = 20  # steps from one decomposition to the next
RATE = 1e-3


def own(optimizer: kfc.optim.Optimizer, x: np.ndarray, y: np.ndarray, steps: int) -> Callable:
    """Function that takes a number of steps with an optimizer of ours."""
    trainer = kfc.Trainer(quick(), kfc.SoftmaxCrossEntropy(), optimizer)

    def run() -> None:
        for _ in range(steps):
            trainer.step(x, y)

    return run


def rival(layout: torch.memory_format, x: np.ndarray, y: np.ndarray, steps: int) -> Callable:
    """Function that takes a number of steps of PyTorch's SGD."""
    net = pytorch.quick(layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    inputs, targets = pytorch.images(x, layout), torch.from_numpy(y)

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(inputs), targets)
            loss.backward()
            optimizer.step()
            loss.item()

    return run


def measure(batch: int, rounds: int) -> dict[str, Timing]:
    """Seconds a step of KFC, of our SGD and of PyTorch's in each format, all in turn."""
    x, y = random_batch(batch)
    steps = 5  # a turn of SGD; a turn of KFC is a whole cycle
    kfac = kfc.KFC(
        learning_rate=RATE,
        kl_bound=0.3,
        curvature_update_period=10,
        inverse_update_period=CYCLE,
    )
    functions = {
        "KFC": own(kfac, x, y, CYCLE),
        "SGD": own(kfc.SGD(learning_rate=RATE, momentum=0.9), x, y, steps),
    }
    functions |= {name: rival(layout, x, y, steps) for name, layout in pytorch.FORMATS.items()}
    wake = {name: own(kfc.SGD(learning_rate=RATE), x, y, 1) for name in ("KFC", "SGD")}
    wake |= {name: rival(layout, x, y, 1) for name, layout in pytorch.FORMATS.items()}
    results = in_turn(functions, rounds=rounds, turn=0.0, wake=wake)
    return {
        name: Timing([s / (CYCLE if name == "KFC" else steps) for s in timing.seconds])
        for name, timing in results.items()
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=7)
    options = parser.parse_args()
    use_threads(options.threads)
    report = Report("Steps on quick")
    for batch in (512, 128):
        if options.only not in f"batch {batch}":
            continue
        results = measure(batch, options.rounds)
        rivals = {name: results[name] for name in pytorch.FORMATS}
        sgd = Row(f"SGD, batch {batch}", results["SGD"], rivals)
        against_peer = Row(f"KFC, amortised, batch {batch}", results["KFC"], rivals)
        against_own = Row(
            f"KFC, amortised, batch {batch}", results["KFC"], {"own SGD": results["SGD"]}
        )
        report.add("beside PyTorch's SGD step", sgd)
        report.add("beside PyTorch's SGD step", against_peer)
        report.add("beside our own SGD step", against_own)
        report.claims.append(Claim(f"SGD step, batch {batch}", sgd.ratio, 0.65))
        if batch == 512:
            what = "KFC step, amortised, batch 512"
            report.claims.append(Claim(f"{what}, to torch SGD step", against_peer.ratio, 1.0, 0.85))
            report.claims.append(Claim(f"{what}, to own SGD step", against_own.ratio, 1.4))
    report.finish(options.json)


if __name__ == "__main__":
    main()
