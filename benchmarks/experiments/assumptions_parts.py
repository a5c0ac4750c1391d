"""What `assumptions` computes: networks at moments of their training, and what holds there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import kfc_numba as kfc
from benchmarks.experiments.tasks import Task
from kfc_numba import networks
from kfc_numba.curvature.report import correlations
from kfc_numba.graph import Graph

OFFSETS = 4  # pixels, of correlations
POOLS: dict[str, type[kfc.MaxPool2d] | type[kfc.AvgPool2d]] = {
    "max": kfc.MaxPool2d,
    "average": kfc.AvgPool2d,
}


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes
    ----------
    task : str
        That `quick` and its variants are trained on.
    batch : int
    moments : tuple of int
        Steps after which the variants are looked at; three.
    report_steps : tuple of int
        Steps after which `quick` is.
    examples : int
        Training images, the first ones, that curvature is a mean over.
    small_batch, small_moments, small_examples
        The same for the small networks.
    """

    task: str
    batch: int
    moments: tuple[int, ...]
    report_steps: tuple[int, ...]
    examples: int
    small_batch: int
    small_moments: tuple[int, ...]
    small_examples: int


FULL = Size(
    task="cifar-quick",
    batch=512,
    moments=(0, 20, 160),
    report_steps=(0, 5, 20, 60, 160),
    examples=128,
    small_batch=128,
    small_moments=(0, 32, 252),
    small_examples=512,
)
FAST = Size(
    task="fashion-bundled",
    batch=64,
    moments=(0, 2, 4),
    report_steps=(0, 2),
    examples=8,
    small_batch=32,
    small_moments=(0, 2, 4),
    small_examples=16,
)


# Networks, and moments of their training.


def quick_with(pool: str, shape: tuple[int, ...], seed: int) -> kfc.Sequential:
    """The network `quick` with pools of one kind."""

    def pooled() -> kfc.Layer:
        return POOLS[pool](3, stride=2, ceil_mode=True)

    layers = [
        *(kfc.Conv2d(32, 5, padding=2), pooled(), kfc.ReLU()),
        *(kfc.Conv2d(32, 5, padding=2), kfc.ReLU(), pooled()),
        *(kfc.Conv2d(64, 5, padding=2), kfc.ReLU(), pooled()),
        *(kfc.Flatten(), kfc.Dense(10)),
    ]
    return kfc.Sequential(layers, input_shape=shape, seed=seed)


def small_with(pool: str, shape: tuple[int, ...], seed: int) -> kfc.Sequential:
    """A network whose exact Fisher matrix is laid out, with pools of one kind."""

    def pooled() -> kfc.Layer:
        return POOLS[pool](3, stride=2, ceil_mode=True)

    layers = [
        *(kfc.Conv2d(8, 5, padding=2), kfc.ReLU(), pooled()),
        *(kfc.Conv2d(8, 5, padding=2), kfc.ReLU(), pooled()),
        *(kfc.Flatten(), kfc.Dense(10)),
    ]
    return kfc.Sequential(layers, input_shape=shape, seed=seed, dtype=np.float64)


