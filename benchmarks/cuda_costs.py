"""Seconds of a launch and of a step on a card, by its data sheet and the machine code.

A launch takes the longest of

- memory: the bytes of its arrays, once each;
- instructions: what `nvdisasm` shows of the main loop, times how often the plan of the launch goes
  through it, by the rate of the slowest unit (issue, float32, integers, shared memory);

and a fixed time to start. A step is played: the host asks for one thing after the other and waits
where it reads a value, the card does what was asked for, in order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cuda_calls import MISSING, Found, Launch, Operation
from benchmarks.cuda_cards import Card

if MISSING is None:
    from machine_code import Instructions, Report, on, report

# Assumptions. The shares are those of the first card that was measured, an H200.
MEMORY_SHARE = 0.87  # of the bandwidth of the data sheet: what a copy reached
CUBLAS_SHARE = 0.76  # of the peak: what a large product of matrices reached
START = 2e-6  # seconds from the end of a kernel to the start of the next
WARPS_NEEDED = 8  # of a multiprocessor, to hide latencies behind the work of others
#: Times that shared memory is busy for an access of a warp; 16 bytes a thread are read for four
#: quarters of a warp, of which two read the same.
WAVES = {"LDS.128": 2, "STS.128": 4, "LDS.64": 1, "STS.64": 2}
#: Multiply-adds of an instruction of tensor cores, by a warp: 16 x 8 sums of 8 terms.
TENSOR = 16 * 8 * 8
#: Operations for the eigenvectors of a matrix, over the cube of its rows: tridiagonal form, divide
#: and conquer, and back (Golub and Van Loan, Matrix Computations, 8.3), the first of which reads
#: what is left of the matrix once a column, in two launches that wait for each other.
EIGENVECTORS = 14 / 3


@dataclass(frozen=True)
class Host:
    """Seconds that a host takes for a launch, an operation of CuPy, and for a value to arrive.

    And, as `step`, for a step whatever it asks for.
    """

    launch: float
    cupy: float
    read: float = 10e-6
    step: float = 0.0

    def asks(self, asked: Launch | Operation) -> float:
        return self.launch if isinstance(asked, Launch) else self.cupy


#: In a call of a kernel alone: calls on arrays of a few numbers took as long on the H200's host.
CALLING = Host(15e-6, 15e-6)


@dataclass(frozen=True)
class Cost:
    """Seconds on a card, by what takes them."""

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


def _code(asked: Launch, card: Card) -> Any:
    """Report of the machine code that a card runs."""
    return report(on(asked.kernel, card.capability), asked.types, card.capability)


@functools.cache
def cost(asked: Launch | Operation, card: Card) -> Cost:
    """Of a launch of a kernel, or of an operation of CuPy."""
    if isinstance(asked, Launch):
        return of_launch(asked, _code(asked, card), card)
    memory = asked.bytes / (MEMORY_SHARE * card.bandwidth * 1e9)
    if asked.matrices and not asked.multiplications:
        return _of_decomposition(asked.matrices, memory, card)
    seconds = 2 * asked.multiplications / (CUBLAS_SHARE * card.peak * 1e9)
    return Cost(memory, {"cuBLAS": seconds})


def _of_decomposition(shape: tuple[int, ...], memory: float, card: Card) -> Cost:
    *batch, rows, _ = shape
    count = math.prod(batch)
    seconds = EIGENVECTORS * count * rows**3 / (card.peak * 1e9)
    read = count * rows**3 / 6 * 4 / (MEMORY_SHARE * card.bandwidth * 1e9)
    return Cost(memory, {"decomposition": seconds + read + count * rows * 2 * START})


def of_launch(launch: Launch, code: Report, card: Card) -> Cost:
    """Of a launch whose machine code was read."""
    once, loop = code.whole, code.main_loop
    warps = math.ceil(launch.threads / 32)
    # A multiprocessor has as many blocks to compute as the fullest one.
    share = math.ceil(launch.blocks / card.processors)
    resident = min(code.blocks(launch.threads), share) * warps
    slowed = max(1.0, WARPS_NEEDED / resident)
    clocks = unit_clocks(once, card)
    if loop is not None and launch.trips is not None:
        per_trip = unit_clocks(loop, card)
        clocks = {unit: clocks[unit] + (launch.trips - 1) * per_trip[unit] for unit in clocks}
    rate = share * warps * slowed / (card.clock * 1e9)
    units = {unit: value * rate for unit, value in clocks.items()}
    return Cost(launch.bytes / (MEMORY_SHARE * card.bandwidth * 1e9), units)


def unit_clocks(code: Instructions, card: Card) -> dict[str, float]:
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
        "tensor cores": TENSOR * code.tensor / card.tensor_rate if code.tensor else 0.0,
        "shared memory": float(shared),
    }


def operations(asked: Launch | Operation, card: Card) -> float:
    """Multiplications and additions that are made, those for results beyond the edges too."""
    if isinstance(asked, Operation):
        return 2.0 * asked.multiplications
    loop = _code(asked, card).main_loop
    if loop is None or asked.trips is None:
        return 0.0
    made = loop.fused + TENSOR // 32 * loop.tensor  # of a thread
    return 2.0 * made * asked.trips * asked.threads * asked.blocks


def kind(asked: Launch | Operation) -> str:
    """The file of the kernels that a launch comes from, or CuPy."""
    if isinstance(asked, Operation):
        return "cupy"
    return Path(asked.kernel.function.__code__.co_filename).stem


@dataclass(frozen=True)
class Played:
    """Seconds of a step, and how long its host and its card are busy."""

    seconds: float
    host: float
    card: float


def is_read(name: str) -> bool:
    """Whether the host waits for a value."""
    return name in ("cupy.get", "cupy.item")


def played(found: Found, seconds: Callable[[str, Any], float], host: Host) -> Played:
    """A step, by what the card takes for each thing that it is asked for.

    Parameters
    ----------
    found : list of (str, Launch or Operation)
    seconds : callable
        Of a name and what is asked.
    host : Host
    """
    now, card, waited, busy = host.step, 0.0, 0.0, 0.0
    for name, asked in found:
        if is_read(name):
            waited += max(card - now, 0.0)
            now = max(now, card) + host.read
            continue
        now += host.asks(asked)
        taken = seconds(name, asked)
        busy += taken
        card = max(now, card) + taken
    return Played(max(now, card), now - waited, busy)


def solved(function: Callable[[float], float], value: float) -> float:
    """Where a function that increases reaches a value; 0 where it is there from the start."""
    low, high = 0.0, 1e-2
    while high - low > 1e-8:
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > value else (middle, high)
    return low
