"""Invariance: the same training in other coordinates, of the inputs and of hidden layers.

Grosse and Martens (2016), section 5. Two parts: a small network in float64, where steps of KFC and
of the exact Fisher matrix agree to rounding with those of its twin; and training curves of CIFAR-10
in several colour spaces.

Run: python -m benchmarks.experiments.invariance [--fast] [--tune]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.experiments import invariance_curves as curves
from benchmarks.experiments import invariance_proof as proof
from benchmarks.experiments import invariance_report as report
from benchmarks.experiments import tasks
from benchmarks.experiments.options import arguments, parse_common
from benchmarks.experiments.records import Records
from benchmarks.experiments.results import RESULTS, ROOT, Store

SHOWS = (
    "That training by KFC does not depend on colour space, centring or scale of inputs, nor on "
    "affine maps around activations, while SGD's does."
)
TAKES = "about 15 minutes on one core"

DATASET, FAST_DATASET = "cifar-10-heldout", "fashion-mnist-10k"
FAST_EXAMPLES = 256
FAST_METHODS = ("exact Fisher", "KFC", "SGD")
FAST_STEPS = 1

section, claims, draw = report.section, report.claims, report.draw


def prove(records: Records, *, fast: bool = False) -> None:
    """The part in float64: a record for each twin, and one about damping."""
    rgb, _ = proof.colour_images()
    found = proof.cases(proof.Moments.of(rgb))
    methods = [m for m in proof.METHODS if not fast or m.name in FAST_METHODS]
    steps = FAST_STEPS if fast else proof.STEPS
    chosen = (0, proof.HARDEST, len(found) - 1) if fast else range(len(found))
    for place in chosen:
        case = found[place]
        print(f"{case.name}", flush=True)
        records.get(
            f"twin-{place}",
            lambda case=case: {
                "name": case.name,
                "holds": case.holds,
                "steps": steps,
                "methods": {
                    m.name: proof.compare(case, m.start, steps) | {"invariant": m.invariant}
                    for m in methods
                },
            },
        )
    case = found[proof.HARDEST]
    dampings = proof.FAST_DAMPINGS if fast else proof.DAMPINGS
    print(f"damping: {case.name}", flush=True)
    records.get("damping", lambda: proof.damping_sweep(case, dampings, steps))


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, (128,))
    parser.set_defaults(seeds=1)
    parser.add_argument(
        "--tune", action="store_true", help="run all of SGD's rates in all coordinates"
    )
    options = parse_common(parser, words)
    options.less_damped = not options.fast
    options.rates = curves.RATES[1:2] if options.fast else curves.RATES
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    with ExitStack() as stack:
        results, output = options.results or RESULTS, options.output or ROOT / "docs"
        if options.fast:
            kept = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            results, output = options.results or kept, options.output or kept
        if not options.report_only:
            prove(Records(report.NAME, results), fast=options.fast)
            name = FAST_DATASET if options.fast else DATASET
            try:
                count = FAST_EXAMPLES if options.fast else curves.EXAMPLES
                images = curves.Images.load(name, None if options.fast else options.data, count)
            except tasks.MissingError as error:
                print(f"skipped the curves: {error}", flush=True)
            else:
                store = Store(results / report.NAME / report.CURVES)
                for _ in curves.runs(images, options, store):
                    pass
        text = section(results)
        if text is None:
            print("no results")
            return 1
        draw(results, output)
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
