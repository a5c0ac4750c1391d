"""Reader of CIFAR-10 in its binary format.

A file is a sequence of records: one label byte, then 3,072 pixel bytes, the red, the green
and the blue plane, each 32 rows of 32 (A. Krizhevsky, "The CIFAR-10 dataset", binary version).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .base import Dataset, unreadable, unsuitable
from .locate import Layout, require_file

__all__ = ["CLASSES", "HELDOUT_LAYOUT", "LAYOUT", "cifar10_batches", "read_cifar10_batch"]

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

_RECORD = 1 + 3 * 32 * 32
_BATCH_RECORDS = 10_000
_TRAINING = (1, 2, 3, 4, 5)
_FILES: dict[int | str, str] = {batch: f"data_batch_{batch}.bin" for batch in _TRAINING}
_FILES["test"] = "test_batch.bin"
_FOLDERS = ("cifar-10-batches-bin", "cifar-10")
_OFFICIAL = (_TRAINING, ("test",))
_HELDOUT = ((1, 2, 3, 4), (5,))

LAYOUT = Layout(
    tuple((file,) for file in _FILES.values()),
    _FOLDERS,
    hint="without test_batch.bin there is 'cifar-10-heldout', which trains on data_batch_1.bin "
    "to data_batch_4.bin and tests on data_batch_5.bin",
)
HELDOUT_LAYOUT = Layout(tuple((_FILES[batch],) for batch in _TRAINING), _FOLDERS)


def read_cifar10_batch(
    path: str | os.PathLike[str], *, records: int | None = _BATCH_RECORDS
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one file of CIFAR-10's binary version.

    Parameters
    ----------
    path : path
        The file.
    records : int or None
        How many records it must hold; official files hold 10,000. None takes any whole
        number of records, and so cannot tell a file that was cut between two of them.

    Returns
    -------
    x : numpy.ndarray
        Images, shape (N, 32, 32, 3), uint8, channels red, green, blue.
    y : numpy.ndarray
        Labels, shape (N,), int64, from 0 to 9.

    Raises
    ------
    DatasetNotFoundError
        If there is no such file.
    DatasetError
        If it cannot be read, has another size than required, or has a label above 9.
    """
    path = Path(path)
    if records is None:
        required = f"a whole number of records of {_RECORD:,} bytes"
    else:
        required = f"{records:,} records of {_RECORD:,} bytes ({records * _RECORD:,} bytes)"
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            fits = size % _RECORD == 0 if records is None else size == records * _RECORD
            if size == 0 or not fits:
                raise unsuitable(path, f"holds {size:,} bytes", required)
            data = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise unreadable(path, error, required) from error
    if data.size != size:
        raise unsuitable(path, f"gave {data.size:,} of its {size:,} bytes", required)
    table = data.reshape(-1, _RECORD)
    labels = table[:, 0]
    if labels.max() > 9:
        record = int(np.argmax(labels > 9))
        raise unsuitable(path, f"label {labels[record]} in record {record}", "labels from 0 to 9")
    planes = table[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels.astype(np.int64)


def cifar10_batches(
    folder: str | os.PathLike[str],
    *,
    train: Sequence[int | str] = _OFFICIAL[0],
    test: Sequence[int | str] = _OFFICIAL[1],
    records: int | None = _BATCH_RECORDS,
) -> Dataset:
    """Load CIFAR-10 with chosen files as training and test set.

    The default is the official split: 50,000 training images (batches 1 to 5) and 10,000 test
    images. Without ``test_batch.bin``, or to keep the test set for last, hold a training batch
    out: ``train=(1, 2, 3, 4), test=(5,)``.

    Parameters
    ----------
    folder : path
        Holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``; only those
        asked for are needed.
    train, test : sequence of {1, 2, 3, 4, 5, "test"}
        Files of each set, in order. No file may be asked for twice.
    records : int or None
        As in `read_cifar10_batch`.

    Returns
    -------
    Dataset
        Named ``"cifar-10"`` for the official split, ``"cifar-10-heldout"`` for the one
        above, and after its files for another.

    Raises
    ------
    DatasetNotFoundError
        If a file is missing.
    DatasetError
        If a file is damaged.
    ValueError
        If `train` or `test` is empty, or names an unknown file or one file twice.
    """
    split = tuple(train), tuple(test)
    for argument, batches in zip(("train", "test"), split, strict=True):
        if not batches or any(batch not in _FILES for batch in batches):
            raise ValueError(
                f"{argument} is {batches!r}; required: at least one of 1, 2, 3, 4, 5, 'test'"
            )
    chosen = split[0] + split[1]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"train is {split[0]!r} and test is {split[1]!r}; required: no file twice")
    # All files are located before the first is read.
    paths = {batch: require_file(folder, (_FILES[batch],)) for batch in chosen}
    x_train, y_train = _joined([paths[batch] for batch in split[0]], records)
    x_test, y_test = _joined([paths[batch] for batch in split[1]], records)
    names: dict[object, str] = {_OFFICIAL: "cifar-10", _HELDOUT: "cifar-10-heldout"}
    other = "cifar-10 ({} / {})".format(*("+".join(map(str, part)) for part in split))
    return Dataset(
        name=names.get(split, other),
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=CLASSES,
    )


def _joined(
    paths: Sequence[Path], records: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    parts = [read_cifar10_batch(path, records=records) for path in paths]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
