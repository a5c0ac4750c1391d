"""What a trainer keeps in a file, what such a file must hold, and back.

Nothing is changed before all of a file has proved to fit: first its header, by a schema, then the
names, shapes and dtypes of its arrays, then their values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from kfc_numba import checkpoint as files
from kfc_numba.checkpoint import CheckpointError, CheckpointFile
from kfc_numba.description import (
    LOSS,
    NETWORK,
    OPTIMIZER,
    call,
    describe_loss,
    describe_network,
    describe_optimizer,
    lines,
)
from kfc_numba.devices import like, to_host
from kfc_numba.graph import Graph
from kfc_numba.history import HEADER_ROWS, History
from kfc_numba.losses import Loss
from kfc_numba.normalization import Normalization
from kfc_numba.optim.averaging import PREFIX, WEIGHT, average
from kfc_numba.optim.base import Optimizer
from kfc_numba.optim.ranges import LEAST, LEAST_STATISTIC, MOST_STEPS, POSITIVE
from kfc_numba.runs import checkpoint_of
from kfc_numba.schema import (
    Check,
    anything,
    choice,
    flag,
    integer,
    number,
    optional,
    record,
    sequence,
    text,
)

if TYPE_CHECKING:
    from kfc_numba.train import Trainer

T = TypeVar("T", bound="Trainer")

#: What both kinds of file say of a network.
_MODEL: dict[str, Check] = {
    "network": NETWORK,
    "loss": optional(LOSS),
    "normalization": optional(
        record({"mean": sequence(number(), least=1), "std": sequence(number(), least=1)})
    ),
    "classes": optional(sequence(text, least=1)),
}
_SCHEMAS: dict[str, Check] = {
    "network": record({"content": text, **_MODEL}),
    "trainer": record(
        {
            "content": text,
            **_MODEL,
            "loss": LOSS,
            "optimizer": OPTIMIZER,
            "trainer": record(
                {
                    "run": text,
                    "seed": integer(most=2**128),
                    "epoch": integer(),
                    "position": integer(),
                    "examples": integer(),
                    "seconds": number(0),
                    "prepared": flag,
                }
            ),
            "history": HEADER_ROWS,
            "notes": record({}, more=anything),
        }
    ),
}


def save_trainer(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Write all that `load_trainer` needs to one file, whole or not at all.

    Parameters
    ----------
    trainer : Trainer
    path : path
        An existing file is replaced.
    """
    arrays = {f"params/{name}": value for name, value in trainer.raw_params.items()}
    arrays |= {f"buffers/{name}": value for name, value in trainer.raw_buffers.items()}
    arrays |= {f"optimizer/{name}": value for name, value in trainer.optimizer_state.items()}
    arrays = {name: to_host(value) for name, value in arrays.items()}
    header = {
        "content": "trainer",
        **_model(trainer.net, trainer.loss, trainer.normalization, trainer.classes),
        "optimizer": describe_optimizer(trainer.optimizer),
        "trainer": {
            "run": trainer.run,
            "seed": trainer.seed,
            "epoch": trainer._epoch,
            "position": trainer._position,
            "examples": trainer._examples,
            "seconds": trainer._seconds,
            "prepared": trainer._prepared,
        },
        "history": trainer.history.to_header(),
        "notes": trainer.notes,
    }
    files.save(path, arrays, header)


def save_network(
    path: str | os.PathLike[str],
    net: Graph,
    loss: Loss | None = None,
    normalization: Normalization | None = None,
    classes: tuple[str, ...] | None = None,
) -> None:
    """Write a network alone, without what training needs.

    Parameters
    ----------
    path : path
        An existing file is replaced.
    net : Graph
    loss, normalization, classes : optional
        As in `kfc_numba.Model`.
    """
    arrays = {f"params/{name}": value for name, value in net.params.items()}
    arrays |= {f"buffers/{name}": value for name, value in net.buffers.items()}
    arrays = {name: to_host(value) for name, value in arrays.items()}
    files.save(path, arrays, {"content": "network", **_model(net, loss, normalization, classes)})


