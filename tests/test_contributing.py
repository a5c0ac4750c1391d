"""Three of the tasks of CONTRIBUTING.md, each done as a contributor would, in this file alone."""

import json

import gradcheck
import numpy as np
import pytest
from numba import prange

import kfc_numba as kfc
from kfc_numba.cli import main
from kfc_numba.kernels.backend import kernels
from kfc_numba.kernels.cpu.arguments import checked, output_array
from kfc_numba.kernels.cpu.jit import parallel
from kfc_numba.layers.base import KroneckerLayer, Layer
from kfc_numba.optim import OPTIMIZERS, Optimizer

# A kernel: a wrapper that checks and allocates, and a jitted function that only computes.


def softplus_forward(x, *, out=None):
    """``log(1 + exp(x))``, accurate for all `x`."""
    x = checked("x", x, None)
    out = output_array(out, x.shape, x.dtype)
    _softplus(x.reshape(-1), out.reshape(-1))
    return out


@parallel
def _softplus(x, y):
    for i in prange(x.size):
        y[i] = max(x[i], 0) + np.log1p(np.exp(-abs(x[i])))


def test_a_kernel():
    x = np.linspace(-50, 50, 301).reshape(7, 43)
    expected = [np.logaddexp(0, value) for value in x.ravel()]
    np.testing.assert_allclose(softplus_forward(x).ravel(), expected, rtol=1e-14)
    narrow = softplus_forward(x.astype(np.float32))
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow.ravel(), expected, rtol=2e-6)
    with pytest.raises(TypeError, match="x must be a NumPy array"):
        softplus_forward([1.0])
    with pytest.raises(ValueError, match="out"):
        softplus_forward(x, out=np.empty(3))


# A layer without parameters. Its slope is the logistic function, which there is a kernel for.


class Softplus(Layer):
    """``log(1 + exp(x))``."""

    kind = "softplus"

    def forward(self, arrays, inputs, context):
        (x,) = inputs
        return softplus_forward(x, out=context.empty(x.shape, x.dtype)), (x,)

    def backward(self, arrays, saved, dy, context, *, need_inputs=True, need_parameters=True):
        return (self._product(saved, dy, context) if need_inputs else None,), {}

    def tangent(self, arrays, saved, dinputs, dparameters, context):
        return self._product(saved, dinputs[0], context)

    def _product(self, saved, vector, context):
        (x,) = saved
        k = kernels(x)
        slope = k.sigmoid_forward(x, out=context.empty(x.shape, x.dtype))
        return product(vector, slope, out=slope)


def product(a, b, *, out=None):
    """``a * b``."""
    a, b = checked("a", a, None), checked("b", b, None, a.dtype)
    out = output_array(out, a.shape, a.dtype)
    _product(a.reshape(-1), b.reshape(-1), out.reshape(-1))
    return out


@parallel
def _product(a, b, out):
    for i in prange(a.size):
        out[i] = a[i] * b[i]


def test_a_layer_without_factors():
    gradcheck.check_layer(Softplus(), [(3, 2)])
    gradcheck.check_layer(Softplus(), [(2, 3, 4)])


# A layer with Kronecker factors: what it multiplies, and how its parameters are a matrix.


class Linear(KroneckerLayer):
    """``a @ weight`` for vectors, without a bias."""

    kind = "linear"

    def __init__(self, units):
        self.units = units

    def output_shape(self, *shapes):
        return (self.units,)

    def parameters(self, rng, *shapes):
        (inputs,) = shapes[0]
        return {"weight": rng.normal(scale=inputs**-0.5, size=(inputs, self.units))}

    def forward(self, arrays, inputs, context):
        (x,) = inputs
        out = context.empty((len(x), self.units), x.dtype)
        return kernels(x).matmul(x, arrays["weight"], out=out), (x,)

    def backward(self, arrays, saved, dy, context, *, need_inputs=True, need_parameters=True):
        (x,) = saved
        k = kernels(x)
        gradients = {"weight": k.matmul(x, dy, transpose_a=True)} if need_parameters else {}
        dx = k.matmul(dy, arrays["weight"], transpose_b=True) if need_inputs else None
        return (dx,), gradients

    def tangent(self, arrays, saved, dinputs, dparameters, context):
        (x,), (dx,) = saved, dinputs
        k = kernels(x)
        dy = k.matmul(x, dparameters["weight"])
        return dy if dx is None else k.matmul(dx, arrays["weight"], out=dy, accumulate=True)

    def locations(self, saved, dy):
        return 1

    def input_moment(self, saved, approx):
        return kernels(saved[0]).output_second_moment(saved[0])

    def output_moment(self, dy, approx):
        return kernels(dy).output_second_moment(dy)

    def to_matrix(self, arrays):
        return np.ascontiguousarray(arrays["weight"].T)

    def from_matrix(self, matrix, like):
        return {"weight": np.ascontiguousarray(matrix.T)}

    def homogeneous(self, saved):
        return saved[0][:, None]

    def output_rows(self, dy):
        return dy[:, None]


