"""Reader of the IDX format, and of MNIST and Fashion-MNIST, which are stored in it.

An IDX file is two zero bytes, a byte for the element type (8: unsigned byte), a byte for the
number of dimensions, each dimension as a big-endian 32-bit integer, then the elements, last
dimension fastest (Y. LeCun, C. Cortes and C. Burges, "The MNIST database", file formats).
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .base import PIECE, Dataset, implausible, received, unreadable, unsuitable
from .locate import Layout, require_file

__all__ = ["CLASSES", "LAYOUTS", "mnist_folder", "read_idx"]

CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}

# The two sets come in files of the same names and sizes. The first training labels tell them
# apart, so that one is never trained on under the other's name.
_FIRST_LABELS = {
    "mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7, 2, 8, 6, 9),
    "fashion-mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9, 1, 0, 6, 4),
}


def _spellings(stem: str, kind: str) -> tuple[str, ...]:
    # Some unpackers turn the hyphen before "idx" into a dot.
    plain = (f"{stem}-{kind}-ubyte", f"{stem}.{kind}-ubyte")
    return (*plain, *(f"{name}.gz" for name in plain))


_FILES = {
    "x_train": _spellings("train-images", "idx3"),
    "y_train": _spellings("train-labels", "idx1"),
    "x_test": _spellings("t10k-images", "idx3"),
    "y_test": _spellings("t10k-labels", "idx1"),
}

LAYOUTS = {
    "mnist": Layout(tuple(_FILES.values()), ("mnist", "MNIST/raw")),
    "fashion-mnist": Layout(
        tuple(_FILES.values()),
        ("fashion-mnist", "FashionMNIST/raw"),
        # Debian's package dataset-fashion-mnist
        system=("/usr/share/datasets/fashion-mnist",),
    ),
}

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
_MOST_DIMENSIONS = 32


def read_idx(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or compressed by gzip.

    Parameters
    ----------
    path : path
        The file. Compression is recognised by content, not by name.

    Returns
    -------
    numpy.ndarray
        uint8, with the shape that the file states.

    Raises
    ------
    DatasetNotFoundError
        If there is no such file.
    DatasetError
        If it cannot be read, is not IDX, holds another type than unsigned bytes, or holds
        fewer or more bytes than its header states; or if its gzip stream is damaged.
    """
    return _read(Path(path), lambda shape: None)


def _read(path: Path, check: Callable[[tuple[int, ...]], Any]) -> NDArray[np.uint8]:
    """The array of a file, if `check` raises nothing about its shape."""
    try:
        with open(path, "rb") as file:
            stored = os.fstat(file.fileno()).st_size
            compressed = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            if not compressed:
                return _read_stream(path, file, stored, check)
            try:
                with gzip.GzipFile(fileobj=file) as stream:
                    return _read_stream(path, stream, stored, check)  # type: ignore[arg-type]
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                raise unsuitable(
                    path, f"damaged gzip stream ({error})", "a whole gzip file holding IDX data"
                ) from error
    except OSError as error:
        raise unreadable(path, error, "an IDX file of unsigned bytes, plain or gzip") from error


def _read_stream(
    path: Path, stream: BinaryIO, stored: int, check: Callable[[tuple[int, ...]], Any]
) -> NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise unsuitable(path, f"begins with {magic!r}", "the two zero bytes of an IDX file")
    if magic[2] != _UNSIGNED_BYTE:
        raise unsuitable(
            path, f"element type 0x{magic[2]:02x}", f"unsigned bytes (0x{_UNSIGNED_BYTE:02x})"
        )
    ndim = magic[3]
    header = stream.read(4 * ndim)
    if ndim == 0 or len(header) < 4 * ndim:
        raise unsuitable(
            path, f"IDX header of {ndim} dimensions in {4 + len(header)} bytes", "a whole header"
        )
    if ndim > _MOST_DIMENSIONS:
        raise unsuitable(
            path, f"IDX header of {ndim} dimensions", f"at most {_MOST_DIMENSIONS} dimensions"
        )
    shape = struct.unpack(f">{ndim}I", header)
    check(shape)
    size = math.prod(shape)
    if problem := implausible(size, stored):
        raise unsuitable(path, f"shape {shape} of {problem}", "data of a size that it can hold")
    data = received(size, lambda buffer: stream.readinto(buffer[:PIECE]))  # type: ignore[attr-defined]
    count = len(data)
    # One byte more than stated: it shows surplus data, and reaching the end of the stream is what
    # makes gzip compare its checksum.
    surplus = count == size and stream.read(1)
    if count < size or surplus:
        found = "more" if surplus else f"only {count:,}"
        raise unsuitable(
            path, f"holds {found} bytes after its header", f"{size:,}, for the stated shape {shape}"
        )
    try:
        return data.reshape(shape)
    except ValueError as error:  # without elements, and yet too large
        raise unsuitable(path, f"shape {shape}", f"one that an array can have ({error})") from error


def mnist_folder(folder: str | os.PathLike[str], name: str = "mnist") -> Dataset:
    """Load MNIST or Fashion-MNIST from the folder of its four files.

    Parameters
    ----------
    folder : path
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``.
    name : {"mnist", "fashion-mnist"}
        Which of the two: their files have the same names.

    Returns
    -------
    Dataset
        Images of shape (N, 28, 28, 1); in the official files 60,000 and 10,000 of them.

    Raises
    ------
    DatasetNotFoundError
        If a file is missing.
    DatasetError
        If a file is damaged, images are not 28x28, a label is above 9, images and labels
        differ in number, or the files are those of the other set.
    ValueError
        If `name` is neither of the two.
    """
    if name not in CLASSES:
        raise ValueError(f"name is {name!r}; required: one of {', '.join(map(repr, CLASSES))}")
    paths = {key: require_file(folder, names) for key, names in _FILES.items()}
    x_train, y_train = _images_and_labels(paths["x_train"], paths["y_train"])
    _refuse_the_other_set(paths["y_train"], y_train, name)
    x_test, y_test = _images_and_labels(paths["x_test"], paths["y_test"])
    return Dataset(name, x_train, y_train, x_test, y_test, CLASSES[name])


def _images_and_labels(
    image_path: Path, label_path: Path
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    # Shapes are looked at before what they promise is read.
    def check_images(shape: tuple[int, ...]) -> None:
        if shape[1:] != (28, 28) or not shape[0]:
            raise unsuitable(image_path, f"shape {shape}", "images of shape (N, 28, 28)")

    def check_labels(shape: tuple[int, ...]) -> None:
        if shape != images.shape[:1]:
            raise unsuitable(
                label_path,
                f"shape {shape}",
                f"shape {images.shape[:1]}, one label for each image of {image_path}",
            )

    images = _read(image_path, check_images)
    labels = _read(label_path, check_labels)
    if labels.max() > 9:
        raise unsuitable(label_path, f"label {labels.max()}", "labels from 0 to 9")
    return images[..., None], labels.astype(np.int64)


def _refuse_the_other_set(path: Path, labels: NDArray[np.int64], name: str) -> None:
    for other, first in _FIRST_LABELS.items():
        if other != name and tuple(labels[: len(first)]) == first:
            raise unsuitable(path, f"holds the labels of {other!r}", f"those of {name!r}")
