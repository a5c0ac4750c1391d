"""The exact Fisher matrix by differences of predictions, and Kronecker products by loops.

Nothing here calls what it is the reference of: networks are asked for their predictions alone, and
Fisher matrices of predictive distributions are written out.
"""

import numpy as np

# Central differences of eighth order. With steps of 0.005 both their truncation and their rounding
# errors are of order 1e-13 for outputs of order 1.
STEP = 0.005
STENCIL = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}


def slices(net):
    """Where each layer's parameters lie in the flattened vector."""
    found, start = {}, 0
    for name, value in net.params.items():
        layer = name.split(".")[0]
        first = found[layer].start if layer in found else start
        start += value.size
        found[layer] = slice(first, start)
    return found


def flat(net, arrays):
    return np.concatenate([np.ravel(arrays[name]) for name in net.params])


def unflat(net, vector):
    found, start = {}, 0
    for name, value in net.params.items():
        found[name] = vector[start : start + value.size].reshape(value.shape).copy()
        start += value.size
    return found


def jacobian(net, x):
    """(examples, outputs, parameters), by differences of `net.predict`."""
    columns = []
    for value in net.params.values():
        flat_value = value.reshape(-1)
        for index in range(value.size):
            old = flat_value[index]
            column = 0
            for distance, weight in STENCIL.items():
                flat_value[index] = old + distance * STEP
                ahead = net.predict(x)
                flat_value[index] = old - distance * STEP
                column = column + weight * (ahead - net.predict(x)) / STEP
            flat_value[index] = old
            columns.append(column.reshape(len(x), -1))
    return np.stack(columns, axis=2)


def prediction_fisher(kind, outputs):
    """Fisher matrix of the predictive distribution of one example, (outputs, outputs)."""
    outputs = np.asarray(outputs, float)
    size = outputs.size
    if kind == "SquaredError":
        return np.eye(size)
    if kind == "SigmoidCrossEntropy":
        p = 1 / (1 + np.exp(-outputs.ravel()))
        return np.diag(p * (1 - p))
    classes = outputs.shape[-1]
    result = np.zeros((size, size))
    for index, row in enumerate(outputs.reshape(-1, classes)):
        p = np.exp(row - row.max())
        p /= p.sum()
        part = slice(index * classes, (index + 1) * classes)
        result[part, part] = np.diag(p) - np.outer(p, p)
    return result


def exact_fisher(net, x, loss, j=None):
    """Mean over examples of J^T F_R J, (parameters, parameters); `j` if the Jacobian is at hand."""
    j, outputs = jacobian(net, x) if j is None else j, net.predict(x)
    kind = type(loss).__name__
    return sum(a.T @ prediction_fisher(kind, z) @ a for a, z in zip(j, outputs, strict=True)) / len(
        x
    )


def example_gradients(net, x, loss, targets):
    """Gradient of each example's own loss, one by one, (examples, parameters)."""
    rows = []
    for n in range(len(x)):
        _, gradients = net.value_and_grad(x[n : n + 1], targets[n : n + 1], loss)
        rows.append(flat(net, gradients))
    return np.array(rows)


def matrix_order(net, step):
    """Place, in the flattened parameters of a layer, of each entry of its matrix.

    Rows are outputs, columns kernel rows, kernel columns, channels and then the bias; with groups
    one matrix a group. Written by loops.
    """
    weight = net.params[f"{step}.weight"]
    bias = net.params.get(f"{step}.bias")
    if weight.ndim == 2:
        weight = weight[None, None]
    kh, kw, channels, filters = weight.shape
    layer = next(s.layer for s in net.layers if s.name == step)
    groups = getattr(layer, "groups", 1)
    per_group = filters // groups
    result = []
    for group in range(groups):
        rows = []
        for i in range(group * per_group, (group + 1) * per_group):
            row = [
                ((ky * kw + kx) * channels + j) * filters + i
                for ky in range(kh)
                for kx in range(kw)
                for j in range(channels)
            ]
            if bias is not None:
                row.append(weight.size + i)
            rows.append(row)
        result.append(rows)
    return np.array(result)


def matrix_block(net, block, step):
    """A Fisher block of a layer in the order of its matrix: one for each group."""
    return np.stack([block[np.ix_(o.ravel(), o.ravel())] for o in matrix_order(net, step)])
