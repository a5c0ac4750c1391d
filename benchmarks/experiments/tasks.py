"""The tasks that optimizers are compared on: a network, a loss, and data of each.

No test image is used anywhere: validation examples are held out of training sets (CIFAR-10's
fifth batch, the last images of Fashion-MNIST's training sets).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from scipy.ndimage import gaussian_filter

import kfc_numba as kfc
from kfc_numba import datasets, networks
from kfc_numba.checkpoint import describe
from kfc_numba.layers.base import Layer

Folder = str | os.PathLike[str] | None
Pair = tuple[np.ndarray, np.ndarray]

# Training losses that are as good as any below them: those of labels, in nats.
LEAST = 1e-3
UNBOUNDED = ("poisson", "autoencoder")  # tasks where a lower loss always counts
MOST_VALIDATION = 5000  # examples: they are looked at many times in a run


class MissingError(Exception):
    """The data of a task, or a package that holds them, are not at hand."""


@dataclass(frozen=True, eq=False)
class Task:
    """A network to train.

    Attributes
    ----------
    name : str
    build : callable
        The network with new parameters, from a seed.
    loss : Loss
    train, validation : (x, y)
        Inputs and targets.
    budget : float
        Seconds of training on two slow cores in which SGD gets somewhere.
    data : str
        What the data are.
    """

    name: str
    build: Callable[[int], kfc.Graph]
    loss: kfc.Loss
    train: Pair
    validation: Pair
    budget: float
    data: str = ""
    _checksum: list[int] = field(default_factory=list, repr=False)

    @property
    def checksum(self) -> int:
        """CRC-32 of the data and of the description of the network."""
        if not self._checksum:
            value = zlib.crc32("\n".join(describe(self.build(0))).encode())
            for array in (*self.train, *self.validation):
                value = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), value)
            self._checksum.append(value)
        return self._checksum[0]

    def first(self, train: int, validation: int) -> Task:
        """The same task with the first examples only."""
        (x, y), (x_held, y_held) = self.train, self.validation
        return Task(
            self.name,
            self.build,
            self.loss,
            (x[:train], y[:train]),
            (x_held[:validation], y_held[:validation]),
            self.budget,
            f"{self.data}, the first {train} and {validation}",
        )


def names() -> tuple[str, ...]:
    """Names of all tasks, whether their data are at hand or not."""
    return tuple(_MAKERS)


def least(name: str) -> float:
    """Training loss of a task that is as good as any below it."""
    return 0.0 if name in UNBOUNDED else LEAST


def load(name: str, folder: Folder = None) -> Task:
    """A task by name.

    Parameters
    ----------
    name : str
        One of `names`.
    folder : path, optional
        Where `kfc_numba.datasets.load` looks for CIFAR-10 (its ``data_batch_*.bin``) and for all
        of Fashion-MNIST; without it in the folder that ``KFC_NUMBA_DATA`` names and in the usual
        places.

    Returns
    -------
    Task

    Raises
    ------
    MissingError
        Its data are not there.
    ValueError
        There is no task of this name, or data are damaged.
    """
    if name not in _MAKERS:
        raise ValueError(f"task is {name!r}; required: one of {', '.join(_MAKERS)}")
    return _MAKERS[name](name, folder)


# Images with labels.


@functools.lru_cache(maxsize=2)  # four tasks share CIFAR-10
def _images(dataset: str, folder: str | None, held_out: int) -> tuple[Pair, Pair]:
    """Normalised images; the last ones of the training set are held out, or the test part."""
    try:
        found = datasets.load(dataset, folder)
    except datasets.DatasetNotFoundError as error:
        raise MissingError(str(error)) from None
    x, other = found.normalized()
    if not held_out:  # the "test" part of "cifar-10-heldout" is a part of the training set
        part = slice(0, MOST_VALIDATION)
        return (x, found.y_train), (other[part], found.y_test[part])
    kept, validation = len(x) - held_out, slice(-held_out, len(x) - held_out + MOST_VALIDATION)
    return (x[:kept], found.y_train[:kept]), (x[validation], found.y_train[validation])


def _classification(
    network: str, dataset: str, budget: float, *, held_out: int = 0, few: int | None = None
) -> Callable[[str, Folder], Task]:
    def make(name: str, folder: Folder) -> Task:
        place = None if folder is None or dataset == _BUNDLED else os.fspath(folder)
        train, validation = _images(dataset, place, held_out)
        train = train[0][:few], train[1][:few]
        shape = train[0].shape[1:]
        return Task(
            name,
            lambda seed: _network(network, shape, seed),
            kfc.SoftmaxCrossEntropy(),
            train,
            validation,
            budget,
            data=f"{dataset}, {len(train[0]):,} images",
        )

    return make


def _network(name: str, shape: tuple[int, ...], seed: int) -> kfc.Graph:
    if name == "quick-batchnorm":
        return _quick_batchnorm(shape, seed)
    return networks.build(name, shape, 10, seed=seed)


def _quick_batchnorm(shape: tuple[int, ...], seed: int) -> kfc.Sequential:
    """The network ``"quick"`` with batch normalisation behind each convolution."""

    def convolution(maps: int) -> list[Layer]:
        return [kfc.Conv2d(maps, 5, padding=2, bias=False), kfc.BatchNorm()]

    def mean() -> Layer:
        return kfc.AvgPool2d(3, stride=2, ceil_mode=True)

    layers = [
        *(*convolution(32), kfc.MaxPool2d(3, stride=2, ceil_mode=True), kfc.ReLU()),
        *(*convolution(32), kfc.ReLU(), mean()),
        *(*convolution(64), kfc.ReLU(), mean()),
        *(kfc.Flatten(), kfc.Dense(10)),
    ]
    return kfc.Sequential(layers, input_shape=shape, seed=seed)


# Digits of scikit-learn.


def _digits(name: str, folder: Folder) -> Task:
    if importlib.util.find_spec("sklearn") is None:
        raise MissingError('scikit-learn is not installed: pip install -e ".[bench]"')
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype(np.float32)
    kept = 1400
    x = (x - x[:kept].mean()) / x[:kept].std()
    y = y.astype(np.int64)

    def build(seed: int) -> kfc.Sequential:
        layers = [
            *(kfc.Conv2d(16, 3, padding="same"), kfc.ReLU(), kfc.MaxPool2d(2)),
            *(kfc.Conv2d(32, 3, padding="same"), kfc.ReLU(), kfc.Flatten(), kfc.Dense(10)),
        ]
        return kfc.Sequential(layers, input_shape=(8, 8, 1), seed=seed)

    return Task(
        name,
        build,
        kfc.SoftmaxCrossEntropy(),
        (x[:kept], y[:kept]),
        (x[kept:], y[kept:]),
        10.0,
        data=f"digits of scikit-learn, {kept:,} images of 8x8",
    )


# A field.


def poisson_fields(examples: int, size: int, seed: int = 0) -> Pair:
    """Right-hand sides of a Poisson equation and the solutions at nine points.

    ``-laplace u = f`` on the unit square, zero at its border, by the five-point formula on
    `size` times `size` inner points; f is smoothed noise.

    Returns
    -------
    f : numpy.ndarray
        (examples, size, size, 1), float64.
    u : numpy.ndarray
        (examples, 9), float64: the solutions at a grid of three by three points.
    """
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((examples, size, size))
    f = gaussian_filter(noise, (0, 2, 2), mode="constant")
    f /= f.std()
    line = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(size, size))
    laplace = (size + 1) ** 2 * scipy.sparse.kronsum(line, line)
    u = scipy.sparse.linalg.splu(laplace.tocsc()).solve(f.reshape(examples, -1).T)
    points = np.linspace(0, size - 1, 5).round().astype(int)[1:-1]
    at = u.reshape(size, size, examples)[np.ix_(points, points)].reshape(9, examples).T
    return f[..., None], np.ascontiguousarray(at)


def _poisson(name: str, folder: Folder) -> Task:
    size, kept = 16, 4000
    x, y = poisson_fields(5000, size)
    y = (y - y[:kept].mean(axis=0)) / y[:kept].std(axis=0)

    def build(seed: int) -> kfc.Sequential:
        layers = [
            *(kfc.Conv2d(16, 3, padding="same"), kfc.ReLU(), kfc.AvgPool2d(2)),
            *(kfc.Conv2d(32, 3, padding="same"), kfc.ReLU(), kfc.AvgPool2d(2)),
            *(kfc.Flatten(), kfc.Dense(9)),
        ]
        return kfc.Sequential(layers, input_shape=(size, size, 1), seed=seed, dtype=np.float64)

    return Task(
        name,
        build,
        kfc.SquaredError(),
        (x[:kept], y[:kept]),
        (x[kept:], y[kept:]),
        20.0,
        data=f"Poisson equation on {size}x{size} points, {kept:,} right-hand sides, float64",
    )


# Images to themselves.


def _autoencoder(name: str, folder: Folder) -> Task:
    try:
        found = datasets.load("fashion-mnist", folder)
        kept, budget = 50_000, 60.0
    except datasets.DatasetNotFoundError:
        found = datasets.load(_BUNDLED)
        kept, budget = 8000, 30.0
    pixels = found.x_train.reshape(len(found.x_train), -1).astype(np.float32) / 255
    train, validation = pixels[:kept], pixels[kept : kept + MOST_VALIDATION]
    widths = (400, 100, 25, 100, 400)
    code = widths.index(min(widths))

    def build(seed: int) -> kfc.Sequential:
        # Hinton and Salakhutdinov (2006): all but the code and the logits have an activation.
        layers: list[Layer] = []
        for place, width in enumerate(widths):
            layers += [kfc.Dense(width)] + [kfc.Tanh()] * (place != code)
        layers.append(kfc.Dense(pixels.shape[1]))
        return kfc.Sequential(layers, input_shape=pixels.shape[1:], seed=seed)

    return Task(
        name,
        build,
        kfc.SigmoidCrossEntropy(),
        (train, train),
        (validation, validation),
        budget,
        data=f"{found.name}, {kept:,} images",
    )


_BUNDLED = "fashion-mnist-10k"
_CIFAR = "cifar-10-heldout"  # batches 1 to 4, and 5

_MAKERS: dict[str, Callable[[str, Folder], Task]] = {
    "cifar-quick": _classification("quick", _CIFAR, 90.0),
    "cifar-quick-norm": _classification("quick-norm", _CIFAR, 90.0),
    "cifar-quick-batchnorm": _classification("quick-batchnorm", _CIFAR, 90.0),
    "cifar-resnet": _classification("resnet-small", _CIFAR, 120.0),
    "fashion": _classification("small", "fashion-mnist", 60.0, held_out=10_000),
    "fashion-bundled": _classification("small", _BUNDLED, 20.0, held_out=2000),
    "digits": _digits,
    "poisson": _poisson,
    "autoencoder": _autoencoder,
    "few-images": _classification("small", _BUNDLED, 5.0, held_out=2000, few=200),
}
