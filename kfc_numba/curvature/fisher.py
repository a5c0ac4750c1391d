"""The exact Fisher matrix: products, quadratic forms, and the matrix itself for small networks.

F = mean over examples of J^T F_R J, J the Jacobian of an example's outputs by the parameters and
F_R the Fisher matrix of its predictive distribution (Martens and Grosse, 2015, section 6). For the
losses of this library F is also the generalised Gauss-Newton matrix: F_R is the Hessian of the
negative log-likelihood by the outputs, whatever the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kfc_numba.arrays import zeros, zeros_like
from kfc_numba.devices import to_device, to_host
from kfc_numba.graph import Graph, PlacedLayer, Trace
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Arrays, Saved
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
    kernels(product).scale(product, 1 / len(product), out=product)
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
    return example_forms(net, trace, loss, directions).mean(axis=0)


def example_forms(net: Graph, trace: Trace, loss: Loss, directions: Sequence[Arrays]) -> np.ndarray:
    """The share of each example in `quadratic_forms`, which is their mean.

    Parameters
    ----------
    net, trace, loss, directions
        As in `quadratic_forms`.

    Returns
    -------
    numpy.ndarray
        (examples, n, n), float64, symmetric.
    """
    tangents = [net.tangent(trace, direction) for direction in directions]
    products = [loss.fisher_product(trace.outputs, tangent) for tangent in tangents]
    dots = kernels(trace.outputs).example_dots
    result = np.empty((len(trace.outputs), len(tangents), len(tangents)))
    for i, tangent in enumerate(tangents):
        for j, product in enumerate(products):
            result[:, i, j] = to_host(dots(tangent, product))
    return (result + result.swapaxes(1, 2)) / 2


def layer_slopes(
    net: Graph, trace: Trace, doutputs: np.ndarray, direction: Arrays
) -> dict[str, np.ndarray]:
    """Derivatives along the part of a direction in each layer, of each example, by a backward pass.

    Parameters
    ----------
    net : Graph
    trace : Trace
    doutputs : numpy.ndarray
        Derivative by the outputs, of their shape.
    direction : mapping of str to numpy.ndarray
        v, one array for each parameter.

    Returns
    -------
    dict of str to numpy.ndarray
        By layer: (examples,), ``v_l^T g_l`` with the gradient g of ``sum(doutputs * outputs)`` of
        the example. Where a layer couples examples (batch normalisation), its statistics are held.
    """
    found = {}

    def capture(placed: PlacedLayer, saved: Saved, dy: np.ndarray) -> None:
        own = {short: direction[f"{placed.name}.{short}"] for short in placed.names}
        inputs = (None,) * len(placed.parents)
        moved = placed.layer.tangent(net.arrays(placed), saved, inputs, own, trace.context)
        found[placed.name] = kernels(dy).example_dots(dy, moved)

    net.backward(trace, doutputs, parameters=False, capture=capture)
    return found


def jacobian(net: Graph, trace: Trace, names: Sequence[str] | None = None) -> np.ndarray:
    """Jacobian of all outputs by parameters, one tangent pass a parameter: small networks.

    Parameters
    ----------
    net : Graph
    trace : Trace
    names : sequence of str, optional
        Which of ``net.params``; None for all of them.

    Returns
    -------
    numpy.ndarray
        (examples, outputs, parameters), of the network's dtype, with the parameters flattened in
        the order of `names`; in the memory of the host.

    Raises
    ------
    ValueError
        A name that is not one of a parameter.
    """
    names = list(net.params) if names is None else list(names)
    for name in names:
        if name not in net.params:
            raise ValueError(f"names has {name!r}, parameters are {', '.join(net.params)}")
    examples = len(trace.outputs)
    size = sum(net.params[name].size for name in names)
    result = zeros((examples, trace.outputs[0].size, size), net.dtype, trace.outputs)
    direction = {name: zeros_like(value) for name, value in net.params.items()}
    column = 0
    for name in names:
        flat = direction[name].reshape(-1)
        for index in range(flat.size):
            flat[index] = 1
            result[:, :, column] = net.tangent(trace, direction).reshape(examples, -1)
            flat[index] = 0
            column += 1
    return to_host(result)


def fisher_root(
    net: Graph, trace: Trace, loss: Loss, names: Sequence[str] | None = None
) -> np.ndarray:
    """Rows R with ``F = R^T R``: c^T J of each example and each column c of a root of its F_R.

    Parameters
    ----------
    net : Graph
    trace : Trace
        Forward pass of the batch that F is the mean over.
    loss : Loss
    names : sequence of str, optional
        Which of ``net.params``; None for all of them.

    Returns
    -------
    numpy.ndarray
        (examples * outputs, parameters), float64.
    """
    j = jacobian(net, trace, names).astype(np.float64)
    rows = [
        np.einsum("mk,mkp->mp", to_host(column).reshape(len(j), -1).astype(np.float64), j)
        for column in loss.fisher_columns(trace.outputs)
    ]
    return np.concatenate(rows) / np.sqrt(len(j))


def dense_fisher(
    net: Graph, trace: Trace, loss: Loss, names: Sequence[str] | None = None
) -> np.ndarray:
    """The exact Fisher matrix of a small network, or a part of it.

    Parameters
    ----------
    net : Graph
    trace : Trace
        Forward pass of the batch that F is the mean over.
    loss : Loss
    names : sequence of str, optional
        Which of ``net.params``; None for all of them.

    Returns
    -------
    numpy.ndarray
        (parameters, parameters), float64, parameters flattened in the order of `names`.
    """
    rows = fisher_root(net, trace, loss, names)
    return rows.T @ rows


def layer_blocks(net: Graph, trace: Trace, loss: Loss) -> dict[str, np.ndarray]:
    """The blocks of the exact Fisher matrix that belong to one layer each.

    Parameters
    ----------
    net : Graph
    trace : Trace
        Forward pass of the batch that F is the mean over.
    loss : Loss

    Returns
    -------
    dict of str to numpy.ndarray
        By layer: (parameters, parameters), float64, in the order of ``net.params``.
    """
    return {
        placed.name: dense_fisher(
            net, trace, loss, [f"{placed.name}.{short}" for short in placed.names]
        )
        for placed in net.parameter_layers()
    }


def parameter_slices(net: Graph) -> dict[str, slice]:
    """Where each parameter lies in the flattened vector of all.

    Parameters
    ----------
    net : Graph

    Returns
    -------
    dict of str to slice
    """
    slices, start = {}, 0
    for name, value in net.params.items():
        slices[name] = slice(start, start + value.size)
        start += value.size
    return slices


def flatten(net: Graph, arrays: Arrays) -> np.ndarray:
    """One vector of arrays by parameter.

    Parameters
    ----------
    net : Graph
    arrays : mapping of str to numpy.ndarray
        One array for each parameter.

    Returns
    -------
    numpy.ndarray
        (parameters,), in the order of ``net.params``; in the memory of the host.
    """
    return np.concatenate([np.ravel(to_host(arrays[name])) for name in net.params])


def unflatten(net: Graph, vector: np.ndarray) -> dict[str, np.ndarray]:
    """Inverse of `flatten`.

    Parameters
    ----------
    net : Graph
    vector : numpy.ndarray
        (parameters,).

    Returns
    -------
    dict of str to numpy.ndarray
        One array for each parameter, of the network's dtype and on its device.

    Raises
    ------
    ValueError
        A vector of another length.
    """
    size = sum(value.size for value in net.params.values())
    if np.shape(vector) != (size,):
        raise ValueError(f"vector must have shape ({size},), got {np.shape(vector)}")
    found = {}
    for name, part in parameter_slices(net).items():
        value = np.ascontiguousarray(vector[part], net.dtype)
        found[name] = to_device(value.reshape(net.params[name].shape), net.device)
    return found
