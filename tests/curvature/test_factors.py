"""Estimation of the factors: scale contract, modes, running averages, the diagonal fallback."""

import curvature_reference as reference
import naive
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import factors
from kfc_numba.curvature.structures import curvature_of
from kfc_numba.layers.base import KroneckerLayer

SHAPE = (3, 4, 2)


def small_net(layers=None, dtype=np.float64):
    layers = layers or [kfc.Conv2d(2, 2, padding=1), kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=SHAPE, dtype=dtype)


def inputs(count=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE))


def estimate(net, x, loss, approx="expand", **how):
    curvature = curvature_of(net, approx=approx)
    return curvature.estimate(net.forward(x), loss, curvature.initial_state(), **how)


# The scale contract.


def test_scale_contract():
    net, x = small_net(), inputs()
    y = np.random.default_rng(1).integers(0, 3, 4)
    loss = kfc.SoftmaxCrossEntropy()
    found = estimate(net, x, loss, mode="fisher_empirical", targets=y)
    locations = 4 * 5
    # Omega: a mean over examples of sums over locations.
    rows = naive.patches(x, 2, padding=1)
    np.testing.assert_allclose(found["omega/conv1"], rows.T @ rows / 4, rtol=1e-12)
    assert found["omega/conv1"][-1, -1] == locations
    # Gamma: a mean over examples and locations of derivatives of each example's own loss. Written
    # out from the outputs back.
    trace = net.forward(x)
    p = np.exp(trace.outputs)
    p /= p.sum(axis=1, keepdims=True)
    dz = p - np.eye(3)[y]
    np.testing.assert_allclose(found["gamma/dense1"], dz.T @ dz / 4, rtol=1e-12)
    s = naive.conv2d(x, net.params["conv1.weight"], net.params["conv1.bias"], padding=1)
    ds = (dz @ net.params["dense1.weight"].T).reshape(s.shape) * (1 - np.tanh(s) ** 2)
    expected = naive.output_second_moment(ds) / (4 * locations)
    np.testing.assert_allclose(found["gamma/conv1"], expected, rtol=1e-12)

    reduced = estimate(net, x, loss, "reduce", mode="fisher_empirical", targets=y)
    means = rows.reshape(4, locations, -1).mean(axis=1)
    np.testing.assert_allclose(reduced["omega/conv1"], means.T @ means / 4, rtol=1e-12)
    sums = ds.sum(axis=(1, 2))
    np.testing.assert_allclose(reduced["gamma/conv1"], sums.T @ sums / 4, rtol=1e-12)
    for name in ("omega/dense1", "gamma/dense1"):
        np.testing.assert_allclose(reduced[name], found[name], rtol=1e-12)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_groups_have_factors_of_their_own(groups, approx):
    layer = {"stride": 2, "dilation": 2, "padding": ((2, 1), (0, 3))}
    net = kfc.Sequential(
        [kfc.Conv2d(4, 2, groups=groups, **layer)], input_shape=(5, 4, 4), dtype=np.float64
    )
    x = np.random.default_rng(0).normal(size=(3, 5, 4, 4))
    y = np.random.default_rng(1).normal(size=(3, *net.output_shape))
    found = estimate(net, x, kfc.SquaredError(), approx, mode="fisher_empirical", targets=y)
    ds = (net.predict(x) - y).reshape(3, -1, 4)
    locations, size = ds.shape[1], 4 // groups
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        a = naive.patches(x[..., part], 2, **layer).reshape(3, locations, -1)
        g = ds[..., part]
        if approx == "reduce":
            a, g = a.mean(axis=1, keepdims=True), g.sum(axis=1, keepdims=True)
        omega = np.einsum("ntj,ntk->jk", a, a) / 3
        gamma = np.einsum("nti,ntk->ik", g, g) / (3 * g.shape[1])
        np.testing.assert_allclose(found["omega/conv1"][group], omega, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found["gamma/conv1"][group], gamma, rtol=1e-12, atol=1e-14)


# Modes.


