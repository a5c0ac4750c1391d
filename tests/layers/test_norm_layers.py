"""Normalisation layers."""

import naive_layers
import numpy as np
import pytest
from gradcheck import check_layer

from kfc_numba.layers.base import Context
from kfc_numba.layers.norm import BatchNorm, LocalResponseNorm
from kfc_numba.sequential import Sequential

TRAINING = Context(training=True)


def arrays(channels, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    values = {
        "weight": rng.normal(size=channels),
        "bias": rng.normal(size=channels),
        "mean": rng.normal(size=channels),
        "variance": rng.uniform(0.5, 2, channels),
    }
    return {name: value.astype(dtype) for name, value in values.items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "batch"), [((5,), 7), ((4, 5, 3), 3), ((2, 1, 1), 1)])
def test_derivatives_of_batch_norm(shape, batch, training):
    check_layer(BatchNorm(epsilon=1e-3), [shape], batch=batch, training=training)


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 2, 4)])
def test_batch_norm_against_loops(shape):
    rng = np.random.default_rng(0)
    x, dy, held = rng.normal(size=shape), rng.normal(size=shape), arrays(shape[-1])
    rows, pulled = x.reshape(-1, shape[-1]), dy.reshape(-1, shape[-1])
    layer = BatchNorm(epsilon=1e-3)
    y, saved = layer.forward(held, (x,), TRAINING)
    expected = naive_layers.batch_norm(rows, held["weight"], held["bias"], 1e-3)
    np.testing.assert_allclose(y.reshape(rows.shape), expected, rtol=1e-12, atol=1e-13)
    (dx,), gradients = layer.backward(held, saved, dy, TRAINING)
    matrices = naive_layers.batch_norm_matrices(rows, held["weight"], 1e-3)
    expected = np.einsum("rc,crs->sc", pulled, matrices)
    np.testing.assert_allclose(dx.reshape(rows.shape), expected, rtol=1e-11, atol=1e-12)
    ones = np.ones(shape[-1])
    normal = naive_layers.batch_norm(rows, ones, 0 * ones, 1e-3)
    np.testing.assert_allclose(gradients["weight"], (pulled * normal).sum(axis=0), rtol=1e-11)
    np.testing.assert_allclose(gradients["bias"], pulled.sum(axis=0), rtol=1e-11)


def test_float32_far_from_zero():
    # In float32 a mean of 10,000 has an error of about 1e-3, the deviation here is 1e-2.
    rng = np.random.default_rng(0)
    x = (1e4 + 0.01 * rng.normal(size=(50, 8, 8, 2))).astype(np.float32)
    held = arrays(2, np.float32)
    y, saved = BatchNorm().forward(held, (x,), TRAINING)
    rows = x.astype(float).reshape(-1, 2)
    expected = naive_layers.batch_norm(rows, held["weight"], held["bias"], 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 2), expected, rtol=1e-5, atol=1e-6)
    running = BatchNorm(momentum=0).update_buffers(held, saved)
    assert running["mean"].dtype == running["variance"].dtype == np.float32
    np.testing.assert_allclose(running["variance"], rows.var(axis=0, ddof=1), rtol=1e-6)


def test_running_averages():
    rng = np.random.default_rng(0)
    layer, held = BatchNorm(momentum=0.75), arrays(3)
    expected_mean, expected_variance = held["mean"], held["variance"]
    for _ in range(3):
        x = rng.normal(size=(4, 2, 5, 3)) + 1
        held |= layer.update_buffers(held, layer.forward(held, (x,), TRAINING)[1])
        rows = x.reshape(-1, 3)
        expected_mean = 0.75 * expected_mean + 0.25 * rows.mean(axis=0)
        expected_variance = 0.75 * expected_variance + 0.25 * rows.var(axis=0, ddof=1)
    np.testing.assert_allclose(held["mean"], expected_mean, rtol=1e-13)
    np.testing.assert_allclose(held["variance"], expected_variance, rtol=1e-12)


def test_evaluation_uses_the_running_averages_and_keeps_them():
    rng = np.random.default_rng(0)
    layer, held, x = BatchNorm(epsilon=0.1), arrays(3), rng.normal(size=(4, 2, 5, 3))
    y, saved = layer.forward(held, (x,), Context())
    deviation = np.sqrt(held["variance"] + 0.1)
    expected = held["weight"] * (x - held["mean"]) / deviation + held["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    assert layer.update_buffers(held, saved) == {}
    # One example by itself gives what it gave in the batch.
    np.testing.assert_array_equal(layer.forward(held, (x[:1],), Context())[0], y[:1])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (5, 3, 2, 4)])
