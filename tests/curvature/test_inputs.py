"""Moments of inputs are over as many examples as serve."""

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.inputs import Inputs
from kfc_numba.optim.examples import curvature_sample

LOSS = kfc.losses.SoftmaxCrossEntropy()
NORMS = {"plain": [], "batch normalisation": [kfc.layers.BatchNorm()]}


def network(norm=()):
    return kfc.Sequential(
        [
            kfc.layers.Conv2d(3, 3, padding=1),  # 10 columns, 16 locations
            *norm,
            kfc.layers.ReLU(),
            kfc.layers.Conv2d(4, 3),  # 28 columns, 4 locations: 56 examples
            kfc.layers.Flatten(),
            kfc.layers.Dense(3),  # 17 columns, 1 location
        ],
        input_shape=(4, 4, 1),
        dtype="float64",
    )


def batch(count=100):
    rng = np.random.default_rng(3)
    return rng.standard_normal((count, 4, 4, 1)), rng.integers(0, 3, count)


def seen(trace, layer, rows, locations, most):
    return len(Inputs(trace, most).of(layer, rows, locations)[0])


@pytest.mark.parametrize(
    ("rows", "locations", "most", "expected"),
    [
        (28, 4, 80, 56),  # eight inputs a row
        (29, 4, 80, 58),
        (29, 16, 80, 16),  # 14.5, but 16 at least
        (30, 3, 60, 60),  # no more than asked for
        (28, 4, 200, 56),
        (90, 2, 200, 100),  # nor than there are
        (1, 1, 80, 80),  # one input an example: all that are asked for
        (1, 1, 200, 100),
    ],
)
def test_how_many_examples(rows, locations, most, expected):
    x, _ = batch()
    assert seen(network().forward(x), 0, rows, locations, most) == expected


def test_examples_are_evenly_over_the_batch():
    x, _ = batch()
    (found,) = Inputs(network().forward(x), 50).of(0, 100, 1)
    np.testing.assert_array_equal(found, x[::2])


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_each_factor_is_of_its_own_examples(norm):
    net, (x, y) = network(norm), batch()
    curvature, trace = BlockDiagonal(net), net.forward(x, training=True)
    part, how = curvature_sample(curvature, trace, x, y, 80)
    state = curvature.initial_state()
    found = curvature.estimate(part, LOSS, state, mode="fisher_empirical", **how)

    derivatives = np.arange(100) if norm else np.arange(40) * 100 // 40
    np.testing.assert_array_equal(how["targets"], y[derivatives])
    whole = net.part(trace, x, derivatives) if not norm else trace
    expected = curvature.estimate(
        whole, LOSS, state, mode="fisher_empirical", targets=y[derivatives]
    )
    names = [placed.name for placed in net.parameter_layers() if f"gamma/{placed.name}" in found]
    for name in names:
        np.testing.assert_array_equal(found[f"gamma/{name}"], expected[f"gamma/{name}"])

    asked = 100 if norm else 80
    for name, count in zip(names, (16, 56, asked), strict=True):
        chosen = np.arange(count) * 100 // count
        placed = next(placed for placed in net.parameter_layers() if placed.name == name)
        rows = placed.layer.homogeneous(tuple(a[chosen] for a in trace.saved[placed.index]))
        omega = np.einsum("ntd,nte->de", rows, rows) / count
        np.testing.assert_allclose(found[f"omega/{name}"], omega, rtol=1e-12, atol=1e-12)


def test_all_examples_without_a_number():
    net, (x, y) = network(), batch()
    curvature, trace = BlockDiagonal(net), net.forward(x, training=True)
    part, how = curvature_sample(curvature, trace, x, y, None)
    assert part is trace
    assert how["inputs"] is None
    np.testing.assert_array_equal(how["targets"], y)


def test_averages_between_layers_are_of_the_examples_of_all_others():
    layers = [kfc.layers.Dense(5), kfc.layers.Tanh(), kfc.layers.Dense(3)]
    net, (x, y) = kfc.Sequential(layers, input_shape=(16,), dtype="float64"), batch()
    x = x.reshape(len(x), 16)
    curvature = kfc.KFC(structure="tridiagonal").curvature(net)
    part, how = curvature_sample(curvature, net.forward(x, training=True), x, y, 80)
    assert len(part.outputs) == len(how["targets"]) == 80
    assert how["inputs"] is None


def test_reduced_inputs_are_one_an_example():
    net, (x, y) = network(), batch()
    curvature, trace = BlockDiagonal(net, approx="reduce"), net.forward(x, training=True)
    part, how = curvature_sample(curvature, trace, x, y, 80)
    found = curvature.estimate(
        part, LOSS, curvature.initial_state(), mode="fisher_empirical", **how
    )
    (placed, *_) = net.parameter_layers()
    rows = placed.layer.homogeneous((x[np.arange(80) * 100 // 80],)).mean(axis=1)
    np.testing.assert_allclose(found[f"omega/{placed.name}"], rows.T @ rows / 80, rtol=1e-12)
