"""How long a step should take on a card, by its data sheet and the machine code: no card is needed.

What a step asks for is recorded from the real layers and optimizers (`cuda_calls.py`); what each
launch takes is worked out from the machine code (`cuda_costs.py`) and compared with what a card
took where one was measured (docs/cuda_measured.json).

Run: python -m benchmarks.cuda_model [--json FILE] (extra ``cuda-test``)
and then python -m benchmarks.cuda_page, which writes the tables into docs/cuda.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import kfc_numba as kfc
from benchmarks import common
from benchmarks.cuda_calls import (
    MISSING,
    Found,
    Launch,
    memory_on_card,
    recorded,
    recorded_steps,
)
from benchmarks.cuda_cards import CARDS, Card
from benchmarks.cuda_costs import (
    CALLING,
    CUBLAS_SHARE,
    MEMORY_SHARE,
    START,
    WARPS_NEEDED,
    Host,
    cost,
    is_read,
    kind,
    operations,
    played,
    solved,
)
from kfc_numba import networks
from kfc_numba.commands import cuda_cases
from kfc_numba.precision import tensor_cores

if MISSING is None:
    from host_array import untouched

ROOT = Path(__file__).parent.parent
MEASURED = ROOT / "docs" / "cuda_measured.json"
KEPT = ROOT / "docs" / "cuda_model.json"
MEASURED_CARD = "H200"


# Networks.

#: Name, network, classes, examples in a batch.
NETWORKS = {
    "quick": (common.quick, 10, 512),
    "ResNet-18, 32x32": (lambda: networks.build("resnet18", (32, 32, 3), 10), 10, 512),
    "ResNet-18, 224x224": (lambda: networks.build("resnet18", (224, 224, 3), 1000), 1000, 128),
}
#: Steps that were measured (`kfc-numba bench-cuda`): network of the library, shape of an image.
STEPS = {
    "quick": (32, 32, 3),
    "small": (28, 28, 1),
    "resnet-small": (32, 32, 3),
    "resnet18": (32, 32, 3),
}
#: As there: without growing periods, so that a mean over steps is one over a cycle.
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": functools.partial(kfc.SGD, averaging=None),
    "KFC": functools.partial(kfc.KFC, averaging=None, period_growth=0),
}
#: The measured steps that tell what the host takes: of few launches, and of many.
FITTED = ("quick", 128), ("resnet-small", 256)


#: Kinds of steps, with the share of each, and how much slower kernels are than the model, by file.
Steps = list[tuple[float, Found]]
#: Operations on whole factors, now and then.
INVERSIONS = ("cupy.eigh", "cupy.inv")
Factors = dict[str, float]


def steps_by_weight(
    build: Callable[[], kfc.Graph], optimizer: str, classes: int, batch: int, card: Card
) -> Steps:
    """Each kind of step that an optimizer makes, with its share of all steps."""
    make = OPTIMIZERS[optimizer]
    if optimizer == "SGD":
        (step,) = recorded_steps(build, make(), classes, batch, 2, 1, card.rates)
        return [(1.0, step)]
    # With a short cycle: the first step decomposes, the third has statistics alone.
    short = make(curvature_update_period=2, inverse_update_period=4)
    whole, plain, statistics_alone, _ = recorded_steps(
        build, short, classes, batch, 4, 4, card.rates
    )
    usual = make()
    decomposed = 1 / usual.inverse_update_period
    counted = 1 / usual.curvature_update_period
    return [
        (1 - counted, plain),
        (counted - decomposed, statistics_alone),
        (decomposed, whole),
    ]


def mean_seconds(steps: Steps, card: Card, factors: Factors, host: Host) -> float:
    """Of a step, each kernel as much slower than the model as its factor says."""

    def seconds(name: str, asked: Any) -> float:
        return cost(asked, card).seconds * factors.get(kind(asked), 1.0)

    return sum(weight * played(found, seconds, host).seconds for weight, found in steps)


def step_model(steps: Steps, card: Card, factors: Factors, host: Host) -> dict[str, Any]:
    """Predicted time of a step, and what limits it."""
    spent: dict[str, float] = defaultdict(float)
    limits: dict[str, float] = defaultdict(float)
    done = 0.0
    for weight, found in steps:
        for name, asked in found:
            if not is_read(name):
                taken = cost(asked, card)
                spent[name] += weight * taken.seconds
                limits[taken.limit] += weight * taken.seconds
                done += weight * operations(asked, card)
    device = sum(spent.values())
    by_model = [(w, played(f, lambda _, asked: cost(asked, card).seconds, host)) for w, f in steps]
    return {
        "step": sum(weight * step.seconds for weight, step in by_model),
        "expected": mean_seconds(steps, card, factors, host),
        "host": sum(weight * step.host for weight, step in by_model),
        "device": device,
        "decompositions": sum(spent.get(name, 0.0) for name in INVERSIONS),
        "share of peak": done / device / card.peak / 1e9,
        "limits": _largest({name: value / device for name, value in limits.items()}),
        "most": _largest({name: value / device for name, value in spent.items()}),
    }


def _largest(shares: dict[str, float], count: int = 5) -> dict[str, float]:
    return dict(sorted(shares.items(), key=lambda item: -item[1])[:count])


# Single convolutions, for the aim of 60% of peak.

KERNELS = ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight")
#: Examples, size, channels, filters, kernel, stride: those of ResNet-18 on both sizes of images.
LAYERS = {
    "64 to 64, 32x32": (256, 32, 64, 64, 3, 1),
    "128 to 128, 16x16": (256, 16, 128, 128, 3, 1),
    "256 to 256, 8x8": (256, 8, 256, 256, 3, 1),
    "512 to 512, 4x4": (256, 4, 512, 512, 3, 1),
    "64 to 64, 56x56": (128, 56, 64, 64, 3, 1),
    "128 to 128, 28x28": (128, 28, 128, 128, 3, 1),
    "256 to 256, 14x14": (128, 14, 256, 256, 3, 1),
    "512 to 512, 7x7": (128, 7, 512, 512, 3, 1),
    "64 to 128, 56x56, stride 2": (128, 56, 64, 128, 3, 2),
    "256 to 512, 14x14, stride 2": (128, 14, 256, 512, 3, 2),
    "64 to 128, 56x56, 1x1, stride 2": (128, 56, 64, 128, 1, 2),
}


def layer_calls(card: Card) -> Iterator[tuple[str, str, float, float, Found]]:
    """Layer, kernel, useful operations, bytes of its arrays, and what it asks of a card."""
    from kfc_numba.kernels import cuda

    for label, (batch, size, channels, filters, kernel, stride) in LAYERS.items():
        how: dict[str, Any] = {"stride": stride, "padding": kernel // 2}
        out = (size + 2 * (kernel // 2) - kernel) // stride + 1
        x, dy = untouched((batch, size, size, channels)), untouched((batch, out, out, filters))
        w = untouched((kernel, kernel, channels, filters))
        calls: dict[str, Callable[[], Any]] = {
            "conv2d_forward": functools.partial(cuda.conv2d_forward, x, w, **how),
            "conv2d_grad_input": functools.partial(cuda.conv2d_grad_input, dy, w, x.shape, **how),
            "conv2d_grad_weight": functools.partial(cuda.conv2d_grad_weight, x, dy, kernel, **how),
        }
        for name, call in calls.items():
            useful = 2.0 * dy.size * kernel * kernel * channels
            # Two are read and one is written; a tap of one pixel skips those between steps.
            skipped = stride**2 if kernel == 1 and name != "conv2d_grad_input" else 1
            least = 4.0 * (x.size / skipped + dy.size + w.size)
            yield label, name, useful, least, recorded(call, card.rates)


def layer_model(card: Card, factors: Factors) -> list[dict[str, Any]]:
    """Share of peak that convolutions should reach, by useful operations."""
    rows = []
    for label, name, useful, least, found in layer_calls(card):
        spent = [(cost(asked, card), kind(asked)) for _, asked in found]
        seconds = sum(part.seconds for part, _ in spent)
        slower = sum(part.seconds * factors.get(file, 1.0) for part, file in spent)
        rows.append(
            {
                "layer": label,
                "kernel": name,
                "seconds": seconds,
                "share of peak": useful / seconds / card.peak / 1e9,
                "expected share": useful / slower / card.peak / 1e9,
                "memory's share": useful / least * MEMORY_SHARE * card.bandwidth / card.peak,
                "limit": max((part for part, _ in spent), key=lambda part: part.seconds).limit,
            }
        )
    return rows


#: Rows, inputs and outputs of dense layers: of quick, of ResNet-18, and large ones.
PRODUCTS = {
    "1024 to 64, 512 rows": (512, 1024, 64),
    "512 to 1000, 128 rows": (128, 512, 1000),
    "4096 to 4096, 4096 rows": (4096, 4096, 4096),
}


def product_calls() -> Iterator[tuple[str, str, float, Found]]:
    """The same, but for bytes, of the products of a dense layer: forward, and both gradients."""
    from kfc_numba.kernels import cuda

    for label, (rows, inputs, outputs) in PRODUCTS.items():
        x, w, dy = (untouched(s) for s in ((rows, inputs), (inputs, outputs), (rows, outputs)))
        calls: dict[str, Callable[[], Any]] = {
            "matmul": functools.partial(cuda.matmul, x, w),
            "matmul, transpose_b": functools.partial(cuda.matmul, dy, w, transpose_b=True),
            "matmul, transpose_a": functools.partial(cuda.matmul, x, dy, transpose_a=True),
        }
        for name, call in calls.items():
            yield label, name, 2.0 * rows * inputs * outputs, recorded(call)


def tensor_model(card: Card) -> list[dict[str, Any]]:
    """What TF32 should change: floors by the data sheet, and times by the model."""

    def calls() -> list[tuple[str, str, float, Found]]:
        layers = [(*known, found) for *known, _, found in layer_calls(card)]
        return [*layers, *product_calls()]

    with tensor_cores():
        rounded_calls = calls()
    rows = []
    for (label, name, useful, exact), (_, _, _, found) in zip(calls(), rounded_calls, strict=True):
        spent = [cost(asked, card) for _, asked in found]
        seconds = sum(part.seconds for part in spent)
        memory = sum(part.memory for part in spent)
        rows.append(
            {
                "layer": label,
                "kernel": name,
                "seconds": seconds,
                "floor": max(useful / (card.tf32 * 1e12), memory),
                "times float32": sum(cost(asked, card).seconds for _, asked in exact) / seconds,
                "limit": max(spent, key=lambda part: part.seconds).limit,
            }
        )
    return rows


# What was measured.


class _Zeros:
    """Stands for a generator: large arrays that nobody reads need no numbers."""

    def standard_normal(self, shape: Any, dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def random(self, shape: Any) -> np.ndarray:
        return np.zeros(shape)

    def integers(self, low: int, high: int, shape: Any) -> np.ndarray:
        return np.zeros(shape, np.int64)


def measured_calls() -> Iterator[tuple[str, str, Found]]:
    """The calls of kernels that `kfc-numba bench-cuda` times, and what they ask of a card."""
    from kfc_numba.kernels import cuda

    with mock.patch.object(cuda_cases, "generator", return_value=_Zeros()):
        for case in cuda_cases.cases(large=True):
            arguments, settings = case.make()
            given = [_on_device(value) for value in arguments]
            call = functools.partial(getattr(cuda, case.kernel), *given, **settings)
            yield case.kernel, case.shape, recorded(call)


def _on_device(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return untouched(value.shape, value.dtype)
    return [_on_device(part) for part in value] if isinstance(value, list) else value


def compared(measured: dict[str, Any], card: Card) -> list[dict[str, Any]]:
    """Calls of kernels that were measured: what the card takes, and how long it waits.

    A call is measured from before its first launch, so that the card waits for the host.
    """
    times = {(r["kernel"], r["shape"]): r["seconds"] for r in measured["kernels"] if "seconds" in r}
    rows = []
    for name, shape, found in measured_calls():
        asked = [part for part_name, part in found if not is_read(part_name)]
        if (name, shape) in times and asked:
            call = played(found, lambda _, asked: cost(asked, card).seconds, CALLING)
            rows.append(
                {
                    "kernel": name,
                    "shape": shape,
                    "file": kind(max(asked, key=lambda part: cost(part, card).seconds)),
                    "card": call.card,
                    "waits": call.seconds - call.card,
                    "measured": times[name, shape],
                }
            )
    return rows


def measured_layers(measured: dict[str, Any], card: Card) -> list[dict[str, Any]]:
    """Share of peak that convolutions of 64 or more channels reached, by useful operations."""
    wide = {shape.name for shape in cuda_cases.LARGE if min(shape.x[3], shape.filters) >= 64}
    return [
        {
            "kernel": row["kernel"],
            "shape": row["shape"],
            "share of peak": row["operations_per_second"] / card.peak / 1e9,
        }
        for row in measured["kernels"]
        if row["kernel"] in KERNELS and row["shape"] in wide and "seconds" in row
    ]


def factor(row: dict[str, Any]) -> float | None:
    """How much longer a call took the card than by the model; None where it rather waited."""
    if row["card"] < row["waits"]:
        return None
    return (row["measured"] - row["waits"]) / row["card"]


def factors_of(rows: list[dict[str, Any]]) -> Factors:
    """The median factor of the kernels of each file."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        one = factor(row)
        if one is not None:
            found[row["file"]].append(one)
    return {file: statistics.median(ratios) for file, ratios in sorted(found.items())}