@contextmanager
def opened(path: str | os.PathLike[str], *contents: str) -> Iterator[CheckpointFile]:
    """A file whose header has proved to be what is written by this module.

    Parameters
    ----------
    path : path
        Of the file, or of the run folder that has it.
    *contents : str
        ``"trainer"``, ``"network"``, or both: what is wanted.

    Yields
    ------
    kfc_numba.checkpoint.CheckpointFile

    Raises
    ------
    ValueError, OSError
        It is no such file; the message names it.
    """
    with files.opened(checkpoint_of(path)) as file, naming(file.path):
        content = file.header.get("content")
        choice(*_SCHEMAS)("content", content)
        if content not in contents:
            raise ValueError("it holds a network alone, and nothing to go on with training")
        _SCHEMAS[content]("header", file.header)
        if content == "trainer":
            place = file.header["trainer"]
            if place["position"] and place["position"] >= place["examples"]:
                raise ValueError(
                    f"trainer.position must be below trainer.examples (={place['examples']}), it "
                    f"is {place['position']}"
                )
        yield file


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Let a ValueError that comes from the content of a file name the file."""
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as error:
        raise files.refusal(path, f"is not what kfc_numba writes: {error}") from None


def load_trainer(
    cls: type[T], path: str | os.PathLike[str], net: Graph, loss: Loss, optimizer: Optimizer
) -> T:
    """See `Trainer.load`.

    Parameters
    ----------
    cls : type
    path : path
    net : Graph
    loss : Loss
    optimizer : Optimizer

    Returns
    -------
    Trainer
    """
    with opened(path, "trainer") as file:
        saved_loss, given_loss = file.header["loss"], describe_loss(loss)
        kind, given = file.header["optimizer"]["optimizer"], describe_optimizer(optimizer)
        problem = _network_difference(file, net)
        if not problem and saved_loss != given_loss:
            names = (call(d["loss"], d["arguments"]) for d in (saved_loss, given_loss))
            problem = "its loss is {}, the one given is {}".format(*names)
        if not problem and kind != given["optimizer"]:
            problem = f"its optimizer is {kind}, the one given is {given['optimizer']}"
        _refuse(file, problem)
        return restored(cls, file, net, loss, optimizer)


def restored(cls: type[T], file: CheckpointFile, net: Graph, loss: Loss, optimizer: Optimizer) -> T:
    """Trainer from a file whose header fits.

    Parameters
    ----------
    cls : type
    file : CheckpointFile
    net : Graph
        Its parameters and running statistics are overwritten.
    loss : Loss
    optimizer : Optimizer

    Returns
    -------
    Trainer
    """
    header = file.header
    saved = header["trainer"]
    try:
        trainer = cls(net, loss, optimizer, seed=saved["seed"])
    except MemoryError:
        raise ValueError("its optimizer has a state larger than memory") from None
    expected = {"params": net.params, "buffers": net.buffers, "optimizer": trainer.optimizer_state}
    _check_layout(file, expected)
    arrays = file.read(file.layout)
    parts = {part: _part(arrays, part) for part in expected}
    _check_values(parts)
    _check_state(parts["optimizer"], trainer.optimizer_state)
    steps, rows = int(parts["optimizer"]["step"]), header["history"]
    if rows and rows[-1]["step"] > steps:
        raise ValueError(
            f"history must end at step {steps} at the latest, it ends at {rows[-1]['step']}"
        )
    trainer.normalization = _normalization(header)
    trainer.classes = _classes(header, net)
    trainer.notes = header["notes"]
    trainer.history = History.from_header(rows)
    trainer.run = saved["run"]
    trainer._epoch = saved["epoch"]
    trainer._position = saved["position"]
    trainer._examples = saved["examples"]
    trainer._seconds = float(saved["seconds"])
    trainer._prepared = saved["prepared"]
    # Nothing can fail from here on.
    for name, value in parts["params"].items():
        net.params[name][...] = like(value, net.params[name])
    net.buffers.update({n: like(v, net.buffers[n]) for n, v in parts["buffers"].items()})
    state = trainer.optimizer_state
    state.update({n: like(v, state[n]) for n, v in parts["optimizer"].items()})
    with np.errstate(over="ignore", invalid="ignore"):
        trainer._aside.leave_averages(*trainer._trained)
    return trainer


def read_into(net: Graph, path: str | os.PathLike[str]) -> None:
    """Take parameters and running statistics from a file, averaged ones if it has them.

    Parameters
    ----------
    net : Graph
        Overwritten; left as it was if anything does not fit.
    path : path
        What `save_trainer` or `save_network` wrote, of a network of the same layers.

    Raises
    ------
    ValueError, OSError
        The message names the file.
    """
    with opened(path, "trainer", "network") as file:
        _refuse(file, _network_difference(file, net))
        read_network(file, net)


def read_network(
    file: CheckpointFile, net: Graph
) -> tuple[Normalization | None, tuple[str, ...] | None]:
    """Take parameters and running statistics from a file whose header fits.

    Parameters
    ----------
    file : CheckpointFile
    net : Graph
        Overwritten.

    Returns
    -------
    normalization : Normalization or None
    classes : tuple of str or None
    """
    _check_layout(file, {"params": net.params, "buffers": net.buffers})
    found = _normalization(file.header), _classes(file.header, net)
    held = _averages(file, net)
    if held is None:
        names = [f"params/{n}" for n in net.params] + [f"buffers/{n}" for n in net.buffers]
        arrays = file.read(names)
        held = _part(arrays, "params") | _part(arrays, "buffers")
    parts = {
        "params": {n: held[n] for n in net.params},
        "buffers": {n: held[n] for n in net.buffers},
    }
    _check_values(parts)
    for name, value in parts["params"].items():
        net.params[name][...] = like(value, net.params[name])
    net.buffers.update({n: like(v, net.buffers[n]) for n, v in parts["buffers"].items()})
    return found


def _averages(file: CheckpointFile, net: Graph) -> dict[str, np.ndarray] | None:
    """Averaged parameters and running statistics, in the network's dtype, if there are any."""
    weight, prefix = f"optimizer/{WEIGHT}", f"optimizer/{PREFIX}"
    if weight not in file.layout:
        return None
    if file.layout[weight] != ((), np.dtype(np.float64)):
        raise ValueError(f"{weight} must be a float64 number")
    state = file.read([weight])
    if not state[weight] > 0:
        return None
    held = {**net.params, **net.buffers}
    expected = {n: np.broadcast_to(np.zeros(()), v.shape) for n, v in held.items()}
    _refuse(file, files.array_difference(file.layout, expected, prefix))
    state |= file.read([prefix + name for name in held])
    with np.errstate(over="ignore"):
        return average(_part(state, "optimizer"), net)


