"""What the host does in a training step on a card, counted without one.

The real layers and optimizers train on arrays that stand for a device's (`tests/cuda`). A launch
goes the way that it goes on a card, to the function at its end, which does nothing.

Function calls are free of noise. Time is by a profiler, which makes calls look longer than they
are: it compares two versions, and says nothing of a card. What the stand-ins take is not in it.

Run: python -m benchmarks.cuda_host [--lines N] (extra ``cuda-test``)
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from tabulate import tabulate

import kfc_numba as kfc
from benchmarks.cuda_calls import MISSING, expected_steps
from kfc_numba import networks
from kfc_numba.kernels import backend
from kfc_numba.kernels.rates import H200

if MISSING is None:
    import pytest
    from host_array import HostArray, untouched
    from stand_in import in_cupys_place

    from kfc_numba.kernels.cuda import launch
    from kfc_numba.kernels.cuda.card import Card, Prepared

OURS = str(Path(kfc.__file__).parent)
NETWORKS = "quick", "resnet-small"
#: KFC in the steps between updates of its statistics, which are nearly all.
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": kfc.SGD,
    "KFC": lambda: kfc.KFC(period_growth=0.0, curvature_update_period=1000),
}
BATCH = 128
_WARM, _STEPS = 4, 10


@dataclass(frozen=True)
class Share:
    """What one step takes of the host, on average over some."""

    launches: float
    calls: float  # of functions of this library
    seconds: float  # in them, and in what they call that is not written in Python; profiled
    step: float  # median time of a step, with the stand-ins and without the profiler
    profile: pstats.Stats


@contextmanager
def null_driver() -> Iterator[Counter]:
    """Within the context there is a card that does nothing, and counts launches."""
    counted: Counter = Counter()

    def launched(*given: int) -> None:
        counted["launches"] += 1

    def prepare(kernel: Any, kinds: tuple) -> Prepared:
        return Prepared(kernel.__name__, SimpleNamespace(ptr=0), kinds, launched)

    card, stream = Card(), SimpleNamespace(ptr=0)
    card._device, card._stream = lambda: 0, lambda device: stream
    card._rates[0] = H200
    card._thread.devices.add(0)
    backend.add_device_type(HostArray)
    with (
        in_cupys_place(pytest.MonkeyPatch),
        launch.executed_by(card),
        mock.patch.object(card, "_prepare", prepare),
        mock.patch.object(card, "capability", return_value=(9, 0)),
        mock.patch.object(HostArray, "fills", False),
        expected_steps(),
        np.errstate(all="ignore"),
    ):
        yield counted


def stepping(network: str, optimizer: str) -> Callable[[], Any]:
    """A function that makes one step, after some, with the data on the card."""
    net = networks.build(network, (32, 32, 3), 10).to("cuda")
    x, y = untouched((BATCH, *net.input_shape)), np.arange(BATCH) % 10
    trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), OPTIMIZERS[optimizer]())

    def step() -> None:
        trainer.step(x, y)

    for _ in range(_WARM):
        step()
    return step


def share(network: str, optimizer: str) -> Share:
    """What a step of an optimizer on a network takes of the host."""
    with null_driver() as counted:
        step = stepping(network, optimizer)
        times = []
        for _ in range(_STEPS):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        counted.clear()
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(_STEPS):
            step()
        profile.disable()
        found = pstats.Stats(profile)
        calls, seconds = ours(found)
        return Share(
            counted["launches"] / _STEPS,
            calls / _STEPS,
            seconds / _STEPS,
            statistics.median(times),
            found,
        )


def ours(profile: pstats.Stats) -> tuple[int, float]:
    """Calls of functions of this library, and the time in them and in the built-in ones they call.

    Parameters
    ----------
    profile : pstats.Stats

    Returns
    -------
    calls : int
    seconds : float
    """
    calls, seconds = 0, 0.0
    for (file, _, _), (_, count, own, _, callers) in profile.stats.items():  # type: ignore[attr-defined]
        if file.startswith(OURS):
            calls += count
            seconds += own
        elif file == "~":
            seconds += sum(part[2] for (by, _, _), part in callers.items() if by.startswith(OURS))
    return calls, seconds


def main() -> None:
    if MISSING is not None:
        raise SystemExit(MISSING)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--lines", type=int, default=0, metavar="N", help="print the N functions that take most"
    )
    arguments = parser.parse_args()
    rows = []
    for network in NETWORKS:
        for optimizer in OPTIMIZERS:
            found = share(network, optimizer)
            rows.append(
                {
                    "network": network,
                    "optimizer": optimizer,
                    "launches": f"{found.launches:.0f}",
                    "calls": f"{found.calls:.0f}",
                    "a launch": f"{found.calls / found.launches:.1f}",
                    "profiled": f"{1e3 * found.seconds:.2f} ms",
                    "step here": f"{1e3 * found.step:.2f} ms",
                }
            )
            if arguments.lines:
                found.profile.sort_stats("tottime").print_stats(OURS, arguments.lines)
    print(tabulate(rows, "keys", "github", disable_numparse=True))


if __name__ == "__main__":
    main()
