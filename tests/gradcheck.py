"""Derivatives against differences along random directions, in float64.

`check_layer` checks one layer, `check_network` a whole network; both raise an AssertionError that
says which derivative is wrong. Directions have entries of +1 and -1, so that no component can hide
behind a small entry: a gradient of 1,000 components of which one is wrong by 0.1% is still wrong
along each direction by some thirty times of what is allowed.
"""

import numpy as np

from kfc_numba.layers.base import Context

STEP = 1e-6  # truncation is of order 1e-12, rounding of order 1e-9 of the value
TOLERANCE = 1e-6  # of the size of the derivative
DIRECTIONS = 3


def spaced(rng, shape):
    """Random order of evenly spaced numbers in (-2, 2), none of them 0.

    A difference along a direction then never steps over the kink of a rectifier or of a maximum.
    """
    count = int(np.prod(shape))
    grid = 4 * (np.arange(count) + 0.25 - count / 2) / count
    return rng.permutation(grid).reshape(shape)


def signs(rng, shape):
    """Random entries of +1 and -1."""
    return rng.integers(0, 2, shape) * 2.0 - 1.0


def differences(function, arrays, direction):
    """Central difference of `function(*arrays)` along `direction`."""
    ahead = function(*(a + STEP * d for a, d in zip(arrays, direction, strict=True)))
    behind = function(*(a - STEP * d for a, d in zip(arrays, direction, strict=True)))
    return (ahead - behind) / (2 * STEP)


def agree(what, actual, expected, size, value):
    """Assert that two derivatives agree.

    `size` is the size of the derivative that errors are judged by, `value` that of the values
    whose differences were taken: they carry rounding errors.
    """
    rounding = 100 * np.finfo(float).eps * value / STEP
    error = np.max(np.abs(np.asarray(actual) - expected), initial=0.0)
    allowed = TOLERANCE * size + rounding
    assert error <= allowed, f"{what} is off by {error:.3g}, allowed are {allowed:.3g}"


def check_layer(layer, input_shapes, *, batch=3, training=True, seed=0, inputs=None):
    """Check forward against backward and tangent, and the contract of the three.

    Parameters
    ----------
    layer : Layer
    input_shapes : list of tuple of int
        Shape of one example of each input.
    batch : int
        Number of examples.
    training : bool
    seed : int
    inputs : list of numpy.ndarray, optional
        (batch, *shape), float64; evenly spaced numbers in random order if None.
    """
    rng = np.random.default_rng(seed)
    shapes = [tuple(shape) for shape in input_shapes]
    if inputs is None:
        inputs = [spaced(rng, (batch, *shape)) for shape in shapes]
    batch = len(inputs[0])
    initial = layer.parameters(np.random.default_rng(seed), *shapes)
    names = list(initial)
    # Away from special values such as 0 and 1; running variances stay positive.
    parameters = [
        np.asarray(value, float) + 0.3 * spaced(rng, np.shape(value)) for value in initial.values()
    ]
    running = {
        n: value + rng.uniform(0.1, 0.9, value.shape) for n, value in layer.buffers(*shapes).items()
    }
    count = len(inputs)
    point = [*inputs, *parameters]
    labels = [*(f"input {i}" for i in range(count)), *names]

    def context():
        return Context(training=training, seed=3, step=2, node=1)

    def arrays(values):
        return {**dict(zip(names, values[count:], strict=True)), **running}

    def forward(*values):
        return layer.forward(arrays(values), tuple(values[:count]), context())

    def outputs(*values):
        return forward(*values)[0].copy()

    before = [a.copy() for a in point]
    y, saved = forward(*point)
    assert y.shape == (batch, *layer.output_shape(*shapes)), f"{layer} has outputs {y.shape}"
    assert all(a is None or layer.couples_examples or len(a) == batch for a in saved)
    cotangent = rng.normal(size=y.shape)
    value = np.abs(cotangent * y).sum()

    def backward(**needs):
        dinputs, gradients = layer.backward(arrays(point), saved, cotangent, context(), **needs)
        assert len(dinputs) == count
        return dinputs, gradients

    kept = [None if a is None else a.copy() for a in saved]
    sent = cotangent.copy()
    dinputs, gradients = backward()
    assert list(gradients) == names, f"{layer} gives gradients by {list(gradients)}"
    derivatives = [*dinputs, *gradients.values()]
    for label, derivative, array in zip(labels, derivatives, point, strict=True):
        assert derivative.shape == array.shape, f"gradient by {label} has another shape"
    copies = [derivative.copy() for derivative in derivatives]

    # What is asked for less gives the same, and nothing is written that others may still read.
    for dinput, gradient in zip(backward(need_parameters=False)[0], copies, strict=False):
        np.testing.assert_array_equal(dinput, gradient)
    nothing, again = backward(need_inputs=False)
    assert all(dinput is None for dinput in nothing) or not names
    for name, gradient in zip(names, copies[count:], strict=True):
        np.testing.assert_array_equal(again[name], gradient)
    assert not backward(need_parameters=False)[1]

    # Backward: along random directions of one array, and of all of them.
    for label, place in [
        *((label, [i]) for i, label in enumerate(labels)),
        ("all", range(len(point))),
    ]:
        for _ in range(DIRECTIONS):
            direction = [signs(rng, a.shape) * (i in place) for i, a in enumerate(point)]
            expected = differences(lambda *v: np.sum(outputs(*v) * cotangent), point, direction)
            actual = sum(np.sum(g * d) for g, d in zip(derivatives, direction, strict=True))
            size = np.sqrt(
                sum(np.sum((g * d) ** 2) for g, d in zip(derivatives, direction, strict=True))
            )
            agree(f"{layer}: gradient by {label}", actual, expected, size, value)

    # Tangent: every output along random directions; and as the adjoint of backward.
    for _ in range(DIRECTIONS):
        direction = [signs(rng, a.shape) for a in point]
        dparameters = dict(zip(names, direction[count:], strict=True))
        dy = layer.tangent(arrays(point), saved, tuple(direction[:count]), dparameters, context())
        assert dy.shape == y.shape
        expected = differences(outputs, point, direction)
        size = np.sqrt(np.mean(expected**2))
        agree(f"{layer}: tangent", dy, expected, size, np.abs(y).max())
        product = sum(np.sum(g * d) for g, d in zip(derivatives, direction, strict=True))
        size = np.linalg.norm(cotangent) * np.linalg.norm(dy)
        agree(f"{layer}: backward against tangent", np.sum(cotangent * dy), product, 1e-6 * size, 0)
    if names:
        zeros = tuple(np.zeros_like(x) for x in inputs)
        constant = layer.tangent(arrays(point), saved, (None,) * count, dparameters, context())
        explicit = layer.tangent(arrays(point), saved, zeros, dparameters, context())
        np.testing.assert_allclose(constant, explicit, rtol=1e-12, atol=1e-12)

    changed = f"{layer} writes into what it was given"
    assert all(np.array_equal(a, b) for a, b in zip(before, point, strict=True)), changed
    assert np.array_equal(sent, cotangent), changed
    for a, b in zip(kept, saved, strict=True):
        assert a is None or np.array_equal(a, b), changed


