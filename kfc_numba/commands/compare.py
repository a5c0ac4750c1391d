"""``kfc-numba compare``: the same network trained by several optimizers, one table, one plot."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kfc_numba import plot
from kfc_numba.commands import CommandError, options
from kfc_numba.commands.config import (
    ALL_CHANGEABLE,
    Config,
    changed,
    config_from,
    differences,
    is_done,
    with_precision,
)
from kfc_numba.commands.folders import new_folder, old_folder, reason, write_json, write_plot
from kfc_numba.commands.lock import locked
from kfc_numba.commands.run import Diverged, Images, build_network, load_images, train
from kfc_numba.commands.runfolder import RunFolder
from kfc_numba.commands.tables import fitted
from kfc_numba.commands.train import DATASET, new_config, new_run
from kfc_numba.environment import environment
from kfc_numba.history import History
from kfc_numba.losses import SoftmaxCrossEntropy
from kfc_numba.schema import Check, anything, choice, mapping, optional, parse, record, text
from kfc_numba.train import Trainer

NAME = "comparison.json"
_LONGEST = 2**25  # bytes of it
LOSSES = (1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1)
#: Options of a run besides those of its optimizer.
_RUN_OPTIONS = ("batch_size", "evaluate_every")
_EVALUATIONS_PER_EPOCH = 4
_SCHEMA: Check = record(
    {
        "runs": mapping(
            record(
                {
                    "config": anything,
                    "status": choice("waiting", "finished", "diverged"),
                    "problem": optional(text),
                },
                more=anything,
            )
        )
    },
    more=anything,
)


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


@dataclass
class Entry:
    """One of the runs of a comparison, and how far it is.

    Attributes
    ----------
    config : Config
    folder : RunFolder
    status : str
        ``"waiting"``, ``"finished"`` or ``"diverged"``.
    problem : str or None
        Why it could not go on.
    history : History
        Empty as long as it waits.
    changes : list of dict
        Of its settings, by ``kfc-numba train --resume``.
    """

    config: Config
    folder: RunFolder
    status: str = "waiting"
    problem: str | None = None
    history: History = field(default_factory=History)
    changes: list[dict[str, Any]] = field(default_factory=list)


def command(arguments: argparse.Namespace) -> None:
    """Train each run in turn, write what came out, and print the table.

    A run that diverges is a row of the table like others; the command fails, with status 1, if all
    of them do.

    Parameters
    ----------
    arguments : argparse.Namespace
        Options that were not given are None.
    """
    with contextlib.ExitStack() as stack:
        prepare = _resumed if arguments.resume else _new
        top, entries, images = prepare(arguments, stack)
        losses = sorted(arguments.losses or LOSSES, reverse=True)
        try:
            for number, (label, entry) in enumerate(entries.items(), 1):
                write_json(top / NAME, _content(entries, losses))
                if not arguments.quiet:
                    print(f"{number} of {len(entries)}: {label}", file=sys.stderr)
                if entry.status == "waiting":
                    _do(
                        *(entry, images),
                        progress=not arguments.quiet,
                        device=arguments.device,
                    )
        except KeyboardInterrupt:
            advice = "nothing is kept"
            if _begun(top):
                advice = f"to go on: kfc-numba compare --resume --output {top}"
            raise CommandError(f"interrupted; {advice}", 130) from None
        comparison = _content(entries, losses)
        write_json(top / NAME, comparison)
        config = next(iter(entries.values())).config
        title = f"{config.network} on {config.dataset}"
        histories = {label: entry.history for label, entry in entries.items()}
        missing = write_plot(top / "curves.png", lambda: plot.comparison_figure(histories, title))
    print(table(comparison))
    print(f"written to {top}")
    if missing:
        print(missing)
    if all(entry.status == "diverged" for entry in entries.values()):
        raise CommandError("all runs diverged", 1)


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
        found = ((row, row["training_loss"]) for row in history.rows)
        rows = (row for row, value in found if value is not None and value <= loss)
        row = next(rows, {"step": None, "seconds": None})
        reached.append({"loss": loss, "step": row["step"], "seconds": row["seconds"]})
    last = json.loads(History(history.rows[-1:]).to_json())
    return {"reached": reached, "last": last[0] if last else None}


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
        loss = last and last["training_loss"]
        end = "loss not finite" if loss is None else f"loss {loss:.3f}"
        error = "-"
        if run.get("status") == "diverged":
            end = f"diverged ({run['problem']})"
        else:
            end = f"{end}, {_cell(last)}"
            error = f"{100 * last['validation_error']:.2f}%"
        rows.append([label, *(_cell(column[number]) for column in columns), end, error])
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


def _new(
    arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> tuple[Path, dict[str, Entry], Images]:
    runs = _runs(arguments) or [Run(name, name, {}) for name in ("kfc", "sgd")]
    dataset = arguments.dataset or DATASET
    images = load_images(dataset, arguments.data, download=arguments.download)
    configs = [_config(run, arguments, images) for run in runs]
    network = configs[0].network
    build_network(network, images)  # before there is a folder
    usual = f"compare-{dataset}-{network}"
    top = stack.enter_context(new_folder(arguments.output, usual, _begun))
    entries = {
        run.label: Entry(config, RunFolder(top / _folder(number, run)))
        for number, (run, config) in enumerate(zip(runs, configs, strict=True), 1)
    }
    for entry in entries.values():
        if entry.folder.checkpoint.exists() or entry.folder.history.exists():
            raise CommandError(
                f"--output: {entry.folder.path} already holds a run, which is not overwritten; "
                "give another folder"
            )
    return top, entries, images


def _resumed(
    arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> tuple[Path, dict[str, Entry], Images]:
    if arguments.output is None:
        raise CommandError("--resume needs --output FOLDER, of the comparison to go on with")
    top = stack.enter_context(old_folder(arguments.output, "a comparison", NAME))
    labels = [run.label for run in _runs(arguments)]
    entries = _read(top)
    if labels and labels != list(entries):
        raise CommandError(f"--resume keeps the runs of {top}, which are {', '.join(entries)}")
    limits = {name: getattr(arguments, name) for name in ("epochs", "max_steps", "data")}
    for label, entry in entries.items():
        own = parse_run(label).settings
        for name in ("dataset", "network", "seed", *_RUN_OPTIONS):
            value, before = getattr(arguments, name), getattr(entry.config, name)
            if value is not None and name not in own and value != before:
                raise CommandError(
                    f"{options.flag(name)} {value} does not fit: {top} was started with {before}, "
                    "and a resumed comparison keeps its settings"
                )
        done = entry.history.rows[-1] if entry.history.rows else {}
        config = changed(entry.config, limits, done, entry.folder.path)
        entry.config, changes = with_precision(config, arguments, done, f"{label}, ")
        entry.changes = [*entry.changes, *changes]
        if entry.status != "diverged":
            entry.status = "finished" if is_done(entry.config, done) else "waiting"
    config = next(iter(entries.values())).config
    images = load_images(config.dataset, config.data, download=arguments.download)
    if any(images.checksum != entry.config.data_checksum for entry in entries.values()):
        raise CommandError(
            f"data set {config.dataset!r} holds other images than those that {top} was started with"
        )
    return top, entries, images


def _read(top: Path) -> dict[str, Entry]:
    """The runs of a comparison, as its files say."""
    path = top / NAME
    try:
        if path.stat().st_size > _LONGEST:
            raise ValueError(f"more than {_LONGEST:,} bytes")
        content = parse(path.read_text(encoding="utf-8"))
        saved = _SCHEMA("the file", content)["runs"]
        entries = {}
        for number, (label, run) in enumerate(saved.items(), 1):
            try:
                folder = RunFolder(top / _folder(number, parse_run(label)))
            except CommandError as error:
                raise ValueError(str(error)) from None
            config = config_from("config", run["config"])
            status = run["status"]
            entries[label] = Entry(config, folder, status, run["problem"])
    except OSError as error:
        raise CommandError(reason(error)) from None
    except ValueError as error:
        raise CommandError(f"{path} is not what this version writes ({error})") from None
    for entry in entries.values():
        if entry.folder.checkpoint.exists() or entry.folder.history.exists():
            stored = entry.folder.read()
            if stored.mismatch:
                print(stored.mismatch, file=sys.stderr)
            for name, here, there in differences(entry.config, stored.config):
                if name not in ALL_CHANGEABLE:
                    raise CommandError(
                        f"{entry.folder.path} is not a run of this comparison: its {name} is "
                        f"{there}, {path} has {here}"
                    )
            entry.config, entry.history = stored.config, History(stored.rows)
            entry.changes = stored.changes
            if entry.status == "diverged" and entry.folder.history.exists():
                entry.history = History(entry.folder.read_history()[2])
        else:
            entry.status, entry.problem = "waiting", None
    return entries


def _do(entry: Entry, images: Images, *, progress: bool, device: str) -> None:
    """Do a run, or what is left of it."""
    folder = entry.folder
    _compile(entry.config, images)
    with contextlib.ExitStack() as stack:
        if folder.checkpoint.exists():
            stack.enter_context(locked(folder.path))
        else:
            folder.history.unlink(missing_ok=True)
            stack.enter_context(new_run(str(folder.path), ""))
        try:
            entry.history = train(
                *(entry.config, images, folder),
                progress=progress,
                changes=entry.changes,
                device=device,
            ).history
            entry.status = "finished"
        except Diverged as error:
            entry.history = error.trainer.history
            entry.status, entry.problem = "diverged", error.problem


def _content(entries: Mapping[str, Entry], losses: Sequence[float]) -> dict[str, Any]:
    """Content of ``comparison.json``."""
    return {
        "runs": {
            label: {
                "config": dataclasses.asdict(entry.config),
                "status": entry.status,
                "problem": entry.problem,
                **first_reached(entry.history, losses),
            }
            for label, entry in entries.items()
        },
        "environment": environment(),
    }


def _runs(arguments: argparse.Namespace) -> list[Run]:
    """The runs that were given."""
    runs = [parse_run(text) for text in (*(arguments.optimizers or ()), *(arguments.run or ()))]
    if len({run.label for run in runs}) < len(runs):
        raise CommandError("two of the runs are the same; give each its own settings")
    return runs


def _folder(number: int, run: Run) -> str:
    return f"{number}-{run.optimizer}"


def _begun(top: Path) -> bool:
    """Whether there is a run that something was computed of."""
    return any(top.glob("*/checkpoint.safetensors"))


def _compile(config: Config, images: Images) -> None:
    """Do a step and throw it away, so that compilation is in nobody's seconds."""
    net = build_network(config.network, images)
    trainer = Trainer(net, SoftmaxCrossEntropy(), options.rebuild(config.optimizer))
    # What diverges at once does so again where it is told.
    with contextlib.suppress(FloatingPointError):
        trainer.step(images.x[: config.batch_size], images.y[: config.batch_size])
