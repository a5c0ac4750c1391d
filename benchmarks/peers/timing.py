"""Timing of functions in turn, and the tables and files that the comparisons leave.

Two thread pools live in one process, and a pool's workers spin for a while after a call, on cores
that the other pool then lacks (OpenMP's for some milliseconds, OpenBLAS's for tens of them). So
each function's turn begins with a pause and one call that does not count.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np
from tabulate import tabulate

PAUSE = 0.01  # seconds; OpenMP's workers have gone to sleep after it
BLAS_PAUSE = 0.06  # the same for OpenBLAS


@dataclass
class Timing:
    """Seconds of one function, one number for each of its turns."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)


def in_turn(
    functions: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 9,
    turn: float = 0.02,
    pause: float = PAUSE,
    wake: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Timing]:
    """Time functions alternately, so that whatever slows the machine slows all of them.

    Parameters
    ----------
    functions : mapping of str to callable
    rounds : int
        Turns of each function; the first call of each function (compilation) is in none.
    turn : float
        Seconds that a turn lasts at least; its result is the median of the calls in it.
    pause : float
        Seconds of rest before each turn.
    wake : mapping of str to callable, optional
        What is called, not timed, after the rest, for functions too long to be called for it
        themselves.

    Returns
    -------
    dict of str to Timing
    """
    results: dict[str, Timing] = {}
    for name, function in functions.items():
        function()
        results[name] = Timing([])
    for _ in range(rounds):
        for name, function in functions.items():
            time.sleep(pause)
            (wake or {}).get(name, function)()
            calls: list[float] = []
            while not calls or math.fsum(calls) < turn:
                start = time.perf_counter()
                function()
                calls.append(time.perf_counter() - start)
            results[name].seconds.append(statistics.median(calls))
    return results


@dataclass
class Row:
    """One case: our time beside each rival's, from the same rounds; the fastest rival counts."""

    case: str
    ours: Timing
    rivals: dict[str, Timing]
    flop: float | None = None  # of one call, for the rate

    @classmethod
    def of(cls, case: str, results: Mapping[str, Timing], flop: float | None = None) -> Row:
        """From what `in_turn` returned for "ours" and the rivals."""
        rivals = {name: timing for name, timing in results.items() if name != "ours"}
        return cls(case, results["ours"], rivals, flop)

    @property
    def fastest(self) -> Timing:
        """The rival with the least median."""
        return min(self.rivals.values(), key=lambda timing: timing.median)

    @property
    def ratio(self) -> float:
        """Median over the rounds of our time divided by the fastest rival's in that round."""
        pairs = zip(self.ours.seconds, self.fastest.seconds, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    @property
    def least_ratio(self) -> float:
        """The least of our times divided by the least of all rivals' times."""
        return self.ours.least / min(r.least for r in self.rivals.values())

    def to_json(self) -> dict[str, Any]:
        def milliseconds(timing: Timing) -> dict[str, float]:
            return {"median_ms": 1e3 * timing.median, "least_ms": 1e3 * timing.least}

        return {
            "case": self.case,
            "ours": milliseconds(self.ours),
            "rivals": {name: milliseconds(timing) for name, timing in self.rivals.items()},
            "ratio": self.ratio,
            "least_ratio": self.least_ratio,
            "gflop_per_second": self.flop and self.flop / self.ours.median / 1e9,
        }


@dataclass
class Claim:
    """A figure of merit beside the most that it may be."""

    what: str
    ratio: float
    bound: float
    aim: float | None = None

    @property
    def met(self) -> bool:
        return self.ratio <= self.bound


@dataclass
class Report:
    """Rows and claims of one comparison, by table."""

    title: str
    tables: dict[str, list[Row]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def add(self, table: str, row: Row) -> None:
        """Keep a row, and show at once that it is there: a comparison takes minutes."""
        self.tables.setdefault(table, []).append(row)
        print(f"  {table}: {row.case}: {row.ratio:.2f}", flush=True)

    def claim_mean(
        self, table: str, what: str, bound: float, aim: float | None = None, worst: float = 0
    ) -> None:
        """Claim the geometric mean of a table's ratios and, with `worst`, the largest one."""
        if rows := self.tables.get(table):
            mean = geometric_mean(row.ratio for row in rows)
            self.claims.append(Claim(f"{what}, geometric mean", mean, bound, aim))
            if worst:
                largest = max(row.ratio for row in rows)
                self.claims.append(Claim(f"{what}, worst shape", largest, worst))

    def finish(self, path: str | None) -> None:
        """Print the tables and, with a path, write them as JSON."""
        print(f"\n{self.title}: {describe(environment())}")
        for name, rows in self.tables.items():
            print(
                f"\n{name} (milliseconds, medians; ratio = median of ours / fastest rival by round)"
            )
            print(_table(rows))
        if self.claims:
            print()
            print(claims_table(self.claims))
        if path is not None:
            content = {
                "title": self.title,
                "environment": environment(),
                "tables": {n: [row.to_json() for row in rows] for n, rows in self.tables.items()},
                "claims": [vars(claim) | {"met": claim.met} for claim in self.claims],
            }
            Path(path).write_text(json.dumps(content, indent=1) + "\n")


def _table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.rivals))
    headers = ["case", "ours", *names, "ratio", "of least times"]
    formats = ["", ".2f", *(".2f" for _ in names), ".2f", ".2f"]
    with_rate = any(row.flop for row in rows)
    if with_rate:
        headers.append("GFLOP/s")
        formats.append(".0f")
    lines = []
    for row in rows:
        rivals = [1e3 * row.rivals[n].median if n in row.rivals else None for n in names]
        line = [row.case, 1e3 * row.ours.median, *rivals, row.ratio, row.least_ratio]
        lines.append(line + [row.flop and row.flop / row.ours.median / 1e9] * with_rate)
    return tabulate(lines, headers, "simple", floatfmt=formats)


