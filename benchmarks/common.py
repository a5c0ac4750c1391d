"""What benchmarks share: data and networks."""

from __future__ import annotations

import numpy as np

import kfc_numba as kfc
from kfc_numba import networks


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers, float32, of a shape."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def random_batch(
    examples: int, shape: tuple[int, ...] = (32, 32, 3), classes: int = 10, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Normal inputs (examples, *shape), float32, and uniform labels (examples,)."""
    x = normal(examples, *shape, seed=seed)
    return x, np.random.default_rng(seed + 1).integers(0, classes, examples)


def quick() -> kfc.Graph:
    """The network that most figures are about: CIFAR-10's shape, three 5x5 convolutions."""
    return networks.build("quick", (32, 32, 3), 10)


def small() -> kfc.Graph:
    """The network for 28x28 images that the command line trains by default."""
    return networks.build("small", (28, 28, 1), 10)
