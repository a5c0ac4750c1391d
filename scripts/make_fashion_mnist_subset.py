"""Cut the bundled subset of Fashion-MNIST from the full set.

    python scripts/make_fashion_mnist_subset.py FOLDER

FOLDER holds the four IDX files; Debian's package dataset-fashion-mnist puts them into
/usr/share/datasets/fashion-mnist. The output is byte-identical from run to run with one zlib,
its content with any.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np

from kfc_numba.datasets import Dataset, mnist_folder
from kfc_numba.datasets.bundled import BUNDLED_FILE

SEED = 2016
TRAIN_PER_CLASS = 1000
TEST_PER_CLASS = 200


def balanced(labels: np.ndarray, per_class: int, classes: int, rng) -> np.ndarray:
    """Ascending indices of `per_class` random examples of each class."""
    chosen = []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise ValueError(
                f"class {label} has {len(members)} images; required: at least {per_class}"
            )
        chosen.append(rng.permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen))


def cut(
    full: Dataset, train_per_class: int = TRAIN_PER_CLASS, test_per_class: int = TEST_PER_CLASS
) -> dict[str, np.ndarray]:
    """Class-balanced part of both sets of `full`, in the order of the full set."""
    # RandomState on purpose: NumPy guarantees that its stream never changes.
    rng = np.random.RandomState(SEED)
    classes = len(full.classes)
    train = balanced(full.y_train, train_per_class, classes, rng)
    test = balanced(full.y_test, test_per_class, classes, rng)
    return {
        "x_train": full.x_train[train],
        "y_train": full.y_train[train].astype(np.uint8),
        "x_test": full.x_test[test],
        "y_test": full.y_test[test].astype(np.uint8),
    }


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """Content of a compressed npz file that carries no date and no trace of the machine."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Cut the bundled subset of Fashion-MNIST.")
    parser.add_argument("folder", type=Path, help="folder of the four IDX files, plain or gzip")
    parser.add_argument("--output", type=Path, default=BUNDLED_FILE, help="npz file to write")
    arguments = parser.parse_args()
    content = pack(cut(mnist_folder(arguments.folder, "fashion-mnist")))
    unfinished = arguments.output.with_name(arguments.output.name + ".part")
    unfinished.write_bytes(content)
    os.replace(unfinished, arguments.output)
    print(
        f"{arguments.output}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}"
    )


if __name__ == "__main__":
    main()
