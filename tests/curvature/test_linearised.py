"""Covariance of linearised outputs against J (N F + tau I)^-1 J^T in dense matrices."""

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import fisher, linearised
from kfc_numba.curvature.blockdiagonal import BlockDiagonal


class CountsInputs(kfc.Dense):
    """Knows its locations by what it keeps."""

    def locations(self, saved, dy):
        return saved[0].size // (len(saved[0]) * saved[0].shape[-1])


NETWORKS = {
    "dense": ([kfc.Dense(2)], (3,)),
    "convolution": ([kfc.Conv2d(1, 2), kfc.Flatten()], (2, 3, 2)),
    "groups": ([kfc.Conv2d(2, 2, groups=2), kfc.Flatten()], (2, 3, 2)),
    "groups, one location": ([kfc.Conv2d(2, 2, groups=2), kfc.Flatten()], (2, 2, 2)),
    "one output": ([kfc.Dense(1)], (3,)),
    "locations by inputs": ([CountsInputs(2)], (3,)),
    "norm": ([kfc.BatchNorm()], (3,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_covariance(name):
    layers, shape = NETWORKS[name]
    net = kfc.Sequential(layers, input_shape=shape, dtype=np.float64)
    curvature = BlockDiagonal(net)
    rng = np.random.default_rng(0)
    trace = net.forward(rng.normal(size=(6, *shape)))
    state = curvature.compute(trace, kfc.SoftmaxCrossEntropy(), mode="fisher_exact")
    (matrix,) = curvature.dense(state).values()
    new = net.forward(rng.normal(size=(4, *shape)))
    found = linearised.output_covariance(curvature, state, new, 7, 0.5)
    j = fisher.jacobian(net, new)
    expected = j @ np.linalg.inv(7 * matrix + 0.5 * np.eye(len(matrix))) @ j.swapaxes(1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        # 2 outputs: rows of a derivative (2) and of an input with its one (4).
        ("dense", 2 * (2 + 4)),
        # 2 outputs: twice 9 parameters; twice 2 locations of 1 derivative and 9 inputs.
        ("convolution", 2 * 2 * 9 + 2 * 2 * (1 + 9)),
        # 3 outputs: thrice 6 parameters.
        ("norm", 3 * 3 * 6),
    ],
)
def test_numbers_laid_out(name, numbers):
    layers, shape = NETWORKS[name]
    net = kfc.Sequential(layers, input_shape=shape)
    (block,), (placed,) = BlockDiagonal(net).blocks, net.parameter_layers()
    outputs = int(np.prod(net.output_shape))
    assert linearised.jacobian_size(placed, block, outputs) == numbers
