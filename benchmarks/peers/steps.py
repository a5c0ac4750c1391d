"""Optimizer steps on the networks `quick` and `small` beside our own and PyTorch's SGD step.

A KFC step is that of `KFC()` as it is after the first hundreds of steps, amortised: the time of a
whole cycle (statistics every 20 steps, an inversion every 100, the exact bound of the step up to
four steps apart) divided by its number of steps. Nobody averages parameters. All train on the same
batches of the bundled images, in turn, and slowly, KFC by short steps: it would learn them by
heart, until derivatives are subnormal numbers, which processors are slow with.

Run: python -m benchmarks.peers.steps [--only TEXT] [--json FILE]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

import kfc_numba as kfc
from benchmarks.common import quick, small
from benchmarks.peers import pytorch
from benchmarks.peers.pytorch import torch
from benchmarks.peers.timing import Claim, Report, Row, Timing, arguments, in_turn, use_threads

CYCLE = kfc.KFC().inverse_update_period  # steps from one inversion to the next
BATCHES = 16
RATE = 1e-3
BOUND = 2e-5  # a hundredth of the usual one: a tenth of the length


def own(
    net: kfc.Graph, optimizer: kfc.optim.Optimizer, x: np.ndarray, y: np.ndarray, steps: int
) -> Callable:
    """Function that takes a number of steps with an optimizer of ours."""
    trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), optimizer)
    batches = itertools.cycle(zip(np.split(x, BATCHES), np.split(y, BATCHES), strict=True))

    def run() -> None:
        for batch in itertools.islice(batches, steps):
            trainer.step(*batch)

    return run


def rival(layout: torch.memory_format, x: np.ndarray, y: np.ndarray, steps: int) -> Callable:
    """Function that takes a number of steps of PyTorch's SGD."""
    net = pytorch.quick(layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    inputs = [pytorch.images(part, layout) for part in np.split(x, BATCHES)]
    batches = itertools.cycle(zip(inputs, torch.from_numpy(y).chunk(BATCHES), strict=True))

    def run() -> None:
        for batch, targets in itertools.islice(batches, steps):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(batch), targets)
            loss.backward()
            optimizer.step()
            loss.item()

    return run


def images(batch: int, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches of the bundled images, with a border of zeros, and their classes."""
    data = kfc.datasets.load("fashion-mnist-10k")
    x, _ = data.normalized()
    border = (size - x.shape[1]) // 2
    x = np.pad(x[: BATCHES * batch], [(0, 0), (border, border), (border, border), (0, 0)])
    return np.repeat(x, channels, axis=-1), data.y_train[: BATCHES * batch]


def natural() -> kfc.KFC:
    """`KFC()` with the periods that it has come to after some hundred steps."""
    return kfc.KFC(period_growth=0, loss_bound=BOUND, averaging=None)


def plain() -> kfc.SGD:
    return kfc.SGD(learning_rate=RATE, momentum=0.9, averaging=None)


def measure_small(batch: int, rounds: int) -> dict[str, Timing]:
    """Seconds a step of KFC and of our SGD on `small`, in turn."""
    x, y = images(batch, 28, 1)
    steps = 20
    functions = {
        "KFC": own(small(), natural(), x, y, CYCLE),
        "SGD": own(small(), plain(), x, y, steps),
    }
    wake = {name: own(small(), plain(), x, y, 1) for name in functions}
    results = in_turn(functions, rounds=rounds, turn=0.0, wake=wake)
    return {
        name: Timing([s / (CYCLE if name == "KFC" else steps) for s in timing.seconds])
        for name, timing in results.items()
    }


def measure(batch: int, rounds: int) -> dict[str, Timing]:
    """Seconds a step of KFC, of our SGD and of PyTorch's in each format, all in turn."""
    x, y = images(batch, 32, 3)
    steps = 5  # a turn of SGD; a turn of KFC is a whole cycle
    functions = {
        "KFC": own(quick(), natural(), x, y, CYCLE),
        "SGD": own(quick(), plain(), x, y, steps),
    }
    functions |= {name: rival(layout, x, y, steps) for name, layout in pytorch.FORMATS.items()}
    wake = {name: own(quick(), plain(), x, y, 1) for name in ("KFC", "SGD")}
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
    report = Report("Steps on quick and small")
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
        else:
            what = "KFC step, amortised, batch 128, to own SGD step"
            report.claims.append(Claim(what, against_own.ratio, 1.3))
    for batch in (128, 32):
        if options.only in f"small, batch {batch}":
            results = measure_small(batch, options.rounds)
            case = f"KFC on small, amortised, batch {batch}"
            row = Row(case, results["KFC"], {"own SGD": results["SGD"]})
            report.add("beside our own SGD step", row)
            if batch == 128:
                report.claims.append(Claim(f"{case}, to own SGD step", row.ratio, 1.4))
    report.finish(options.json)


if __name__ == "__main__":
    main()
