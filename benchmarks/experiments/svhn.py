"""SVHN with the large network of the paper, KFC against SGD: for whoever has the data.

Run: python -m benchmarks.experiments.svhn --data FOLDER    # of train_32x32.mat and test_32x32.mat
     python -m benchmarks.experiments.svhn --fast           # on made files of the official format
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from tabulate import tabulate

import kfc_numba as kfc
from benchmarks.experiments import figures
from benchmarks.experiments.claims import HOLDS, NOT, PART
from benchmarks.experiments.defaults import rival
from benchmarks.experiments.options import arguments, describe, parse_common
from benchmarks.experiments.results import (
    DIVERGED,
    RESULTS,
    ROOT,
    TRAINING_SAMPLE,
    Result,
    Store,
    plan_for,
)
from benchmarks.experiments.runs import own_run
from benchmarks.experiments.tasks import MOST_VALIDATION, Folder, Task
from kfc_numba import datasets
from kfc_numba.layers.base import Layer

SHOWS = "SVHN with the paper's large network and dropout: KFC against SGD, in seconds and steps."
TAKES = "about 2 hours, with the data, which are not at hand here"

NAME = FIGURE = "svhn"
COMMAND = "python -m benchmarks.experiments.svhn --data FOLDER"
#: The paper's batch sizes, and its grid of learning rates where SGD's best is expected.
BATCHES = {"kfc": 512, "sgd": 128}
RATES = (0.01, 0.03, 0.003, 0.1)
BUDGET = 1200.0  # seconds of a run
#: Of the official format: how many images each has where they are made.
FILES = {"train_32x32.mat": 120, "test_32x32.mat": 20}
#: KFC is several times faster where its seconds are at most this part of SGD's.
SEVERAL = 1 / 3

MAPS, UNITS = (96, 128, 256), 2048
#: Of the images, of what the convolutions give, and of the dense layers.
DROPOUT = (0.1, 0.25, 0.25, 0.5, 0.5, 0.5)


def network(shape: tuple[int, ...], seed: int, part: int = 1) -> kfc.Sequential:
    """Three convolutions and two dense layers, with dropout.

    As Srivastava et al. describe theirs for SVHN ("Dropout", 2014, appendix B), which the paper
    takes: convolutions of 5x5 with 96, 128 and 256 maps, each before max-pooling of 3x3 with
    stride 2, and two dense layers of 2,048 units.

    Parameters
    ----------
    shape : tuple of int
        Of an image.
    seed : int
    part : int
        All widths are divided by it.

    Returns
    -------
    Sequential
    """
    images, *behind = DROPOUT
    layers: list[Layer] = [kfc.Dropout(images)]
    for maps, rate in zip(MAPS, behind, strict=False):
        layers += [
            *(kfc.Conv2d(maps // part, 5, padding=2), kfc.ReLU()),
            *(kfc.MaxPool2d(3, stride=2, ceil_mode=True), kfc.Dropout(rate)),
        ]
    layers.append(kfc.Flatten())
    for rate in behind[len(MAPS) :]:
        layers += [kfc.Dense(UNITS // part), kfc.ReLU(), kfc.Dropout(rate)]
    return kfc.Sequential([*layers, kfc.Dense(10)], input_shape=shape, seed=seed)


def load(folder: Folder, budget: float = BUDGET, part: int = 1) -> Task:
    """The task.

    Parameters
    ----------
    folder : path, optional
        Where `kfc_numba.datasets.load` looks for SVHN.
    budget : float
        Seconds.
    part : int
        Of the widths of the network.

    Returns
    -------
    Task
        Validation images are the last of the training set: no test image is used for tuning.

    Raises
    ------
    DatasetNotFoundError, DatasetError
    """
    found = datasets.load("svhn", folder)
    x, _ = found.normalized()
    kept = len(x) - min(MOST_VALIDATION, len(x) // 4)
    return Task(
        NAME,
        lambda seed: network(x.shape[1:], seed, part),
        kfc.SoftmaxCrossEntropy(),
        (x[:kept], found.y_train[:kept]),
        (x[kept:], found.y_train[kept:]),
        budget,
        data=f"SVHN, {kept:,} images of its training set",
    )


def make_files(folder: Path) -> None:
    """Files in the official format, with images whose brightness tells the digit."""
    for seed, (name, count) in enumerate(FILES.items()):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(count) % 10) + 1  # 10 is the digit 0
        noise = rng.integers(0, 50, (32, 32, 3, count))
        content = {"X": (noise + 20 * labels).astype(np.uint8), "y": labels[:, None].astype("u1")}
        scipy.io.savemat(folder / name, content, do_compression=True)


def run(task: Task, options: argparse.Namespace, store: Store) -> None:
    """KFC as it is, and SGD with the best learning rate of those tried with the first seed."""
    first, *others = options.seeds
    _run(task, None, first, options, store)
    best: tuple[Result, float] | None = None
    for rate in options.rates:
        result = _run(task, rate, first, options, store, best[0] if best else None)
        if result.loss < (best[0].loss if best else math.inf):
            best = result, rate
    for seed in others:
        _run(task, None, seed, options, store)
        if best:
            _run(task, best[1], seed, options, store)


def _run(
    task: Task,
    rate: float | None,
    seed: int,
    options: argparse.Namespace,
    store: Store,
    best: Result | None = None,
) -> Result:
    optimizer = kfc.KFC() if rate is None else rival("sgd", rate)
    batch = options.sizes["kfc" if rate is None else "sgd"]
    plan = plan_for(task, optimizer, batch, seed, budget=task.budget, sample=options.sample)
    new, rows = plan not in store, best.rows if best else None
    result = store.get(plan, lambda: own_run(task, optimizer, plan, reference=rows))
    if new:
        print(describe(result), flush=True)
    return result


# The report.


def section(results: Path) -> str:
    """The section of docs/results.md.

    Parameters
    ----------
    results : path
        Folder of all results.

    Returns
    -------
    str
        Where there are no results, why, and how to come by them.
    """
    title = "## SVHN"
    runs = _results(results)
    what = (
        f"the paper's network: convolutions of 5x5 with {', '.join(map(str, MAPS))} maps, two "
        f"dense layers of {UNITS:,} units, dropout"
    )
    if not runs:
        return (
            f"{title}\n\n**Not run: the data are not at hand.** They may be had for research, from "
            "their authors, and are not part of this library. With `train_32x32.mat` and "
            f"`test_32x32.mat` in FOLDER, `{COMMAND}` trains {what}, by KFC and by SGD with the "
            f"best of the learning rates {', '.join(f'{rate:g}' for rate in RATES)}, "
            f"{BUDGET:,.0f} seconds each, and fills this section. What is tested is that it runs, "
            "on made files of the official format."
        )
    parts = [title, *_claim(runs), figures.link(FIGURE, _caption(runs)), _table(runs)]
    parts.append(
        f"What deviates from the paper: {what.partition(':')[0]} as recalled from its text, with "
        "the dropout of Srivastava et al. (2014); the training set without the extra images; the "
        "last of its images are held out for the error; KFC with the defaults of this library."
    )
    return "\n\n".join(parts)


def _results(results: Path) -> list[Result]:
    return Store(results / NAME, read_only=True).newest()


def _best_sgd(runs: Sequence[Result]) -> Result | None:
    first = min(r.plan.seed for r in runs)
    found = [r for r in runs if r.name == "SGD" and r.plan.seed == first]
    return min(found, key=lambda r: r.loss, default=None)


def verdict(natural: float | None, plain: float) -> str:
    """On the seconds of KFC and of SGD to the loss that SGD ends with."""
    if natural is None or natural >= plain:
        return NOT
    return HOLDS if natural <= SEVERAL * plain else PART


def _claim(runs: Sequence[Result]) -> list[str]:
    sgd = _best_sgd(runs)
    ours = next((r for r in runs if r.name == "KFC" and sgd and r.plan.seed == sgd.plan.seed), None)
    if sgd is None or ours is None or not math.isfinite(sgd.loss):
        return ["Not both of KFC and SGD came to an end."]
    steps, seconds = sgd.reached(sgd.loss) or (sgd.rows[-1]["step"], sgd.rows[-1]["seconds"])
    reached = None if ours.outcome == DIVERGED else ours.reached(sgd.loss)
    text = f"{sgd.label} ends with a training loss of {sgd.loss:.4g}, after {seconds:.4g} s"
    if reached:
        text += (
            f" and {steps:,.0f} steps. KFC() gets there in {reached[1]:.4g} s and "
            f"{reached[0]:,.0f} steps: {seconds / reached[1]:.2f} times sooner, in "
            f"{steps / reached[0]:.1f} times fewer steps."
        )
    else:
        text += f" and {steps:,.0f} steps. KFC() does not get there."
    word = verdict(reached[1] if reached else None, seconds)
    return [f"**Claim: several times faster than carefully tuned SGD. It {word}.** {text}"]


def _table(runs: Sequence[Result]) -> str:
    lines = []
    for r in sorted(runs, key=lambda r: (r.label, r.plan.seed)):
        row = r.rows[-1]
        cells = (f"{row['step']:,}", f"{row['seconds']:.4g}", f"{row['training_loss']:.4g}")
        error = f"{100 * row['validation_error']:.2f}%"
        lines.append((r.label, r.plan.batch_size, r.plan.seed, *cells, error, r.problem or ""))
    headers = ("optimizer", "batch", "seed", "steps", "seconds", "training loss", "error",
               "why it ended early")  # fmt: skip
    return tabulate(lines, headers, "github", disable_numparse=True)


def _caption(runs: Sequence[Result]) -> str:
    plan = runs[0].plan
    processors = " and ".join(dict.fromkeys(r.environment["processor"] for r in runs))
    threads = " and ".join(dict.fromkeys(str(r.environment["threads"]) for r in runs))
    sizes = ", ".join(f"{r.name} {r.plan.batch_size}" for r in _shown(runs))
    return (
        "Training loss and error on held-out images against seconds of training. SVHN's training "
        f"set, the paper's network; batches: {sizes}; KFC() as it is, SGD with momentum 0.9 and "
        f"the best learning rate; seed {min(r.plan.seed for r in runs)}, {plan.budget:g} s "
        f"each; {processors}, {threads} threads."
    )


def _shown(runs: Sequence[Result]) -> list[Result]:
    """KFC and the best SGD, with the first seed."""
    first = min(r.plan.seed for r in runs)
    ours = [r for r in runs if r.name == "KFC" and r.plan.seed == first]
    sgd = _best_sgd(runs)
    return ours + ([sgd] if sgd else [])


def draw(results: Path, output: Path) -> None:
    """The figure, if there are results.

    Parameters
    ----------
    results : path
        Folder of all results.
    output : path
        Folder of the pages.
    """
    runs = _results(results)
    if not runs:
        return
    figure, panels = figures.new(1, 2)
    columns = (("training_loss", "training loss, nats", 1), ("validation_error", "error, %", 100))
    for panel, (column, label, factor) in zip(panels[0], columns, strict=True):
        for run, style in zip(_shown(runs), figures.STYLES, strict=False):
            rows = run.rows[1:]
            values = [factor * row[column] for row in rows]
            seconds = [row["seconds"] for row in rows]
            panel.plot(seconds, values, label=run.label, markersize=3.5, **style)
        panel.set(xlabel="seconds of training", ylabel=label, yscale="log")
        panel.legend(fontsize=8)
    figures.save(figure, output, FIGURE)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, (128,))
    parser.set_defaults(seeds=1)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="of SGD")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds ({BUDGET:g})")
    options = parse_common(parser, words)
    if not options.budget > 0:
        parser.error(f"--budget is {options.budget}; required: above 0")
    options.sizes, options.sample, options.part = BATCHES, TRAINING_SAMPLE, 1
    if options.fast:
        options.rates, options.budget, options.seeds = RATES[:2], 0.5, range(1)
        options.sizes, options.sample, options.part = {"kfc": 32, "sgd": 16}, 64, 16
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = folder if options.fast else None
        results = options.results or kept or RESULTS
        output = options.output or kept or ROOT / "docs"
        if not options.report_only:
            if options.fast:
                make_files(folder)
                options.data = folder
            try:
                task = load(options.data, options.budget, options.part)
            except datasets.DatasetNotFoundError as error:
                print(f"{error}\n\n{section(results)}")
                return 1
            print(f"{NAME}: {task.data}", flush=True)
            run(task, options, Store(results / NAME))
        draw(results, output)
        print(f"\n{section(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
