"""What `assumptions` computes: networks at moments of their training, and what holds there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

import kfc_numba as kfc
from benchmarks.experiments.tasks import Task
from kfc_numba import networks
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.blocks.full import FullBlock
from kfc_numba.curvature.example_gradients import example_gradients
from kfc_numba.curvature.fisher import flatten
from kfc_numba.curvature.report import correlations
from kfc_numba.graph import Graph, PlacedLayer, Trace
from kfc_numba.layers.base import KroneckerLayer, Saved

OFFSETS = 4  # pixels, of correlations
POOLS: dict[str, type[kfc.MaxPool2d] | type[kfc.AvgPool2d]] = {
    "max": kfc.MaxPool2d,
    "average": kfc.AvgPool2d,
}
#: Approximations besides KFC: structure, and how locations that share weights enter.
OTHERS = {
    "EKFAC": ("ekfac", "expand"),
    "reduce": ("kronecker", "reduce"),
    "diagonal": ("diagonal", "expand"),
}
WHITE_ACTIVATIONS, WHITE = "white activations", "white activations and derivatives"
APPROXIMATIONS = ("KFC", *OTHERS, WHITE_ACTIVATIONS, WHITE)
#: Further directions of steps: by the exact blocks, by KFC with its own damping (of the factors,
#: where all others have damping added to the matrix), and the gradient itself.
EXACT, FACTORED, GRADIENT = "exact blocks", "KFC, factored damping", "gradient"


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
    for about, net in training(task, size.batch, seed, size.moments):
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
            if about["step"] == size.moments[-1]:
                layers[name]["maps"] = row["map_correlation"].round(3)
        moments.append(about | {"layers": layers})
    return _about(task, size.batch, size.examples) | {"moments": moments}


# Matrices against the exact Fisher matrix.


def exact_root(net: Graph, trace: Trace, loss: kfc.Loss) -> tuple[np.ndarray, dict[str, slice]]:
    """Rows R with ``F = R^T R``, and where each layer's columns are: by backward passes.

    Much faster than `kfc_numba.curvature.fisher.fisher_root`, which takes a pass a parameter.
    """
    blocks, places, stop = {}, {}, 0
    for placed in net.parameter_layers():
        block = blocks[placed.name] = FullBlock(net, placed, "expand")
        places[placed.name] = slice(stop, stop + block.size)
        stop += block.size
    rows: list[np.ndarray] = []

    def capture(placed: PlacedLayer, saved: Saved, dy: np.ndarray) -> None:
        assert isinstance(placed.layer, KroneckerLayer)
        parts = [g.reshape(len(g), -1) for g in example_gradients(placed.layer, saved, dy)]
        rows[-1][:, places[placed.name]][:, blocks[placed.name].order()] = np.concatenate(parts)

    for column in loss.fisher_columns(trace.outputs):
        rows.append(np.empty((len(trace.outputs), stop)))
        net.backward(trace, column, parameters=False, capture=capture)
    return np.concatenate(rows) / np.sqrt(len(trace.outputs)), places


def white_omega(layer: kfc.Conv2d, images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Omega of a convolution if activations at different locations were uncorrelated (SUA).

    Covariances are zero but at the same location, where they do not depend on it; means do not
    either (SH). So an entry for channels j, j' and offsets d, d' is ``beta(d, d') (M_j M_j' +
    S_jj' [d = d'])``, beta the number of output locations at which both lie in the image (Grosse
    and Martens, 2016, Theorem 4). That is positive semidefinite.

    Parameters
    ----------
    layer : Conv2d
        Without groups, with a bias.
    images : numpy.ndarray
        Its inputs, (examples, height, width, channels).
    shape : tuple of int
        Of its input.

    Returns
    -------
    numpy.ndarray
        (D, D), in the order and scale of the library's Omega.
    """
    inside = layer.homogeneous((np.ones((1, *shape), images.dtype),))[0]
    beta = inside.T @ inside
    rows = images.reshape(-1, shape[-1])
    mean = rows.mean(axis=0)
    covariance = rows.T @ rows / len(rows) - np.outer(mean, mean)
    offsets = layer.kernel[0] * layer.kernel[1]
    means = np.append(np.tile(mean, offsets), 1.0)
    second = np.outer(means, means)
    second[:-1, :-1] += np.kron(np.eye(offsets), covariance)
    return beta * second


def white_gamma(gamma: np.ndarray) -> np.ndarray:
    """Derivatives of maps as uncorrelated and of equal size: their mean."""
    return np.eye(len(gamma), dtype=gamma.dtype) * gamma.diagonal().mean()


