"""What a step asks of the kernels, as a function of the batch: recorded from real layers.

Two small batches are trained on the processor, by the real layers and optimizers, and the calls of
kernels are noted with the shapes of their arrays. What differs between the two grows with the
batch: so the calls are known for any batch, and can be made on arrays of a device that have no
memory (`device_launches`), by which an executor learns the launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

import kfc_numba as kfc
from kfc_numba.curvature.blocks import full, kronecker
from kfc_numba.kernels import backend, cpu
from kfc_numba.random import generator

BATCHES = 4, 6


@dataclass(frozen=True)
class Array:
    """Shape and dtype of an argument."""

    shape: tuple[Any, ...]
    dtype: str


@dataclass(frozen=True)
class Line:
    """A number that grows with the batch: ``at + slope * batch``."""

    at: float
    slope: float

    def __call__(self, batch: int) -> int:
        return round(self.at + self.slope * batch)


Call = tuple[str, Any, Any]


class _Recording:
    """Stands for the kernels of the CPU: notes each call, and makes it."""

    def __init__(self, calls: list[Call]):
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        function = getattr(cpu, name)
        if not callable(function) or name == "pool_index_dtype":
            return function

        def noted(*arguments: Any, **named: Any) -> Any:
            self._calls.append((name, _shapes(arguments), _shapes(named)))
            return function(*arguments, **named)

        return noted


def _shapes(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return Array(value.shape, value.dtype.str)
    if isinstance(value, dict):
        return {key: _shapes(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(map(_shapes, value))
    if isinstance(value, np.random.Generator):
        return "generator"
    return value


@contextmanager
def recording(calls: list[Call]) -> Iterator[None]:
    """Within the context calls of kernels are noted; decompositions are noted, and not made.

    Those of large factors take minutes here, and what they give does not matter.
    """

    def decompose(matrix: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        calls.append(("eigh", (Array(matrix.shape, matrix.dtype.str),), {}))
        values = np.maximum(np.diagonal(matrix, axis1=-2, axis2=-1), 0).copy()
        return values, np.zeros_like(matrix) + np.eye(matrix.shape[-1], dtype=matrix.dtype)

    kinds = {**backend._packages, np.ndarray: _Recording(calls)}
    with (
        mock.patch.object(backend, "_packages", kinds),
        mock.patch.object(full, "decompose", decompose),
        mock.patch.object(kronecker, "decompose", decompose),
    ):
        yield


def recorded_steps(
    build: Callable[[], kfc.Graph],
    optimizer: Callable[[], Any],
    classes: int,
    warm: int,
    steps: int,
) -> list[list[Call]]:
    """Calls of `steps` steps after `warm` others, with shapes that depend on the batch."""
    runs = []
    for batch in BATCHES:
        net = build()
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, *net.input_shape), np.float32)
        y = rng.integers(0, classes, batch)
        trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), optimizer(), seed=0)
        run: list[list[Call]] = [[] for _ in range(warm + steps)]
        for calls in run:
            with recording(calls):
                trainer.step(x, y)
        runs.append(run[warm:])
    return [
        [_line(one, two) for one, two in zip(*pair, strict=True)]
        for pair in zip(*runs, strict=True)
    ]


def _line(one: Any, two: Any) -> Any:
    """What becomes of two values at other batches."""
    if isinstance(one, Array):
        return Array(_line(one.shape, two.shape), one.dtype)
    if isinstance(one, tuple):
        return tuple(_line(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, dict):
        return {key: _line(one[key], two[key]) for key in one}
    if type(one) is int and one != two:
        slope = (two - one) / (BATCHES[1] - BATCHES[0])
        return Line(one - slope * BATCHES[0], slope)
    return one


def for_batch(value: Any, batch: int, array: Callable[[tuple[int, ...], str], Any]) -> Any:
    """Arguments at a batch, with arrays made by `array`."""
    if isinstance(value, Array):
        return array(for_batch(value.shape, batch, array), value.dtype)
    if isinstance(value, Line):
        return value(batch)
    if isinstance(value, dict):
        return {key: for_batch(part, batch, array) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(for_batch(part, batch, array) for part in value)
    return generator(0, "model") if value == "generator" else value
