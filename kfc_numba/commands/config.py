"""Settings of a run, and what they must be where they come from a file."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kfc_numba import datasets, networks
from kfc_numba.commands import CommandError
from kfc_numba.commands.options import flag, rebuild
from kfc_numba.schema import Check, anything, choice, clipped, integer, optional, record, text
from kfc_numba.schema import flag as truth

#: Settings of which a resumed run may be given others: how long it is to be, where its data lies,
#: how what follows is rounded.
CHANGEABLE = ("epochs", "max_steps", "data", "tf32")
#: The same of its optimizer, as after divergence.
CHANGEABLE_SETTINGS = ("learning_rate",)
ALL_CHANGEABLE = (*CHANGEABLE, *CHANGEABLE_SETTINGS)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What determines the result of a run on one machine.

    Attributes
    ----------
    dataset : str
    data : str or None
        Folder that was given for it.
    data_checksum : int
        CRC-32 of the images and labels.
    network : str
    optimizer : dict
        As `Optimizer.config` gives it.
    batch_size : int
    epochs, max_steps, evaluate_every : int or None
        As in `Trainer.fit`.
    seed : int
        Of the initial parameters and of training.
    tf32 : bool
        Whether products are in TF32; after a change, those of the steps that follow.
    """

    dataset: str
    data: str | None
    data_checksum: int
    network: str
    optimizer: dict[str, Any]
    batch_size: int
    epochs: int | None
    max_steps: int | None
    evaluate_every: int | None
    seed: int
    tf32: bool


#: Schema of a `Config` as JSON.
CONFIG: Check = record(
    {
        "dataset": choice(*datasets.names()),
        "data": optional(text),
        "data_checksum": integer(),
        "network": choice(*networks.names()),
        "optimizer": record({"optimizer": text}, more=anything),
        "batch_size": integer(1),
        "epochs": optional(integer(1)),
        "max_steps": optional(integer(1)),
        "evaluate_every": optional(integer(1)),
        "seed": integer(),
        "tf32": truth,
    }
)


def config_from(place: str, value: Any) -> Config:
    """Settings from JSON.

    Parameters
    ----------
    place : str
        Of the value in its document.
    value : object

    Returns
    -------
    Config

    Raises
    ------
    ValueError
    """
    if isinstance(value, dict):
        value = {"tf32": False} | value  # files of before there was TF32 do not say
    config = Config(**CONFIG(place, value))
    try:
        optimizer = rebuild(config.optimizer).config()
    except (CommandError, OverflowError) as error:
        raise ValueError(f"{place}.optimizer: {clipped(str(error), 300)}") from None
    for name in optimizer:
        if name not in config.optimizer:
            raise ValueError(f"{place}.optimizer lacks {name}")
    return dataclasses.replace(config, optimizer=optimizer)


def differences(one: Config, other: Config) -> list[tuple[str, Any, Any]]:
    """Settings in which two runs differ, and their values.

    Parameters
    ----------
    one, other : Config

    Returns
    -------
    list of (str, object, object)
    """
    first, second = (_flat(dataclasses.asdict(config)) for config in (one, other))
    names = dict.fromkeys([*first, *second])
    pairs = ((name, first.get(name), second.get(name)) for name in names)
    return [(name, a, b) for name, a, b in pairs if a != b or type(a) is not type(b)]


def changed(
    config: Config, given: Mapping[str, Any], done: Mapping[str, Any], where: Any
) -> Config:
    """Settings of a run that goes on, with those that may be others.

    Parameters
    ----------
    config : Config
    given : mapping of str to object
        New values of some of `CHANGEABLE`.
    done : mapping of str to object
        The last row of the history, if there is one.
    where : path
        Folder of the run, for the message.

    Returns
    -------
    Config

    Raises
    ------
    CommandError
        The run has done more already.
    """
    limits = [name for name in CHANGEABLE if name != "tf32"]  # see `with_precision`
    changes = {name: given[name] for name in limits if given.get(name) is not None}
    if {"epochs", "max_steps"} & changes.keys():
        changes = {"epochs": None, "max_steps": None} | changes
    config = dataclasses.replace(config, **changes)
    for name, limit, unit in (
        ("epochs", config.epochs, "epoch"),
        ("max_steps", config.max_steps, "step"),
    ):
        if limit is not None and done and done[unit] > limit:
            raise CommandError(
                f"{flag(name)} {limit} does not fit: {where} has done {done[unit]:g} already"
            )
    return config


def with_precision(
    config: Config, arguments: Namespace, done: Mapping[str, Any], name: str = ""
) -> tuple[Config, list[dict[str, Any]]]:
    """A run that goes on, in the precision of before if it is not told another; the CPU has one.

    A change is told on the error stream.

    Parameters
    ----------
    config : Config
    arguments : argparse.Namespace
        Of which ``tf32`` is None or a bool, and ``device`` is ``"cpu"`` or ``"cuda"``.
    done : mapping of str to object
        The last row of the history, if there is one.
    name : str
        Of the run, for the message.

    Returns
    -------
    config : Config
    changes : list of dict
        What changes, and at which step, as ``history.json`` has it: one or none.
    """
    given = config.tf32 if arguments.tf32 is None else arguments.tf32
    tf32 = given and arguments.device == "cuda"
    if tf32 == config.tf32 or is_done(config, done):
        return config, []
    change = {"step": done["step"] if done else 0, "settings": {"tf32": [config.tf32, tf32]}}
    print(name + told(change), file=sys.stderr)
    return dataclasses.replace(config, tf32=tf32), [change]


def told(change: Mapping[str, Any]) -> str:
    """A change of settings in words.

    Parameters
    ----------
    change : mapping of str to object
        As ``history.json`` has it.

    Returns
    -------
    str
    """
    texts = [
        f"products in {_PRECISION[new]} in place of {_PRECISION[old]}"
        if name == "tf32"
        else f"{flag(name)} {new} in place of {old}"
        for name, (old, new) in change["settings"].items()
    ]
    return f"after step {change['step']}: {', '.join(texts)}"


_PRECISION = {False: "float32", True: "TF32"}


def is_done(config: Config, last: Mapping[str, Any]) -> bool:
    """Whether a run has come to its end.

    Parameters
    ----------
    config : Config
    last : mapping of str to object
        The last row of its history, if there is one.

    Returns
    -------
    bool
    """
    limits = ((config.epochs, "epoch"), (config.max_steps, "step"))
    return any(limit is not None and last and last[unit] >= limit for limit, unit in limits)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    optimizer = dict(values["optimizer"])
    rest = {name: value for name, value in values.items() if name != "optimizer"}
    return rest | {"optimizer": optimizer.pop("optimizer", None)} | optimizer
