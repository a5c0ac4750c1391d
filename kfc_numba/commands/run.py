"""One training run: its data, its network, and the training itself."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from kfc_numba import datasets, networks
from kfc_numba.commands import CommandError
from kfc_numba.commands.config import Config
from kfc_numba.commands.options import rebuild
from kfc_numba.commands.runfolder import RunFolder
from kfc_numba.devices import DEVICES, DeviceError, check_device
from kfc_numba.graph import Graph
from kfc_numba.losses import SoftmaxCrossEntropy
from kfc_numba.normalization import Normalization
from kfc_numba.precision import tensor_cores
from kfc_numba.train import Trainer

#: An evaluation is good if its training loss is at most this many times that of the first one.
WORST = 10


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set, ready to train on.

    Attributes
    ----------
    x, x_test : numpy.ndarray
        Normalised images, (N, H, W, C), float32.
    y, y_test : numpy.ndarray
        Labels, (N,), int64.
    classes : tuple of str
    normalization : Normalization
        What made `x` and `x_test` from what is stored.
    checksum : int
        CRC-32 of the stored images and labels.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]
    normalization: Normalization
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
        classes=tuple(found.classes),
        normalization=Normalization(*(tuple(part.tolist()) for part in found.channel_statistics())),
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
        return networks.build(name, images.x.shape[1:], len(images.classes), seed=seed)
    except ValueError as error:
        raise CommandError(f"--network: {error}") from None


def add_device(group: Any, what: str) -> None:
    """The options of where a command computes, and whether in TF32.

    Parameters
    ----------
    group : argparse._ActionsContainer
    what : str
        Who computes, for the help.
    """
    text = f"where {what} computes: cuda is an NVIDIA card (cpu)"
    group.add_argument("--device", choices=DEVICES, default="cpu", help=text)
    add_tf32(group)


def add_tf32(group: Any) -> None:
    """The option of TF32 alone, for a command that always computes on a card.

    Parameters
    ----------
    group : argparse._ActionsContainer
    """
    group.add_argument(
        "--tf32",
        action=argparse.BooleanOptionalAction,
        help="round what is multiplied on the card to 11 bits, for its tensor cores: faster, with "
        "errors of up to 0.1%% of a sum's magnitudes (not done; a run that is resumed on a card "
        "does as before)",
    )


def usable(device: str, tf32: bool | None) -> None:
    """Raise CommandError, which says what is missing, where a device cannot be used.

    Parameters
    ----------
    device : {"cpu", "cuda"}
    tf32 : bool or None
    """
    if tf32 and device != "cuda":
        raise CommandError(f"--tf32 needs --device cuda, --device is {device}")
    try:
        check_device(device)
    except DeviceError as error:
        raise CommandError(f"--device: {error}", 1) from None


class Diverged(CommandError):
    """A run met something that is not finite.

    Parameters
    ----------
    problem : str
    trainer : Trainer
        As it was after the last good step.
    folder : RunFolder
    """

    def __init__(self, problem: str, trainer: Trainer, folder: RunFolder):
        self.problem = problem
        self.trainer = trainer
        earlier = ", ".join(path.name for path in folder.earlier())
        super().__init__(
            f"{problem}; {folder.checkpoint} holds the state of the last good evaluation"
            + (
                f", {earlier} of those before it (copy one over it to go farther back)"
                * bool(earlier)
            )
            + f"; to go on from there more slowly: kfc-numba train --resume --output {folder.path} "
            "--learning-rate VALUE",
            1,
        )


def train(
    config: Config,
    images: Images,
    folder: RunFolder,
    *,
    progress: bool,
    changes: list[dict[str, Any]] | None = None,
    device: str = "cpu",
) -> Trainer:
    """Do a run, or what is left of it if its folder holds a checkpoint.

    Parameters
    ----------
    config : Config
    images : Images
    folder : RunFolder
        An existing folder, locked.
    progress : bool
        Whether a bar is shown.
    changes : list of dict, optional
        What was changed of the settings on the way, and at which steps.
    device : {"cpu", "cuda"}
        Where it computes; it makes no difference but for rounding.

    Returns
    -------
    Trainer

    Raises
    ------
    CommandError
        The network does not fit the images, or the checkpoint not the run.
    Diverged
        Something is not finite. The checkpoint is that of the last evaluation before.
    """
    with tensor_cores(config.tf32):
        return _train(config, images, folder, progress, changes or [], device)


def _train(
    config: Config,
    images: Images,
    folder: RunFolder,
    progress: bool,
    changes: list[dict[str, Any]],
    device: str,
) -> Trainer:
    net = build_network(config.network, images, seed=config.seed).to(device)
    notes = {"run": dataclasses.asdict(config), "changes": changes}
    resumed = folder.checkpoint.exists()
    try:
        loss, optimizer = SoftmaxCrossEntropy(), rebuild(config.optimizer)
        if resumed:
            trainer = Trainer.load(folder.checkpoint, net, loss, optimizer)
        else:
            trainer = Trainer(net, loss, optimizer, seed=config.seed)
    except ValueError as error:
        raise CommandError(str(error)) from None
    trainer.normalization, trainer.classes = images.normalization, images.classes
    new_notes, trainer.notes = notes != trainer.notes, notes
    if resumed and new_notes:
        trainer.save(folder.checkpoint)  # before history.json: it is what is believed
    saved = trainer.steps
    folder.forget(after=saved)
    folder.write(notes, trainer.history)

    def save() -> None:
        nonlocal saved
        if trainer.steps > saved and folder.checkpoint.exists():
            folder.keep(saved)
        trainer.save(folder.checkpoint)
        saved = trainer.steps

    def record(row: dict[str, Any]) -> None:
        # What is diverging would do so again: the last good state stays.
        if row["training_loss"] <= WORST * trainer.history.rows[0]["training_loss"]:
            save()
        folder.write(notes, trainer.history)

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
            stop=record,
        )
    except FloatingPointError as error:
        raise Diverged(str(error), trainer, folder) from None
    if saved == trainer.steps:
        folder.forget()
        return trainer
    loss = trainer.history.rows[-1]["training_loss"]
    if not math.isfinite(loss):
        raise Diverged(f"training loss is {loss} after step {trainer.steps}", trainer, folder)
    save()  # it is the result, good or not
    return trainer