def _model(
    net: Graph,
    loss: Loss | None,
    normalization: Normalization | None,
    classes: tuple[str, ...] | None,
) -> dict[str, Any]:
    mean_std = None
    if normalization is not None:
        mean_std = {"mean": list(normalization.mean), "std": list(normalization.std)}
    return {
        "network": describe_network(net),
        "loss": None if loss is None else describe_loss(loss),
        "normalization": mean_std,
        "classes": None if classes is None else list(classes),
    }


def _normalization(header: Mapping[str, Any]) -> Normalization | None:
    saved = header["normalization"]
    return None if saved is None else Normalization(saved["mean"], saved["std"])


def _classes(header: Mapping[str, Any], net: Graph) -> tuple[str, ...] | None:
    if header["classes"] is None:
        return None
    classes, outputs = tuple(header["classes"]), net.output_shape[-1:]
    if (len(classes),) != outputs:
        raise ValueError(f"classes must be {outputs} names, it has {len(classes)}")
    return classes


def _network_difference(file: CheckpointFile, net: Graph) -> str | None:
    saved, given = file.header["network"], describe_network(net)
    if saved == given:
        return None
    places = (p < i for i, entry in enumerate(saved["layers"]) for p in entry["inputs"])
    if not all(places):
        raise ValueError("network.layers must be in order of computation")
    return files.difference(lines(saved), lines(given))


def _check_layout(file: CheckpointFile, expected: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    for part, arrays in expected.items():
        _refuse(file, files.array_difference(file.layout, arrays, f"{part}/"))
    known = {*expected, "optimizer"} if file.header["content"] == "trainer" else expected
    for name in file.layout:
        if name.partition("/")[0] not in known or "/" not in name:
            _refuse(file, f"only the checkpoint has {name}")


def _check_values(parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Raise where a parameter or a running statistic has a value that none can have."""
    for part in ("params", "buffers"):
        for name, value in parts[part].items():
            _finite(f"{part}/{name}", value)
    for name, value in parts["buffers"].items():
        _least(f"buffers/{name}", value, LEAST_STATISTIC.get(name.rpartition(".")[2]))


def _check_state(state: Mapping[str, np.ndarray], initial: Mapping[str, np.ndarray]) -> None:
    """Raise where an entry of an optimizer's state has a value that none can have."""
    for name, value in state.items():
        # What is unknown before the first step is NaN, and may remain so.
        unknown = np.isnan(to_host(initial[name])).any() and np.isnan(value).all()
        if not unknown:
            _finite(f"optimizer/{name}", value)
        _least(f"optimizer/{name}", value, LEAST.get(name.partition("/")[0]))
        if name in POSITIVE and not (value > 0).all():
            raise ValueError(f"optimizer/{name} must be above 0, it has {value.min():g}")
        if value.dtype.kind in "iu" and (value > MOST_STEPS).any():
            raise ValueError(f"optimizer/{name} must be at most 2**53, it is {value.max()}")


def _finite(name: str, value: np.ndarray) -> None:
    if not np.isfinite(value).all():
        raise ValueError(f"{name} must be finite, it has values that are not")


def _least(name: str, value: np.ndarray, least: float | None) -> None:
    if least is not None and (value < least).any():
        raise ValueError(f"{name} must be at least {least:g}, it has {value.min():g}")


def _part(arrays: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    prefix = f"{part}/"
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}


def _refuse(file: CheckpointFile, problem: str | None) -> None:
    if problem:
        raise files.refusal(file.path, f"does not fit: {problem}")
