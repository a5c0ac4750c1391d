"""What the compilers made of every kernel for cards: writes its part of docs/cuda.md.

Run: python scripts/cuda_table.py [--capabilities 7.5,9.0] [--processes 2] (extra ``cuda-test``)
The first time it compiles everything, which takes ten minutes on one core; code and what was read
of it are kept, so that later runs take seconds.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "cuda")]

from kernel_calls import calls  # noqa: E402
from machine_code import CAPABILITIES, SHOWN, on, recorded, report  # noqa: E402

from benchmarks.marked import replaced  # noqa: E402

PAGE = ROOT / "docs" / "cuda.md"
BEGIN = "<!-- machine code: written by scripts/cuda_table.py -->"
PRODUCT = 64  # multiply-adds in the main loop of a product, at least
Launched = dict[tuple, tuple[set[str], int]]


def launched() -> Launched:
    """Kernels by (kernel, types): who launches them, and threads of a block."""
    found: Launched = {}
    for name, cases in calls().items():
        for _, call in cases:
            for kernel, types, _, block, _ in recorded(call):
                found.setdefault((kernel, types), (set(), math.prod(block)))[0].add(name)
    return found


def compile_all(found: Launched, capabilities: list[tuple[int, int]], processes: int) -> None:
    """Compile and read what is not kept yet: each kernel once, and from there for every target."""
    kernels = list(found)

    def compile_part(first: int) -> None:
        for kernel, types in kernels[first::processes]:
            for capability in capabilities:
                report(on(kernel, capability), types, capability)

    # Kernels are closures, which no process can be sent: forks have them.
    context = get_context("fork")
    workers = [context.Process(target=compile_part, args=(i,)) for i in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("not all kernels were compiled")


def of_kernels(found: Launched) -> str:
    """Each kernel for one capability."""
    rows = []
    for (kernel, types), (names, threads) in found.items():
        code = report(kernel, types, SHOWN)
        loop = code.main_loop
        rows.append(
            (
                ", ".join(f"`{name}`" for name in sorted(names)),
                f"`{kernel.__name__.strip('_')}`",
                threads,
                code.registers,
                code.shared,
                code.blocks(threads) * threads,
                code.whole.float64 or "",
                f"{loop.fused} of {loop.count}" if loop else "",
                wide(loop) if loop else "",
            )
        )
    rows.sort()
    head = ("exported", "launched", "threads", "registers", "shared bytes", "threads at once",
            "float64", "fused in loop", "16 bytes at once in loop")  # fmt: skip
    return tabulate(rows, head, "github", disable_numparse=True)


def wide(loop: Any) -> str:
    """Accesses of 16 bytes in a loop, and how many of their kind there are."""
    parts = []
    for name, count in loop.moved.items():
        kind = name.partition(".")[0]
        every = sum(n for key, n in loop.accesses.items() if key.startswith(f"{kind}."))
        parts.append(f"{name} {count}" + (f" of {every}" if every > count else ""))
    return ", ".join(parts)


def of_capabilities(found: Launched, capabilities: list[tuple[int, int]]) -> str:
    """What all kernels need together, by capability."""
    rows = []
    for capability in capabilities:
        codes = [
            (report(on(kernel, capability), types, capability), threads)
            for (kernel, types), (_, threads) in found.items()
        ]
        loops = [code.main_loop for code, _ in codes if code.main_loop]
        loops = [loop for loop in loops if loop.fused >= PRODUCT]
        share = [100 * loop.fused / loop.count for loop in loops]
        spilled = [code for code, _ in codes if code.spills]
        rows.append(
            (
                ".".join(map(str, capability)),
                len(codes),
                max(code.registers for code, _ in codes),
                max(code.shared for code, _ in codes),
                max(code.stack for code, _ in codes),
                sum(code.spills for code in spilled),
                min(code.blocks(threads) * threads for code, threads in codes),
                f"{min(share):.0f} to {max(share):.0f}%",
                f"{sum(loop.wide('LDS') for loop in loops)} of {len(loops)}",
                f"{sum(loop.wide('LDG') for loop in loops)} of {len(loops)}",
                sum(loop.accesses["LDGSTS.128"] for loop in loops),
            )
        )
    head = ("capability", "kernels", "most registers", "most shared bytes", "most local bytes",
            "spills", "fewest threads at once", "fused in products", "only LDS.128",
            "only LDG.128", "LDGSTS.128")  # fmt: skip
    return tabulate(rows, head, "github", disable_numparse=True)


def problems(found: Launched, capabilities: list[tuple[int, int]]) -> list[str]:
    """What `Report.problems` says, of all kernels and capabilities."""
    return [
        f"{'.'.join(map(str, capability))}: {kernel.__name__} of {min(names)}: {problem}"
        for capability in capabilities
        for (kernel, types), (names, threads) in found.items()
        for problem in report(on(kernel, capability), types, capability).problems(threads)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    every = ",".join(".".join(map(str, c)) for c in CAPABILITIES)
    parser.add_argument("--capabilities", default=every)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    capabilities = [
        (int(major), int(minor))
        for major, _, minor in (c.partition(".") for c in arguments.capabilities.split(","))
    ]
    found = launched()
    compile_all(found, [*capabilities, SHOWN], arguments.processes)
    text = of_capabilities(found, capabilities) + "\n\n" + of_kernels(found)
    PAGE.write_text(replaced(PAGE.read_text(), BEGIN, text))
    wrong = problems(found, capabilities)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
