"""A report on the curvature of a network: how far each approximation is off, and what it costs.

Grosse and Martens (2016) check two of their assumptions by correlations over spatial offsets:
that derivatives are uncorrelated between locations (SUD), and that moments depend on the offset
and not on the location (SH); and they show how derivatives of maps are correlated. The same figures
are here for any network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike

from kfc_numba.arrays import cast
from kfc_numba.checks import check_integer
from kfc_numba.curvature import fisher
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.blocks.kronecker import KroneckerBlock
from kfc_numba.curvature.damping import trace_ratio
from kfc_numba.curvature.eigen import decompose
from kfc_numba.curvature.example_gradients import example_gradients
from kfc_numba.curvature.report import correlations, text
from kfc_numba.curvature.report.costs import least_seconds, suggested_periods
from kfc_numba.curvature.report.text import COMPARED
from kfc_numba.devices import to_host
from kfc_numba.evaluation import finite_inputs
from kfc_numba.graph import Graph, PlacedLayer, Trace
from kfc_numba.layers.base import KroneckerLayer, Saved
from kfc_numba.losses import Loss
from kfc_numba.random import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report", "check_curvature"]


@dataclass
class Report:
    """What `check_curvature` found.

    Attributes
    ----------
    rows : list of dict
        For each layer with parameters, in order:

        ``layer``, ``parameters``; ``locations``, |T|, None without Kronecker factors.
        ``relative_error``, ``cosine``: by approximation (``"expand"``, ``"reduce"``, ``"ekfac"``,
        ``"diagonal"``): Frobenius norm of its difference from the exact block over that of the
        block, and cosine of the angle between the two as vectors; None for layers with more than
        `largest` parameters, and for approximations that the layer does not have.
        ``condition_omega``, ``condition_gamma``: largest over smallest eigenvalue (infinity where
        that is zero; the worst group). ``pi``: see `kfc_numba.curvature.damping.trace_ratio`
        (geometric mean over groups).
        ``derivative_correlation``, ``activation_correlation``: arrays (2R + 1, 2R' + 1) with
        offset (0, 0), which has 1, in the middle; ``derivative_spread``, ``activation_spread``:
        standard deviation over locations of the second moment over its mean, 0 where SH holds. See
        `kfc_numba.curvature.report.correlations`. ``map_correlation``: array (I, I), of the
        derivatives of two maps at the same location, which ``"expand"`` keeps in Gamma. None for
        layers without images.
        ``bytes``: of the factors and their eigenvectors, by kind. ``seconds``: of the second
        moments and the decomposition of each factor, measured: ``omega``, ``gamma``,
        ``omega_eigenvectors``, ``gamma_eigenvectors``.
    costs : dict
        ``gradient_seconds`` (forward and backward pass of the batch), ``statistics_seconds``
        (sampled targets, backward pass, factors of all layers), ``decomposition_seconds``,
        ``overhead`` as given, and the suggested ``curvature_update_period`` and
        ``inverse_update_period``.
    examples : int
        In the batch.
    exact_examples : int
        Of which the exact blocks and correlations are means.
    largest : int
        As given.
    """

    rows: list[dict[str, Any]]
    costs: dict[str, Any]
    examples: int
    exact_examples: int
    largest: int

    def __str__(self) -> str:
        return text.report(self)

    def to_json(self, *, indent: int | None = 2) -> str:
        """All of it as JSON: arrays as lists, numbers that are not finite as null.

        Parameters
        ----------
        indent : int, optional

        Returns
        -------
        str
        """
        content = {name: getattr(self, name) for name in ("examples", "exact_examples", "largest")}
        return json.dumps(
            _plain(content | {"costs": self.costs, "layers": self.rows}),
            indent=indent,
            allow_nan=False,
        )

    def figure(self) -> Figure:
        """Correlations by spatial offset and between maps, a row for each layer with images.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            matplotlib is not installed.
        ValueError
            No layer has images.
        """
        return correlations.figure(self.rows)


def check_curvature(
    net: Graph,
    x: ArrayLike,
    loss: Loss,
    *,
    largest: int = 16384,
    exact_examples: int = 32,
    offsets: int = 4,
    overhead: float = 0.1,
    repeats: int = 3,
    seed: int = 0,
) -> Report:
    """Measure how good and how expensive the approximations of the curvature are.

    The network is taken in evaluation mode: without dropout, with running statistics. Factors are
    those of the whole batch, without noise of sampling (``fisher_exact``).

    Errors come from inner products, ``|F - A|^2 = |F|^2 - 2 <F, A> + |A|^2``, with |F| from the
    products of the examples' gradients and <F, A> from their second moments in A's eigenbasis: no
    matrix is laid out. An error below about 1e-3 in float32, or 1e-7 in float64, is rounding.

    Periods are suggested by this rule: with at most `overhead` of the time of a gradient spent on
    each of the two, ``curvature_update_period = ceil(statistics_seconds / (overhead *
    gradient_seconds))``, and `inverse_update_period` likewise from the decompositions, but no less
    often than the factors change. They say what is affordable, not what is best.

    Parameters
    ----------
    net : Graph
    x : array_like
        Inputs of a batch such as those that the network is trained on.
    loss : Loss
    largest : int
        Parameters of a layer up to which it is compared with its exact block. The gradients of all
        examples, one for each output component, are laid out.
    exact_examples : int
        Examples, from the beginning of the batch, that exact blocks and correlations are means
        over.
    offsets : int
        Largest offset of correlations, in pixels.
    overhead : float
        See above; above 0.
    repeats : int
        Each time is the least of so many, after one that compiles.
    seed : int
        Of targets that are sampled for the timings.

    Returns
    -------
    Report

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """
    for name, given, kind in (("net", net, Graph), ("loss", loss, Loss)):
        if not isinstance(given, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(given).__name__}")
    for name, value, least in (
        ("largest", largest, 0),
        ("exact_examples", exact_examples, 1),
        ("offsets", offsets, 0),
        ("repeats", repeats, 1),
        ("seed", seed, 0),
    ):
        check_integer(name, value, least=least)
    if isinstance(overhead, bool) or not 0 < overhead < math.inf:
        raise ValueError(f"overhead (={overhead!r}) must be a number above 0")
    x = finite_inputs(net, x, "x")
    trace = net.forward(x)
    few = net.part(trace, x, np.arange(min(exact_examples, len(x))))
    few = replace(few, saved=list(few.saved))  # many passes over the same few

    rows = {row["layer"]: row for row in _describe(net, trace, loss)}
    for name, found in _compare(net, few, loss, largest).items():
        rows[name] |= found
    for name, found in correlations.by_layer(net, few, loss, offsets).items():
        rows[name] |= found
    costs = _measure(net, x, trace, loss, rows, repeats, seed)
    costs |= suggested_periods(costs, overhead)
    return Report(list(rows.values()), costs, len(x), len(few.outputs), largest)


def _describe(net: Graph, trace: Trace, loss: Loss) -> list[dict[str, Any]]:
    """Rows with what the factors of the batch tell."""
    curvature = BlockDiagonal(net)
    state = curvature.compute(trace, loss, mode="fisher_exact")
    memory = curvature.memory()
    rows = []
    for placed, block in zip(net.parameter_layers(), curvature.blocks, strict=True):
        row: dict[str, Any] = {"layer": placed.name, "parameters": block.size, "locations": None}
        row |= dict.fromkeys(("condition_omega", "condition_gamma", "pi"))
        if isinstance(block, KroneckerBlock):
            row["locations"] = math.prod(placed.shape[:-1])
            kinds = ("omega", "gamma")
            values = {k: to_host(state[f"{k}_values/{placed.name}"]) for k in kinds}
            for kind, found in values.items():
                row[f"condition_{kind}"] = _condition(found)
            ratio = trace_ratio(values["omega"], values["gamma"])
            row["pi"] = float(np.exp(np.mean(np.log(ratio))))
        row["bytes"] = memory[placed.name]
        rows.append(row)
    return rows


def _condition(values: np.ndarray) -> float:
    """Largest over smallest eigenvalue, of the worst group."""
    values = values.astype(np.float64)
    least = values.min(axis=-1)
    greatest = values.max(axis=-1)
    return float(
        np.max(np.divide(greatest, least, out=np.full_like(least, np.inf), where=least > 0))
    )


def _compare(net: Graph, trace: Trace, loss: Loss, largest: int) -> dict[str, dict[str, Any]]:
    """``relative_error`` and ``cosine`` of each layer."""
    found: dict[str, dict[str, Any]] = {}
    norms = _norms(net, trace, loss, largest)
    forms: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in norms}
    for kind, approx in (("ekfac", "expand"), ("ekfac", "reduce"), ("diagonal", "expand")):
        if not norms:
            break
        curvature = BlockDiagonal(net, kind, approx)
        state = curvature.compute(trace, loss, mode="fisher_exact")
        for block in curvature.blocks:
            if block.name not in norms:
                continue
            own = to_host(block.eigenvalues(state, 0.0, "exact")).astype(np.float64)
            square = float(np.sum(own**2))
            if not isinstance(block, KroneckerBlock):
                # The second moments are the diagonal itself: <F, A> = |A|^2.
                forms[block.name]["diagonal"] = (square, square)
                continue
            o, g = (
                to_host(state[f"{k}_values/{block.name}"]).astype(np.float64)
                for k in ("omega", "gamma")
            )
            products = g[..., :, None] * o[..., None, :]
            forms[block.name][approx] = (
                float(np.sum(products * own)),
                float(np.sum(products**2)),
            )
            if approx == "expand":
                forms[block.name]["ekfac"] = (square, square)
    for placed in net.parameter_layers():
        row: dict[str, Any] = {"relative_error": None, "cosine": None}
        if placed.name in norms:
            results = {
                name: _error_and_cosine(norms[placed.name], *forms[placed.name][name])
                if name in forms[placed.name]
                else (None, None)
                for name in COMPARED
            }
            row["relative_error"] = {name: error for name, (error, _) in results.items()}
            row["cosine"] = {name: cosine for name, (_, cosine) in results.items()}
        found[placed.name] = row
    return found


def _error_and_cosine(norm: float, inner: float, square: float) -> tuple[float, float]:
    """Relative error and cosine of A, from |F|^2, <F, A> and |A|^2."""
    if norm == 0:
        return (0.0, 1.0) if square == 0 else (math.inf, 0.0)
    error = math.sqrt(max(0.0, norm - 2 * inner + square) / norm)
    return error, inner / math.sqrt(norm * square) if square > 0 else 0.0


def _norms(net: Graph, trace: Trace, loss: Loss, largest: int) -> dict[str, float]:
    """Squared Frobenius norms of the exact blocks of layers that are not too large."""
    chosen = {}
    for placed in net.parameter_layers():
        size = sum(net.params[f"{placed.name}.{short}"].size for short in placed.names)
        if size <= largest:
            chosen[placed.name] = placed
    rows: dict[str, list[np.ndarray]] = {name: [] for name in chosen}

    def capture(placed: PlacedLayer, saved: Saved, dy: np.ndarray) -> None:
        if placed.name in chosen and isinstance(placed.layer, KroneckerLayer):
            parts = [g.reshape(len(g), -1) for g in example_gradients(placed.layer, saved, dy)]
            rows[placed.name].append(array_namespace(*parts).concat(parts))

    if chosen:
        for column in loss.fisher_columns(trace.outputs):
            net.backward(trace, column, parameters=False, capture=capture)
    norms = {}
    for name, placed in chosen.items():
        if isinstance(placed.layer, KroneckerLayer):
            parts = rows.pop(name)
            root = array_namespace(*parts).concat(parts) / math.sqrt(len(trace.outputs))
        else:
            names = [f"{name}.{short}" for short in placed.names]
            root = fisher.fisher_root(net, trace, loss, names)
        # |R^T R| = |R R^T|: the smaller of the two.
        gram = root @ root.T if len(root) < root.shape[1] else root.T @ root
        xp = array_namespace(gram)
        norms[name] = float(xp.sum(xp.square(cast(gram, np.float64))))
    return norms


def _measure(
    net: Graph,
    x: np.ndarray,
    trace: Trace,
    loss: Loss,
    rows: dict[str, dict[str, Any]],
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    """Times of the whole; those of each factor go into `rows`."""
    rng = generator(seed, "report targets")
    derivative = loss.derivative(trace.outputs, loss.sample(trace.outputs, rng))
    curvature = BlockDiagonal(net)
    state = curvature.initial_state()

    def gradient() -> None:
        net.backward(net.forward(x), derivative)

    def statistics() -> None:
        curvature.estimate(trace, loss, state, rng=rng)

    costs: dict[str, Any] = {
        "gradient_seconds": least_seconds(gradient, repeats, net.device),
        "statistics_seconds": least_seconds(statistics, repeats, net.device),
    }
    estimated = curvature.estimate(trace, loss, state, rng=rng)
    captured: dict[str, tuple[PlacedLayer, Saved, np.ndarray]] = {}

    def capture(placed: PlacedLayer, saved: Saved, dy: np.ndarray) -> None:
        captured[placed.name] = (placed, saved, dy)

    net.backward(trace, derivative, parameters=False, capture=capture)
    for name, (placed, saved, dy) in captured.items():
        rows[name]["seconds"] = None
        if not isinstance(placed.layer, KroneckerLayer):
            continue
        calls: dict[str, partial] = {
            "omega": partial(placed.layer.input_moment, saved, "expand"),
            "gamma": partial(placed.layer.output_moment, dy, "expand"),
        }
        for kind in ("omega", "gamma"):
            matrix = estimated[f"{kind}/{name}"]
            calls[f"{kind}_eigenvectors"] = partial(decompose, matrix, name)
        rows[name]["seconds"] = {
            kind: least_seconds(call, repeats, net.device) for kind, call in calls.items()
        }
    costs["decomposition_seconds"] = sum(
        row["seconds"]["omega_eigenvectors"] + row["seconds"]["gamma_eigenvectors"]
        for row in rows.values()
        if row["seconds"]
    )
    return costs


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
