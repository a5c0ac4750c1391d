"""Arrays above the kernels are computed with the array API: strict arrays refuse NumPy's own."""

import copy

import array_api_strict as strict
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import damping, eigen, factors, inversion
from kfc_numba.curvature.parts import LayerInParts
from kfc_numba.curvature.structures import curvature_of
from kfc_numba.optim import averaging, quadratic
from kfc_numba.optim.base import shift

RNG = np.random.default_rng(0)


def of_strict(arrays):
    return {name: strict.asarray(value) for name, value in arrays.items()}


def assert_equal(found, expected):
    """Bit for bit: NumPy is what computes strict arrays."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert str(value.dtype).endswith(str(expected[name].dtype))
        np.testing.assert_array_equal(np.asarray(value), expected[name])


@pytest.mark.parametrize("optimizer", [kfc.SGD(), kfc.SGD(nesterov=True), kfc.Adam()])
def test_optimizers(optimizer):
    gradients = {"a": RNG.normal(size=(3, 2)).astype(np.float32), "b": RNG.normal(size=4)}

    class Net:
        params = gradients

    state = optimizer.initial_state(Net)
    other = {k: v if k.endswith("weight") else strict.asarray(v) for k, v in state.items()}
    for step in range(2):
        expected = optimizer.delta(*[None] * 6, gradients, state, step, 0)
        found = optimizer.delta(*[None] * 6, of_strict(gradients), other, step, 0)
        for one, two in zip(found, expected, strict=True):
            assert_equal(one, two)
        state, other = expected[1], found[1]


def test_averages():
    net = network("kronecker")[0]
    state = averaging.update_average(averaging.initial_average(net), net, net.params, 3.0)
    weight = {"average_weight": state["average_weight"]}
    other = of_strict({k: v for k, v in state.items() if k not in weight}) | weight
    assert_equal(averaging.average(other, net), averaging.average(state, net))

    state = {"factor_weight": np.array(0.5), "omega/a": RNG.normal(size=(2, 2))}
    new = {"omega/a": RNG.normal(size=(2, 2))}
    other = state | of_strict({"omega/a": state["omega/a"]})
    assert_equal(factors.average(other, of_strict(new), 0.9), factors.average(state, new, 0.9))


@pytest.mark.parametrize("strategy", damping.DAMPING_STRATEGIES)
@pytest.mark.parametrize("groups", [(), (2,)])
def test_damping(strategy, groups):
    omega, gamma = RNG.random((*groups, 5)), RNG.random((*groups, 3))
    found = damping.damped_eigenvalues(*map(strict.asarray, (omega, gamma)), 0.1, strategy)
    expected = damping.damped_eigenvalues(omega, gamma, 0.1, strategy)
    assert_equal({"": found}, {"": expected})


@pytest.mark.parametrize(
    "are_factors", [(False, False), (False, True), (True, False), (True, True)]
)
@pytest.mark.parametrize("groups", [(), (2,)])
def test_inverses(groups, are_factors):
    """Cholesky factors are the host's, and have anything above the diagonal."""
    damping, kept = np.full(groups, 0.1), []
    for size, factor in zip((3, 5), are_factors, strict=True):
        rows = RNG.normal(size=(*groups, size, size))
        matrix = rows @ np.swapaxes(rows, -1, -2)
        kept.append(inversion.damped_inverse(matrix, damping, "omega/a", factor=factor))
    vector = RNG.normal(size=(*groups, 3, 5))
    found = inversion.between_inverses(*map(strict.asarray, (vector, *kept)), are_factors)
    expected = inversion.between_inverses(vector, *kept, are_factors)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("groups", [(), (2,)])
