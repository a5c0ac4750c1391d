"""Covariance of a network's outputs where its parameters are normal around their values.

The network is linearised: f(theta* + e) = f(theta*) + J e, with the exact Jacobian J of each
example, so that outputs have the covariance J S J^T, S = (N F + tau I)^-1 (MacKay, 1992).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import cast, zeros
from kfc_numba.curvature import fisher
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.blocks.base import Block
from kfc_numba.curvature.blocks.kronecker import KroneckerBlock
from kfc_numba.devices import like, to_host
from kfc_numba.graph import PlacedLayer, Trace
from kfc_numba.layers.base import Saved


def variances(
    block: Block, state: Mapping[str, np.ndarray], examples: int, precision: float
) -> np.ndarray:
    """Eigenvalues of (N F + tau I)^-1 for one block.

    Parameters
    ----------
    block : Block
    state : mapping of str to numpy.ndarray
        With eigendecompositions.
    examples : int
        N.
    precision : float
        tau, above 0.

    Returns
    -------
    numpy.ndarray
        Of the shape of the block's coordinates, float64; where the state lies.
    """
    values = cast(block.eigenvalues(state, 0.0, "exact"), np.float64)
    return 1 / (examples * values + precision)


def output_covariance(
    curvature: BlockDiagonal,
    state: Mapping[str, np.ndarray],
    trace: Trace,
    examples: int,
    precision: float,
) -> np.ndarray:
    """J (N F + tau I)^-1 J^T of each example: one backward pass for each output component.

    Parameters
    ----------
    curvature : BlockDiagonal
        Of Kronecker and diagonal blocks.
    state : mapping of str to numpy.ndarray
        With eigendecompositions.
    trace : Trace
        Forward pass of the examples.
    examples : int
        N.
    precision : float
        tau, above 0.

    Returns
    -------
    numpy.ndarray
        (examples of the trace, K, K), float64, K the number of output components; in the memory of
        the host.
    """
    net = curvature.net
    count, outputs = len(trace.outputs), trace.outputs[0].size
    captured: dict[str, tuple[Saved, list[np.ndarray]]] = {}

    def capture(placed: PlacedLayer, saved: Saved, dy: np.ndarray) -> None:
        captured.setdefault(placed.name, (saved, []))[1].append(dy)

    for index in range(outputs):
        unit = np.zeros((count, outputs), net.dtype)
        unit[:, index] = 1
        derivative = like(unit.reshape(trace.outputs.shape), trace.outputs)
        net.backward(trace, derivative, parameters=False, capture=capture)
    total = np.zeros((count, outputs, outputs))
    for block in curvature.blocks:
        values = variances(block, state, examples, precision)
        if isinstance(block, KroneckerBlock):
            total += to_host(_kronecker(block, state, values, *captured[block.name]))
        else:
            names = [f"{block.name}.{short}" for short in block.shapes]
            j = fisher.jacobian(net, trace, names).astype(np.float64)
            total += np.einsum("mkp,mlp,p->mkl", j, j, to_host(values).ravel())
    return total


def jacobian_size(placed: PlacedLayer, block: Block, outputs: int) -> int:
    """Numbers that `output_covariance` lays out for each example.

    Parameters
    ----------
    placed : PlacedLayer
    block : Block
        Of that layer.
    outputs : int
        K.

    Returns
    -------
    int
    """
    if isinstance(block, KroneckerBlock):
        locations = int(np.prod(placed.shape[:-1]))
        if locations == 1:
            return outputs * sum(block.matrix_shape)
        return outputs * 2 * block.size + 2 * locations * int(np.sum(block.matrix_shape))
    return outputs * 3 * block.size


def _kronecker(
    block: KroneckerBlock,
    state: Mapping[str, np.ndarray],
    values: np.ndarray,
    saved: Saved,
    derivatives: list[np.ndarray],
) -> np.ndarray:
    """J S J^T of one layer, J by rows in the eigenbases."""
    layer = block.layer
    left, right = state[f"gamma_vectors/{block.name}"], state[f"omega_vectors/{block.name}"]
    xp = array_namespace(left)
    if layer.locations(saved, derivatives[0]) == 1 and left.ndim == 2:
        # A row of J is an outer product: a weight for each output takes in the input's part.
        patches = cast(layer.homogeneous(saved)[:, 0], np.float64) @ right
        weights = xp.square(patches) @ values.T
        rows = xp.stack([layer.output_rows(dy)[:, 0] for dy in derivatives], axis=1)
        rows = cast(rows, np.float64) @ left
        return xp.matmul(rows * weights[:, None, :], xp.matrix_transpose(rows))
    # With an axis of groups first, (groups, examples, locations, columns).
    axis = () if left.ndim == 3 else (None,)
    patches = cast(layer.homogeneous(saved)[axis], np.float64) @ right[axis][:, None]
    j = zeros((len(derivatives[0]), len(derivatives), values.size), np.float64, left)
    for index, dy in enumerate(derivatives):
        rows = cast(layer.output_rows(dy)[axis], np.float64) @ left[axis][:, None]
        product = xp.matmul(xp.matrix_transpose(rows), patches)
        j[:, index] = product.swapaxes(0, 1).reshape(len(j), -1)
    return xp.matmul(j * values.reshape(-1), xp.matrix_transpose(j))
