"""From data as they are stored to what a network was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from kfc_numba.checks import check_number, check_real


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
