"""The data sets known by name: files, reader and download address of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kfc_numba.foreign_names import explained

from . import cifar10, idx, svhn
from .base import Dataset, DatasetNotFoundError
from .bundled import fashion_mnist_10k
from .download import Remote, cache_folder, fetch
from .locate import Layout, find_folder, given_folder

__all__ = ["load", "names"]

BUNDLED = "fashion-mnist-10k"


@dataclass(frozen=True)
class _Entry:
    layout: Layout
    read: Callable[[Path], Dataset]
    remote: Remote


_CIFAR10 = Remote(
    addresses=("https://www.cs.toronto.edu/~kriz/",),
    md5={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    members=(
        *(f"cifar-10-batches-bin/data_batch_{batch}.bin" for batch in range(1, 6)),
        "cifar-10-batches-bin/test_batch.bin",
    ),
)

_ENTRIES = {
    "fashion-mnist": _Entry(
        idx.LAYOUTS["fashion-mnist"],
        lambda folder: idx.mnist_folder(folder, "fashion-mnist"),
        Remote(
            addresses=(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            ),
            md5={
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
        ),
    ),
    "mnist": _Entry(
        idx.LAYOUTS["mnist"],
        lambda folder: idx.mnist_folder(folder, "mnist"),
        Remote(
            # The official address often refuses; the second is PyTorch's copy of its files.
            addresses=(
                "http://yann.lecun.com/exdb/mnist/",
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
            ),
            md5={
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
        ),
    ),
    "cifar-10": _Entry(cifar10.LAYOUT, cifar10.cifar10_batches, _CIFAR10),
    "cifar-10-heldout": _Entry(
        cifar10.HELDOUT_LAYOUT,
        lambda folder: cifar10.cifar10_batches(folder, train=(1, 2, 3, 4), test=(5,)),
        _CIFAR10,
    ),
    "svhn": _Entry(
        svhn.LAYOUT,
        svhn.svhn_folder,
        Remote(
            addresses=("http://ufldl.stanford.edu/housenumbers/",),
            md5={
                "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
                "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            },
        ),
    ),
}


def names() -> tuple[str, ...]:
    """Names that `load` accepts, the bundled data set first."""
    return (BUNDLED, *_ENTRIES)


@explained
def load(
    name: str, folder: str | os.PathLike[str] | None = None, *, download: bool = False
) -> Dataset:
    """Load a data set by name.

    ============================  ==========================================================
    ``"fashion-mnist-10k"``       ships with the package: 10,000 training and 2,000 test images
    ``"fashion-mnist"``           all of Fashion-MNIST, IDX files, plain or gzip
    ``"mnist"``                   MNIST, IDX files, plain or gzip
    ``"cifar-10"``                CIFAR-10, binary version, official split
    ``"cifar-10-heldout"``        CIFAR-10 without its test set: trains on batches 1 to 4 and
                                  tests on batch 5
    ``"svhn"``                    SVHN, format 2 (``.mat``), training and test set
    ============================  ==========================================================

    Files are searched in `folder`; if that is not given, in the folder that the environment
    variable ``KFC_NUMBA_DATA`` names, in the folder of an operating system's package (Debian's
    ``dataset-fashion-mnist``), and among earlier downloads. A folder may be that of the data
    set, or hold it under a usual name (``cifar-10-batches-bin``, ``fashion-mnist``, ``mnist``,
    ``svhn``).

    Parameters
    ----------
    name : str
        One of `names`.
    folder : path, optional
        Where the files are. The bundled set takes none.
    download : bool
        Download what was not found from the official address, into ``kfc_numba`` in the
        user's cache folder (``pooch.os_cache``), checked by MD5 sum. Needs the extra ``data``.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If `name` is unknown, or `folder` is given for the bundled set.
    DatasetNotFoundError
        If files are missing (a `FileNotFoundError` too).
    DatasetError
        If a file is damaged or of another format, or a download fails (a `ValueError` too).
    ImportError
        If a download is needed and pooch is not installed.
    """
    if name not in names():
        raise ValueError(f"name is {name!r}; required: one of {', '.join(map(repr, names()))}")
    if name == BUNDLED:
        if folder is not None:
            raise ValueError(
                f"folder is {str(folder)!r}; {BUNDLED!r} ships with the package and takes none "
                "(the full set is 'fashion-mnist')"
            )
        return fashion_mnist_10k()
    entry = _ENTRIES[name]
    root = given_folder(folder)
    elsewhere = _usual_places(entry.layout) if folder is None else ()
    try:
        place = find_folder(name, entry.layout, root, elsewhere)
    except DatasetNotFoundError:
        if not download:
            raise
        place = fetch(name, entry.remote, entry.layout.folders[0])
    return entry.read(place)


def _usual_places(layout: Layout) -> Iterator[Path]:
    yield from map(Path, layout.system)
    downloads = cache_folder()
    if downloads is not None:
        yield downloads / layout.folders[0]
