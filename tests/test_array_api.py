"""Arrays above the kernels are computed with the array API: strict arrays refuse NumPy's own."""

import array_api_strict as strict
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import damping, eigen, factors
from kfc_numba.optim import averaging

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
    params = {"a": RNG.normal(size=(3, 2)).astype(np.float32)}
    state = averaging.initial_average(params)
    state = averaging.update_average(state, params, 3.0)
    weight = {"average_weight": state["average_weight"]}
    other = of_strict({k: v for k, v in state.items() if k not in weight}) | weight
    found = averaging.average(other, of_strict(params))
    assert_equal(found, averaging.average(state, params))

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
