"""What the cost model says of cards, as a part of docs/cuda.md: from docs/cuda_model.json alone.

Run: python -m benchmarks.cuda_page
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks import cuda_cards
from benchmarks.marked import replaced
from kfc_numba.checkpoint import write_bytes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "cuda.md"
KEPT = ROOT / "docs" / "cuda_model.json"
BEGIN = "<!-- model: written by benchmarks/cuda_page.py -->"
AIM = 0.6  # of float32's peak, for convolutions of 64 or more channels
Model = Mapping[str, Any]


def text(model: Model) -> str:
    """Tables and sentences, in Markdown."""
    assumed = model["assumed"]
    parts = [
        f"Assumed: {_percent(assumed['memory'])} of the bandwidth of the data sheet and, for "
        f"cuBLAS, {_percent(assumed['cublas'])} of the peak, which an H200 reached; "
        f"{_microseconds(assumed['start'])} from one kernel to the next; {assumed['warps']} warps "
        "of a multiprocessor hide latencies; a read of 16 bytes by all threads of a warp takes "
        "shared memory two clocks where rows and columns of threads read the same.",
        cuda_cards.table(),
        "Multiprocessors and boost clocks, which not all data sheets name, are those of NVIDIA's "
        "papers on the architectures; the peak is their product with the units of a "
        "multiprocessor, and within a hundredth of the data sheet's. Shared memory moves "
        f"{cuda_cards.SHARED_BYTES} bytes a clock and multiprocessor.",
        "### Convolutions of 64 or more channels",
        _of_layers(model),
        *_of_tensor_cores(model),
        "### Steps",
        _of_steps(model),
        f"### The model beside the {model['measured card']}",
        _of_calls(model),
        _of_measured_steps(model),
    ]
    return "\n\n".join(parts)


def _of_layers(model: Model) -> str:
    cards = model["layers"]
    names = list(cards)
    rows = []
    for i, first in enumerate(cards[names[0]]):
        shares = [_both(cards[name][i]) for name in names]
        limits = {cards[name][i]["limit"] for name in names}
        rows.append((first["layer"], f"`{first['kernel']}`", *shares, ", ".join(sorted(limits))))
    head = ("channels, size", "kernel", *names, "limited by")
    table = tabulate(rows, head, "github", disable_numparse=True)
    lines = [_reaching(name, cards[name], model["measured card"]) for name in names]
    return (
        f"Predictions. Of the peak in the table above, by useful operations: by the model, and, "
        f"behind the arrow, if each kernel takes as much longer than the model says as it did on "
        f"the {model['measured card']}.\n\n{table}\n\n"
        f"The aim is {_percent(AIM)} of the peak.\n\n" + "\n".join(lines)
    )


def _both(row: Mapping[str, Any]) -> str:
    return f"{_percent(row['share of peak'])} → {_percent(row['expected share'])}"


def _reaching(card: str, rows: list[dict[str, Any]], measured: str) -> str:
    """Which shapes reach the aim on a card."""
    layers = {row["layer"] for row in rows}
    short: dict[str, list[str]] = {}
    for row in rows:
        if row["share of peak"] < AIM:
            short.setdefault(row["kernel"], []).append(_named(row))
    by_model = sum(row["share of peak"] >= AIM for row in rows)
    expected = sum(row["expected share"] >= AIM for row in rows)
    line = f"- {card}: by the model {by_model} of {len(rows)} reach it"
    if short:
        parts = [
            f"`{kernel}` of {'all' if len(found) == len(layers) else '; '.join(found)}"
            for kernel, found in short.items()
        ]
        line += f". These do not: {'. '.join(parts)}"
    return f"{line}. As much slower as on the {measured}, {expected} of {len(rows)} do."


def _named(row: Mapping[str, Any]) -> str:
    """A shape; where no kernel can reach the aim, with the most that memory allows."""
    most = row["memory's share"]
    return row["layer"] + (f" (by its bytes {_percent(most)} at most)" if most < AIM else "")


def _of_tensor_cores(model: Model) -> list[str]:
    cards = model.get("tensor cores")  # files of before do not have it
    if not cards:
        return []
    names = list(cards)
    rows = []
    for i, first in enumerate(cards[names[0]]):
        found = [cards[name][i] for name in names]
        shown = [
            f"{_percent(row['floor'] / row['seconds'])}, {row['times float32']:.1f}x"
            for row in found
        ]
        limits = ", ".join(sorted({row["limit"] for row in found}))
        rows.append((first["layer"], f"`{first['kernel']}`", *shown, limits))
    table = tabulate(
        rows, ("channels, size", "kernel", *names, "limited by"), "github", disable_numparse=True
    )
    return [
        "### Convolutions and products on tensor cores",
        "Predictions with `--tf32` (what was measured stands at the end): the floor (useful "
        "operations at the dense TF32 peak, or all arrays once through memory) over time by "
        "the model, and how many times faster than in float32 by the same model, which may filter "
        "where TF32 does not: below 1 the option does not pay. The instructions are those of a "
        "warp, by which an H100 or H200 may not reach the peak of its data sheet. What stays in "
        f"float32, moments above all, is as before.\n\n{table}",
    ]


def _of_steps(model: Model) -> str:
    rows = []
    for step in model["steps"]:
        for card, found in step["cards"].items():
            rows.append(
                (
                    f"{step['network']}, {step['batch']}",
                    step["optimizer"],
                    card,
                    _milliseconds(found["step"]),
                    _milliseconds(found["expected"]),
                    _milliseconds(found["device"]),
                    _milliseconds(found["decompositions"]) if found["decompositions"] else "",
                    _milliseconds(found["host"]),
                    _percent(found["share of peak"]),
                    _limits(found),
                )
            )
    head = ("network, batch", "optimizer", "card", "step, ms", "expected, ms", "device, ms",
            "of that inversions", "host, ms", "of peak", "limited by")  # fmt: skip
    table = tabulate(rows, head, "github", disable_numparse=True)
    sizes = []
    for step in model["steps"]:
        if step["decomposed"]:
            largest = max(shape[-1] for shape in step["decomposed"])
            sizes.append(f"{len(step['decomposed'])} matrices for {step['network']}, of "
                         f"{largest:,} rows at most")  # fmt: skip
    needed = [
        f"{step['bytes'] / 1e9:.1f} GB ({step['network']}, {step['optimizer']})"
        for step in model["steps"]
    ]
    return (
        "Predictions, means over a cycle of statistics and inversions. A step is what remains "
        'when host and device overlap as they can; "expected" has each kernel as much slower than '
        f"the model as on the {model['measured card']}. Inversions ({'; '.join(sizes)}) are at "
        "their least: what cuSOLVER takes has not been measured apart. "
        "Memory that is needed, by `net.memory` of a network on a card: "
        f"{', '.join(needed)}.\n\n{table}"
    )


def _limits(found: Mapping[str, Any]) -> str:
    """What takes most of a step: the host, or units of the card."""
    if found["step"] > 1.5 * found["device"]:
        return "host"
    parts = [f"{name} {_percent(share)}" for name, share in list(found["limits"].items())[:2]]
    return ", ".join(parts)


def _of_calls(model: Model) -> str:
    rows = [row for row in model["calls"] if row["factor"] is not None]
    files: dict[str, list[float]] = {}
    for row in rows:
        files.setdefault(row["file"], []).append(row["factor"])
    table = tabulate(
        [(f"`{file}.py`", len(found), *_spread(found)) for file, found in sorted(files.items())],
        ("kernels of", "calls", "median", "least", "most"),
        "github",
        disable_numparse=True,
    )
    found = [row["factor"] for row in rows]
    near = sum(1 / 1.5 < factor < 1.5 for factor in found)
    best = max((row for row in model["measured layers"]), key=lambda row: row["share of peak"])
    reached = sum(row["share of peak"] >= AIM for row in model["measured layers"])
    return (
        f"Measured time over the model's, without the time in which the card waits for the host "
        f"({_microseconds(model['assumed']['call'])} a launch), "
        f"for the {len(rows)} of {len(model['calls'])} calls in which it does not rather wait: "
        f"{_spread(found)[0]} in the median, between 1/1.5 and 1.5 for {near} of them. "
        f"Of the peak, {reached} of {len(model['measured layers'])} calls of convolutions of 64 or "
        f"more channels reached {_percent(AIM)} when they were measured, the best "
        f"{100 * best['share of peak']:.1f}% (`{best['kernel']}`, {best['shape']}).\n\n{table}"
    )


def _of_measured_steps(model: Model) -> str:
    rows = [
        (
            f"{row['network']}, {row['batch']}",
            row["optimizer"],
            f"{row['launches']:.0f}",
            f"{row['operations']:.0f}",
            f"{row['reads']:.0f}",
            _milliseconds(row["measured"]),
            _milliseconds(row["step"]),
            _milliseconds(row["expected"]),
            _milliseconds(row["device"]),
            _milliseconds(row["host"]),
            f"{row['measured'] / row['step']:.2f}",
            f"{row['measured'] / row['expected']:.2f}",
        )
        for row in model["measured steps"]
    ]
    host = model["host"]
    head = ("network, batch", "optimizer", "launches", "of CuPy", "reads", "measured, ms",
            "step, ms", "expected, ms", "device, ms", "host, ms", "measured over step",
            "over expected")  # fmt: skip
    return (
        "Steps. What the host takes for a launch, with the Python around it "
        f"({_microseconds(host['launch'])}), and for a step whatever it asks for "
        f"({_milliseconds(host['step'])} ms), was taken from SGD on the first network and on "
        f"`resnet-small`; for an operation of CuPy ({_microseconds(host['cupy'])}) from KFC on the "
        "first. The others are predictions.\n\n"
        + tabulate(rows, head, "github", disable_numparse=True)
    )


def _spread(values: Iterable[float]) -> tuple[str, str, str]:
    found = list(values)
    return tuple(f"{f(found):.2f}" for f in (statistics.median, min, max))  # type: ignore[return-value]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} µs"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"


def written(page: str, model: Model) -> str:
    """The page with the part of the model."""
    return replaced(page, BEGIN, text(model))


def main() -> None:
    page = written(PAGE.read_text(), json.loads(KEPT.read_text()))
    write_bytes(PAGE, page.encode())


if __name__ == "__main__":
    main()
