"""Networks and data that benchmarks share."""

from __future__ import annotations

import numpy as np

import kfc_numba as kfc


def quick(seed: int = 0) -> kfc.Sequential:
    """The CIFAR-10 network of cuda-convnet's "18 percent" experiment, without response norm."""
    return kfc.Sequential(
        [
            kfc.Conv2d(32, 5, padding=2),
            kfc.MaxPool2d(3, stride=2, ceil_mode=True),
            kfc.ReLU(),
            kfc.Conv2d(32, 5, padding=2),
            kfc.ReLU(),
            kfc.AvgPool2d(3, stride=2, ceil_mode=True),
            kfc.Conv2d(64, 5, padding=2),
            kfc.ReLU(),
            kfc.AvgPool2d(3, stride=2, ceil_mode=True),
            kfc.Flatten(),
            kfc.Dense(10),
        ],
        input_shape=(32, 32, 3),
        seed=seed,
    )


def random_batch(
    examples: int, shape: tuple[int, ...] = (32, 32, 3), classes: int = 10, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Normal inputs (examples, *shape), float32, and uniform labels (examples,)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((examples, *shape), np.float32)
    return x, rng.integers(0, classes, examples)
