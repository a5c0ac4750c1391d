"""How the accesses of a warp meet in memory: bank conflicts, and sectors of 32 bytes.

Shared memory serves 32 banks of 4 bytes in one pass; threads that ask one bank for different words
wait for each other. Accesses of 8 bytes a thread are served for half a warp at a time, of 16 for a
quarter (CUDA C++ Best Practices Guide, "Shared Memory"; how a card merges these is not documented,
so this counts the most passes there can be). Global memory moves sectors of 32 bytes.
"""

import itertools
from dataclasses import dataclass

import device_memory as memory
import numpy as np
from device_code import DeviceCode

BANKS, WORD, SECTOR = 32, 4, 32


@dataclass
class Site:
    """One load or store of the code, over all warps of a block."""

    array: int  # number of the argument, or of the shared array, from 1
    shared: bool
    kind: str
    bytes: int  # of a thread
    requests: int  # of warps
    passes: int  # of shared memory, or sectors of global memory
    least: int  # that these requests need at least

    @property
    def factor(self):
        return self.passes / self.least


def traffic(kernel, grid, block, arguments, seed=0):
    """Sites of a kernel, in the order of its code, from one block of a launch."""
    code = DeviceCode(kernel, kernel.types(arguments))
    notes = np.zeros((memory.MOST_NOTES, memory.NOTE_FIELDS), np.int64)
    memory.state[memory.NOTES], memory.state[memory.NOTED] = notes.ctypes.data, 0
    try:
        code(grid, block, arguments, seed, blocks_run=1)
    finally:
        memory.state[memory.NOTES] = 0
    notes = notes[: memory.state[memory.NOTED]]
    if len(notes) == memory.MOST_NOTES:
        raise ValueError(f"more than {memory.MOST_NOTES} accesses of a block")
    return [_site(notes[notes[:, 0] == number]) for number in np.unique(notes[:, 0])]


def _site(notes):
    zone, size, kind = notes[0, 2], notes[0, 4], notes[0, 5]
    order = np.argsort(notes[:, 1], kind="stable")
    threads, offsets = notes[order, 1], notes[order, 3]
    # The n-th time of each thread is one request of its warp.
    first = np.searchsorted(threads, threads, side="left")
    requests = np.stack([threads // 32, np.arange(len(threads)) - first], axis=1)
    shared = zone >= memory.FIRST_SHARED
    passes = least = count = 0
    keys, which = np.unique(requests, axis=0, return_inverse=True)
    places = np.argsort(which.ravel(), kind="stable")
    edges = np.searchsorted(which.ravel()[places], np.arange(len(keys) + 1))
    for a, b in itertools.pairwise(edges):
        lanes, where = threads[places[a:b]] % 32, offsets[places[a:b]]
        count += 1
        if shared:
            one, fewest = _passes(lanes, where, size)
        else:
            one, fewest = _sectors(where, size)
        passes, least = passes + one, least + fewest
    number = zone - memory.FIRST_SHARED + 1 if shared else zone
    name = ("read", "write", "update")[kind]
    return Site(int(number), bool(shared), name, int(size), count, int(passes), int(least))


def _passes(lanes, offsets, size):
    """Passes of shared memory for one request, and the least for as many bytes a thread."""
    at_once = 32 * WORD // max(size, WORD)
    passes = groups = 0
    for group in np.unique(lanes // at_once):
        mine = offsets[lanes // at_once == group]
        words = np.unique(mine[:, None] // WORD + np.arange(max(1, size // WORD)))
        passes += np.bincount(words % BANKS).max()
        groups += 1
    return passes, groups


def _sectors(offsets, size):
    """Sectors that one request touches, and the least for as many different bytes."""
    first, last = offsets // SECTOR, (offsets + size - 1) // SECTOR
    touched = len(np.unique(np.concatenate([first, last])))
    return touched, -(-len(np.unique(offsets)) * size // SECTOR)
