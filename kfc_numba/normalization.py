"""From data as they are stored to what a network was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from kfc_numba.checks import check_number, check_real

_PIECE = 2**20  # numbers that are looked at together


@dataclass(frozen=True)
class Normalization:
    """``(x - mean) / std``, a mean and a standard deviation for each channel (the last axis).

    Parameters
    ----------
    mean, std : sequence of float
        One number for each channel, or one for all; finite, and `std` positive.

    Raises
    ------
    TypeError, ValueError
        A number is not finite, or one of `std` is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, interval in (("mean", "(-inf, inf)"), ("std", "(0, inf)")):
            values = np.ravel(getattr(self, name)).tolist()
            checked = (check_number(f"{name}[{i}]", v, interval) for i, v in enumerate(values))
            object.__setattr__(self, name, tuple(checked))
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"mean (={self.mean}) and std (={self.std}) must have one number for each channel"
            )

    @classmethod
    def of(cls, x: ArrayLike) -> Normalization:
        """What gives each channel of some data a mean of 0 and a variance of 1.

        Parameters
        ----------
        x : array_like
            (..., channels), real numbers: the data that a network is trained on, not those it is
            tested on. A memory map is read a piece at a time.

        Returns
        -------
        Normalization
            Mean and standard deviation ``sqrt(mean((x - mean)**2))`` of each channel, over all
            other axes, added up in float64.

        Raises
        ------
        ValueError
            There are no numbers, one is not finite, or a channel is constant.
        """
        x = np.asarray(x)
        check_real("x", x)
        if x.ndim < 2 or not x.size:
            raise ValueError(f"x has shape {x.shape}; required: (..., channels), none of them 0")
        step = max(1, _PIECE * len(x) // x.size)
        pieces = [slice(start, start + step) for start in range(0, len(x), step)]
        rows = x.size // x.shape[-1]

        def mean_of(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            columns = (x[piece].reshape(-1, x.shape[-1]).astype(np.float64) for piece in pieces)
            return np.sum([function(part).sum(axis=0) for part in columns], axis=0) / rows

        with np.errstate(over="ignore", invalid="ignore"):
            mean = mean_of(lambda part: part)
            std = np.sqrt(mean_of(lambda part: (part - mean) ** 2))
        for channel, (center, spread) in enumerate(zip(mean, std, strict=True)):
            if not np.isfinite(spread):
                raise ValueError(
                    f"channel {channel} of x has the standard deviation {spread}; "
                    "required: finite numbers"
                )
            if (x[..., channel] == x[..., channel].flat[0]).all():
                raise ValueError(
                    f"channel {channel} of x is {center:g} everywhere; "
                    "required: a channel with some variance"
                )
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def __call__(self, x: ArrayLike, dtype: DTypeLike = np.float32) -> np.ndarray:
        """Normalised data.

        Parameters
        ----------
        x : array_like
            (..., channels), real numbers.
        dtype : dtype
            Of the result; values are computed in float64 and rounded once.

        Returns
        -------
        numpy.ndarray
            A new array.
        """
        x = np.asarray(x)
        check_real("x", x)
        channels = len(self.mean)
        if channels > 1 and x.shape[-1:] != (channels,):
            raise ValueError(f"x has shape {x.shape}, its last axis must have {channels} channels")
        return ((x - np.array(self.mean)) / np.array(self.std)).astype(dtype)
