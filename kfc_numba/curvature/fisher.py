"""The exact Fisher matrix: products, quadratic forms, and the matrix itself for small networks.

F = mean over examples of J^T F_R J, J the Jacobian of an example's outputs by the parameters and
F_R the Fisher matrix of its predictive distribution (Martens and Grosse, 2015, section 6). For the
losses of this library F is also the generalised Gauss-Newton matrix: F_R is the Hessian of the
negative log-likelihood by the outputs, whatever the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kfc_numba.graph import Graph, Trace
from kfc_numba.layers.base import Arrays
from kfc_numba.losses import Loss


def fisher_vector_product(
    net: Graph, trace: Trace, loss: Loss, direction: Arrays
) -> dict[str, np.ndarray]:
    """F v by one tangent and one backward pass.

    Parameters
    ----------
    net : Graph
    trace : Trace
        Forward pass of the batch that F is the mean over.
    loss : Loss
    direction : mapping of str to numpy.ndarray
        v, one array for each parameter.

    Returns
    -------
    dict of str to numpy.ndarray
        F v, one array for each parameter.
    """
    product = loss.fisher_product(trace.outputs, net.tangent(trace, direction))
    product /= len(product)
    return net.backward(trace, product)


def quadratic_forms(
    net: Graph, trace: Trace, loss: Loss, directions: Sequence[Arrays]
) -> np.ndarray:
    """All v_i^T F v_j by one tangent pass a direction.

    Parameters
    ----------
    net : Graph
    trace : Trace
        Forward pass of the batch, or of the part of it, that F is the mean over.
    loss : Loss
    directions : sequence of mappings
        n directions, each one array for each parameter.

    Returns
    -------
    numpy.ndarray
        (n, n), float64, symmetric.
    """
    tangents = [net.tangent(trace, direction) for direction in directions]
    products = [loss.fisher_product(trace.outputs, tangent) for tangent in tangents]
    result = np.empty((len(tangents), len(tangents)))
    for i, tangent in enumerate(tangents):
        for j, product in enumerate(products):
            result[i, j] = np.sum(tangent * product, dtype=np.float64) / len(trace.outputs)
    return (result + result.T) / 2


def jacobian(net: Graph, trace: Trace) -> np.ndarray:
    """Jacobian of all outputs by all parameters, one tangent pass a parameter: small networks.

    Parameters
    ----------
    net : Graph
    trace : Trace

    Returns
    -------
    numpy.ndarray
        (examples, outputs, parameters) with the parameters flattened in the order of
        ``net.params``.
    """
    examples = len(trace.outputs)
    size = sum(value.size for value in net.params.values())
    result = np.empty((examples, trace.outputs[0].size, size), net.dtype)
    direction = {name: np.zeros_like(value) for name, value in net.params.items()}
    column = 0
    for name in net.params:
        flat = direction[name].reshape(-1)
        for index in range(flat.size):
            flat[index] = 1
            result[:, :, column] = net.tangent(trace, direction).reshape(examples, -1)
            flat[index] = 0
            column += 1
    return result


def dense_fisher(net: Graph, trace: Trace, loss: Loss) -> np.ndarray:
    """The exact Fisher matrix of a small network.

    Parameters
    ----------
    net : Graph
    trace : Trace
        Forward pass of the batch that F is the mean over.
    loss : Loss

    Returns
    -------
    numpy.ndarray
        (parameters, parameters), float64, parameters flattened in the order of ``net.params``.
    """
    j = jacobian(net, trace).astype(np.float64)
    size = j.shape[2]
    result = np.zeros((size, size))
    for column in loss.fisher_columns(trace.outputs):
        # c^T J of each example; the sum of c c^T over columns is F_R.
        rows = np.einsum("mk,mkp->mp", column.reshape(len(j), -1).astype(np.float64), j)
        result += rows.T @ rows
    return result / len(j)


def parameter_slices(net: Graph) -> Mapping[str, slice]:
    """Where each parameter lies in the flattened vector of all."""
    slices, start = {}, 0
    for name, value in net.params.items():
        slices[name] = slice(start, start + value.size)
        start += value.size
    return slices
