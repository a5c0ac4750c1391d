"""The exact Fisher matrix: products, quadratic forms, blocks; the generalised Gauss-Newton."""

import curvature_reference as reference
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import fisher

LOSSES = [kfc.SquaredError(), kfc.SoftmaxCrossEntropy(), kfc.SigmoidCrossEntropy()]


def residual():
    image = kfc.Input((3, 3, 2))
    h = kfc.Tanh()(kfc.Conv2d(2, 3, padding="same")(image))
    both = kfc.Concat()(image, kfc.Add()(h, kfc.Conv2d(2, 1, bias=False)(h)))
    out = kfc.Dense(2)(kfc.Sigmoid()(kfc.Conv2d(2, 2)(kfc.BatchNorm()(both))))
    net = kfc.Graph(image, out, dtype=np.float64)
    rng = np.random.default_rng(2)
    net.buffers["norm1.mean"] = rng.normal(size=4) / 4
    net.buffers["norm1.variance"] = rng.uniform(0.5, 2, size=4)
    return net


@pytest.fixture(scope="module")
def graph():
    """A graph with branches, its inputs, and its Jacobian by differences."""
    net = residual()
    x = np.random.default_rng(1).normal(size=(3, 3, 3, 2))
    return net, x, reference.jacobian(net, x)


@pytest.fixture(params=LOSSES, ids=repr)
def problem(request, graph):
    """The graph, its inputs, a loss, and the Fisher matrix."""
    net, x, j = graph
    return net, x, request.param, reference.exact_fisher(net, x, request.param, j)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-10 * np.abs(expected).max(), rtol=0)


def directions(net, count=2):
    rng = np.random.default_rng(3)
    return [{n: rng.normal(size=v.shape) for n, v in net.params.items()} for _ in range(count)]


def test_dense_matrix(problem):
    net, x, loss, expected = problem
    close(fisher.dense_fisher(net, net.forward(x), loss), expected)


def test_products(problem):
    net, x, loss, expected = problem
    trace = net.forward(x)
    for v in directions(net):
        product = fisher.fisher_vector_product(net, trace, loss, v)
        assert list(product) == list(net.params)
        close(reference.flat(net, product), expected @ reference.flat(net, v))


def test_quadratic_forms(problem):
    net, x, loss, expected = problem
    vs = directions(net, 3)
    rows = np.array([reference.flat(net, v) for v in vs])
    close(fisher.quadratic_forms(net, net.forward(x), loss, vs), rows @ expected @ rows.T)


def test_layer_blocks(problem):
    net, x, loss, expected = problem
    blocks = fisher.layer_blocks(net, net.forward(x), loss)
    assert list(blocks) == list(reference.slices(net))
    for name, part in reference.slices(net).items():
        assert np.abs(blocks[name] - expected[part, part]).max() < 1e-10 * np.abs(expected).max()


def test_parameters_by_name(problem):
    net, x = problem[:2]
    trace = net.forward(x)
    with pytest.raises(ValueError, match=r"names has .conv9\.weight., parameters are conv1\.w"):
        fisher.jacobian(net, trace, ["conv9.weight"])
    part = fisher.parameter_slices(net)["conv2.weight"]
    whole = fisher.jacobian(net, trace)
    np.testing.assert_array_equal(fisher.jacobian(net, trace, ["conv2.weight"]), whole[:, :, part])
    v = directions(net, 1)[0]
    flat = fisher.flatten(net, v)
    for name, value in fisher.unflatten(net, flat).items():
        np.testing.assert_array_equal(value, v[name])
    with pytest.raises(ValueError, match=r"vector must have shape \(\d+,\), got \(3,\)"):
        fisher.unflatten(net, np.zeros(3))


def test_generalised_gauss_newton_is_the_same_matrix(problem, graph):
    # Hessian of the negative log-likelihood by the outputs, by differences of its derivative, for
    # two targets: it does not depend on them.
    net, x, loss, expected = problem
    outputs = net.predict(x)
    j = graph[2]
    size = outputs[0].size
    targets = {
        "SquaredError": [np.zeros_like(outputs), np.ones_like(outputs)],
        "SigmoidCrossEntropy": [np.zeros_like(outputs), np.ones_like(outputs)],
        "SoftmaxCrossEntropy": [
            np.zeros(outputs.shape[:-1], int),
            np.ones(outputs.shape[:-1], int),
        ],
    }[type(loss).__name__]
    for y in targets:
        columns = []
        for k in range(size):
            moved = np.zeros((1, size))
            moved[0, k] = reference.STEP
            moved = moved.reshape(1, *outputs.shape[1:])
            column = 0
            for distance, weight in reference.STENCIL.items():
                ahead = loss.derivative(outputs + distance * moved, y)
                behind = loss.derivative(outputs - distance * moved, y)
                column = column + weight * (ahead - behind) / reference.STEP
            columns.append(column.reshape(len(x), -1))
        hessian = np.stack(columns, axis=2)
        close(np.einsum("nkp,nkl,nlq->pq", j, hessian, j) / len(x), expected)


def test_one_example_and_a_wrong_reference():
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
    x = np.random.default_rng(0).normal(size=(1, 3))
    loss = kfc.SoftmaxCrossEntropy()
    expected = reference.exact_fisher(net, x, loss)
    close(fisher.dense_fisher(net, net.forward(x), loss), expected)
    with pytest.raises(AssertionError):
        close(1.001 * fisher.dense_fisher(net, net.forward(x), loss), expected)


def test_jacobians_of_float32_networks_are_of_float32():
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float32)
    trace = net.forward(np.ones((2, 3), np.float32))
    assert fisher.jacobian(net, trace).dtype == np.float32


def test_quadratic_forms_are_symmetric_to_the_last_bit():
    net = kfc.Sequential([kfc.Dense(3)], input_shape=(4,), dtype=np.float32)
    rng = np.random.default_rng(0)
    trace = net.forward(rng.normal(size=(50, 4)).astype(np.float32))
    directions = [
        {name: rng.normal(size=v.shape).astype(np.float32) for name, v in net.params.items()}
        for _ in range(2)
    ]
    forms = fisher.example_forms(net, trace, kfc.SoftmaxCrossEntropy(), directions)
    np.testing.assert_array_equal(forms, forms.swapaxes(1, 2))
