"""``kfc-numba compare``: the same network trained by several optimizers, one table, one plot."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from kfc_numba import plot
from kfc_numba.commands import CommandError, options
from kfc_numba.commands.run import (
    Config,
    Images,
    RunFolder,
    build_network,
    load_images,
    train,
    write_json,
    write_plot,
)
from kfc_numba.commands.tables import fitted
from kfc_numba.commands.train import DATASET, new_config
from kfc_numba.environment import environment
from kfc_numba.history import History
from kfc_numba.losses import SoftmaxCrossEntropy
from kfc_numba.train import Trainer

LOSSES = (1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1)
#: Options of a run besides those of its optimizer.
_RUN_OPTIONS = ("batch_size", "evaluate_every")
_EVALUATIONS_PER_EPOCH = 4


@dataclass(frozen=True)
class Run:
    """One of the runs to compare.

    Attributes
    ----------
    label : str
        What the user wrote for it.
    optimizer : str
        A key of `kfc_numba.optim.OPTIMIZERS`.
    settings : dict of str to object
        Options of the optimizer, `batch_size` and `evaluate_every`, as far as given.
    """

    label: str
    optimizer: str
    settings: dict[str, Any]


def command(arguments: argparse.Namespace) -> None:
    """Train each run in turn, write what came out, and print the table.

    Parameters
    ----------
    arguments : argparse.Namespace
        Options that were not given are None.
    """
    runs = [parse_run(text) for text in (*(arguments.optimizers or ()), *(arguments.run or ()))]
    runs = runs or [Run(name, name, {}) for name in ("kfc", "sgd")]
    if len({run.label for run in runs}) < len(runs):
        raise CommandError("two of the runs are the same; give each its own settings")
    dataset = arguments.dataset or DATASET
    images = load_images(dataset, arguments.data, download=arguments.download)
    configs = [_config(run, arguments, images) for run in runs]
    network = configs[0].network
    build_network(network, images)  # before there is a folder
    top = RunFolder.new(arguments.output, f"compare-{dataset}-{network}").path
    histories = {}
    for number, (run, config) in enumerate(zip(runs, configs, strict=True), 1):
        if not arguments.quiet:
            print(f"{number} of {len(runs)}: {run.label}", file=sys.stderr)
        _compile(config, images)
        folder = RunFolder.new(str(top / f"{number}-{run.optimizer}"), "")
        histories[run.label] = train(config, images, folder, progress=not arguments.quiet).history
    losses = sorted(arguments.losses or LOSSES, reverse=True)
    comparison = {
        "runs": {
            run.label: {"config": dataclasses.asdict(config)} | first_reached(history, losses)
            for (run, config, history) in zip(runs, configs, histories.values(), strict=True)
        },
        "environment": environment(),
    }
    write_json(top / "comparison.json", comparison)
    missing = write_plot(
        top / "curves.png",
        lambda: plot.comparison_figure(histories, f"{network} on {dataset}"),
    )
    print(table(comparison))
    print(f"written to {top}")
    if missing:
        print(missing)


def parse_run(text: str) -> Run:
    """A run as written on the command line: an optimizer, then settings.

    Parameters
    ----------
    text : str
        Such as ``"kfc learning_rate=0.03 batch_size=512"``.

    Returns
    -------
    Run

    Raises
    ------
    CommandError
        It names no optimizer, or a setting is malformed, unknown, or out of range.
    """
    optimizer, *words = text.split() or [""]
    if optimizer not in options.OPTIMIZERS:
        raise CommandError(
            f"run {text!r} must begin with an optimizer: {', '.join(options.OPTIMIZERS)}"
        )
    possible = (*options.parameters(optimizer), *_RUN_OPTIONS)
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip("-").replace("-", "_")
        if not equals or name not in possible:
            raise CommandError(
                f"run {text!r}: {word!r} must be NAME=VALUE with a NAME of {optimizer}; "
                f"{options.meant(name, possible)}"
            )
        settings[name] = options.literal(value)
    for name in _RUN_OPTIONS:
        value = settings.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CommandError(f"run {text!r}: {name} must be an integer of at least 1")
    run = Run(" ".join((optimizer, *words)), optimizer, settings)
    try:
        options.build(optimizer, _optimizer_settings(run))
    except CommandError as error:
        raise CommandError(f"run {text!r}: {error}") from None
    return run


def first_reached(history: History, losses: Sequence[float]) -> dict[str, Any]:
    """When a run first had a training loss of at most each of some values.

    Parameters
    ----------
    history : History
    losses : sequence of float

    Returns
    -------
    dict
        ``reached``, for each loss a mapping of ``loss``, ``step`` and ``seconds``, the latter two
        None if no evaluation was as low; ``last``, the last row of the history.
    """
    reached = []
    for loss in losses:
        rows = (row for row in history.rows if row["training_loss"] <= loss)
        row = next(rows, {"step": None, "seconds": None})
        reached.append({"loss": loss, "step": row["step"], "seconds": row["seconds"]})
    last = History(history.rows[-1:])
    return {"reached": reached, "last": json.loads(last.to_json())[0]}


def table(comparison: Mapping[str, Any], style: str = "simple") -> str:
    """Steps and seconds of each run to each training loss that one of them reached.

    Parameters
    ----------
    comparison : mapping
        Content of ``comparison.json``.
    style : str
        A table format of tabulate; ``"simple"`` is for a terminal, and no wider than one.

    Returns
    -------
    str
        A line for each run: steps and seconds to each loss, then the training loss and the test
        error after its last step.
    """
    runs = comparison["runs"]
    columns = [
        cells
        for cells in zip(*(run["reached"] for run in runs.values()), strict=True)
        if any(cell["step"] is not None for cell in cells)
    ]
    losses = [f"to loss {cells[0]['loss']:g}" for cells in columns]
    rows = []
    for number, (label, run) in enumerate(runs.items()):
        last = run["last"]
        loss = last["training_loss"]
        end = "loss not finite" if loss is None else f"loss {loss:.3f}"
        error = f"{100 * last['validation_error']:.2f}%"
        cells = [_cell(column[number]) for column in columns]
        rows.append([label, *cells, f"{end}, {_cell(last)}", error])
    headers = ["run", *losses, "at the end", "test error"]
    if style == "simple":
        return fitted(rows, headers)
    return tabulate(rows, headers, style, disable_numparse=True)


def _cell(entry: Mapping[str, Any]) -> str:
    if entry["step"] is None:
        return "-"
    return f"{entry['step']:,} steps, {entry['seconds']:.1f} s"


def _optimizer_settings(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.settings.items() if name not in _RUN_OPTIONS}


def _config(run: Run, arguments: argparse.Namespace, images: Images) -> Config:
    batch_size = run.settings.get("batch_size") or arguments.batch_size or options.BATCH_SIZE
    steps_per_epoch = math.ceil(len(images.x) / batch_size)
    evaluate_every = run.settings.get("evaluate_every") or arguments.evaluate_every
    return new_config(
        arguments,
        images,
        run.optimizer,
        _optimizer_settings(run),
        batch_size=batch_size,
        evaluate_every=evaluate_every or math.ceil(steps_per_epoch / _EVALUATIONS_PER_EPOCH),
    )


def _compile(config: Config, images: Images) -> None:
    """Do a step and throw it away, so that compilation is in nobody's seconds."""
    net = build_network(config.network, images)
    trainer = Trainer(net, SoftmaxCrossEntropy(), options.rebuild(config.optimizer))
    trainer.step(images.x[: config.batch_size], images.y[: config.batch_size])
