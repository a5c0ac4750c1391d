"""What every loader returns, and the errors it raises."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Dataset", "DatasetError", "DatasetNotFoundError", "unreadable", "unsuitable"]

# Pixels are counted in pieces, so that the counting needs a few megabytes and not a
# copy of the whole image set in 64-bit integers.
_IMAGES_PER_PIECE = 1024

#: Bytes that are read or inflated at a time.
PIECE = 1 << 20
# Compression makes photographs about two times smaller, drawn digits five times. Zeros become a
# thousand times smaller: a file of a megabyte could ask for a gigabyte.
_MOST_RATIO = 32
_ALWAYS_FINE = 1 << 26


class DatasetError(ValueError):
    """A file is not what its format or its data set requires; the message names the file."""


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """A data set, or one file of it, is not in any place that was searched."""


def unsuitable(path: str | os.PathLike[str], found: str, required: str) -> DatasetError:
    """Error for a file that was read but is not what its format asks for."""
    return DatasetError(f"{os.fspath(path)}: {found}; expected {required}")


def unreadable(path: str | os.PathLike[str], error: OSError, required: str) -> DatasetError:
    """Error for a file that the operating system would not hand over."""
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        return DatasetNotFoundError(f"{os.fspath(path)}: no such file; expected {required}")
    return DatasetError(f"{os.fspath(path)}: could not be read ({reason}); expected {required}")


def implausible(size: int, stored: int) -> str | None:
    """Why data of some size is not read from a file, or None.

    So readers need memory for 64 MiB, or for 32 times their file if that is more, and as much
    again while they rearrange it, whatever a file claims.

    Parameters
    ----------
    size : int
        Bytes of the data.
    stored : int
        Bytes that it takes in the file.
    """
    if size <= max(_ALWAYS_FINE, _MOST_RATIO * stored):
        return None
    return f"{size:,} bytes, which is more than {_MOST_RATIO} times the {stored:,} it is stored in"


def received(size: int, read_into: Callable[[memoryview], int]) -> NDArray[np.uint8]:
    """Bytes as they come: memory is asked for what is there, not for what was claimed.

    Parameters
    ----------
    size : int
        Most bytes that are read.
    read_into : callable
        Given a buffer, puts bytes at its beginning and returns how many; 0 at the end.

    Returns
    -------
    numpy.ndarray
        Fewer bytes than `size` if there are no more.
    """
    data, count = np.empty(min(size, PIECE), np.uint8), 0
    while count < size:
        if count == len(data):
            # Nothing else refers to the array.
            data.resize(min(size, 2 * count), refcheck=False)
        read = read_into(memoryview(data)[count:])
        if not read:
            break
        count += read
    return data[:count]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled images, split into training and test set.

    Parameters
    ----------
    name : str
        Name of the data set, as in `kfc_numba.datasets.names`.
    x_train, x_test : numpy.ndarray
        Images, shape (N, H, W, C), uint8. H, W and C are the same in both.
    y_train, y_test : numpy.ndarray
        Class of each image, shape (N,), int64, from 0 to ``len(classes) - 1``.
    classes : tuple of str
        Name of each class.

    Raises
    ------
    TypeError
        If an array has another dtype.
    ValueError
        If a shape or a label does not fit the description above.
    """

    name: str
    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
            _check_dtype(f"x_{split}", x, np.uint8)
            _check_dtype(f"y_{split}", y, np.int64)
            if x.ndim != 4 or 0 in x.shape:
                raise ValueError(
                    f"x_{split} has shape {x.shape}; required: (N, H, W, C), none of them 0"
                )
            if y.shape != x.shape[:1]:
                raise ValueError(
                    f"y_{split} has shape {y.shape}; required: {x.shape[:1]}, one label an image"
                )
            if y.min() < 0 or y.max() >= len(self.classes):
                raise ValueError(
                    f"y_{split} holds labels from {y.min()} to {y.max()}; "
                    f"required: 0 to {len(self.classes) - 1}"
                )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise ValueError(
                f"x_test holds images of shape {self.x_test.shape[1:]}; "
                f"required: {self.x_train.shape[1:]}, as in x_train"
            )

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        return (
            f"Dataset({self.name!r}: {len(self.x_train)} training and {len(self.x_test)} test "
            f"images of {height}x{width}x{channels}, {len(self.classes)} classes)"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of one image."""
        height, width, channels = self.x_train.shape[1:]
        return height, width, channels

    def channel_statistics(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel over all training pixels.

        Returns
        -------
        mean, std : numpy.ndarray
            Shape (C,), float64, in units of the stored pixel values (0 to 255). ``std`` is
            that of the population, ``sqrt(mean((x - mean)**2))``. The counts behind them are
            exact integers.
        """
        channels = self.image_shape[2]
        counts = np.zeros((channels, 256), dtype=np.int64)
        for start in range(0, len(self.x_train), _IMAGES_PER_PIECE):
            piece = self.x_train[start : start + _IMAGES_PER_PIECE]
            for channel in range(channels):
                values = piece[..., channel].ravel()
                counts[channel] += np.bincount(values, minlength=256)
        levels = np.arange(256, dtype=np.float64)
        pixels = self.x_train.size // channels
        mean = counts @ levels / pixels
        variance = (counts * (levels - mean[:, None]) ** 2).sum(axis=1) / pixels
        return mean, np.sqrt(variance)

    def normalized(self, dtype: DTypeLike = np.float32) -> tuple[NDArray[Any], NDArray[Any]]:
        """Inputs with zero mean and unit variance in each channel.

        Both sets are mapped by ``(x - mean[c]) / std[c]`` with the statistics of the
        **training** set (`channel_statistics`), so that nothing of the test set enters them.

        Parameters
        ----------
        dtype : numpy.float32 or numpy.float64
            Type of the result. Values are computed in float64 and rounded once.

        Returns
        -------
        x_train, x_test : numpy.ndarray
            New arrays, shapes as stored, C-contiguous.

        Raises
        ------
        ValueError
            If `dtype` is another type, or if a channel is constant over the training set
            (its variance cannot be made 1).
        """
        kind = np.dtype(dtype)
        if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"dtype is {kind}; required: float32 or float64")
        mean, std = self.channel_statistics()
        if not std.all():
            channel = int(np.flatnonzero(std == 0)[0])
            raise ValueError(
                f"channel {channel} of {self.name!r} is {mean[channel]:g} at every training "
                "pixel; required: a channel with some variance"
            )
        # A pixel has 256 possible values: the formula is evaluated for each once.
        tables = ((np.arange(256.0) - mean[:, None]) / std[:, None]).astype(kind)
        return _look_up(tables, self.x_train), _look_up(tables, self.x_test)


def _look_up(tables: NDArray[Any], x: NDArray[np.uint8]) -> NDArray[Any]:
    out = np.empty(x.shape, dtype=tables.dtype)
    for channel, table in enumerate(tables):
        out[..., channel] = table[x[..., channel]]
    return out


def _check_dtype(argument: str, array: Any, required: type[np.generic]) -> None:
    found = getattr(array, "dtype", type(array).__name__)
    if not isinstance(array, np.ndarray) or array.dtype != required:
        raise TypeError(f"{argument} is {found}; required: an array of {np.dtype(required)}")
