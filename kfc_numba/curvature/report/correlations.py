"""Correlations of derivatives and of activations over space, and of derivatives between maps.

Grosse and Martens (2016), section 3: KFC takes derivatives at two locations as uncorrelated (SUD),
and second moments as functions of the offset between two locations alone (SH). Those between maps
it keeps, in Gamma; who takes derivatives as white leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kfc_numba.devices import to_host
from kfc_numba.graph import Graph, PlacedLayer, Trace
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import KroneckerLayer, Saved
from kfc_numba.losses import Loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("derivative", "activation")
_COLOURS: dict[str, Any] = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r"}


def autocovariance(images: np.ndarray, offsets: int) -> np.ndarray:
    """Mean product of an image with itself at an offset, over examples, channels and locations.

    Parameters
    ----------
    images : numpy.ndarray
        (examples, height, width, channels).
    offsets : int
        R, the largest offset; at most the size less one counts.

    Returns
    -------
    numpy.ndarray
        (2 R + 1, 2 R' + 1), float64, symmetric about its middle: the mean over those pairs of
        locations that lie in the image.
    """
    height, width = images.shape[1:3]
    rows, columns = min(offsets, height - 1), min(offsets, width - 1)
    result = np.empty((2 * rows + 1, 2 * columns + 1))
    images = images.astype(np.float64)
    for dy in range(rows + 1):
        for dx in range(-columns, columns + 1):
            one = images[:, : height - dy, max(0, -dx) : width - max(0, dx)]
            other = images[:, dy:, max(0, dx) : width - max(0, -dx)]
            value = np.einsum("mhwc,mhwc->", one, other) / one.size
            result[rows + dy, columns + dx] = value
            result[rows - dy, columns - dx] = value
    return result


def spread(squares: np.ndarray) -> float:
    """Standard deviation over locations of a second moment, over its mean.

    Parameters
    ----------
    squares : numpy.ndarray
        (height, width), at least 0.

    Returns
    -------
    float
        0 where the moment does not depend on the location, or is zero.
    """
    mean = squares.mean()
    return float(squares.std() / mean) if mean > 0 else 0.0


def between_maps(moment: np.ndarray) -> np.ndarray:
    """Correlations from second moments of derivatives, whose mean is zero.

    Parameters
    ----------
    moment : numpy.ndarray
        (I, I), symmetric, positive semidefinite: Gamma, or any multiple of it.

    Returns
    -------
    numpy.ndarray
        (I, I), float64; rows and columns of maps that have no derivatives are zero.
    """
    moment = moment.astype(np.float64)
    scale = np.sqrt(np.outer(moment.diagonal(), moment.diagonal()))
    return np.divide(moment, scale, out=np.zeros_like(moment), where=scale > 0)


def by_layer(net: Graph, trace: Trace, loss: Loss, offsets: int) -> dict[str, dict[str, Any]]:
    """Correlations by spatial offset, and between maps, of each layer with parameters.

    Derivatives are those by the layer's outputs, over all columns of a root of the loss's Fisher
    (their expectation, without noise of sampling), as they are: their mean is zero. Activations are
    the layer's inputs, less the mean of each channel.

    Parameters
    ----------
    net : Graph
    trace : Trace
    loss : Loss
    offsets : int
        See `autocovariance`.

    Returns
    -------
    dict of str to dict
        By layer ``derivative_correlation``, ``activation_correlation`` (arrays as `autocovariance`,
        1 in the middle), ``derivative_spread`` and ``activation_spread`` (see `spread`), and
        ``map_correlation``, of the derivatives of two maps at the same location, of all locations
        and examples (see `between_maps`); all None where the layer's inputs and outputs are not
        images of more than one pixel.
    """
    sums: dict[str, dict[str, Any]] = {}
    moments: dict[str, np.ndarray] = {}  # of derivatives, between maps

    def capture(placed: PlacedLayer, saved: Saved, dy: np.ndarray) -> None:
        images = saved[0] if saved else None
        if not isinstance(placed.layer, KroneckerLayer) or images is None:
            return
        if images.shape[1:] != placed.input_shapes[0] or images.ndim != 4 or dy.ndim != 4:
            return
        if min(np.prod(images.shape[1:3]), np.prod(dy.shape[1:3])) < 2:
            return
        own = sums.setdefault(placed.name, {})
        moment = to_host(kernels(dy).output_second_moment(dy))
        images, dy = to_host(images), to_host(dy)
        if not own:
            own["activation"] = _moments(images - images.mean(axis=(0, 1, 2)), offsets)
            own["derivative"] = [0.0, 0.0]
            moments[placed.name] = np.zeros((dy.shape[-1], dy.shape[-1]))
        for index, part in enumerate(_moments(dy, offsets)):
            own["derivative"][index] = own["derivative"][index] + part
        moments[placed.name] += moment

    for column in loss.fisher_columns(trace.outputs):
        net.backward(trace, column, parameters=False, capture=capture)
    found: dict[str, dict[str, Any]] = {}
    for placed in net.parameter_layers():
        found[placed.name] = {
            f"{k}_{what}": None for k in KINDS for what in ("correlation", "spread")
        }
        for kind, (covariance, squares) in sums.get(placed.name, {}).items():
            middle = covariance[covariance.shape[0] // 2, covariance.shape[1] // 2]
            found[placed.name][f"{kind}_correlation"] = (
                covariance / middle if middle > 0 else np.zeros_like(covariance)
            )
            found[placed.name][f"{kind}_spread"] = spread(squares)
        moment = moments.get(placed.name)
        found[placed.name]["map_correlation"] = None if moment is None else between_maps(moment)
    return found


def neighbours(correlation: np.ndarray | None) -> float | None:
    """Mean correlation of locations that are neighbours vertically or horizontally."""
    if correlation is None:
        return None
    row, column = correlation.shape[0] // 2, correlation.shape[1] // 2
    values = [correlation[row + 1, column]] if row else []
    values += [correlation[row, column + 1]] if column else []
    return float(np.mean(values)) if values else None


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Pictures of the correlations, a row for each layer that has images: over space, between maps.

    Parameters
    ----------
    rows : sequence of mappings
        Of a `kfc_numba.curvature.report.check.Report`.

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
    # Not pyplot: it keeps figures, and chooses a display, for the whole process.
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["derivative_correlation"] is not None]
    if not shown:
        raise ValueError("no layer has images whose correlations could be shown")
    result = Figure(figsize=(9.6, 2.9 * len(shown)), layout="constrained")
    panels = result.subplots(len(shown), 3, squeeze=False)
    for line, row in zip(panels, shown, strict=True):
        for panel, kind in zip(line[:2], KINDS, strict=True):
            values = row[f"{kind}_correlation"]
            high, wide = (size / 2 for size in values.shape)
            image = panel.imshow(values, **_COLOURS, extent=(-wide, wide, high, -high))
            panel.set_title(f"{row['layer']}: {kind}s", fontsize=10)
            panel.set_xlabel("horizontal offset")
            panel.set_ylabel("vertical offset")
        line[2].imshow(row["map_correlation"], **_COLOURS)
        line[2].set_title(f"{row['layer']}: derivatives of maps", fontsize=10)
        line[2].set_xlabel("map")
        line[2].set_ylabel("map")
    result.colorbar(image, ax=panels, label="correlation", shrink=min(1.0, 2 / len(shown)))
    return result


def _moments(images: np.ndarray, offsets: int) -> list[np.ndarray]:
    squares = np.einsum("mhwc,mhwc->hw", images, images, dtype=np.float64)
    return [autocovariance(images, offsets), squares]