def test_eigenbases(groups):
    """To rounding: NumPy's arrays have a driver, and a matrix product, of their own."""
    pairs = []
    for size in (3, 5):
        rows = RNG.normal(size=(*groups, size, size))
        matrix = rows @ np.swapaxes(rows, -1, -2)
        values, vectors = eigen.decompose(strict.asarray(matrix), "omega/a")
        np.testing.assert_allclose(values, eigen.decompose(matrix, "omega/a")[0], atol=1e-12)
        pairs.append(vectors)
    matrix = RNG.normal(size=(*groups, 3, 5))
    for back in (False, True):
        found = eigen.rotate(strict.asarray(matrix), *pairs, back=back)
        expected = eigen.rotate(matrix, *map(np.asarray, pairs), back=back)
        np.testing.assert_allclose(np.asarray(found), expected, atol=1e-12)
    with pytest.raises(FloatingPointError, match="omega/a is not finite"):
        eigen.decompose(strict.asarray(matrix * np.inf), "omega/a")


@pytest.mark.parametrize("result", ["error", "not finite"])
def test_float64_decides_where_float32_has_no_decomposition(result, monkeypatch):
    solve, matrix = strict.linalg.eigh, np.diag([1.0, 3.0]).astype(np.float32)
    seen = []

    def failing(given):
        seen.append(given.dtype)
        if given.dtype != wrong:
            return solve(given)
        if result == "error":
            raise np.linalg.LinAlgError("no convergence")
        return solve(given)[0], strict.full_like(given, strict.nan)

    monkeypatch.setattr(strict.linalg, "eigh", failing)
    wrong = strict.float32
    values, vectors = eigen.decompose(strict.asarray(matrix), "omega/a")
    assert seen == [strict.float32, strict.float64]
    assert values.dtype == vectors.dtype == strict.float32
    np.testing.assert_array_equal(np.asarray(values), [1, 3])
    wrong = strict.float64
    with pytest.raises(np.linalg.LinAlgError, match=r"omega/a of shape \(2, 2\) has no"):
        eigen.decompose(strict.asarray(matrix.astype(np.float64)), "omega/a")


def test_inner_products():
    """To rounding: NumPy's arrays go through BLAS."""
    one = {"a": RNG.normal(size=(3, 2)).astype(np.float32), "b": RNG.normal(size=4)}
    other = {"a": RNG.normal(size=(2, 3)).astype(np.float32).T, "b": RNG.normal(size=4)}
    expected = sum((one[name].astype(float) * other[name].astype(float)).sum() for name in one)
    np.testing.assert_allclose(quadratic.inner(one, other), expected, rtol=1e-14)
    found = quadratic.inner(of_strict(one), of_strict(other))
    assert type(found) is float
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_quadratic_model():
    gradients = {"a": RNG.normal(size=(3, 2)).astype(np.float32)}
    directions = [{"a": RNG.normal(size=(3, 2)).astype(np.float32)} for _ in range(2)]
    how = {"damping": 0.1, "l2_reg": 0.0}
    found = quadratic.quadratic_model(
        np.eye(2), [of_strict(one) for one in directions], of_strict(gradients), **how
    )
    expected = quadratic.quadratic_model(np.eye(2), directions, gradients, **how)
    assert found.rounding == expected.rounding
    np.testing.assert_allclose(found.squares, expected.squares, rtol=1e-14)
    np.testing.assert_allclose(found.slopes, expected.slopes, rtol=1e-14)


def test_first_average_and_shift():
    net = network("kronecker")[0]
    net.params["conv1.weight"] = net.params["conv1.weight"].astype(np.float32)
    net.buffers["norm1.variance"] = RNG.uniform(1, 2, size=4)
    other = copy.copy(net)
    other.params, other.buffers = of_strict(net.params), of_strict(net.buffers)
    state, expected = averaging.initial_average(other), averaging.initial_average(net)
    for step in range(2):
        deltas = {name: value * (step + 0.5) for name, value in net.params.items()}
        moved = shift(other.params, of_strict(deltas))
        assert_equal(moved, shift(net.params, deltas))
        state = averaging.update_average(state, other, moved, 3.0)
        expected = averaging.update_average(expected, net, shift(net.params, deltas), 3.0)
        assert_equal(state, expected)