def test_a_layer_with_factors():
    gradcheck.check_layer(Linear(3), [(4,)])
    # A linear network with squared error: K-FAC's matrix is the exact one.
    net = kfc.Sequential([Linear(3)], input_shape=(4,), dtype=np.float64)
    x = np.random.default_rng(0).normal(size=(9, 4))
    found = kfc.curvature.operators.block_curvature(net, x, kfc.SquaredError())
    expected = np.kron(x.T @ x / 9, np.eye(3))  # in the order of the weight: inputs, units
    np.testing.assert_allclose(found @ np.eye(12), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "full"])
def test_they_train(structure):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    y = np.argmax(x[:, :3], axis=1)
    net = kfc.Sequential([Linear(8), Softplus(), Linear(3)], input_shape=(4,), seed=1)
    optimizer = kfc.KFC(damping=0.1, structure=structure)
    trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), optimizer)
    rows = trainer.fit(x, y, batch_size=20, epochs=10, progress=False).rows
    assert rows[-1]["training_loss"] < 0.5 * rows[0]["training_loss"]


# An optimizer: one class, and its import in optim/__init__.py, which makes an entry of the table.


class SignDescent(Optimizer):
    """``theta -= alpha * sign(g)``, and a count of the steps.

    Parameters
    ----------
    learning_rate : float or callable of the step
        alpha, at least 0.
    l2_reg, weight_decay, averaging
        See `Optimizer`.
    """

    intervals = Optimizer.intervals | {"learning_rate": "[0, inf)"}

    def __init__(self, *, learning_rate=1e-3, l2_reg=0.0, weight_decay=0.0, averaging=None):
        super().__init__(l2_reg=l2_reg, weight_decay=weight_decay, averaging=averaging)
        self.learning_rate = self.check("learning_rate", learning_rate)

    def initial_state(self, net):
        return {"signs": np.zeros((), np.int64)}

    def delta(self, net, loss, trace, x, y, value, gradients, state, step, seed):
        alpha = self.scheduled("learning_rate", step)
        deltas = {name: -alpha * np.sign(gradient) for name, gradient in gradients.items()}
        return deltas, {"signs": state["signs"] + np.int64(1)}


def test_an_optimizer_in_a_program():
    net = kfc.Sequential([kfc.Dense(1)], input_shape=(2,), dtype=np.float64)
    x = np.random.default_rng(0).normal(size=(50, 2))
    trainer = kfc.Trainer(net, kfc.SquaredError(), SignDescent(learning_rate=0.02))
    trainer.fit(x, x @ [[1.0], [-2.0]], batch_size=50, max_steps=200, progress=False)
    np.testing.assert_allclose(net.params["dense1.weight"], [[1.0], [-2.0]], atol=0.05)
    assert trainer.optimizer_state["signs"] == 200


def test_an_optimizer_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "signdescent", SignDescent)
    folder = str(tmp_path / "run")
    words = ["train", "--quiet", "--output", folder]
    own = ["--optimizer", "signdescent", "--learning-rate", "0.002", "--batch-size", "50"]
    assert main([*words, *own, "--max-steps", "2"]) == 0
    assert main([*words, "--resume", "--max-steps", "4"]) == 0
    run = json.loads((tmp_path / "run" / "history.json").read_text())
    assert run["config"]["optimizer"]["learning_rate"] == 0.002
    first, *_, last = run["history"]
    assert last["step"] == 4
    assert last["training_loss"] < first["training_loss"]


def test_the_table_of_optimizers():
    assert {"adam": kfc.Adam, "kfc": kfc.KFC, "sgd": kfc.SGD} == OPTIMIZERS
