"""``kfc-numba train``: one run, new or resumed, and the table of its result."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import textwrap
from typing import Any

from tabulate import tabulate

from kfc_numba import networks, plot
from kfc_numba.commands import CommandError, options
from kfc_numba.commands.run import (
    Config,
    Images,
    RunFolder,
    build_network,
    load_images,
    train,
    write_plot,
)
from kfc_numba.history import History
from kfc_numba.progress import WIDTH

DATASET = "fashion-mnist-10k"
EPOCHS = 6

#: Options that a resumed run may be given anew: how long it is to be, and where its data lies.
_CHANGEABLE = ("epochs", "max_steps", "data")
_MOST_ROWS = 20


def command(arguments: argparse.Namespace) -> None:
    """Train, or continue, as the arguments say.

    Parameters
    ----------
    arguments : argparse.Namespace
        Options that were not given are None, those of optimizers absent.
    """
    if arguments.resume:
        folder, config, images = _resumed(arguments)
    else:
        folder, config, images = _new(arguments)
    if not arguments.quiet:
        print(_headline(config, images), file=sys.stderr)
    try:
        trainer = train(config, images, folder, progress=not arguments.quiet)
    except KeyboardInterrupt:
        raise CommandError(
            f"interrupted; to go on from the last evaluation: "
            f"kfc-numba train --resume --output {folder.path}",
            130,
        ) from None
    title = f"{config.network} on {config.dataset}, {config.optimizer['optimizer']}"
    missing = write_plot(folder.curves, lambda: plot.history_figure(trainer.history, title))
    if not arguments.quiet:
        print(history_table(trainer.history))
    print(result(trainer.history, len(images.x_test)))
    print(f"written to {folder.path}: {', '.join(sorted(p.name for p in folder.files()))}")
    if missing and not arguments.quiet:
        print(missing)


def new_config(
    arguments: argparse.Namespace,
    images: Images,
    optimizer: str,
    settings: dict[str, Any],
    **changes: Any,
) -> Config:
    """Settings of a new run: those given, and the usual ones for the rest.

    Parameters
    ----------
    arguments : argparse.Namespace
    images : Images
    optimizer : str
        A key of `kfc_numba.optim.OPTIMIZERS`.
    settings : dict of str to object
        What was given of its options.
    **changes
        Attributes of `Config` in place of those of `arguments`.

    Returns
    -------
    Config
    """
    given = {name: changes.get(name, getattr(arguments, name)) for name in _PLAIN}
    batch_size = given["batch_size"] or options.BATCH_SIZE
    if given["epochs"] is None and given["max_steps"] is None:
        given["epochs"] = EPOCHS
    return Config(
        **given
        | {
            "dataset": given["dataset"] or DATASET,
            "data_checksum": images.checksum,
            "network": given["network"] or networks.default(images.x.shape[1:]),
            "optimizer": options.build(optimizer, settings).config(),
            "batch_size": batch_size,
            "seed": given["seed"] or 0,
        }
    )


_PLAIN = tuple(
    field.name
    for field in dataclasses.fields(Config)
    if field.name not in ("data_checksum", "optimizer")
)


def history_table(history: History) -> str:
    """Rows of a history as text, about twenty of them if there are many.

    Parameters
    ----------
    history : History

    Returns
    -------
    str
    """
    rows = history.rows
    every = math.ceil(len(rows) / _MOST_ROWS)
    shown = [row for index, row in enumerate(rows) if index % every == 0 or row is rows[-1]]
    return tabulate(
        [[row[name] for name in _COLUMNS] for row in shown],
        [name.replace("_", " ") for name in _COLUMNS],
        "simple",
        floatfmt=("d", ".2f", ".1f", ".4f", ".4f", ".4f"),
        missingval="-",
    )


_COLUMNS = ("step", "epoch", "seconds", "training_loss", "validation_loss", "validation_error")


def result(history: History, count: int) -> str:
    """The error after the last step, in words.

    Parameters
    ----------
    history : History
    count : int
        Number of test images.

    Returns
    -------
    str
    """
    row = history.rows[-1]
    return (
        f"error on {count:,} test images: {100 * row['validation_error']:.2f}% "
        f"after {row['step']:,} steps, {row['seconds']:.1f} s of training"
    )


def _headline(config: Config, images: Images) -> str:
    """The run in a few words: of the settings of its optimizer, those that are not the usual."""
    name = config.optimizer["optimizer"]
    usual = options.build(name.lower(), {}).config()
    values = ", ".join(f"{k}={v}" for k, v in config.optimizer.items() if v != usual[k])
    text = (
        f"network {config.network} on {config.dataset} ({len(images.x):,} training and "
        f"{len(images.x_test):,} test images) by {name}({values}), batch size {config.batch_size}"
    )
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    names = {name for optimizer in options.OPTIMIZERS for name in options.parameters(optimizer)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def _new(arguments: argparse.Namespace) -> tuple[RunFolder, Config, Images]:
    optimizer = arguments.optimizer or "kfc"
    dataset = arguments.dataset or DATASET
    settings = _given_settings(arguments)
    options.build(optimizer, settings)  # wrong options show before the data is loaded
    images = load_images(dataset, arguments.data, download=arguments.download)
    config = new_config(arguments, images, optimizer, settings)
    build_network(config.network, images)  # before there is a folder
    folder = RunFolder.new(arguments.output, f"{config.dataset}-{config.network}-{optimizer}")
    return folder, config, images


def _resumed(arguments: argparse.Namespace) -> tuple[RunFolder, Config, Images]:
    if arguments.output is None:
        raise CommandError("--resume needs --output FOLDER, the folder of the run to go on with")
    folder = RunFolder(arguments.output)
    config, rows = folder.read()
    stored = dataclasses.asdict(config) | {"optimizer": config.optimizer["optimizer"].lower()}
    given = {name: getattr(arguments, name) for name in (*_PLAIN, "optimizer")}
    given = {name: value for name, value in given.items() if value is not None}
    for settings, old in ((given, stored), (_given_settings(arguments), config.optimizer)):
        for name, value in settings.items():
            if name not in _CHANGEABLE and value != old.get(name):
                raise CommandError(
                    f"{options.flag(name)} {value} does not fit: {folder.path} was started with "
                    f"{old.get(name)}, and a resumed run keeps its settings"
                )
    changes = {name: given[name] for name in _CHANGEABLE if name in given}
    if {"epochs", "max_steps"} & changes.keys():
        changes = {"epochs": None, "max_steps": None} | changes
    config = dataclasses.replace(config, **changes)
    for name, limit, done in (
        ("epochs", config.epochs, "epoch"),
        ("max_steps", config.max_steps, "step"),
    ):
        if limit is not None and rows and rows[-1][done] > limit:
            raise CommandError(
                f"{options.flag(name)} {limit} does not fit: {folder.path} has done "
                f"{rows[-1][done]:g} already"
            )
    images = load_images(config.dataset, config.data, download=arguments.download)
    if images.checksum != config.data_checksum:
        raise CommandError(
            f"data set {config.dataset!r} holds other images than those that {folder.path} was "
            "started with"
        )
    return folder, config, images