def halved(images: np.ndarray) -> np.ndarray:
    """Images of half the size, in float64: means of 2x2 pixels."""
    examples, height, width, channels = images.shape
    blocks = images.reshape(examples, height // 2, 2, width // 2, 2, channels)
    return np.ascontiguousarray(blocks.mean(axis=(2, 4), dtype=np.float64))


def quick_task(task: Task, pool: str | None) -> Task:
    """A task with `quick` as it is, or with pools of one kind."""
    shape = task.train[0].shape[1:]

    def build(seed: int) -> Graph:
        return (
            quick_with(pool, shape, seed) if pool else networks.build("quick", shape, 10, seed=seed)
        )

    return dataclasses.replace(task, build=build, _checksum=[])


def small_task(task: Task, pool: str) -> Task:
    """A task on images of half the size with a small network."""
    (x, y), (held, labels) = task.train, task.validation
    x, held = halved(x), halved(held)
    return dataclasses.replace(
        task,
        build=lambda seed: small_with(pool, x.shape[1:], seed),
        train=(x, y),
        validation=(held, labels),
        _checksum=[],
    )


def training(
    task: Task, batch: int, seed: int, moments: tuple[int, ...]
) -> Iterator[tuple[dict[str, Any], Graph]]:
    """Train with KFC as it is; at some numbers of steps, how far it is and the network there.

    Its parameters are the raw ones, not the averages: at them the optimizer uses its curvature.
    """
    trainer = kfc.Trainer(task.build(seed), task.loss, kfc.KFC(), seed=seed)
    seen = task.build(seed)
    for steps in moments:
        if steps:
            trainer.fit(*task.train, batch_size=batch, total_steps=steps, progress=False)
        for name, value in trainer.raw_params.items():
            seen.params[name][...] = value
        loss, error = kfc.evaluate(seen, task.loss, *task.validation)
        epoch = steps * batch / len(task.train[0])
        yield {"step": steps, "epoch": epoch, "held_out_loss": loss, "held_out_error": error}, seen


# Correlations.


def mean_of_neighbours(correlation: np.ndarray) -> float:
    """Mean absolute correlation of locations side by side or one above the other."""
    row, column = (size // 2 for size in correlation.shape)
    found = [correlation[row + 1, column]] if row else []
    found += [correlation[row, column + 1]] if column else []
    return float(np.mean(np.abs(found)))


def mean_between_maps(correlation: np.ndarray) -> float:
    """Mean absolute correlation of two different maps."""
    others = ~np.eye(len(correlation), dtype=bool)
    return float(np.abs(correlation[others]).mean())


def correlations_of(task: Task, size: Size, seed: int) -> dict[str, Any]:
    """Correlations at each moment; matrices between maps at the last."""
    x = task.train[0][: size.examples]
    moments = []
    for where, net in training(task, size.batch, seed, size.moments):
        found = correlations.by_layer(net, net.forward(x), task.loss, OFFSETS)
        layers = {}
        for name, row in found.items():
            if row["map_correlation"] is None:
                continue
            layers[name] = {
                "derivatives": mean_of_neighbours(row["derivative_correlation"]),
                "activations": mean_of_neighbours(row["activation_correlation"]),
                "between_maps": mean_between_maps(row["map_correlation"]),
                "derivative_spread": row["derivative_spread"],
                "activation_spread": row["activation_spread"],
                "by_offset": {
                    kind: row[f"{kind}_correlation"].round(4) for kind in correlations.KINDS
                },
            }
            if where["step"] == size.moments[-1]:
                layers[name]["maps"] = row["map_correlation"].round(3)
        moments.append(where | {"layers": layers})
    return about(task, size.batch, size.examples) | {"moments": moments}


# The report through training.


def report_of(task: Task, size: Size, seed: int) -> dict[str, Any]:
    """Error and cosine of each approximation of each layer of `quick`, by steps."""
    x = task.train[0][: size.examples]
    moments = []
    for where, net in training(task, size.batch, seed, size.report_steps):
        largest = max(
            sum(net.params[f"{p.name}.{s}"].size for s in p.names) for p in net.parameter_layers()
        )
        report = kfc.check_curvature(
            net, x, task.loss, largest=largest, exact_examples=len(x), repeats=1
        )
        kept = ("parameters", "relative_error", "cosine")
        layers = {row["layer"]: {name: row[name] for name in kept} for row in report.rows}
        moments.append(where | {"layers": layers})
    return about(task, size.batch, size.examples) | {"moments": moments}


def about(task: Task, batch: int, examples: int) -> dict[str, Any]:
    """What captions say of a part."""
    return {"data": task.data, "batch": batch, "examples": examples}
