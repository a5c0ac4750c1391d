"""Memory of a network that is used again from step to step."""

from __future__ import annotations

import math
import threading
import weakref
from bisect import bisect_left, insort
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

_SMALLEST = 1 << 15  # below this the allocator of the C library is faster than any list of ours
_SLACK = 1.25  # a free block may be this much larger than what is asked for
#: Bytes that are held at most, as a multiple of the most that were in use at one time. Steps of KFC
#: alone come to 1.7, since not all is in use at once; with evaluations in larger batches, and a
#: smaller batch at the end of each pass, to 3.2: none of these should have to ask anew.
MOST_HELD = 4


class _Block(np.ndarray):
    """Bytes that arrays are made of, or a view of all of them: a lease of the block.

    A class of its own, since NumPy takes for the base of an array the last in a chain of views of
    one type: it must be the lease, which lives as long as an array that views it.
    """

    __slots__ = ()


class _Loan(weakref.ref):
    """The workspace's side of a lease."""

    __slots__ = ("block",)
    block: _Block
    # Not of what it refers to, as those of other references: arrays have neither.
    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Workspace:
    """Recycling allocator for the activations and derivatives of a network.

    The arrays of a batch are tens of megabytes; asking the operating system for them anew in
    every step costs page faults worth several kernels. An array from `empty` goes back to the
    workspace by itself when nothing refers to it or to a view of it any more, so an array that a
    caller keeps is never overwritten. All blocks together, in use and free, are at most `MOST_HELD`
    times as large as the most that was in use at one time: where batches change in size, the free
    blocks that were not used for longest are given back. Safe to use from several threads.
    """

    def __init__(self) -> None:
        # By size, and of one size the last that came back first: (bytes, -number, block).
        self._free: list[tuple[int, int, _Block]] = []
        self._free_bytes = 0
        self._lent: set[_Loan] = set()
        self._lent_bytes = 0
        self._most_lent = 0
        self._number = 0
        # Loans that ended. What a dying array calls is `append` itself and no function in Python:
        # an interrupt that came in one would be swallowed, and it would have to wait for the lock.
        self._ended: deque[_Loan] = deque()
        self._lock = threading.RLock()  # reentrant: the handler of a signal may come back here

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
        with self._lock:
            block = self._take(size)
            lease = block.view()
            self._lend(lease, block)
        return np.ndarray(shape, dtype, lease)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """The same as `empty`, filled with zeros."""
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def clear(self) -> None:
        """Give the blocks that are not in use back to the operating system."""
        with self._lock:
            self._collect()
            self._free, self._free_bytes = [], 0
            self._most_lent = self._lent_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes held that no array uses now."""
        with self._lock:
            self._collect()
            return self._free_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes held, whether an array uses them or not."""
        with self._lock:
            self._collect()
            return self._free_bytes + self._lent_bytes

    def _take(self, size: int) -> _Block:
        """A block of at least this many bytes."""
        self._collect()
        index = bisect_left(self._free, (size,))
        if index < len(self._free) and self._free[index][0] <= _SLACK * size:
            found, _, block = self._free.pop(index)
            self._free_bytes -= found
            return block
        self._trim(size)
        return _Block((size,), np.uint8)

    def _lend(self, lease: _Block, block: _Block) -> None:
        loan = _Loan(lease, self._ended.append)
        loan.block = block
        self._lent.add(loan)
        self._lent_bytes += block.nbytes
        self._most_lent = max(self._most_lent, self._lent_bytes)

    def _collect(self) -> None:
        """Take back the blocks of arrays that are no more.

        In an order in which an interrupt, whenever it comes, may lose a block, but neither keeps
        one for ever nor gives it to two arrays.
        """
        while self._ended:
            loan = self._ended[0]
            if loan in self._lent:
                self._lent.remove(loan)
                self._lent_bytes -= loan.block.nbytes
                self._number += 1
                insort(self._free, (loan.block.nbytes, -self._number, loan.block))
                self._free_bytes += loan.block.nbytes
            self._ended.popleft()

    def _trim(self, size: int) -> None:
        """Drop the oldest free blocks, until a new one of this size is within what may be held."""
        # Counted anew: an interrupt may have come between a change and its count.
        self._free_bytes = sum(found for found, _, _ in self._free)
        self._lent_bytes = sum(loan.block.nbytes for loan in self._lent)
        lent = self._lent_bytes + size
        most = MOST_HELD * max(self._most_lent, lent)
        while self._free and self._free_bytes + lent > most:
            oldest = max(range(len(self._free)), key=lambda index: self._free[index][1])
            self._free_bytes -= self._free.pop(oldest)[0]

    def __getstate__(self) -> dict[str, Any]:
        return {}  # memory is not part of a network that is copied or sent to another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
