"""Reader of SVHN, format 2 (cropped digits), stored as MATLAB files.

``X`` is (32, 32, 3, N) of unsigned bytes, ``y`` is (N, 1) with labels 1 to 10, where 10 is the
digit 0 (Y. Netzer et al., "The Street View House Numbers (SVHN) dataset").
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .base import Dataset, unsuitable
from .locate import Layout, require_file
from .matfile import read_mat

__all__ = ["CLASSES", "LAYOUT", "read_svhn_mat", "svhn_folder"]

CLASSES = tuple("0123456789")
_FILES = ("train_32x32.mat", "test_32x32.mat")
LAYOUT = Layout(tuple((file,) for file in _FILES), ("svhn", "SVHN"))


def read_svhn_mat(
    path: str | os.PathLike[str],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one ``.mat`` file of SVHN's format 2.

    Parameters
    ----------
    path : path
        The file, such as ``train_32x32.mat``.

    Returns
    -------
    x : numpy.ndarray
        Images, shape (N, 32, 32, 3), uint8.
    y : numpy.ndarray
        Digits, shape (N,), int64, from 0 to 9: label 10 of the file is the digit 0.

    Raises
    ------
    DatasetNotFoundError
        If there is no such file.
    DatasetError
        If it cannot be read or is damaged, lacks ``X`` or ``y``, or if these have another
        shape or type, or a label outside 1 to 10.
    """
    path = Path(path)
    content = read_mat(path, ("X", "y"))
    for variable in ("X", "y"):
        if variable not in content:
            raise unsuitable(
                path, f"no variable {variable!r}", "variables 'X' and 'y' (SVHN format 2)"
            )
    images, labels = content["X"], content["y"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise unsuitable(
            path, f"'X' is {images.dtype} of shape {images.shape}", "uint8 of shape (32, 32, 3, N)"
        )
    count = images.shape[3]
    if labels.shape not in ((count, 1), (1, count)) or not count:
        raise unsuitable(
            path,
            f"'y' is {labels.dtype} of shape {labels.shape} beside {count} images",
            f"{count or 'some'} numbers, shape (N, 1)",
        )
    wrong = ~np.isin(labels, np.arange(1, 11))
    if wrong.any():
        raise unsuitable(path, f"label {labels[wrong][0]}", "labels from 1 to 10")
    digits = labels.ravel().astype(np.int64) % 10
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), digits


def svhn_folder(folder: str | os.PathLike[str]) -> Dataset:
    """Load SVHN from the folder of ``train_32x32.mat`` and ``test_32x32.mat``.

    Parameters
    ----------
    folder : path
        Holds the two files.

    Returns
    -------
    Dataset
        Images of shape (N, 32, 32, 3); in the official files 73,257 and 26,032 of them.

    Raises
    ------
    DatasetNotFoundError
        If a file is missing.
    DatasetError
        If a file is damaged or of another format (see `read_svhn_mat`).
    """
    train, test = (require_file(folder, (file,)) for file in _FILES)
    x_train, y_train = read_svhn_mat(train)
    x_test, y_test = read_svhn_mat(test)
    return Dataset("svhn", x_train, y_train, x_test, y_test, CLASSES)
