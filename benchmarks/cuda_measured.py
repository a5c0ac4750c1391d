"""What `kfc-numba bench-cuda` measured on a card, as a part of docs/cuda.md.

Several files are one: parts that were measured in calls of their own.

Run: python -m benchmarks.cuda_measured FILE... [--page FILE] [--keep FILE]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kfc_numba.checkpoint import write_bytes

BEGIN, END = "<!-- measured: written by benchmarks/cuda_measured.py -->", "<!-- end -->"
#: Kernels whose speed is told in operations, and those told in bytes.
COMPUTING = ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight", "matmul")
#: float32 multiplications and additions a second, by data sheet (SXM).
PEAKS = {"NVIDIA H200": 67e12, "NVIDIA H100 80GB HBM3": 67e12}


def joined(files: list[Path]) -> dict[str, Any]:
    """The content of some files, which are of one card."""
    found: dict[str, Any] = {}
    for file in files:
        content = json.loads(file.read_text())
        for name, value in content.items():
            if name == "card":
                found.setdefault(name, value)
            else:
                found.setdefault(name, []).extend(value)
    return found


def text(found: Mapping[str, Any]) -> str:
    """Tables in Markdown."""
    card = found["card"]
    peak = PEAKS.get(card["name"])
    compared = found["results"] + found["training"]
    wrong = sum(not row["right"] for row in compared)
    head = (
        f"On an {card['name']} (capability {card['capability']}): a copy moves "
        f"{card['copy_bytes_per_second'] / 1e12:.1f} TB/s, read and written, and cuBLAS's float32 "
        f"product of two matrices of 8,192 rows reaches "
        f"{card['cublas_operations_per_second'] / 1e12:.0f} TFLOP/s. "
        f"{len(compared)} results were compared with the processor's, {wrong} differ."
    )
    speeds = []
    for row in found["kernels"]:
        if "seconds" not in row:
            speeds.append((row["kernel"], row["shape"], row["error"], "", "", ""))
            continue
        operations = row.get("operations_per_second") if row["kernel"] in COMPUTING else None
        speeds.append(
            (
                f"`{row['kernel']}`",
                row["shape"],
                f"{1e6 * row['seconds']:.0f}",
                f"{operations / 1e12:.1f}" if operations else "",
                f"{100 * operations / peak:.0f}%" if operations and peak else "",
                "" if operations else f"{row['bytes_per_second'] / 1e12:.2f}",
            )
        )
    headers = ("kernel", "shape", "microseconds", "TFLOP/s", "of peak", "TB/s")
    table = tabulate(speeds, headers, "github", disable_numparse=True)
    steps = tabulate(
        [
            {k: f"{1e3 * v:.2f} ms" if isinstance(v, float) else v for k, v in row.items()}
            for row in found["steps"]
        ],
        "keys",
        "github",
    )
    return (
        f"{head}\n\nA step, with the data on the card; KFC over a whole cycle of statistics and "
        f"decompositions; PyTorch in float32 (no TF32), channels last:\n\n{steps}\n\n"
        f"Kernels; bytes are those that must be read and written:\n\n{table}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, help="where the part between the marks is written")
    parser.add_argument("--keep", type=Path, help="where all numbers are written, as one file")
    options = parser.parse_args()
    found = joined(options.files)
    if options.keep is not None:
        write_bytes(options.keep, (json.dumps(found, indent=1) + "\n").encode())
    if options.page is None:
        print(text(found))
        return
    page = options.page.read_text()
    marks = re.escape(BEGIN) + ".*?" + re.escape(END)
    new = f"{BEGIN}\n{text(found)}\n{END}"
    write_bytes(options.page, re.sub(marks, lambda _: new, page, flags=re.S).encode())


if __name__ == "__main__":
    main()