@pytest.mark.parametrize(
    "loss", [kfc.SquaredError(), kfc.SoftmaxCrossEntropy(), kfc.SigmoidCrossEntropy()], ids=repr
)
def test_sampled_mode_converges_to_the_exact_one_at_the_monte_carlo_rate(loss):
    net, x = small_net(), inputs(3)
    exact = estimate(net, x, loss, mode="fisher_exact")
    errors = {}
    for samples in (4, 64):
        squares = []
        for repeat in range(24):
            rng = np.random.default_rng([samples, repeat])
            found = estimate(net, x, loss, mode="fisher_gradients", rng=rng, samples=samples)
            for name in ("omega/conv1", "omega/dense1"):
                np.testing.assert_array_equal(found[name], exact[name])
            squares.append(
                [
                    np.sum((found[name] - exact[name]) ** 2) / np.sum(exact[name] ** 2)
                    for name in ("gamma/conv1", "gamma/dense1")
                ]
            )
        errors[samples] = np.mean(squares, axis=0)
    # The mean squared error falls like 1 / samples, by 16. The quotient of two such means, of 24
    # repeats each, is itself known to some 30%.
    ratio = errors[4] / errors[64]
    assert np.all(ratio > 8)
    assert np.all(ratio < 32)
    assert np.all(errors[64] < 0.1)


def test_empirical_fisher_is_another_matrix():
    net, x, loss = small_net(), inputs(), kfc.SoftmaxCrossEntropy()
    likely = net.predict(x).argmax(axis=1)
    exact = estimate(net, x, loss, mode="fisher_exact")["gamma/dense1"]
    empirical = estimate(net, x, loss, mode="fisher_empirical", targets=likely)["gamma/dense1"]
    assert np.trace(empirical) < 0.8 * np.trace(exact)


def test_what_a_mode_needs():
    net, x, loss = small_net(), inputs(), kfc.SoftmaxCrossEntropy()
    with pytest.raises(ValueError, match="'fisher_gradients' needs rng, got None"):
        estimate(net, x, loss)
    with pytest.raises(ValueError, match="'fisher_empirical' needs targets, got None"):
        estimate(net, x, loss, mode="fisher_empirical")
    with pytest.raises(ValueError, match=r"estimation_mode \(='ggn'\) must be one of"):
        estimate(net, x, loss, mode="ggn")
    with pytest.raises(ValueError, match=r"samples \(=0\) must be an integer of at least 1"):
        estimate(net, x, loss, rng=np.random.default_rng(0), samples=0)
    with pytest.raises(ValueError, match=r"kfac_approx \(='both'\) must be one of"):
        estimate(net, x, loss, "both", mode="fisher_exact")


# Running averages.


def test_running_averages_against_explicit_sums():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 3, 3))
    state = {"omega/a": np.full((3, 3), 7.0), "factor_weight": np.zeros(())}
    for count, value in enumerate(values, 1):
        before = {name: array.copy() for name, array in state.items()}
        new = factors.average(state, {"omega/a": value}, 0.8)
        for name, array in before.items():
            np.testing.assert_array_equal(state[name], array)
        state |= new
        weights = 0.8 ** np.arange(count - 1, -1, -1)
        expected = np.einsum("k,kij->ij", weights / weights.sum(), values[:count])
        np.testing.assert_allclose(state["omega/a"], expected, rtol=1e-13)
    # What it started from has no weight at all, and a weight of zero forgets.
    forgetful = factors.average(state, {"omega/a": values[0]}, 0.0)
    np.testing.assert_array_equal(forgetful["omega/a"], values[0])


def test_averages_of_the_optimizer_start_at_the_first_estimate():
    net, x, loss = small_net(), inputs(), kfc.SoftmaxCrossEntropy()
    curvature = curvature_of(net)
    state = curvature.initial_state()
    new = estimate(net, x, loss, mode="fisher_exact")
    state |= curvature.average(state, new, 0.95)
    for name, value in new.items():
        np.testing.assert_allclose(state[name], value, rtol=1e-14)


# Layers without Kronecker factors.


