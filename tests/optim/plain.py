"""A network in plain NumPy, whose gradient is one line: optimizers apart from kernels."""

import numpy as np

from kfc_numba.layers.base import Layer
from kfc_numba.losses import SquaredError
from kfc_numba.sequential import Sequential


class Scale(Layer):
    """``y = x * weight + bias``, with the mean of x over steps as a running statistic."""

    kind = "scale"

    def parameters(self, rng, *shapes):
        return {"weight": rng.standard_normal(shapes[0]), "bias": rng.standard_normal(shapes[0])}

    def buffers(self, *shapes):
        return {"mean": np.zeros(shapes[0])}

    def forward(self, arrays, inputs, context):
        return inputs[0] * arrays["weight"] + arrays["bias"], (inputs[0],)

    def backward(self, arrays, saved, dy, context, *, need_inputs=True, need_parameters=True):
        grads = {"weight": (dy * saved[0]).sum(axis=0), "bias": dy.sum(axis=0)}
        return (dy * arrays["weight"],), grads

    def update_buffers(self, arrays, saved):
        return {"mean": (arrays["mean"] + saved[0].mean(axis=0)) / 2}


def network(dtype=np.float64, layer=None):
    return Sequential([layer or Scale()], input_shape=(3,), seed=4, dtype=dtype)


def batch(step, dtype=np.float64):
    rng = np.random.default_rng(step)
    return rng.standard_normal((2, 6, 3)).astype(dtype)


def gradient(params, x, t, l2_reg):
    """Of the mean over examples of half the squared differences, and of the l2 penalty."""
    off = x * params["scale1.weight"] + params["scale1.bias"] - t
    grads = {"scale1.weight": (off * x).mean(axis=0), "scale1.bias": off.mean(axis=0)}
    return {name: g + l2_reg * params[name] for name, g in grads.items()}


def trained(optimizer, steps, dtype=np.float64):
    """Parameters before and after each of some steps of the library."""
    net = network(dtype)
    state = optimizer.init(net)
    path = [{name: value.copy() for name, value in net.params.items()}]
    for step in range(steps):
        optimizer.step(net, SquaredError(), *batch(step, dtype), state)
        path.append({name: value.copy() for name, value in net.params.items()})
    assert state["step"] == steps
    return path


def assert_paths_equal(found, expected, rtol):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_allclose(value, other[name], rtol=rtol, atol=rtol)
