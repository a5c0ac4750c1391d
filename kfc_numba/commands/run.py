"""One training run: its settings, its data, and the folder that it is kept in."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kfc_numba import datasets, networks, plot
from kfc_numba.commands import CommandError
from kfc_numba.commands.options import rebuild
from kfc_numba.environment import environment
from kfc_numba.graph import Graph
from kfc_numba.history import History
from kfc_numba.losses import SoftmaxCrossEntropy
from kfc_numba.train import Trainer


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
    epochs, max_steps : int or None
        `total_epochs` and `total_steps` of `Trainer.fit`.
    evaluate_every : int or None
        As there.
    seed : int
        Of the initial parameters and of training.
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


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set, ready to train on.

    Attributes
    ----------
    x, x_test : numpy.ndarray
        Normalised images, (N, H, W, C), float32.
    y, y_test : numpy.ndarray
        Labels, (N,), int64.
    classes : int
    checksum : int
        CRC-32 of the stored images and labels.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    checksum: int


def load_images(dataset: str, folder: str | None, *, download: bool = False) -> Images:
    """Load a data set by name.

    Parameters
    ----------
    dataset : str
    folder : str or None
        Where it is searched.
    download : bool
        Whether what was not found is downloaded.

    Returns
    -------
    Images

    Raises
    ------
    CommandError
        It is not found, damaged, or cannot be normalised.
    """
    try:
        found = datasets.load(dataset, folder, download=download)
        x, x_test = found.normalized()
    except (ValueError, ImportError) as error:
        message = str(error).replace("download=True", "--download")
        raise CommandError(re.sub(r"^folder\b", "--data", message)) from None
    checksum = 0
    for array in (found.x_train, found.y_train, found.x_test, found.y_test):
        checksum = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), checksum)
    return Images(
        x=x,
        y=found.y_train,
        x_test=x_test,
        y_test=found.y_test,
        classes=len(found.classes),
        checksum=checksum,
    )


def build_network(name: str, images: Images, *, seed: int = 0) -> Graph:
    """A network by name for a data set.

    Parameters
    ----------
    name : str
    images : Images
    seed : int
        Of the initial parameters.

    Returns
    -------
    Graph

    Raises
    ------
    CommandError
        It does not fit the images.
    """
    try:
        return networks.build(name, images.x.shape[1:], images.classes, seed=seed)
    except ValueError as error:
        raise CommandError(f"--network: {error}") from None


class RunFolder:
    """A folder with the files of one run; every file in it is written whole or not at all.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    path, history, checkpoint, curves : pathlib.Path
        The folder, and ``history.json``, ``checkpoint.safetensors`` and ``curves.png`` in it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.history = self.path / "history.json"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.curves = self.path / "curves.png"

    @classmethod
    def new(cls, given: str | None, usual: str) -> RunFolder:
        """Make a folder for a new run.

        Parameters
        ----------
        given : str or None
            The folder that the user named; it may exist but must hold no run.
        usual : str
            Where nothing was given: the name of the folder, to which a number is added if there
            is one of this name.

        Returns
        -------
        RunFolder

        Raises
        ------
        CommandError
            The folder holds a run, or cannot be made.
        """
        try:
            if given is None:
                return cls(make_numbered(Path("runs"), usual))
            folder = cls(given)
            if folder.history.exists() or folder.checkpoint.exists():
                raise CommandError(
                    f"--output: {folder.path} already holds a run, which is not overwritten; "
                    "continue it with --resume or give another folder"
                )
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"--output: {_reason(error)}") from None
        return folder

    def read(self) -> tuple[Config, list[dict[str, Any]]]:
        """Settings of the run and the rows of its history.

        Raises
        ------
        CommandError
            There is no run, or ``history.json`` is not what a run leaves.
        """
        try:
            content = json.loads(self.history.read_text(encoding="utf-8"))
            return Config(**content["config"]), list(content["history"])
        except FileNotFoundError:
            raise CommandError(
                f"{self.path} holds no run to resume: {self.history.name} is missing"
            ) from None
        except OSError as error:
            raise CommandError(_reason(error)) from None
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(
                f"{self.history} is not what a run of this version writes ({error})"
            ) from None

    def files(self) -> list[Path]:
        """Those of its files that exist."""
        return [f for f in (self.checkpoint, self.curves, self.history) if f.exists()]

    def write(self, config: Config, history: History) -> None:
        """Write ``history.json``.

        Parameters
        ----------
        config : Config
        history : History
        """
        content = {
            "config": dataclasses.asdict(config),
            "environment": environment(),
            "history": json.loads(history.to_json()),
        }
        write_json(self.history, content)


def train(config: Config, images: Images, folder: RunFolder, *, progress: bool) -> Trainer:
    """Do a run, or what is left of it if its folder holds a checkpoint.

    Parameters
    ----------
    config : Config
    images : Images
    folder : RunFolder
        An existing folder.
    progress : bool
        Whether a bar is shown.

    Returns
    -------
    Trainer

    Raises
    ------
    CommandError
        The network does not fit the images, the checkpoint not the run; or something is not
        finite, and the checkpoint is then that of the last good step.
    """
    net = build_network(config.network, images, seed=config.seed)
    try:
        loss, optimizer = SoftmaxCrossEntropy(), rebuild(config.optimizer)
        if folder.checkpoint.exists():
            trainer = Trainer.load(folder.checkpoint, net, loss, optimizer)
        else:
            trainer = Trainer(net, loss, optimizer, seed=config.seed)
    except ValueError as error:
        raise CommandError(str(error)) from None
    folder.write(config, trainer.history)
    try:
        trainer.fit(
            images.x,
            images.y,
            batch_size=config.batch_size,
            total_epochs=config.epochs,
            total_steps=config.max_steps,
            evaluate_every=config.evaluate_every,
            validation=(images.x_test, images.y_test),
            progress=progress,
            checkpoint=folder.checkpoint,
            stop=lambda row: folder.write(config, trainer.history),
        )
    except FloatingPointError as error:
        trainer.save(folder.checkpoint)
        raise CommandError(
            f"{error}; {folder.checkpoint} holds the last good state, after step {trainer.steps}",
            1,
        ) from None
    folder.write(config, trainer.history)
    return trainer


def make_numbered(parent: Path, name: str) -> Path:
    """Make a new folder `name`, or `name` with the first free number behind it.

    Parameters
    ----------
    parent : pathlib.Path
        Made if needed.
    name : str

    Returns
    -------
    pathlib.Path
    """
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()  # fails if another process was faster
        except FileExistsError:
            continue
        return path
    raise AssertionError


def write_plot(path: Path, draw: Callable[[], Any]) -> str | None:
    """Write a plot, if matplotlib is there.

    Parameters
    ----------
    path : pathlib.Path
    draw : callable
        Returns the figure.

    Returns
    -------
    str or None
        Why there is none.
    """
    try:
        content = plot.png(draw())
    except ImportError:
        return f'{path.name} needs matplotlib: pip install "kfc_numba[plot]"'
    write_bytes(path, content)
    return None


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a file, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Parameters
    ----------
    path : pathlib.Path
    content : bytes
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _reason(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}"