def approximations(
    net: Graph, trace: Trace, loss: kfc.Loss, state: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Each of `APPROXIMATIONS` as dense blocks by layer.

    Parameters
    ----------
    net : Graph
    trace : Trace
        Forward pass of the examples.
    loss : Loss
    state : mapping of str to numpy.ndarray
        Of KFC, of the same examples.

    Returns
    -------
    dict of str to dict of str to numpy.ndarray
    """
    kronecker = BlockDiagonal(net)
    found = {"KFC": kronecker.dense(state)}
    for name, (structure, approx) in OTHERS.items():
        curvature = BlockDiagonal(net, structure, approx)
        found[name] = curvature.dense(curvature.compute(trace, loss, mode="fisher_exact"))
    white = dict(state)
    inputs = _inputs(net, trace, loss)
    for placed in net.parameter_layers():
        if isinstance(placed.layer, kfc.Conv2d):
            white[f"omega/{placed.name}"] = white_omega(
                placed.layer, inputs[placed.name], placed.input_shapes[0]
            )
    white |= kronecker.decompose(white)
    found[WHITE_ACTIVATIONS] = kronecker.dense(white)
    for placed in net.parameter_layers():
        white[f"gamma/{placed.name}"] = white_gamma(white[f"gamma/{placed.name}"])
    white |= kronecker.decompose(white)
    found[WHITE] = kronecker.dense(white)
    return found


def _inputs(net: Graph, trace: Trace, loss: kfc.Loss) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def capture(placed: PlacedLayer, saved: Saved, dy: np.ndarray) -> None:
        assert saved[0] is not None
        found[placed.name] = saved[0]

    net.backward(trace, next(loss.fisher_columns(trace.outputs)), parameters=False, capture=capture)
    return found


def compare(exact: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Frobenius norm of the difference over that of the exact matrix, and cosine between them."""
    norm, square = np.linalg.norm(exact), np.linalg.norm(other)
    return {
        "error": float(np.linalg.norm(other - exact) / norm),
        "cosine": float(np.sum(exact * other) / (norm * square)),
    }


def gain(damped: np.ndarray, gradient: np.ndarray, direction: np.ndarray, best: float) -> float:
    """Part of the greatest decrease of a quadratic model that is on a line in a direction.

    Parameters
    ----------
    damped : numpy.ndarray
        Matrix of the model, F + damping.
    gradient, direction : numpy.ndarray
    best : float
        ``gradient^T damped^-1 gradient``.
    """
    return float((gradient @ direction) ** 2 / (direction @ damped @ direction) / best)


def errors_of(task: Task, size: Size, seed: int) -> dict[str, Any]:
    """How far each approximation is from the exact Fisher matrix, and its steps, at each moment.

    Of each layer ``error`` and ``cosine`` of the matrices; with `damping` added to the matrix,
    ``step``, cosine of the step with the exact block's, and ``gain``, part of the decrease of the
    layer's quadratic model. ``whole``: gain of all blocks together in the model by the whole F.
    """
    x, y = (array[: size.small_examples] for array in task.train)
    damping = kfc.KFC().damping
    moments = []
    for about, net in training(task, size.small_batch, seed, size.small_moments):
        trace = net.forward(x)
        root, places = exact_root(net, trace, task.loss)
        fisher = root.T @ root
        _, gradients = net.value_and_grad(x, y, task.loss)
        gradient = flatten(net, gradients)
        kronecker = BlockDiagonal(net)
        state = kronecker.compute(trace, task.loss, mode="fisher_exact")
        found = approximations(net, trace, task.loss, state)
        found[EXACT] = {name: fisher[part, part] for name, part in places.items()}
        steps = {name: np.empty_like(gradient) for name in found} | {GRADIENT: gradient}
        for name, blocks in found.items():
            for layer, part in places.items():
                steps[name][part] = _solve(blocks[layer], damping, gradient[part])
        steps[FACTORED] = flatten(net, kronecker.precondition(state, gradients, damping))
        layers = {
            layer: _layer(found, steps, layer, part, gradient, damping)
            for layer, part in places.items()
        }
        damped = fisher + damping * np.eye(len(fisher))
        best = float(gradient @ _solve(fisher, damping, gradient))
        whole = {name: gain(damped, gradient, step, best) for name, step in steps.items()}
        moments.append(about | {"layers": layers, "whole": whole})
    return _about(task, size.small_batch, size.small_examples) | {
        "damping": damping,
        "parameters": len(gradient),
        "moments": moments,
    }


def _layer(
    found: Mapping[str, Mapping[str, np.ndarray]],
    steps: Mapping[str, np.ndarray],
    layer: str,
    part: slice,
    gradient: np.ndarray,
    damping: Any,
) -> dict[str, dict[str, float]]:
    exact, own = found[EXACT][layer], gradient[part]
    step = steps[EXACT][part]
    damped = exact + damping * np.eye(len(exact))
    rows: dict[str, dict[str, float]] = {}
    for name, direction in steps.items():
        if name == EXACT:
            continue
        rows[name] = compare(exact, found[name][layer]) if name in found else {}
        cosine = step @ direction[part] / np.linalg.norm(step) / np.linalg.norm(direction[part])
        rows[name] |= {
            "step": float(cosine),
            "gain": gain(damped, own, direction[part], float(own @ step)),
        }
    return rows


def _solve(matrix: np.ndarray, damping: Any, vector: np.ndarray) -> np.ndarray:
    damped = matrix + damping * np.eye(len(matrix))
    return scipy.linalg.solve(damped, vector, assume_a="pos")


# The report through training.


def report_of(task: Task, size: Size, seed: int) -> dict[str, Any]:
    """Error and cosine of each approximation of each layer of `quick`, by steps."""
    x = task.train[0][: size.examples]
    moments = []
    for about, net in training(task, size.batch, seed, size.report_steps):
        largest = max(
            sum(net.params[f"{p.name}.{s}"].size for s in p.names) for p in net.parameter_layers()
        )
        report = kfc.check_curvature(
            net, x, task.loss, largest=largest, exact_examples=len(x), repeats=1
        )
        kept = ("parameters", "relative_error", "cosine")
        layers = {row["layer"]: {name: row[name] for name in kept} for row in report.rows}
        moments.append(about | {"layers": layers})
    return _about(task, size.batch, size.examples) | {"moments": moments}


def _about(task: Task, batch: int, examples: int) -> dict[str, Any]:
    return {"data": task.data, "batch": batch, "examples": examples}


Part = Callable[[Task, Size, int], dict[str, Any]]
