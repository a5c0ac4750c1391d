"""What each of the defaults of `KFC()` brings: one at a time set otherwise, on CIFAR-10's `quick`.

Run: python -m benchmarks.experiments.ways [--data FOLDER] [--level 0.7] [--seeds 1] [--fast]
Writes docs/ways.md: steps and seconds to a training loss.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

import kfc_numba as kfc
from benchmarks.experiments.options import (
    arguments,
    available,
    describe,
    parse_common,
    store_and_output,
)
from benchmarks.experiments.race import GROWTH, TASK, made_task
from benchmarks.experiments.results import DIVERGED, TRAINING_SAMPLE, Plan, Result, plan_for
from benchmarks.experiments.runs import own_run
from benchmarks.peers.timing import describe as describe_environment
from kfc_numba.checkpoint import write_bytes

SHOWS = (
    "What each default of KFC() brings: one at a time set otherwise, on CIFAR-10 (docs/ways.md)."
)
TAKES = "about a quarter of an hour"
#: What is set otherwise, by what it does.
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "momentum 0.9 from the first step": {
        "momentum": kfc.PiecewiseConstant(values=[0.9], boundaries=[])
    },
    "periods 10 and 20 from the first step, burn-in of 10 batches": {
        "period_growth": 0,
        "curvature_update_period": 10,
        "inverse_update_period": 20,
        "num_burnin_steps": 10,
        "curvature_ema": 0.95,
    },
    "v^T F v computed at each step": {"exact_period": 1},
    "v^T F v computed up to 8 steps apart": {"exact_period": 8},
    "v^T F v by a tangent pass": {"exact_by": "tangent"},
    "average over an epoch": {"averaging": 156},
    "about half of the bound, as it is at this batch size": {"loss_bound": 2e-4},
    "learning rate 0.03": {"learning_rate": 0.03},
    "no weight decay": {"weight_decay": 0.0},
    "momentum 0.9": {"momentum": 0.9},
    "an absolute bound": {"loss_bound": None, "kl_bound": 0.03},
    "damping 2e-4": {"damping": 2e-4},
    "damping 1e-3": {"damping": 1e-3},
    "damping 1e-2": {"damping": 1e-2},
    "layers as the approximation has them": {"balance_layers": False},
    "EKFAC": {"structure": "ekfac"},
}
BATCH = 256
LEVEL = 0.7
LIMIT = 90.0


def page(results: dict[str, list[Result]], level: float) -> str:
    """The report in Markdown."""
    lines = []
    for way, runs in results.items():
        reached = [run.reached(level) for run in runs]
        if all(reached):
            pairs = [pair for pair in reached if pair]
            steps, seconds = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
            cells = (f"{steps:.0f}", f"{seconds:.3g}")
        else:
            bad = any(run.outcome == DIVERGED for run in runs)
            cells = ("diverged" if bad else "not reached", "")
        lines.append((way, len(runs), *cells))
    names = ("processor", "threads", "numba", "numpy", "commit")
    runs = [run for each in results.values() for run in each]
    about = {describe_environment({n: r.environment.get(n) for n in names}): None for r in runs}
    headers = ("KFC", "seeds", "steps", "seconds")
    text = (
        "Written by `python -m benchmarks.experiments.ways`: CIFAR-10's batches 1 to 4, network "
        f"`quick`, batches of {BATCH}, to a training loss of {level:g}; means over seeds; no run "
        f"had more than {LIMIT:g} seconds. {'; '.join(about)}."
    )
    parts = ["# What the defaults of `KFC()` bring", text]
    return "\n\n".join([*parts, tabulate(lines, headers, "github", disable_numparse=True)]) + "\n"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, (BATCH,))
    parser.add_argument("--level", type=float, default=LEVEL, help=f"training loss ({LEVEL})")
    parser.set_defaults(seeds=1)
    options = parse_common(parser, words)
    options.sample, options.limit = TRAINING_SAMPLE, LIMIT
    if options.fast:
        options.seeds, options.level, options.limit, options.sample = range(1), 2.2, 1.0, 64
        options.batches = [16]
    return options


def is_own(plan: Plan) -> bool:
    """Whether a kept run is of this experiment, as it is without options."""
    return plan.level == LEVEL


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    results: dict[str, list[Result]] = {}
    with store_and_output(options) as (store, output):
        for task in [made_task()] if options.fast else available([TASK], options.data):
            for way, settings in WAYS.items():
                optimizer = kfc.KFC(**settings)
                for seed in options.seeds:
                    limits = {
                        "budget": options.limit, "level": options.level, "sample": options.sample
                    }  # fmt: skip
                    plan = plan_for(task, optimizer, options.batches[0], seed, **limits)
                    new = plan not in store
                    if new and options.report_only:
                        continue

                    def run(plan=plan, optimizer=optimizer, task=task) -> Result:
                        return own_run(task, optimizer, plan, growth=GROWTH)

                    result = store.get(plan, run)
                    if new:
                        print(f"{way}:\n{describe(result)}", flush=True)
                    results.setdefault(way, []).append(result)
        if not results:
            print("no results")
            return 1
        text = page(results, options.level)
        print(text)
        if not options.fast:
            write_bytes(output / "ways.md", text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