def network(structure):
    """A network, the curvature of a batch in a structure, and both with strict arrays."""
    layers = [kfc.Conv2d(4, 3, groups=2), kfc.BatchNorm(), kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)]
    net = kfc.Sequential(layers, input_shape=(4, 4, 2), dtype=np.float64)
    loss = kfc.SoftmaxCrossEntropy()
    x, y = RNG.normal(size=(12, 4, 4, 2)), RNG.integers(0, 3, 12)
    curvature = curvature_of(net, structure)
    trace = net.forward(x, training=True)
    state = curvature.compute(trace, loss, mode="fisher_empirical", targets=y)
    other = copy.copy(net)
    other.params = of_strict(net.params)
    numbers = {name: value for name, value in state.items() if not value.ndim}
    return net, curvature, state, curvature_of(other, structure), of_strict(state) | numbers


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "diagonal", "full"])
def test_blocks(structure):
    """Decomposed and applied; to rounding where there are eigenbases."""
    net, curvature, state, other, strict_state = network(structure)
    vector = {name: RNG.normal(size=value.shape) for name, value in net.params.items()}
    for power in (-1.0, -0.5, 1.0):
        expected = curvature.apply(state, vector, 0.1, power=power)
        found = other.apply(strict_state, of_strict(vector), 0.1, power=power)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert isinstance(value, type(strict.asarray(0.0)))
            np.testing.assert_allclose(np.asarray(value), expected[name], rtol=1e-9, atol=1e-12)
    fresh = strict_state | other.decompose(strict_state)
    found = other.apply(fresh, of_strict(vector), 0.1)
    expected = curvature.apply(state | curvature.decompose(state), vector, 0.1)
    for name, value in found.items():
        np.testing.assert_allclose(np.asarray(value), expected[name], rtol=1e-8, atol=1e-10)
    initial = other.initial_state()
    assert_equal(initial, curvature.initial_state())
    assert {name for name, value in initial.items() if isinstance(value, np.ndarray)} == {
        name for name, value in state.items() if not value.ndim
    }


def test_block_tridiagonal():
    layers = [kfc.Dense(4), kfc.Tanh(), kfc.Dense(2, bias=False), kfc.Tanh(), kfc.Dense(3)]
    net = kfc.Sequential(layers, input_shape=(3,), dtype=np.float64)
    curvature = curvature_of(net, "tridiagonal")
    trace = net.forward(RNG.normal(size=(12, 3)))
    state = curvature.compute(trace, kfc.SquaredError(), mode="fisher_exact")
    other = copy.copy(net)
    other.params = of_strict(net.params)
    strict_curvature = curvature_of(other, "tridiagonal")
    assert_equal(strict_curvature.initial_state(), curvature.initial_state())
    numbers = {name: value for name, value in state.items() if not value.ndim}
    strict_state = of_strict(state) | numbers
    strict_state |= strict_curvature.decompose(strict_state)
    vector = {name: RNG.normal(size=value.shape) for name, value in net.params.items()}
    for strategy in ("pi", "uniform"):
        expected = curvature.apply(state, vector, 0.1, strategy)
        found = strict_curvature.apply(strict_state, of_strict(vector), 0.1, strategy)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert isinstance(value, type(strict.asarray(0.0)))
            np.testing.assert_allclose(np.asarray(value), expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_matrices_of_layers(groups, bias):
    for layer, shape in (
        (kfc.Conv2d(4, 3, groups=groups, bias=bias), (5, 5, 2)),
        (kfc.Dense(4, bias=bias), (3,)),
    ):
        arrays = layer.parameters(RNG, shape)
        matrix = layer.to_matrix(arrays)
        found = layer.to_matrix(of_strict(arrays))
        assert_equal({"": found}, {"": matrix})
        assert_equal(layer.from_matrix(found, arrays), layer.from_matrix(matrix, arrays))
        assert_equal(layer.from_matrix(found, arrays), arrays)


@pytest.mark.parametrize("inputs", [11, 13])
def test_inputs_in_parts(inputs):
    net = kfc.Sequential([kfc.Dense(3)], input_shape=(inputs,), dtype=np.float64)
    layer = LayerInParts(kfc.Dense(3), 3, inputs + 1)
    arrays = {"weight": net.params["dense1.weight"], "bias": net.params["dense1.bias"]}
    found = layer.to_matrix(of_strict(arrays))
    expected = layer.to_matrix(arrays)
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert_equal(layer.from_matrix(found, {}), layer.from_matrix(expected, {}))
