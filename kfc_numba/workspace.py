"""Memory of a network that is used again from step to step."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

_SMALLEST = 1 << 15  # below this the allocator of the C library is faster than any list of ours
_SLACK = 1.25  # a free block may be this much larger than what is asked for


class _Lease:
    """A block of memory on loan: when the last array that views it dies, it goes back."""

    def __init__(self, workspace: Workspace, block: np.ndarray, shape: tuple, dtype: np.dtype):
        self._workspace = workspace
        self._block = block
        self.__array_interface__ = {
            "version": 3,
            "data": (block.ctypes.data, False),
            "shape": shape,
            "typestr": dtype.str,
        }

    def __del__(self) -> None:
        self._workspace._return(self._block)


class Workspace:
    """Recycling allocator for the activations and derivatives of a network.

    The arrays of a batch are tens of megabytes; asking the operating system for them anew in
    every step costs page faults worth several kernels. An array from `empty` goes back to the
    workspace by itself when nothing refers to it or to a view of it any more, so an array that a
    caller keeps is never overwritten. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []  # sorted by size
        self._lock = threading.RLock()  # reentrant: a lease may end inside an allocation of ours

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Uninitialised C-contiguous array.

        Parameters
        ----------
        shape : tuple of int
        dtype : dtype

        Returns
        -------
        numpy.ndarray
            Array of `shape` and `dtype` with arbitrary content.
        """
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < _SMALLEST:
            return np.empty(shape, dtype)
        return np.asarray(_Lease(self, self._take(size), shape, dtype))

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """The same as `empty`, filled with zeros."""
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def clear(self) -> None:
        """Give the blocks that are not in use back to the operating system."""
        with self._lock:
            self._free = []

    @property
    def free_bytes(self) -> int:
        """Bytes held that no array uses now."""
        with self._lock:
            return sum(block.nbytes for block in self._free)

    def _take(self, size: int) -> np.ndarray:
        with self._lock:
            for index, block in enumerate(self._free):
                if block.nbytes >= size:
                    if block.nbytes <= _SLACK * size:
                        return self._free.pop(index)
                    break
        return np.empty(size, np.uint8)

    def _return(self, block: np.ndarray) -> None:
        with self._lock:
            sizes = [other.nbytes for other in self._free]
            self._free.insert(int(np.searchsorted(sizes, block.nbytes)), block)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # memory is not part of a network that is copied or sent to another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
