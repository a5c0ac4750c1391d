"""Trained networks that take data as they are stored, and everything back from a run folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kfc_numba import saving
from kfc_numba.checkpoint import CheckpointFile
from kfc_numba.checks import check_instance, check_integer
from kfc_numba.description import build_loss, build_network, build_optimizer
from kfc_numba.devices import like, owned, to_host
from kfc_numba.foreign_names import Explained
from kfc_numba.graph import Graph
from kfc_numba.losses import Loss
from kfc_numba.normalization import Normalization
from kfc_numba.train import Trainer
from kfc_numba.workspace import Workspace


class Model(Explained):
    """A network, and what stands between it and data: normalisation before, class names behind.

    Parameters
    ----------
    net : Graph
        Its parameters are those to predict with.
    loss : Loss, optional
        What it was trained with, for `predict_proba`.
    normalization : callable, optional
        `kfc_numba.Normalization`; None for inputs that are taken as they are.
    classes : sequence of str, optional
        Name of each output.

    Attributes
    ----------
    net, loss, normalization, classes
        As given.
    """

    def __init__(
        self,
        net: Graph,
        loss: Loss | None = None,
        *,
        normalization: Normalization | None = None,
        classes: Sequence[str] | None = None,
    ):
        check_instance("net", net, Graph, "a network")
        if loss is not None:
            check_instance("loss", loss, Loss, "a loss such as SoftmaxCrossEntropy()")
        if normalization is not None:
            check_instance("normalization", normalization, Normalization, "a Normalization")
        self.net = net
        self.loss = loss
        self.normalization = normalization
        self.classes = check_classes(classes, net)

    def predict(self, x: ArrayLike, *, batch_size: int = 256) -> np.ndarray:
        """Outputs of the network: logits, where the loss takes them.

        Parameters
        ----------
        x : array_like
            Data as they are stored, (examples, *input_shape): they are normalised here. Outputs are
            where they are, in the memory of the host or on a card.
        batch_size : int
            Examples computed at a time.

        Returns
        -------
        numpy.ndarray
            (examples, *output_shape).
        """
        batch_size = check_integer("batch_size", batch_size)
        data: Any = owned("x", x)
        if self.normalization is None or data.ndim == 0 or not len(data):
            return self.net.predict(data, batch_size=batch_size)
        parts = (
            to_host(data[start : start + batch_size]) for start in range(0, len(data), batch_size)
        )
        inputs = (self.normalization(part, self.net.dtype) for part in parts)
        found = [self.net.predict(part, batch_size=batch_size) for part in inputs]
        return like(np.concatenate(found), data)

    def predict_proba(self, x: ArrayLike, *, batch_size: int = 256) -> np.ndarray:
        """Mean of the distribution that the loss reads from the outputs, such as probabilities.

        Parameters
        ----------
        x : array_like
            As in `predict`.
        batch_size : int
            Examples computed at a time.

        Returns
        -------
        numpy.ndarray
            Of the shape of `predict`'s.

        Raises
        ------
        ValueError
            The model has no loss.
        """
        if self.loss is None:
            raise ValueError("predict_proba needs the loss of the model, which has None")
        return self.loss.predictive_mean(self.predict(x, batch_size=batch_size))

    def predict_class(self, x: ArrayLike, *, batch_size: int = 256) -> np.ndarray:
        """The class of the largest output.

        Parameters
        ----------
        x : array_like
            As in `predict`.
        batch_size : int
            Examples computed at a time.

        Returns
        -------
        numpy.ndarray
            Names of classes, or their numbers where the model has no names.
        """
        numbers = to_host(self.predict(x, batch_size=batch_size).argmax(axis=-1))
        return numbers if self.classes is None else np.array(self.classes)[numbers]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one file, whole or not at all, for `load_model`.

        Parameters
        ----------
        path : path
            A safetensors file with the parameters and nothing for training; an existing one is
            replaced.
        """
        saving.save_network(path, self.net, self.loss, self.normalization, self.classes)

    def __repr__(self) -> str:
        classes = "no class names" if self.classes is None else f"{len(self.classes)} classes"
        return (
            f"<Model: {self.net.input_shape} -> {self.net.output_shape}, "
            f"{len(self.net.layers)} layers, {self.loss}, {self.normalization}, {classes}>"
        )


def check_classes(classes: Sequence[str] | None, net: Graph) -> tuple[str, ...] | None:
    """Names of classes as a tuple, if there is one for each output of a network."""
    if classes is None:
        return None
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes (={classes!r}) must be a sequence of names")
    if (len(classes),) != net.output_shape[-1:]:
        raise ValueError(
            f"classes must have a name for each output, got {len(classes)} for outputs of shape "
            f"{net.output_shape}"
        )
    return tuple(classes)


def load(path: str | os.PathLike[str]) -> tuple[Model, Trainer]:
    """What predicts, and a trainer to go on with, from a run folder or a checkpoint.

    Network, loss, optimizer, seed and history come from the file; only `Trainer.fit` needs to be
    called with the data. Layers, losses and optimizers are those of the library, by name; a run
    with classes or functions of a program of its own is loaded by `Trainer.load`.

    Parameters
    ----------
    path : path
        A folder that ``kfc-numba train`` wrote, or a file that `Trainer.save` or `Trainer.fit`
        wrote.

    Returns
    -------
    model : Model
        With the averaged parameters where averaging is on, in arrays of its own.
    trainer : Trainer
        Its network has what evaluations use: averages, where the optimizer averages.

    Raises
    ------
    ValueError
        The file is damaged, or something else than such a file; the message names it.
    OSError
        There is no such file or folder, or it cannot be read.
    """
    with saving.opened(path, "trainer") as file:
        net, loss = _network(file), build_loss(file.header["loss"])
        optimizer = build_optimizer(file.header["optimizer"])
        trainer = saving.restored(Trainer, file, net, loss, optimizer)
    own = trainer.evaluation_net()
    own.buffers = {name: value.copy() for name, value in own.buffers.items()}
    own.workspace = Workspace()
    model = Model(own, trainer.loss, normalization=trainer.normalization, classes=trainer.classes)
    return model, trainer


def load_model(path: str | os.PathLike[str]) -> Model:
    """What predicts, from a file of `Model.save`, a run folder or a checkpoint.

    Of a checkpoint the parameters alone are read, the averaged ones where averaging is on.

    Parameters
    ----------
    path : path

    Returns
    -------
    Model

    Raises
    ------
    ValueError, OSError
        As for `load`.
    """
    with saving.opened(path, "trainer", "network") as file:
        net, saved = _network(file), file.header["loss"]
        loss = None if saved is None else build_loss(saved)
        normalization, classes = saving.read_network(file, net)
    return Model(net, loss, normalization=normalization, classes=classes)


def _network(file: CheckpointFile) -> Graph:
    prefix = "params/"
    shapes = {n: shape for n, (shape, _) in file.layout.items() if n.startswith(prefix)}
    return build_network(file.header["network"], shapes)
