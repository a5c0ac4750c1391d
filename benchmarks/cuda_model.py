"""How long a step should take on a card, by its data sheet and the machine code: no card is needed.

The calls of kernels of a step are those of the real layers and optimizers (`cuda_calls.py`); they
are made on arrays without memory, and the launches noted. A launch takes the longest of

- memory: the bytes of its arrays, once each;
- instructions: what `nvdisasm` shows of the main loop, times how often the plan of the launch goes
  through it, by the rate of the slowest unit (issue, float32, integers, shared memory);

and a fixed time to start. A step takes the sum of its launches, or what the host needs to launch
them, whichever is longer.

Run: python -m benchmarks.cuda_model [--cards H100,T4] [--json FILE] (extra ``cuda-test``)
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

import kfc_numba as kfc
from benchmarks import common
from benchmarks.cuda_calls import Call, for_batch, recorded_steps

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "cuda"))

try:
    from host_array import HostArray, untouched
    from machine_code import Instructions, Report, recorded, report
except ImportError as error:  # asv looks at all files here, also where there are no compilers
    MISSING: str | None = f'{error}: pip install -e ".[cuda-test]"'
else:
    MISSING = None


@dataclass(frozen=True)
class Card:
    """What a data sheet says. Rates of units are threads a clock and multiprocessor."""

    name: str
    capability: tuple[int, int]
    processors: int
    clock: float  # GHz, boost
    bandwidth: float  # GB/s
    float32: int
    float64: int
    integer: int
    special: int
    source: str

    @property
    def peak(self) -> float:
        """GFLOP/s of float32."""
        return 2 * self.processors * self.float32 * self.clock


#: Rates of units: CUDA C++ Programming Guide, "Arithmetic Instructions", throughput of native
#: arithmetic instructions by compute capability. The rest: the documents named.
CARDS = {
    card.name: card
    for card in (
        Card("H100", (9, 0), 132, 1.98, 3350, 128, 64, 64, 16,
             "NVIDIA H100 data sheet, SXM5 80 GB: 67 TFLOPS, 3.35 TB/s"),
        Card("H200", (9, 0), 132, 1.98, 4800, 128, 64, 64, 16,
             "NVIDIA H200 data sheet, SXM: 67 TFLOPS, 4.8 TB/s"),
        Card("A100", (8, 0), 108, 1.41, 2039, 64, 32, 64, 16,
             "NVIDIA A100 data sheet, SXM 80 GB: 19.5 TFLOPS, 2,039 GB/s"),
        Card("RTX 4090", (8, 9), 128, 2.52, 1008, 128, 2, 64, 16,
             "NVIDIA Ada GPU architecture, GeForce RTX 4090: 82.6 TFLOPS, 1,008 GB/s"),
        Card("T4", (7, 5), 40, 1.59, 320, 64, 2, 64, 16,
             "NVIDIA T4 data sheet: 8.1 TFLOPS, 320 GB/s"),
    )
}  # fmt: skip

# Assumptions, which the first measurement on a card has to replace.
MEMORY_SHARE = 0.9  # of the bandwidth of the data sheet that a kernel gets
START = 2e-6  # seconds from the end of a kernel to the start of the next
HOST = 15e-6  # seconds that the host takes for a launch: wrapper, checks, driver
WARPS_NEEDED = 8  # of a multiprocessor, to hide latencies behind the work of others
#: Times that shared memory is busy for an access of a warp; 16 bytes a thread are read for four
#: quarters of a warp, of which two read the same.
WAVES = {"LDS.128": 2, "STS.128": 4, "LDS.64": 1, "STS.64": 2}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, and how often it goes through its main loop."""

    kernel: Any
    types: tuple
    grid: tuple[int, ...]
    block: tuple[int, ...]
    bytes: int
    trips: float | None

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)

    @property
    def threads(self) -> int:
        return math.prod(self.block)


