"""``kfc-numba train``: one run, new or resumed, and the table of its result."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
import textwrap
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kfc_numba import networks, plot
from kfc_numba.commands import CommandError, options
from kfc_numba.commands.config import (
    CHANGEABLE,
    CHANGEABLE_SETTINGS,
    Config,
    changed,
    is_done,
    told,
    with_precision,
)
from kfc_numba.commands.folders import new_folder, old_folder, write_plot
from kfc_numba.commands.run import Images, build_network, load_images, train
from kfc_numba.commands.runfolder import RunFolder
from kfc_numba.history import History
from kfc_numba.progress import WIDTH

DATASET = "fashion-mnist-10k"
EPOCHS = 6

_MOST_ROWS = 20


def command(arguments: argparse.Namespace) -> None:
    """Train, or continue, as the arguments say.

    Parameters
    ----------
    arguments : argparse.Namespace
        Options that were not given are None, those of optimizers absent.
    """
    with contextlib.ExitStack() as stack:
        if arguments.resume:
            folder, config, images, changes = _resumed(arguments, stack)
        else:
            folder, config, images = _new(arguments, stack)
            changes = []
        if not arguments.quiet:
            print(_headline(config, images), file=sys.stderr)
        try:
            trainer = train(
                *(config, images, folder),
                progress=not arguments.quiet,
                changes=changes,
                device=arguments.device,
            )
        except KeyboardInterrupt:
            raise CommandError(interrupted(folder), 130) from None
        _report(arguments, folder, config, images, trainer.history)


def _report(
    arguments: argparse.Namespace,
    folder: RunFolder,
    config: Config,
    images: Images,
    history: History,
) -> None:
    title = f"{config.network} on {config.dataset}, {config.optimizer['optimizer']}"
    missing = write_plot(folder.curves, lambda: plot.history_figure(history, title))
    if not arguments.quiet:
        print(history_table(history))
    print(result(history, len(images.x_test)))
    print(f"written to {folder.path}: {', '.join(sorted(p.name for p in folder.files()))}")
    if missing and not arguments.quiet:
        print(missing)


def interrupted(folder: RunFolder) -> str:
    """What is said when a run was interrupted.

    Parameters
    ----------
    folder : RunFolder

    Returns
    -------
    str
    """
    if not folder.checkpoint.exists():
        return "interrupted before the first evaluation: nothing is kept"
    return (
        "interrupted; to go on from the last evaluation: "
        f"kfc-numba train --resume --output {folder.path}"
    )


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
            "tf32": bool(given["tf32"]),
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
    """The run in a few words."""
    optimizer = options.rebuild(config.optimizer)  # whose repr has what is not the usual
    text = (
        f"network {config.network} on {config.dataset} ({len(images.x):,} training and "
        f"{len(images.x_test):,} test images) by {optimizer!r}, batch size {config.batch_size}"
    )
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    names = {name for optimizer in options.OPTIMIZERS for name in options.parameters(optimizer)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def _new(
    arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> tuple[RunFolder, Config, Images]:
    optimizer = arguments.optimizer or "kfc"
    dataset = arguments.dataset or DATASET
    settings = _given_settings(arguments)
    options.build(optimizer, settings)  # wrong options show before the data is loaded
    images = load_images(dataset, arguments.data, download=arguments.download)
    config = new_config(arguments, images, optimizer, settings)
    build_network(config.network, images)  # before there is a folder
    usual = f"{config.dataset}-{config.network}-{optimizer}"
    return RunFolder(stack.enter_context(new_run(arguments.output, usual))), config, images


def new_run(given: str | None, usual: str) -> contextlib.AbstractContextManager[Path]:
    """A folder for a new run, which is kept if there is a checkpoint in the end; see `new_folder`.

    Parameters
    ----------
    given : str or None
    usual : str

    Returns
    -------
    context manager
        Of a path.
    """
    return new_folder(given, usual, lambda path: RunFolder(path).checkpoint.exists())


def _resumed(
    arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> tuple[RunFolder, Config, Images, list[dict[str, Any]]]:
    if arguments.output is None:
        raise CommandError("--resume needs --output FOLDER, the folder of the run to go on with")
    found = stack.enter_context(old_folder(arguments.output, "a run", "history.json"))
    folder = RunFolder(found)
    stored = folder.read()
    if stored.mismatch:
        print(stored.mismatch, file=sys.stderr)
    config, done = stored.config, stored.rows[-1] if stored.rows else {}
    old = dataclasses.asdict(config) | {"optimizer": config.optimizer["optimizer"].lower()}
    given = {name: getattr(arguments, name) for name in (*_PLAIN, "optimizer")}
    given = {name: value for name, value in given.items() if value is not None}
    settings = _given_settings(arguments)
    for pairs, before, changeable in (
        (given, old, CHANGEABLE),
        (settings, config.optimizer, CHANGEABLE_SETTINGS),
    ):
        for name, value in pairs.items():
            if (name not in changeable or name not in before) and value != before.get(name):
                raise CommandError(
                    f"{options.flag(name)} {value} does not fit: {folder.path} was started with "
                    f"{before.get(name)}, and a resumed run keeps its settings"
                )
    config = changed(config, given, done, folder.path)
    if is_done(config, done) and not arguments.quiet:
        print(f"{folder.path} is done; more --epochs or --max-steps go on with it", file=sys.stderr)
    config, changes = _with_settings(config, settings, done)
    for change in changes:
        print(told(change), file=sys.stderr)
    config, more = with_precision(config, arguments, done)
    images = load_images(config.dataset, config.data, download=arguments.download)
    if images.checksum != config.data_checksum:
        raise CommandError(
            f"data set {config.dataset!r} holds other images than those that {folder.path} was "
            "started with"
        )
    return folder, config, images, [*stored.changes, *changes, *more]


def _with_settings(
    config: Config, settings: dict[str, Any], done: dict[str, Any]
) -> tuple[Config, list[dict[str, Any]]]:
    """A run with other settings of its optimizer; and at which step from what to what."""
    before = config.optimizer
    optimizer = options.rebuild(before | settings).config()
    change = {k: [before[k], v] for k, v in optimizer.items() if k in settings and v != before[k]}
    if not change:
        return config, []
    config = dataclasses.replace(config, optimizer=optimizer)
    return config, [{"step": done["step"] if done else 0, "settings": change}]