def test_squared_gradients_are_those_of_single_examples(shape, training):
    rng = np.random.default_rng(0)
    layer, context, held = BatchNorm(), Context(training=training), arrays(shape[-1])
    dy = rng.normal(size=shape)
    _, saved = layer.forward(held, (rng.normal(size=shape),), context)
    expected = {"weight": 0.0, "bias": 0.0}
    for example in range(shape[0]):
        alone = np.zeros_like(dy)
        alone[example] = dy[example]
        for name, gradient in layer.backward(held, saved, alone, context)[1].items():
            expected[name] = expected[name] + gradient**2
    squares = layer.squared_gradients(held, saved, dy, context)
    assert list(squares) == ["weight", "bias"]
    for name, value in squares.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-12)


def test_one_value_of_a_channel_is_no_batch():
    layer = BatchNorm()
    with pytest.raises(ValueError, match=r"BatchNorm\(.*more than one value.*\(1, 3\)"):
        layer.forward(arrays(3), (np.zeros((1, 3)),), TRAINING)
    layer.forward(arrays(3), (np.zeros((1, 3)),), Context())


def test_what_is_not_finite_stays_so_without_a_warning():
    x = np.ones((4, 3), np.float32)
    x[1, 0], x[1, 1] = np.nan, np.inf
    y, _ = BatchNorm().forward(arrays(3, np.float32), (x,), TRAINING)
    assert np.isnan(y).all(axis=0).tolist() == [True, True, False]


def test_a_network_keeps_the_statistics_of_committed_passes():
    net = Sequential([BatchNorm(momentum=0.5)], input_shape=(3,), dtype=np.float64)
    assert list(net.params) == ["norm1.weight", "norm1.bias"]
    x = np.random.default_rng(0).normal(size=(10, 3)) + 2
    before = net.predict(x)
    np.testing.assert_allclose(before, x / np.sqrt(1 + 1e-5))
    trace = net.forward(x, training=True)
    np.testing.assert_array_equal(net.predict(x), before)
    net.commit(trace)
    np.testing.assert_allclose(net.buffers["norm1.mean"], 0.5 * x.mean(axis=0))
    np.testing.assert_allclose(net.buffers["norm1.variance"], 0.5 + 0.5 * x.var(axis=0, ddof=1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"momentum": 1.5}, ValueError, r"momentum \(=1.5\)"),
        ({"momentum": -0.1}, ValueError, "momentum"),
        ({"momentum": "a"}, TypeError, "momentum"),
        ({"epsilon": 0}, ValueError, "epsilon"),
        ({"epsilon": np.nan}, ValueError, "epsilon"),
    ],
)
def test_bad_arguments_of_batch_norm(arguments, error, message):
    with pytest.raises(error, match=message):
        BatchNorm(**arguments)


@pytest.mark.parametrize(
    "options",
    [{}, {"size": 4, "beta": 0.5}, {"size": 3, "beta": 1.2, "k": 2.0}, {"size": 20}],
)
@pytest.mark.parametrize("shape", [(7,), (2, 3, 7)])
def test_derivatives_of_response_norm(shape, options):
    check_layer(LocalResponseNorm(**{"alpha": 0.7, **options}), [shape])


@pytest.mark.parametrize(
    "options", [{}, {"size": 4, "beta": 0.5}, {"size": 3, "beta": 1.2, "k": 2.0}, {"size": 20}]
)
@pytest.mark.parametrize("shape", [(5, 4, 2), (18, 2, 1)])
def test_derivatives_of_response_norm_within_a_channel(shape, options):
    check_layer(LocalResponseNorm(**{"alpha": 0.7, "region": "within_channel", **options}), [shape])


def test_response_norm_within_a_channel_against_loops():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)) * 50
    layer = LocalResponseNorm(3, alpha=5e-5, region="within_channel")
    y, _ = layer.forward({}, (x,), Context())
    expected = naive_layers.response_norm_within(x, 3, 5e-5, 0.75, 1.0)
    np.testing.assert_allclose(y, expected, rtol=1e-13)


def test_response_norm_within_a_channel_takes_images():
    with pytest.raises(ValueError, match=r"^LocalResponseNorm takes \(height, .*\(7,\)$"):
        LocalResponseNorm(region="within_channel").output_shape((7,))


def test_response_norm_against_loops():
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 9)) * 50
    y, _ = LocalResponseNorm().forward({}, (x,), Context())
    expected = naive_layers.response_norm(x.reshape(-1, 9), 5, 1e-4, 0.75, 1.0)
    np.testing.assert_allclose(y.reshape(-1, 9), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 0}, ValueError, "size"),
        ({"size": (3, 3)}, TypeError, "size"),
        ({"size": 5.0}, TypeError, "size"),
        ({"alpha": -1}, ValueError, "alpha"),
        ({"beta": -0.5}, ValueError, "beta"),
        ({"beta": None}, TypeError, "beta"),
        ({"k": 0}, ValueError, "k"),
        ({"region": "maps"}, ValueError, "region"),
    ],
)
def test_bad_arguments_of_response_norm(arguments, error, message):
    with pytest.raises(error, match=message):
        LocalResponseNorm(**arguments)