@dataclass(frozen=True)
class Cost:
    """Seconds of a launch on a card, by what takes them."""

    memory: float
    units: dict[str, float]
    start: float = START

    @property
    def limit(self) -> str:
        """What takes the longest."""
        name, seconds = max(self.units.items(), key=lambda item: item[1])
        longest = max(self.memory, seconds)
        if longest < self.start:
            return "start"
        return "memory" if self.memory >= seconds else name

    @property
    def seconds(self) -> float:
        return self.start + max(self.memory, *self.units.values())


def launches(calls: list[Call], batch: int) -> tuple[list[tuple[str, Launch]], set[str]]:
    """Launches of calls at a batch, by the name of the kernel, and names that are missing."""
    from kfc_numba.kernels import cuda

    found, missing = [], set()
    for name, arguments, named in calls:
        function = getattr(cuda, name, None)
        if function is None:
            missing.add(name)
            continue
        given = for_batch(arguments, batch, untouched)
        keys = for_batch(named, batch, untouched)

        def call(function=function, given=given, keys=keys):  # type: ignore[no-untyped-def]
            function(*given, **keys)

        for kernel, types, grid, block, values in recorded(call):
            found.append((name, _launch(kernel, types, grid, block, values)))
    return found, missing


def _launch(kernel: Any, types: tuple, grid: tuple, block: tuple, values: tuple) -> Launch:
    arrays = {a.data.ptr: a.nbytes for a in values if isinstance(a, HostArray)}
    plans = [a for a in values if hasattr(a, "_fields")]
    return Launch(kernel, types, grid, block, sum(arrays.values()), _trips(plans))


def _trips(plans: list[Any]) -> float | None:
    """How often a product goes through its main loop; None for other kernels."""
    from kfc_numba.kernels.cuda.product import DEPTH

    for plan in plans:
        if hasattr(plan, "depth"):
            return math.ceil(plan.depth / DEPTH)
        if hasattr(plan, "pixels"):
            return math.ceil(min(plan.part, plan.pixels) / DEPTH)
    return None


def cost(launch: Launch, code: Report, card: Card) -> Cost:
    """Seconds of a launch."""
    once, loop = code.whole, code.main_loop
    warps = math.ceil(launch.threads / 32)
    # A multiprocessor has as many blocks to compute as the fullest one.
    share = math.ceil(launch.blocks / card.processors)
    resident = min(code.blocks(launch.threads), share) * warps
    slowed = max(1.0, WARPS_NEEDED / resident)
    clocks = _clocks(once, card)
    if loop is not None and launch.trips is not None:
        per_trip = _clocks(loop, card)
        clocks = {unit: clocks[unit] + (launch.trips - 1) * per_trip[unit] for unit in clocks}
    rate = share * warps * slowed / (card.clock * 1e9)
    units = {unit: value * rate for unit, value in clocks.items()}
    return Cost(launch.bytes / (MEMORY_SHARE * card.bandwidth * 1e9), units)


def _clocks(code: Instructions, card: Card) -> dict[str, float]:
    """Clocks that a warp keeps each unit of a multiprocessor busy."""
    shared = sum(
        count * WAVES.get(name, 1)
        for name, count in code.accesses.items()
        if name.startswith(("LDS", "STS"))
    )
    return {
        "issue": code.count / 4,
        "float32": 32 * code.float32 / card.float32,
        "integers": 32 * code.integer / card.integer,
        "float64": 32 * code.float64 / card.float64,
        "functions": 32 * code.special / card.special,
        "shared memory": float(shared),
    }


# Networks.


