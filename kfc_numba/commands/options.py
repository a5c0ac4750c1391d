"""Optimizers by name, and their constructors' arguments as options of the command line."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

from kfc_numba.commands import CommandError
from kfc_numba.foreign_names import RENAMED, similar
from kfc_numba.optim import OPTIMIZERS, Optimizer

#: Examples of a batch if nothing is said.
BATCH_SIZE = 128

#: Options of optimizers by subject, as help lists them; those of none come last.
SUBJECTS = {
    "steps": ("learning_rate", "momentum", "nesterov", "beta1", "beta2", "epsilon"),
    "bounds of steps": (
        *("loss_bound", "kl_bound", "norm_constraint", "exact_examples", "exact_period"),
        *("exact_by", "balance_layers", "max_loss_increase"),
    ),
    "curvature": (
        *("damping", "damping_strategy", "inversion", "curvature_examples", "curvature_ema"),
        *("curvature_update_period", "inverse_update_period", "period_growth"),
        *("decomposition_lag", "num_burnin_steps", "estimation_mode", "num_estimator_samples"),
        *("kfac_approx", "structure"),
    ),
    "adaptive rules": (
        *("use_adaptive_learning_rate", "use_adaptive_momentum", "use_adaptive_damping"),
        "adaptation",
    ),
    "generalisation": ("l2_reg", "weight_decay", "averaging"),
}

#: What other programs call an option, besides the names of arguments in `RENAMED`.
_ELSEWHERE = {
    "step-size": "learning-rate",
    "wd": "weight-decay",
    "batch": "batch-size",
    "bs": "batch-size",
    "steps": "max-steps",
    "iterations": "max-steps",
    "model": "network",
    "arch": "network",
    "optim": "optimizer",
    "out": "output",
    "output-dir": "output",
    "data-dir": "data",
    "random-seed": "seed",
    "workers": "threads",
    "jobs": "threads",
    "cov-ema-decay": "curvature-ema",
}


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
    return dict(_defaults(OPTIMIZERS[optimizer]))  # type: ignore[arg-type]


@functools.cache
def _defaults(kind: type[Optimizer]) -> dict[str, Any]:
    signature = inspect.signature(kind)
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
            others = [other for other in OPTIMIZERS if name in parameters(other)]
            hint = f"{' and '.join(others)} has it" if others else meant(flag(name), possible)
            raise CommandError(f"{flag(name)} is no option of {optimizer}; {hint}")
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

    Raises
    ------
    CommandError
        It is no description of an optimizer, or a setting is out of range.
    """
    settings = dict(config)
    kinds = {kind.__name__: kind for kind in OPTIMIZERS.values()}
    name = settings.pop("optimizer", None)
    if not isinstance(name, str) or name not in kinds:
        raise CommandError(f"optimizer {name!r} is unknown; known are {', '.join(kinds)}")
    for setting in settings:
        if setting not in _defaults(kinds[name]):  # type: ignore[arg-type]
            raise CommandError(f"optimizer {name} has no setting {setting!r}")
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


def meant(name: str, known: Collection[str]) -> str:
    """What to say of an option that there is not: those that it may have been meant for.

    Parameters
    ----------
    name : str
        As given.
    known : collection of str
        Those that there are, in any spelling of dashes.

    Returns
    -------
    str
        "did you mean ...?", or where the help is.
    """
    plain = {_plain(other): other for other in known}
    given = _plain(name)
    own = _ELSEWHERE.get(given)
    if own is None:
        own = _plain(RENAMED.get(given.replace("-", "_"), (given,))[0])
    close = [plain[own]] if own in plain else similar(own, known)
    if not close:
        return "--help lists those that there are"
    return f"did you mean {' or '.join(close)}?"


def _plain(name: str) -> str:
    return name.strip("-").replace("_", "-").lower()


def explanation(name: str) -> str:
    """What an option of optimizers does, and its value if it is not given.

    Parameters
    ----------
    name : str
        One of the `parameters` of an optimizer.

    Returns
    -------
    str
        From the docstrings, for each optimizer by itself where they differ.
    """
    values: dict[str, dict[str, str]] = {}  # by text, and then by optimizer
    for optimizer, kind in OPTIMIZERS.items():
        if name in parameters(optimizer):
            text = documentation(kind).get(name, "")  # type: ignore[arg-type]
            value = _written(parameters(optimizer)[name])
            values.setdefault(text, {})[optimizer] = value
    if len(values) > 1:
        return "; ".join(
            f"{optimizer}: {text} ({value})"
            for text, own in values.items()
            for optimizer, value in own.items()
        )
    ((text, own),) = values.items()
    if len(own) == len(OPTIMIZERS) and len(set(own.values())) == 1:
        return f"{text} ({own.popitem()[1]})"
    return f"{text} ({', '.join(f'{optimizer}: {value}' for optimizer, value in own.items())})"


def _written(value: Any) -> str:
    """A value as `literal` reads it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


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


@functools.cache
def documentation(kind: type) -> dict[str, str]:
    """What the docstrings of a class and of its bases say about each parameter, in short.

    Parameters
    ----------
    kind : type

    Returns
    -------
    dict of str to str
        The first sentence, and the possible texts if the type of a parameter lists them.
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("Parameters\n----------\n")
        section = re.split(r"\n\w+\n-+\n", section)[0]  # up to the next heading
        for entry in re.finditer(r"^(\w.*)\n((?:    .*\n?|\n)*)", section, re.MULTILINE):
            names, _, what = entry[1].partition(" : ")
            text = re.sub("`+", "", " ".join(entry[2].split()).partition(". ")[0].rstrip("."))
            text = text[:1].lower() + text[1:]
            if what.startswith("{"):
                text = f"{text}: {what.strip('{}')}".replace('"', "").removeprefix(": ")
            for name in names.split(", "):
                if not text.startswith("see "):
                    found[name] = text or "true or false"
    return found
