"""Optimizers by name, and their constructors' arguments as options of the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from kfc_numba.commands import CommandError
from kfc_numba.optim import OPTIMIZERS, Optimizer

#: Examples of a batch if nothing is said.
BATCH_SIZE = 128


def parameters(optimizer: str) -> dict[str, Any]:
    """Names of the options of an optimizer and what they are if not given.

    Parameters
    ----------
    optimizer : str
        A key of `OPTIMIZERS`.

    Returns
    -------
    dict
    """
    signature = inspect.signature(OPTIMIZERS[optimizer])
    return {name: parameter.default for name, parameter in signature.parameters.items()}


def build(optimizer: str, given: Mapping[str, Any]) -> Optimizer:
    """An optimizer with options as given on the command line.

    Parameters
    ----------
    optimizer : str
        A key of `OPTIMIZERS`.
    given : mapping of str to object
        Values of some of its `parameters`.

    Returns
    -------
    Optimizer

    Raises
    ------
    CommandError
        An option is not one of this optimizer, or out of range.
    """
    possible = parameters(optimizer)
    for name in given:
        if name not in possible:
            options = ", ".join(map(flag, possible))
            raise CommandError(f"{flag(name)} is no option of {optimizer}, whose are {options}")
    settings = possible | dict(given)
    return construct(OPTIMIZERS[optimizer], settings)


def rebuild(config: Mapping[str, Any]) -> Optimizer:
    """The optimizer that `Optimizer.config` described.

    Parameters
    ----------
    config : mapping of str to object

    Returns
    -------
    Optimizer
    """
    settings = dict(config)
    kinds = {kind.__name__: kind for kind in OPTIMIZERS.values()}
    name = settings.pop("optimizer", None)
    if name not in kinds:
        raise CommandError(f"optimizer {name!r} is unknown; known are {', '.join(kinds)}")
    return construct(kinds[name], settings)


def construct(kind: type[Optimizer], settings: Mapping[str, Any]) -> Optimizer:
    """``kind(**settings)``, with errors in the words of the command line.

    Parameters
    ----------
    kind : type
    settings : mapping of str to object

    Returns
    -------
    Optimizer

    Raises
    ------
    CommandError
        A setting is unknown or out of range.
    """
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        # Schedules are for programs.
        message = str(error).replace(" or a callable of the step", "")
        name = re.match(r"`?(\w+)`? \(=", message)
        if name and name[1] in settings:
            message = flag(name[1]) + message[name.end() - 3 :]
        raise CommandError(message) from None


def flag(name: str) -> str:
    """``--learning-rate`` for ``learning_rate``."""
    return "--" + name.replace("_", "-")


def literal(text: str) -> Any:
    """A value as written on a command line: none, true, false, a number, or else the text.

    Parameters
    ----------
    text : str

    Returns
    -------
    None, bool, int, float or str
    """
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def documentation(kind: type) -> dict[str, str]:
    """What the docstrings of a class and of its bases say about each parameter, in short.

    Parameters
    ----------
    kind : type

    Returns
    -------
    dict of str to str
        The possible texts if the type of a parameter lists them, else its first sentence.
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("Parameters\n----------\n")
        for entry in re.finditer(r"^(\w.*)\n((?:    .*\n?|\n)*)", section, re.MULTILINE):
            names, _, what = entry[1].partition(" : ")
            text = " ".join(entry[2].split()).partition(". ")[0].rstrip(".")
            if what.startswith("{"):
                text = "one of " + what.strip("{}").replace('"', "")
            for name in names.split(", "):
                if not text.startswith("See "):
                    found[name] = text or "true or false"
    return found
