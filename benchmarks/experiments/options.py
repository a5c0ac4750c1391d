"""What the command lines of the experiments share."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.experiments import tasks
from benchmarks.experiments.results import RESULTS, ROOT, Result, Store
from benchmarks.experiments.tasks import Task


def describe(result: Result) -> str:
    """A line about a run."""
    plan, row = result.plan, result.rows[-1]
    text = f"  {plan.task}, {result.label}, batch {plan.batch_size}, seed {plan.seed}: "
    text += f"{result.outcome}, {row['step']} steps in {row['seconds']:.3g} s, "
    text += (
        f"training loss {row['training_loss']:.4g}, validation error {row['validation_error']:.4g}"
    )
    return text + (f" ({result.problem})" if result.problem else "")


def available(names: Sequence[str], folder: tasks.Folder) -> Iterator[Task]:
    """The tasks whose data are there; a line about each of the others."""
    for name in names:
        try:
            task = tasks.load(name, folder)
        except tasks.MissingError as error:
            print(f"skipped {name}: {error}", flush=True)
            continue
        print(f"{name}: {task.data}", flush=True)
        yield task


def arguments(
    description: str | None, batches: Sequence[int] | None = None
) -> argparse.ArgumentParser:
    """Parser with the options that all experiments take; ``--batches`` where there are several."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    if batches is not None:
        parser.add_argument("--batches", type=int, nargs="+", default=list(batches), metavar="N")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many (5)")
    parser.add_argument("--data", metavar="FOLDER", help="where CIFAR-10 and Fashion-MNIST are")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="where results are kept (beside this file)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where the report is written (docs)"
    )
    parser.add_argument("--fast", action="store_true", help="only see that it runs; keep nothing")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    return parser


def parse_common(
    parser: argparse.ArgumentParser, words: Sequence[str] | None
) -> argparse.Namespace:
    """Options as given, checked; `seeds` becomes a range."""
    options = parser.parse_args(words)
    batches = getattr(options, "batches", [1])
    for name, values in (("--seeds", [options.seeds]), ("--batches", batches)):
        if min(values) < 1:
            parser.error(f"{name} is {min(values)}; required: at least 1")
    options.seeds = range(options.seeds)
    return options


@contextmanager
def folders(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """Where results of all experiments are and where pages go; with ``--fast`` nowhere for long."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if options.fast else None
        results, output = (
            options.results or kept or RESULTS,
            options.output or kept or ROOT / "docs",
        )
        output.mkdir(parents=True, exist_ok=True)
        yield results, output


@contextmanager
def store_and_output(options: argparse.Namespace) -> Iterator[tuple[Store, Path]]:
    """Results of experiments that have no folder of their own, and where the report goes."""
    with folders(options) as (results, output):
        yield Store(results, read_only=options.report_only), output
