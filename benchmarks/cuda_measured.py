"""What `kfc-numba bench-cuda` measured on a card, as a part of docs/cuda.md.

Several files are one: parts that were measured in calls of their own. Those measured with `--tf32`
are told from the others by what they say of their card, and stand beside them.

Run: python -m benchmarks.cuda_measured FILE... [--page FILE] [--keep FILE]
The file that was kept before is one that can be given.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kfc_numba.checkpoint import write_bytes
from kfc_numba.commands.bench_cuda import PARTS, PRODUCTS
from kfc_numba.commands.cuda_cases import LARGE

BEGIN, END = "<!-- measured: written by benchmarks/cuda_measured.py -->", "<!-- end -->"
#: Kernels whose speed is told in operations, and those told in bytes.
COMPUTING = ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight", "matmul")
#: float32 multiplications and additions a second, by data sheet (SXM).
PEAKS = {"NVIDIA H200": 67e12, "NVIDIA H100 80GB HBM3": 67e12}
OPTIMIZERS = "SGD", "KFC", "PyTorch SGD"
WIDE = 64  # channels, from which on a convolution is expected to be near the peak
Measured = dict[str, Any]


def joined(files: Iterable[Path]) -> Measured:
    """The content of some files, which are of one card; that measured with TF32 by itself.

    Parameters
    ----------
    files : iterable of Path

    Returns
    -------
    dict
        ``card`` and the parts, of float32, and ``tf32`` with the same, if a file has it.

    Raises
    ------
    ValueError
        Where files are of several cards, or a part is in two of them.
    """
    found: Measured = {}
    for file in files:
        content = json.loads(file.read_text())
        beside = content.pop("tf32", None)
        _add(found, content, file)
        if beside is not None:
            _add(found, beside, file)
    if "card" not in found:
        raise ValueError("no file was measured in float32, beside which TF32 stands")
    return found


def _add(found: Measured, content: Measured, file: Path) -> None:
    name = content["card"]["name"]
    cards = {part["card"]["name"] for part in (found, found.get("tf32", {})) if "card" in part}
    if cards - {name}:
        raise ValueError(f"{file} is of an {name}, another of an {cards.pop()}")
    part = found.setdefault("tf32", {}) if content["card"]["tf32"] else found
    part.setdefault("card", content["card"])
    for key in PARTS:
        rows = content.get(key, [])
        if rows and part.get(key):
            raise ValueError(f"{file} has {key!r}, which was in a file before")
        part[key] = part.get(key, []) + rows


def text(found: Mapping[str, Any]) -> str:
    """Tables and sentences, in Markdown."""
    card = found["card"]
    compared = found["results"] + found["training"]
    wrong = sum(not row["right"] for row in compared)
    head = (
        f"On an {card['name']} (capability {card['capability']}): a copy moves "
        f"{card['copy_bytes_per_second'] / 1e12:.1f} TB/s, read and written, and cuBLAS's float32 "
        f"product of two matrices of 8,192 rows reaches "
        f"{card['cublas_operations_per_second'] / 1e12:.0f} TFLOP/s. "
        f"{len(compared)} results were compared with the processor's, {wrong} differ"
    )
    if found["training"]:
        gap = max(row["error"] for row in found["training"])
        head += f"; among them trainings in float64, whose losses differ by {gap:.0e} at most"
    parts = [
        f"{head}.",
        f"What the tables say. {sentences(found)}",
        "A step, with the data on the card; KFC over a whole cycle of statistics and "
        "decompositions; PyTorch in float32 (no TF32), channels last:",
        _of_steps(found["steps"]),
        *_of_shares(found["steps"]),
        *_of_tensor_cores(found),
        "Kernels; bytes are those that must be read and written:",
        _of_kernels(found),
    ]
    return "\n\n".join(parts)


def sentences(found: Mapping[str, Any]) -> str:
    """What is to be seen in the tables, in words."""
    return " ".join([*_of_peak(found), *_beside_pytorch(found), *_of_ratios(found)])


def _of_peak(found: Mapping[str, Any]) -> list[str]:
    """What products reach of the card's peak, by kind."""
    peak = PEAKS.get(found["card"]["name"])
    if not peak:
        return []
    wide = {case.name for case in LARGE if min(case.x[3], case.filters) >= WIDE}
    images = {case.name for case in LARGE}
    outputs = "conv2d_forward", "conv2d_grad_input"
    kinds = (
        (f"outputs and input gradients of convolutions of {WIDE} or more channels", outputs, wide),
        ("their weight gradients", ("conv2d_grad_weight",), wide),
        ("convolutions of fewer, and their gradients", COMPUTING, images - wide),
    )
    told = []
    for words, kernels, shapes in kinds:
        shares = _shares(found, peak, kernels, shapes)
        if shares:
            told.append(f"{words} {_range(shares, '.0f')}%")
    products = {row["shape"] for row in found["kernels"] if row["kernel"] == "matmul"}
    shares = _shares(found, peak, ("matmul",), products)
    if shares:
        told.append(f"products of matrices {_range(shares, '.0f')}%")
    cublas = 100 * found["card"]["cublas_operations_per_second"] / peak
    if not told:
        return []
    return [
        f"Of the peak of {peak / 1e12:.0f} TFLOP/s, by useful operations (of which minimal "
        f"filtering does fewer, and so may pass it), reach: {'; '.join(told)}; cuBLAS's product of "
        f"the largest matrices {cublas:.0f}%."
    ]