def check_network(net, x, y, loss, *, seed=0):
    """Check the gradient of the mean loss, the tangent, and that one is the other's adjoint.

    Parameters
    ----------
    net : Graph
        Of float64.
    x, y : numpy.ndarray
        A batch of inputs and targets.
    loss : Loss
    seed : int
    """
    assert net.dtype == np.float64, "differences need a network of float64"
    rng = np.random.default_rng(seed)
    names = list(net.params)
    point = list(net.params.values())

    def outputs(*values):
        net.params.update(zip(names, values, strict=True))
        try:
            return net.forward(x, training=True).outputs.copy()
        finally:
            net.params.update(zip(names, point, strict=True))

    def mean_loss(*values):
        return loss.value(outputs(*values), y)

    value, gradients = net.value_and_grad(x, y, loss)
    assert list(gradients) == names
    for place, label in [*enumerate(names), (None, "all parameters")]:
        for _ in range(DIRECTIONS):
            direction = [
                signs(rng, a.shape) * (place is None or place == i) for i, a in enumerate(point)
            ]
            expected = differences(mean_loss, point, direction)
            products = [g * d for g, d in zip(gradients.values(), direction, strict=True)]
            size = np.sqrt(sum(np.sum(p**2) for p in products))
            agree(f"gradient by {label}", sum(map(np.sum, products)), expected, size, value)

    trace = net.forward(x, training=True)
    for _ in range(DIRECTIONS):
        direction = {name: signs(rng, a.shape) for name, a in net.params.items()}
        dy = net.tangent(trace, direction)
        expected = differences(outputs, point, list(direction.values()))
        size = np.sqrt(np.mean(expected**2))
        agree("tangent", dy, expected, size, np.abs(trace.outputs).max())
        cotangent = rng.normal(size=dy.shape)
        pulled = net.backward(trace, cotangent)
        product = sum(np.sum(pulled[name] * d) for name, d in direction.items())
        size = np.linalg.norm(cotangent) * np.linalg.norm(dy)
        agree("backward against tangent", np.sum(cotangent * dy), product, 1e-5 * size, 0)