@pytest.mark.parametrize("training", [False, True])
def test_batch_normalisation_has_squared_gradients_of_each_example(training):
    layers = [kfc.Conv2d(2, 2), kfc.BatchNorm(), kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)]
    net, x = small_net(layers), inputs(5)
    net.params["norm1.weight"][:] = [0.7, 1.4]
    net.params["norm1.bias"][:] = [0.2, -0.3]
    loss, y = kfc.SoftmaxCrossEntropy(), np.array([0, 2, 1, 1, 0])
    trace = net.forward(x, training=training)
    curvature = curvature_of(net)
    found = curvature.estimate(
        trace, loss, curvature.initial_state(), mode="fisher_empirical", targets=y
    )
    # Statistics of the batch are constants; then each example is by itself, in evaluation mode.
    if training:
        s = naive.conv2d(x, net.params["conv1.weight"], net.params["conv1.bias"])
        net.buffers["norm1.mean"] = s.mean(axis=(0, 1, 2))
        net.buffers["norm1.variance"] = s.var(axis=(0, 1, 2))
    squares = {"norm1.weight": 0.0, "norm1.bias": 0.0}
    for n in range(5):
        one = net.forward(x[n : n + 1])
        gradients = net.backward(one, loss.derivative(one.outputs, y[n : n + 1]))
        for name in squares:
            squares[name] = squares[name] + gradients[name] ** 2 / 5
    for name, expected in squares.items():
        np.testing.assert_allclose(found[f"diagonal/{name}"], expected, rtol=1e-10)
        assert expected.min() > 0


def test_batch_normalisation_is_preconditioned_by_the_damped_diagonal():
    layers = [kfc.Conv2d(2, 2), kfc.BatchNorm(), kfc.Flatten(), kfc.Dense(3)]
    net, x, loss = small_net(layers), inputs(5), kfc.SquaredError()
    curvature = curvature_of(net)
    state = curvature.compute(net.forward(x), loss, mode="fisher_exact")
    vector = {name: np.ones_like(value) for name, value in net.params.items()}
    found = curvature.precondition(state, vector, 0.25)
    assert list(found) == list(net.params)
    for name in ("norm1.weight", "norm1.bias"):
        np.testing.assert_allclose(found[name], 1 / (state[f"diagonal/{name}"] + 0.25))


# Corner cases.


def test_one_example_and_float32():
    loss = kfc.SoftmaxCrossEntropy()
    found = estimate(small_net(dtype=np.float32), inputs(1), loss, mode="fisher_exact")
    expected = estimate(small_net(), inputs(1), loss, mode="fisher_exact")
    for name, value in found.items():
        assert value.dtype == np.float32
        size = np.abs(expected[name]).max()
        np.testing.assert_allclose(value, expected[name], atol=3e-6 * size, rtol=0)


def test_dead_layer():
    # No unit of the rectifier is ever active: all derivatives before it are zero.
    net = small_net([kfc.Conv2d(2, 2), kfc.ReLU(), kfc.Flatten(), kfc.Dense(3)])
    net.params["conv1.weight"][:] = 0
    net.params["conv1.bias"][:] = -1
    curvature = curvature_of(net)
    state = curvature.compute(net.forward(inputs()), kfc.SoftmaxCrossEntropy(), mode="fisher_exact")
    assert not state["gamma/conv1"].any()
    vector = {name: np.ones_like(value) for name, value in net.params.items()}
    for strategy in ("pi", "exact", "uniform"):
        found = curvature.precondition(state, vector, 1e-4, strategy)
        assert all(np.isfinite(value).all() for value in found.values())
    # Without curvature and with pi = 1, "exact" leaves damping alone.
    np.testing.assert_allclose(
        curvature.precondition(state, vector, 1e-4, "exact")["conv1.weight"], 1e4
    )


def test_every_layer_with_a_weight_matrix_has_factors():
    for step in small_net().parameter_layers():
        assert isinstance(step.layer, KroneckerLayer)
    names = reference.slices(small_net())
    state = curvature_of(small_net()).initial_state()
    assert {name.partition("/")[2] for name in state if "/" in name} == set(names)


def test_squared_gradients_are_asked_for_with_the_context_of_the_pass():
    contexts = []

    class Norm(kfc.BatchNorm):
        def squared_gradients(self, arrays, saved, dy, context):
            contexts.append(context)
            return super().squared_gradients(arrays, saved, dy, context)

    net = kfc.Sequential([Norm()], input_shape=(3,), dtype=np.float64)
    for training in (False, True):
        trace = net.forward(np.random.default_rng(0).normal(size=(5, 3)), training=training)
        curvature_of(net, "diagonal").compute(trace, kfc.SquaredError(), mode="fisher_exact")
        assert contexts
        assert all(context is trace.context for context in contexts)
        contexts.clear()


def test_one_sample_of_targets_where_nothing_is_said():
    outputs, rng = np.random.default_rng(0).normal(size=(4, 3)), np.random.default_rng(1)
    derivatives, repeats = factors.output_derivatives(kfc.SquaredError(), outputs, rng=rng)
    assert (len(list(derivatives)), repeats) == (1, 1)