def _shares(
    found: Mapping[str, Any], peak: float, kernels: tuple[str, ...], shapes: set[str]
) -> list[float]:
    return [
        100 * row["operations_per_second"] / peak
        for row in found["kernels"]
        if row["kernel"] in kernels and row["shape"] in shapes and "seconds" in row
    ]


def _beside_pytorch(found: Mapping[str, Any]) -> list[str]:
    """How much longer a step takes than one of PyTorch, and one of KFC than one of SGD."""
    told: list[str] = []
    others = [row["SGD"] / row["PyTorch SGD"] for row in found["steps"] if row.get("PyTorch SGD")]
    if others:
        told.append(f"A step of SGD takes {_range(others, '.1f')} times as long as PyTorch's.")
    ratios = [row["KFC"] / row["SGD"] for row in found["steps"]]
    if ratios:
        told.append(f"A step of KFC takes {_range(ratios, '.1f')} times as long as one of SGD.")
    return told


def _of_ratios(found: Mapping[str, Any]) -> list[str]:
    """What TF32 gains."""
    rows = _products_beside(found)
    if not rows:
        return []
    ratios = [before / after for _, _, before, after in rows]
    slower = [f"`{kernel}` of {shape}" for kernel, shape, before, after in rows if before < after]
    but = f"; slower are {', '.join(slower)}" if slower else ""
    return [f"With TF32 products are {_range(ratios, '.1f')} times as fast as in float32{but}."]


def _of_steps(rows: list[dict[str, Any]]) -> str:
    shown = [
        {
            k: f"{1e3 * v:.2f} ms" if isinstance(v, float) else v
            for k, v in row.items()
            if k != "card"
        }
        for row in rows
    ]
    return tabulate(shown, "keys", "github")


def _of_shares(rows: list[dict[str, Any]]) -> list[str]:
    """Which part of a step the card works, where a profiler saw it."""
    shown = [
        (row["network"], row["batch"], optimizer, f"{work['kernels']:.0f}",
         f"{1e3 * row[optimizer]:.2f}", f"{1e3 * work['seconds']:.2f}",
         f"{100 * work['seconds'] / row[optimizer]:.0f}%")
        for row in rows
        for optimizer, work in row.get("card", {}).items()
        if work is not None
    ]  # fmt: skip
    if not shown:
        return []
    head = ("network", "batch", "optimizer", "kernels", "step, ms", "the card works, ms", "of it")
    return [
        "What a step's time consists of: kernels, of whatever library, and how long the card "
        "works, by PyTorch's profiler in a cycle of its own. The rest is the host's:",
        tabulate(shown, head, "github", disable_numparse=True),
    ]


