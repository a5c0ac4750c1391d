"""Which kernels compute on an array. The only file that knows all of them."""

from __future__ import annotations

from types import ModuleType

import numpy as np


def kernels(array: np.ndarray) -> ModuleType:
    """Package of the kernels that compute on an array of this type.

    Parameters
    ----------
    array : numpy.ndarray

    Returns
    -------
    module
        `kfc_numba.kernels.cpu` for NumPy arrays.
    """
    if isinstance(array, np.ndarray):
        from kfc_numba.kernels import cpu

        return cpu
    raise TypeError(f"no kernels compute on {type(array).__name__}; NumPy arrays are supported")


def compilation(array: np.ndarray) -> ModuleType:
    """Module that compiles, ahead of time, the kernels that compute on an array of this type.

    Parameters
    ----------
    array : numpy.ndarray

    Returns
    -------
    module
        `kfc_numba.kernels.cpu.ahead` for NumPy arrays.
    """
    kernels(array)
    from kfc_numba.kernels.cpu import ahead

    return ahead