def resnet18(size: int, classes: int) -> kfc.Graph:
    """He et al. (2016); on small images with a first convolution of 3x3 and no pooling."""
    image = kfc.Input((size, size, 3))
    if size > 64:
        node = kfc.Conv2d(64, 7, stride=2, padding=3, bias=False)(image)
        node = kfc.ReLU()(kfc.BatchNorm()(node))
        node = kfc.MaxPool2d(3, stride=2, padding=1)(node)
    else:
        node = kfc.Conv2d(64, 3, padding=1, bias=False)(image)
        node = kfc.ReLU()(kfc.BatchNorm()(node))
    channels = 64
    for filters, stride in zip(
        (64, 64, 128, 128, 256, 256, 512, 512), (1, 1, 2, 1, 2, 1, 2, 1), strict=True
    ):
        way = kfc.Conv2d(filters, 3, stride=stride, padding=1, bias=False)(node)
        way = kfc.ReLU()(kfc.BatchNorm()(way))
        way = kfc.BatchNorm()(kfc.Conv2d(filters, 3, padding=1, bias=False)(way))
        if stride > 1 or filters != channels:
            node = kfc.Conv2d(filters, 1, stride=stride, bias=False)(node)
            node = kfc.BatchNorm()(node)
        node, channels = kfc.ReLU()(kfc.Add()(node, way)), filters
    return kfc.Graph(image, kfc.Dense(classes)(kfc.GlobalAvgPool2d()(node)), seed=0)


#: Name, network, classes, examples in a batch.
NETWORKS = {
    "quick": (common.quick, 10, 512),
    "ResNet-18, 32x32": (lambda: resnet18(32, 10), 10, 512),
    "ResNet-18, 224x224": (lambda: resnet18(224, 1000), 1000, 128),
}
OPTIMIZERS = {"SGD": kfc.SGD, "KFC": kfc.KFC}
BEGIN, END = "<!-- model: written by benchmarks/cuda_model.py -->", "<!-- end -->"
STEPS = 5  # of which the mean is taken: KFC decomposes in one of five


def step_model(name: str, optimizer: str, cards: list[Card]) -> dict[str, Any]:
    """Predicted time of a step, by card and kernel."""
    build, classes, batch = NETWORKS[name]
    steps = recorded_steps(build, OPTIMIZERS[optimizer], classes, STEPS, STEPS)
    calls = [call for step in steps for call in step]
    eigh = [call[1][0].shape for call in calls if call[0] == "eigh"]
    found, missing = launches([call for call in calls if call[0] != "eigh"], batch)
    return {
        "network": name,
        "optimizer": optimizer,
        "batch": batch,
        "launches": len(found) / STEPS,
        "missing": sorted(missing),
        "decompositions": [list(shape) for shape in eigh],
        "cards": {card.name: _on_card(found, card) for card in cards},
    }


def _on_card(found: list[tuple[str, Launch]], card: Card) -> dict[str, Any]:
    kernels: dict[str, dict[str, Any]] = defaultdict(
        lambda: {"launches": 0.0, "seconds": 0.0, "operations": 0.0, "limits": defaultdict(float)}
    )
    for name, launch in found:
        code = report(launch.kernel, launch.types, card.capability)
        spent = cost(launch, code, card)
        entry = kernels[name]
        entry["launches"] += 1 / STEPS
        entry["seconds"] += spent.seconds / STEPS
        entry["limits"][spent.limit] += spent.seconds / STEPS
        if code.main_loop is not None and launch.trips is not None:
            fused = code.main_loop.fused * launch.trips * launch.threads * launch.blocks
            entry["operations"] += 2 * fused / STEPS
    device = sum(entry["seconds"] for entry in kernels.values())
    operations = sum(entry["operations"] for entry in kernels.values())
    host = HOST * len(found) / STEPS
    return {
        "seconds": max(device, host),
        "device": device,
        "host": host,
        "share of peak": operations / device / card.peak / 1e9,
        "kernels": {
            name: {**entry, "limits": dict(entry["limits"])} for name, entry in kernels.items()
        },
    }


# Single convolutions, for the aim of 60% of peak.

LAYERS = {
    "64 channels, 32x32": (256, 32, 64),
    "128 channels, 16x16": (256, 16, 128),
    "256 channels, 8x8": (256, 8, 256),
    "512 channels, 4x4": (256, 4, 512),
    "64 channels, 56x56": (64, 56, 64),
    "128 channels, 28x28": (64, 28, 128),
}


