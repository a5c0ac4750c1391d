"""The data set that ships with the package: 12,000 images of Fashion-MNIST.

`scripts/make_fashion_mnist_subset.py` cut it from the full set; the licence lies beside it.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np

from .base import Dataset, unreadable, unsuitable
from .idx import CLASSES

__all__ = ["BUNDLED_FILE", "BUNDLED_SHA256", "fashion_mnist_10k"]

BUNDLED_FILE = Path(__file__).with_name("data") / "fashion_mnist_10k.npz"
BUNDLED_SHA256 = "70844c320bcd22ac7a965387450b2e22d114ebce04da6d73ce2702a714f6da44"
_BYTES = 5_248_431


def fashion_mnist_10k(path: str | os.PathLike[str] = BUNDLED_FILE) -> Dataset:
    """Load the bundled subset of Fashion-MNIST.

    10,000 training images (1,000 of each class, from the official training set) and 2,000
    test images (200 of each class, from the official test set), each set in official order.
    Copyright 2017 Zalando SE, MIT licence (H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST",
    arXiv 1708.07747).

    Parameters
    ----------
    path : path
        A copy of the bundled file. It is accepted only if it is unaltered.

    Returns
    -------
    Dataset
        Images of shape (N, 28, 28, 1).

    Raises
    ------
    DatasetNotFoundError
        If the file is missing.
    DatasetError
        If it is not, byte for byte, the file that belongs to this version of the package.
    """
    required = "the file that ships with kfc_numba (reinstalling the package restores it)"
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # One byte more than there should be says that the file is another.
            content = file.read(_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error, required) from error
    # The checksum comes before the parser: nothing of an altered file is ever interpreted.
    digest = hashlib.sha256(content).hexdigest()
    if digest != BUNDLED_SHA256:
        raise unsuitable(
            path,
            f"{size:,} bytes with SHA-256 {digest[:12]}...",
            f"{required}, SHA-256 {BUNDLED_SHA256[:12]}...",
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Dataset(
            name="fashion-mnist-10k",
            x_train=arrays["x_train"],
            y_train=arrays["y_train"].astype(np.int64),
            x_test=arrays["x_test"],
            y_test=arrays["y_test"].astype(np.int64),
            classes=CLASSES["fashion-mnist"],
        )