def fitted_host(
    recorded: dict[tuple, Steps], measured: dict[tuple, float], card: Card, factors: Factors
) -> Host:
    """By two steps of SGD, which are hardly more than launches, and one of KFC."""
    few, many = ((*run, "SGD") for run in FITTED)

    def seconds(key: tuple, **known: float) -> float:
        return mean_seconds(
            recorded[key], card, factors, Host(**{"launch": 0.0, "cupy": 0.0} | known)
        )

    # What each step takes whatever it asks for is not in their difference.
    more = measured[many] - measured[few]
    launch = solved(lambda s: seconds(many, launch=s) - seconds(few, launch=s), more)
    step = solved(lambda s: seconds(few, launch=launch, step=s), measured[few])
    other = (*FITTED[0], "KFC")
    cupy = solved(lambda s: seconds(other, launch=launch, step=step, cupy=s), measured[other])
    return Host(launch, cupy, step=step)


def model() -> dict[str, Any]:
    """All numbers of the page."""
    measured = json.loads(MEASURED.read_text())
    card = CARDS[MEASURED_CARD]
    calls = compared(measured, card)
    factors = factors_of(calls)
    times, steps_there = {}, {}
    for row in measured["steps"]:
        build = functools.partial(networks.build, row["network"], STEPS[row["network"]], 10)
        for optimizer in OPTIMIZERS:
            key = (row["network"], row["batch"], optimizer)
            times[key] = row[optimizer]
            steps_there[key] = steps_by_weight(build, optimizer, 10, row["batch"], card)
    host = fitted_host(steps_there, times, card, factors)
    steps = []
    for name, (build, classes, batch) in NETWORKS.items():
        for optimizer in OPTIMIZERS:
            found = {
                name: steps_by_weight(build, optimizer, classes, batch, card)
                for name, card in CARDS.items()
            }
            needed = memory_on_card(build, batch, OPTIMIZERS[optimizer]())["total"]
            about = {"network": name, "batch": batch, "optimizer": optimizer, "bytes": needed}
            steps.append(about | _asked(found[MEASURED_CARD]) | {
                "cards": {n: step_model(found[n], c, factors, host) for n, c in CARDS.items()}
            })  # fmt: skip
    return {
        "measured card": MEASURED_CARD,
        "assumed": {
            "memory": MEMORY_SHARE,
            "cublas": CUBLAS_SHARE,
            "start": START,
            "warps": WARPS_NEEDED,
            "call": CALLING.launch,
        },
        "calls": [row | {"factor": factor(row)} for row in calls],
        "factors": factors,
        "measured layers": measured_layers(measured, card),
        "host": asdict(host),
        "layers": {c.name: layer_model(c, factors) for c in CARDS.values()},
        "tensor cores": {c.name: tensor_model(c) for c in CARDS.values() if c.tf32},
        "steps": steps,
        "measured steps": [
            dict(zip(("network", "batch", "optimizer"), key, strict=True))
            | {"measured": times[key]}
            | _asked(found)
            | step_model(found, card, factors, host)
            for key, found in steps_there.items()
        ],
    }


def _asked(steps: Steps) -> dict[str, Any]:
    """How much a step asks for, and what is decomposed in one that does."""
    counts = {"launches": 0.0, "operations": 0.0, "reads": 0.0}
    for weight, found in steps:
        for name, asked in found:
            which = "launches" if isinstance(asked, Launch) else "operations"
            counts["reads" if is_read(name) else which] += weight
    matrices = [list(a.matrices) for name, a in steps[-1][1] if name in INVERSIONS]
    return counts | {"decomposed": matrices}


def main() -> None:
    if MISSING is not None:
        raise SystemExit(MISSING)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=KEPT, help="file for all numbers")
    arguments = parser.parse_args()
    arguments.json.write_text(json.dumps(rounded(model()), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """Numbers to five digits: no more is known of them."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    main()