def _of_tensor_cores(found: Mapping[str, Any]) -> list[str]:
    """Tables of what was measured in both precisions."""
    parts: list[str] = []
    steps = _steps_beside(found)
    if steps:
        head = ("network", "batch", "optimizer", "float32, ms", "TF32, ms", "ratio")
        rows = [
            (network, batch, optimizer, *_pair(before, after, 1e3, ".2f"))
            for network, batch, optimizer, before, after in steps
        ]
        table = tabulate(rows, head, "github", disable_numparse=True)
        parts += ["Steps in float32 and, with `--tf32`, in TF32:", table]
    products = _products_beside(found)
    if products:
        head = ("kernel", "shape", "float32, µs", "TF32, µs", "ratio")
        rows = [
            (f"`{kernel}`", shape, *_pair(before, after, 1e6, ".0f"))
            for kernel, shape, before, after in products
        ]
        table = tabulate(rows, head, "github", disable_numparse=True)
        parts += ["Products in float32 and in TF32:", table]
    return parts


def _pair(before: float, after: float, unit: float, digits: str) -> tuple[str, str, str]:
    return f"{unit * before:{digits}}", f"{unit * after:{digits}}", f"{before / after:.2f}"


def _steps_beside(found: Mapping[str, Any]) -> list[tuple[str, int, str, float, float]]:
    """Network, batch, optimizer, and seconds of a step in float32 and in TF32."""
    there = {(r["network"], r["batch"]): r for r in found.get("tf32", {}).get("steps", ())}
    return [
        (row["network"], row["batch"], optimizer, row[optimizer], other[optimizer])
        for row in found["steps"]
        if (other := there.get((row["network"], row["batch"])))
        for optimizer in OPTIMIZERS
        if row.get(optimizer) and other.get(optimizer)
    ]


def _products_beside(found: Mapping[str, Any]) -> list[tuple[str, str, float, float]]:
    """Kernel, shape, and seconds in float32 and in TF32, of products that ran in both."""
    rows = found.get("tf32", {}).get("kernels", ())
    there = {(row["kernel"], row["shape"]): row.get("seconds") for row in rows}
    return [
        (row["kernel"], row["shape"], row["seconds"], other)
        for row in found["kernels"]
        if row["kernel"] in PRODUCTS
        and "seconds" in row
        and (other := there.get((row["kernel"], row["shape"])))
    ]


def _of_kernels(found: Mapping[str, Any]) -> str:
    peak = PEAKS.get(found["card"]["name"])
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
    return tabulate(speeds, headers, "github", disable_numparse=True)


def _range(values: Iterable[float], digits: str) -> str:
    """The least and the most, once where they look the same."""
    found = sorted(values)
    low, high = f"{found[0]:{digits}}", f"{found[-1]:{digits}}"
    return low if low == high else f"{low} to {high}"


def written(page: str, found: Mapping[str, Any]) -> str:
    """The page with the part of what was measured."""
    marks = re.escape(BEGIN) + ".*?" + re.escape(END)
    new = f"{BEGIN}\n{text(found)}\n{END}"
    changed, count = re.subn(marks, lambda _: new, page, flags=re.S)
    if not count:
        raise ValueError(f"the page has no line {BEGIN!r}")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, help="where the part between the marks is written")
    parser.add_argument("--keep", type=Path, help="where all numbers are written, as one file")
    options = parser.parse_args()
    try:
        found = joined(options.files)
    except ValueError as problem:
        raise SystemExit(str(problem)) from None
    if options.keep is not None:
        write_bytes(options.keep, (json.dumps(found, indent=1) + "\n").encode())
    if options.page is None:
        print(text(found))
        return
    write_bytes(options.page, written(options.page.read_text(), found).encode())


if __name__ == "__main__":
    main()
