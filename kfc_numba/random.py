"""Counter-based random numbers keyed by what they are for."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Generator whose stream depends on its key alone.

    Nothing is drawn from a shared stream, so shuffling, dropout and sampled targets depend
    neither on the order of calls nor on threads, and a resumed run draws what an uninterrupted
    one would have drawn.

    Parameters
    ----------
    seed : int
        Seed of the run, at least 0.
    purpose : str
        What the numbers are for, such as ``"shuffle"``.
    *counters : int
        Step, epoch, node index and the like, each at least 0.

    Returns
    -------
    numpy.random.Generator
        A Philox generator.
    """
    words = [seed, zlib.crc32(purpose.encode()), *counters]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
