"""What the compilers made of every kernel for cards: writes its part of docs/cuda.md.

Run: python scripts/cuda_table.py [--capabilities 7.5,9.0] (extra ``cuda-test``)
The first time it compiles everything, which takes half an hour on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "cuda")]

from kernel_calls import calls  # noqa: E402
from machine_code import CAPABILITIES, recorded, report  # noqa: E402

PAGE = ROOT / "docs" / "cuda.md"
BEGIN, END = "<!-- machine code: written by scripts/cuda_table.py -->", "<!-- end -->"
SHOWN = (9, 0)


def launched() -> dict[tuple, tuple[set[str], int]]:
    """Kernels by (kernel, types): who launches them, and threads of a block."""
    found: dict[tuple, tuple[set[str], int]] = {}
    for name, cases in calls().items():
        for _, call in cases:
            for kernel, types, _, block, _ in recorded(call):
                threads = 1
                for size in block:
                    threads *= size
                found.setdefault((kernel, types), (set(), threads))[0].add(name)
    return found


def of_kernels(found: dict) -> str:
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
                _wide(loop) if loop else "",
            )
        )
    rows.sort()
    head = ("exported", "launched", "threads", "registers", "shared bytes", "threads at once",
            "float64", "fused in loop", "16 bytes at once")  # fmt: skip
    return tabulate(rows, head, "github", disable_numparse=True)


def _wide(loop) -> str:  # type: ignore[no-untyped-def]
    return ", ".join(name for name in ("LDG", "LDS", "STS") if loop.wide(name))


def of_capabilities(found: dict, capabilities: list[tuple[int, int]]) -> str:
    """What all kernels need together, by capability."""
    rows = []
    for capability in capabilities:
        codes = [report(kernel, types, capability) for kernel, types in found]
        spilled = sorted({c.name.strip("_") for c in codes if c.whole.local or c.stack})
        loops = [c.main_loop for c in codes if c.main_loop and c.main_loop.fused >= 64]
        share = [loop.fused / loop.count for loop in loops if loop.count > loop.fused]
        rows.append(
            (
                ".".join(map(str, capability)),
                len(codes),
                max(c.registers for c in codes),
                max(c.shared for c in codes),
                f"{len(spilled)}" + (f": {', '.join(spilled)}" if spilled else ""),
                f"{100 * min(share):.0f} to {100 * max(share):.0f}%" if share else "",
            )
        )
    head = ("capability", "kernels", "most registers", "most shared bytes", "local memory",
            "fused in main loops of products")  # fmt: skip
    return tabulate(rows, head, "github", disable_numparse=True)


def replaced(page: str, begin: str, text: str) -> str:
    """The page with another text behind a mark, up to the next end."""
    before, found, rest = page.partition(begin)
    if not found:
        raise ValueError(f"{PAGE.name} has no line {begin!r}")
    return f"{before}{begin}\n{text}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    every = ",".join(".".join(map(str, c)) for c in CAPABILITIES)
    parser.add_argument("--capabilities", default=every)
    arguments = parser.parse_args()
    capabilities = [
        (int(major), int(minor))
        for major, _, minor in (c.partition(".") for c in arguments.capabilities.split(","))
    ]
    found = launched()
    text = of_capabilities(found, capabilities) + "\n\n" + of_kernels(found)
    PAGE.write_text(replaced(PAGE.read_text(), BEGIN, text))


if __name__ == "__main__":
    main()
