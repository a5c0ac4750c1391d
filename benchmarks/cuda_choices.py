"""Two ways to the same result on a card, side by side: what the choices between them rest on.

Sums of outer products copy their operands to shared memory while they multiply, or bring them
through registers (`kernels/cuda/product.py`). 3x3 convolutions go by the definition, or by minimal
filtering in squares of two sizes (`kernels/cuda/winograd.py`).

Run, with a card: python -m benchmarks.cuda_choices --json FILE
and anywhere:     python -m benchmarks.cuda_choices --read FILE [--page docs/cuda.md]
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from tabulate import tabulate

from benchmarks.marked import replaced
from kfc_numba.checkpoint import write_bytes
from kfc_numba.commands import bench_cuda
from kfc_numba.commands.cuda_cases import cases
from kfc_numba.devices import check_device, upload
from kfc_numba.kernels.backend import kernels

BEGIN = "<!-- choices: written by benchmarks/cuda_choices.py -->"
#: Kernels whose sums may be copied.
SUMMING = ("conv2d_grad_weight", "conv2d_grad_parameters", "patch_second_moment",
           "output_second_moment", "matmul")  # fmt: skip
SIZES = 0, 2, 4  # of squares; 0: by the definition
#: Batches of images, with as many filters as channels.
IMAGES = (
    (16, 56, 56, 64), (32, 56, 56, 64), (64, 32, 32, 64), (128, 32, 32, 64), (16, 28, 28, 128),
    (32, 28, 28, 128), (32, 16, 16, 128), (64, 16, 16, 128), (32, 14, 14, 256), (64, 8, 8, 256),
    (32, 7, 7, 512), (64, 4, 4, 512), (64, 32, 32, 32), (512, 32, 32, 32), (256, 28, 28, 32),
)  # fmt: skip
_ROUNDS = 5
Row = dict[str, Any]


def copying(whether: bool) -> AbstractContextManager:
    """Within this context sums copy their operands where they can, or never do."""
    from kfc_numba.kernels.cuda import pixel_sums

    def copies() -> bool:  # a mock would take longer than a launch
        return whether

    return mock.patch.object(pixel_sums, "copies", copies)


def in_squares(size: int) -> AbstractContextManager:
    """Within this context 3x3 convolutions go by squares of a size."""
    from kfc_numba.kernels.cuda import winograd

    def pays(*given: Any, **named: Any) -> int:
        return size

    return mock.patch.object(winograd, "pays", pays)


def in_turn(
    call: Callable[[], Any], ways: Callable[[Any], AbstractContextManager], settings: Iterable
) -> list[float]:
    """Seconds of a call in each of some ways, medians of rows of calls that were made in turn."""
    times: dict[Any, list[float]] = {setting: [] for setting in settings}
    for _ in range(_ROUNDS):
        for setting, found in times.items():
            with ways(setting):
                call()
                found.append(bench_cuda.elapsed(call, bench_cuda.ROW))
    return [statistics.median(found) for found in times.values()]


def of_copies() -> Iterator[Row]:
    """Each sum of the shapes of networks whose operands can be copied, in both ways."""
    for case in cases(large=True):
        if case.kernel in SUMMING:
            arguments, settings = case.make()
            given = bench_cuda.uploaded(arguments)
            call = functools.partial(getattr(kernels(given[0]), case.kernel), *given, **settings)
            if can_copy(call):
                yield {"kernel": case.kernel, "shape": case.shape} | of_sum(call)


def can_copy(call: Callable[[], Any]) -> bool:
    """Whether some sum of a call copies its operands."""
    from kfc_numba.kernels.cuda import pixel_sums

    forms = []

    def noted(dtype: Any, tile: Any, form: Any) -> Any:
        forms.append(form)
        return outer_products(dtype, tile, form)

    outer_products = pixel_sums.outer_products
    pixel_sums._how.cache_clear()
    with mock.patch.object(pixel_sums, "outer_products", noted):
        call()
    return any(form.copied for form in forms)


def of_sum(call: Callable[[], Any]) -> Row:
    """Seconds of a sum in both ways, and whether the bits are the same."""
    results = []
    for whether in (False, True):
        with copying(whether):
            results.append(bench_cuda.flat(call()))
    before, after = in_turn(call, copying, (False, True))
    same = all(np.array_equal(*pair) for pair in zip(*results, strict=True))
    return {"registers": before, "copies": after, "same": same}


def of_filtering() -> Iterator[Row]:
    """Convolutions and their gradients by the definition and in squares; what is chosen."""
    for shape in IMAGES:
        channels = shape[-1]
        x, w = (upload(np.ones(s, np.float32)) for s in (shape, (3, 3, channels, channels)))
        package = kernels(x)
        calls = {
            "conv2d_forward": functools.partial(package.conv2d_forward, x, w, padding=1),
            "conv2d_grad_input": functools.partial(
                package.conv2d_grad_input, x, w, shape, padding=1
            ),
            "conv2d_grad_weight": functools.partial(package.conv2d_grad_weight, x, x, 3, padding=1),
        }
        for name, call in calls.items():
            yield {"kernel": name, "images": list(shape), "chosen": chosen(call),
                   "seconds": in_turn(call, in_squares, SIZES)}  # fmt: skip


def chosen(call: Callable[[], Any]) -> int:
    """The squares that a convolution goes by."""
    from kfc_numba.kernels.cuda import winograd

    asked = []

    def noted(*given: Any, **named: Any) -> int:
        asked.append(pays(*given, **named))
        return asked[-1]

    pays = winograd.pays
    with mock.patch.object(winograd, "pays", noted):
        call()
    return asked[0]


def text(found: Mapping[str, Any]) -> str:
    """Tables in Markdown."""
    ratios = [row["copies"] / row["registers"] for row in found["copies"]]
    beyond = [
        row["seconds"][SIZES.index(row["chosen"])] / min(row["seconds"])
        for row in found["filtering"]
    ]
    equal = "the same bits" if all(row["same"] for row in found["copies"]) else "OTHER BITS"
    sums = [
        (f"`{row['kernel']}`", row["shape"], f"{1e6 * row['registers']:.0f}",
         f"{1e6 * row['copies']:.0f}", f"{row['copies'] / row['registers']:.2f}")
        for row in found["copies"]
    ]  # fmt: skip
    squares = [
        (f"`{row['kernel']}`", " x ".join(map(str, row["images"])),
         *(f"{1e6 * taken:.0f}" for taken in row["seconds"]),
         row["chosen"] or "definition")
        for row in found["filtering"]
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"On an {found['card']}, ten calls in a row, medians of {_ROUNDS} rows in turn.",
            f"Sums whose operands are copied take {min(ratios):.2f} to {max(ratios):.2f} of the "
            f"time of those through registers, {statistics.geometric_mean(ratios):.2f} in the "
            f"geometric mean, and have {equal}:",
            tabulate(
                sums,
                ("kernel", "shape", "registers, µs", "copies, µs", "ratio"),
                "github",
                disable_numparse=True,
            ),
            f"What is chosen for 3x3 convolutions takes {max(beyond):.2f} of the time of the best "
            f"way at most, {statistics.geometric_mean(beyond):.3f} in the geometric mean:",
            tabulate(
                squares,
                ("kernel", "images", "definition, µs", "2x2, µs", "4x4, µs", "chosen"),
                "github",
                disable_numparse=True,
            ),
        ]
    )


def written(page: str, found: Mapping[str, Any]) -> str:
    """The page with these tables between its marks."""
    return replaced(page, BEGIN, text(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="where what was measured is written")
    parser.add_argument("--read", type=Path, help="measure nothing, read this file")
    parser.add_argument("--page", type=Path, help="where the part between the marks is written")
    arguments = parser.parse_args()
    if arguments.read is not None:
        found = json.loads(arguments.read.read_text())
    else:
        check_device("cuda")
        found = {
            "card": bench_cuda.name_of_card(),
            "copies": list(of_copies()),
            "filtering": list(of_filtering()),
        }
    if arguments.json is not None:
        write_bytes(arguments.json, json.dumps(found, indent=1).encode())
    print(text(found))
    if arguments.page is not None:
        write_bytes(arguments.page, written(arguments.page.read_text(), found).encode())


if __name__ == "__main__":
    main()
