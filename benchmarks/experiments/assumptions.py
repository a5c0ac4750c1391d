"""The assumptions behind KFC, and its errors against the exact Fisher matrix, through training.

Correlations of activations and derivatives over space and between maps, with max and with average
pooling; the error of KFC, EKFAC, the diagonal and white activations on small networks; the report
on `quick`. The first and the last need CIFAR-10.

Run: python -m benchmarks.experiments.assumptions [--seeds N] [--fast]
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence

from benchmarks.experiments import assumptions_matrices as matrices
from benchmarks.experiments import assumptions_parts as parts
from benchmarks.experiments import tasks
from benchmarks.experiments.assumptions_claims import claims
from benchmarks.experiments.assumptions_figures import draw
from benchmarks.experiments.assumptions_report import section
from benchmarks.experiments.options import arguments, available, folders, parse_common
from benchmarks.experiments.records import Records

__all__ = ["SHOWS", "TAKES", "claims", "draw", "main", "section"]

NAME = "assumptions"
SHOWS = (
    "Whether derivatives are uncorrelated over space and activations are not, and how far KFC is "
    "from the exact Fisher matrix, before, during and after training."
)
TAKES = "about 10 minutes of one core"
SMALL_TASK = "fashion-bundled"
#: Seeds of the small networks, which cost little, for each of the others.
SMALL_SEEDS = 3


def main(words: Sequence[str] | None = None) -> int:
    """Compute what is missing, and draw the figures."""
    options = parse_common(_parser(), words)
    size = parts.FAST if options.fast else parts.FULL
    seeds = range(1) if options.fast else options.seeds
    with folders(options) as (results, output):
        records = Records(NAME, results)
        if not options.report_only:
            for name, compute in _parts(size, seeds, options.data):
                print(name, flush=True)
                records.get(name, compute)
        draw(results, output)
        print(section(results) or f"no results in {results / NAME}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments(__doc__)
    parser.set_defaults(seeds=1)
    parser.epilog = (
        f"Small networks are trained with {SMALL_SEEDS} times as many seeds (default 1)."
    )
    return parser


def _parts(
    size: parts.Size, seeds: range, folder: tasks.Folder
) -> Iterator[tuple[str, functools.partial]]:
    """Names of all parts whose data are there, and what computes each."""
    small_seeds = seeds if size is parts.FAST else range(SMALL_SEEDS * len(seeds))
    for task in available([SMALL_TASK], folder):
        for seed in small_seeds:
            for pool in parts.POOLS:
                own = parts.small_task(task, pool)
                yield f"small-{pool}-{seed}", functools.partial(matrices.errors_of, own, size, seed)
    for task in available([size.task], folder):
        for seed in seeds:
            for pool in parts.POOLS:
                own = parts.quick_task(task, pool)
                part = functools.partial(parts.correlations_of, own, size, seed)
                yield f"quick-{pool}-{seed}", part
            part = functools.partial(parts.report_of, parts.quick_task(task, None), size, seed)
            yield f"quick-{seed}", part


if __name__ == "__main__":
    sys.exit(main())
