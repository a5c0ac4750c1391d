"""Approximations on small networks against their exact Fisher matrix, laid out in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.linalg

import kfc_numba as kfc
from benchmarks.experiments.assumptions_parts import Size, about, training
from benchmarks.experiments.tasks import Task
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.blocks.full import FullBlock
from kfc_numba.curvature.example_gradients import example_gradients
from kfc_numba.curvature.fisher import flatten
from kfc_numba.graph import Graph, PlacedLayer, Trace
from kfc_numba.layers.base import KroneckerLayer, Saved

#: Approximations besides KFC: structure, and how locations that share weights enter.
OTHERS = {
    "EKFAC": ("ekfac", "expand"),
    "reduce": ("kronecker", "reduce"),
    "diagonal": ("diagonal", "expand"),
}
WHITE_ACTIVATIONS, WHITE = "white activations", "white activations and derivatives"
APPROXIMATIONS = ("KFC", *OTHERS, WHITE_ACTIVATIONS, WHITE)
#: About what `KFC()` has at last, with batches of 32.
DAMPING = 2e-4
#: Further directions of steps: by the exact blocks, by KFC with its own damping (of the factors,
#: where all others have damping added to the matrix), and the gradient itself.
EXACT, FACTORED, GRADIENT = "exact blocks", "KFC, factored damping", "gradient"


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
    damping = DAMPING
    moments = []
    for where, net in training(task, size.small_batch, seed, size.small_moments):
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
        moments.append(where | {"layers": layers, "whole": whole})
    return about(task, size.small_batch, size.small_examples) | {
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