def layer_model(card: Card) -> list[dict[str, Any]]:
    """Share of peak that 3x3 convolutions should reach, by useful operations."""
    from kfc_numba.kernels import cuda

    rows = []
    for label, (batch, size, channels) in LAYERS.items():
        x = untouched((batch, size, size, channels))
        w = untouched((3, 3, channels, channels))
        useful = 2 * x.size * 9 * channels
        for name, call in {
            "conv2d_forward": lambda x=x, w=w: cuda.conv2d_forward(x, w, padding=1),
            "conv2d_grad_input": lambda x=x, w=w: cuda.conv2d_grad_input(x, w, x.shape, padding=1),
            "conv2d_grad_weight": lambda x=x: cuda.conv2d_grad_weight(x, x, 3, padding=1),
        }.items():
            spent = [
                cost(launch, report(launch.kernel, launch.types, card.capability), card)
                for launch in (_launch(*noted) for noted in recorded(call))
            ]
            seconds = sum(part.seconds for part in spent)
            rows.append(
                {
                    "layer": label,
                    "kernel": name,
                    "seconds": seconds,
                    "share of peak": useful / seconds / card.peak / 1e9,
                    "limit": max(spent, key=lambda part: part.seconds).limit,
                }
            )
    return rows


# Tables.


def card_table() -> str:
    rows = [
        (c.name, ".".join(map(str, c.capability)), c.processors, c.clock, c.peak / 1000,
         c.bandwidth, c.source)
        for c in CARDS.values()
    ]  # fmt: skip
    head = ("card", "capability", "multiprocessors", "GHz", "TFLOP/s", "GB/s", "source")
    return tabulate(rows, head, "github", floatfmt=("", "", "", ".2f", ".1f", "", ""))


def step_table(models: list[dict[str, Any]]) -> str:
    rows = []
    for model in models:
        for card, found in model["cards"].items():
            limits: dict[str, float] = defaultdict(float)
            for entry in found["kernels"].values():
                for limit, seconds in entry["limits"].items():
                    limits[limit] += seconds
            most = sorted(limits, key=limits.__getitem__, reverse=True)[:2]
            parts = ", ".join(f"{n} {100 * limits[n] / found['device']:.0f}%" for n in most)
            rows.append(
                (model["network"], model["optimizer"], card, f"{1e3 * found['device']:.2f}",
                 f"{1e3 * found['host']:.2f}", f"{100 * found['share of peak']:.0f}%",
                 "host" if found["host"] > found["device"] else parts)
            )  # fmt: skip
    head = ("network", "optimizer", "card", "device, ms", "host, ms", "of peak", "limited by")
    return tabulate(rows, head, "github", disable_numparse=True)


def layer_table(cards: dict[str, list[dict[str, Any]]]) -> str:
    names = list(cards)
    rows = []
    for i, first in enumerate(cards[names[0]]):
        shares = [f"{100 * cards[name][i]['share of peak']:.0f}%" for name in names]
        rows.append((first["layer"], first["kernel"], *shares, first["limit"]))
    head = ("3x3 convolution", "kernel", *names, f"limited by ({names[0]})")
    return tabulate(rows, head, "github", disable_numparse=True)


def main() -> None:
    if MISSING is not None:
        raise SystemExit(MISSING)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cards", default=",".join(CARDS), help="names, with commas between")
    parser.add_argument("--networks", default=",".join(NETWORKS).replace(", ", "; "))
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--page", type=Path, help="docs/cuda.md, to write the tables there")
    arguments = parser.parse_args()
    cards = [CARDS[name] for name in arguments.cards.split(",")]
    layers = {card.name: layer_model(card) for card in cards}
    names = [name.replace("; ", ", ") for name in arguments.networks.split(",")]
    models = [step_model(name, optimizer, cards) for name in names for optimizer in OPTIMIZERS]
    text = "\n\n".join([card_table(), layer_table(layers), step_table(models)])
    print(text)
    if arguments.page:
        before, _, rest = arguments.page.read_text().partition(BEGIN)
        arguments.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    if arguments.json:
        found = {"cards": [asdict(c) for c in cards], "layers": layers, "steps": models}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