def claims_table(claims: Iterable[Claim], style: str = "simple") -> str:
    """Each ratio beside its bound."""
    lines = [
        (c.what, f"{c.ratio:.2f}", f"{c.bound:g}", c.aim or "", "yes" if c.met else "NO")
        for c in claims
    ]
    return tabulate(lines, ("what", "ratio", "at most", "aim", "met"), style)


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive numbers."""
    return statistics.geometric_mean(list(values))


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Leave unless both sides computed the same thing: else their times mean nothing."""
    scale = float(np.abs(theirs).max())
    difference = float(np.abs(ours - theirs).max())
    if not difference <= 1e-3 * scale:
        raise SystemExit(f"results differ by {difference:g}, where the largest is {scale:g}")


def compared(
    title: str,
    cases: Iterable[tuple[str, str, Callable[[], Mapping[str, Callable[[], Any]]]]],
    options: argparse.Namespace,
) -> Report:
    """Report of cases (table, title, what makes the functions) whose rivals use OpenBLAS."""
    report = Report(title)
    for table, case, make in cases:
        if options.only in f"{table}: {case}":
            report.add(
                table, Row.of(case, in_turn(make(), rounds=options.rounds, pause=BLAS_PAUSE))
            )
    return report


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Parser with the options that all comparisons take."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--json", metavar="FILE", help="write the results to this file")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each function (9)")
    parser.add_argument("--threads", type=int, help="threads of each side (all)")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    return parser


def use_threads(count: int | None) -> None:
    """Give Numba and, if it is imported, PyTorch the same number of threads."""
    if count is not None:
        numba.set_num_threads(count)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(numba.get_num_threads())


def environment() -> dict[str, Any]:
    """Versions, processor and threads that a result belongs to."""
    torch = sys.modules.get("torch")
    return {
        "processor": _processor(),
        "threads": numba.get_num_threads(),
        "threading_layer": numba.threading_layer(),
        "python": platform.python_version(),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__ if torch else None,
    }


def describe(values: Mapping[str, Any]) -> str:
    """One line."""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
