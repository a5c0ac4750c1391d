"""Eigendecompositions, pi, and the damped inverse against dense solves."""

import naive
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import damping, eigen, lapack
from kfc_numba.curvature.structures import curvature_of


def definite(rng, size, rank=None, *, groups=0):
    """Random symmetric positive semidefinite matrices."""
    shape = (groups, size, rank or 2 * size) if groups else (size, rank or 2 * size)
    root = rng.normal(size=shape)
    return root @ np.swapaxes(root, -1, -2) / shape[-1]


# Decomposition.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_decomposition(dtype):
    matrix = definite(np.random.default_rng(0), 6).astype(dtype)
    values, vectors = eigen.decompose(matrix, "omega/conv1")
    assert values.dtype == vectors.dtype == dtype
    bound = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose((vectors * values) @ vectors.T, matrix, atol=bound * 3)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=bound)
    groups = np.stack([matrix, 2 * matrix])
    values, vectors = eigen.decompose(groups, "omega/conv1")
    rebuilt = (vectors * values[:, None]) @ np.swapaxes(vectors, 1, 2)
    np.testing.assert_allclose(rebuilt, groups, atol=bound * 6)


def test_eigenvalues_below_zero_are_clipped():
    matrix = np.diag([-1e-3, 0.0, 2.0])
    values, _ = eigen.decompose(matrix, "gamma/conv1")
    np.testing.assert_array_equal(values, [0, 0, 2])
    # A matrix of rank one has eigenvalues of either sign, by rounding.
    row = np.random.default_rng(0).normal(size=30)
    assert np.linalg.eigvalsh(np.outer(row, row)).min() < 0
    assert eigen.decompose(np.outer(row, row), "gamma/conv1")[0].min() >= 0


def test_float64_is_tried_where_float32_fails(monkeypatch):
    solver, seen = lapack.eigh, []

    def failing(matrix):
        seen.append(matrix.dtype)
        if matrix.dtype == np.float32:
            raise np.linalg.LinAlgError("no convergence")
        return solver(matrix)

    monkeypatch.setattr(lapack, "eigh", failing)
    matrix = definite(np.random.default_rng(0), 4).astype(np.float32)
    values, vectors = eigen.decompose(matrix, "omega/conv1")
    assert seen == [np.float32, np.float64]
    assert values.dtype == vectors.dtype == np.float32
    np.testing.assert_allclose((vectors * values) @ vectors.T, matrix, atol=1e-6)


def test_a_result_that_is_not_finite_counts_as_failure(monkeypatch):
    solver = lapack.eigh

    def spoiled(matrix):
        values, vectors = solver(matrix)
        return (values * np.nan if matrix.dtype == np.float32 else values), vectors

    monkeypatch.setattr(lapack, "eigh", spoiled)
    values, _ = eigen.decompose(np.eye(3, dtype=np.float32), "omega/conv1")
    np.testing.assert_array_equal(values, [1, 1, 1])


def test_failure_names_the_factor(monkeypatch):
    def failing(matrix):
        raise np.linalg.LinAlgError("3 off-diagonals did not converge")

    monkeypatch.setattr(lapack, "eigh", failing)
    with pytest.raises(np.linalg.LinAlgError, match=r"gamma/conv2 of shape \(4, 4\).*did not conv"):
        eigen.decompose(np.eye(4), "gamma/conv2")
    with pytest.raises(np.linalg.LinAlgError, match=r"^factor gamma/conv2 of shape \(4, 4\)"):
        eigen.decompose(np.stack([np.eye(4)] * 2), "gamma/conv2")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_factor_that_is_not_finite(bad):
    matrix = np.eye(3)
    matrix[1, 2] = bad
    with pytest.raises(FloatingPointError, match="factor omega/dense1 is not finite"):
        eigen.decompose(matrix, "omega/dense1")
    with pytest.raises(FloatingPointError, match="factor omega/dense1 is not finite"):
        eigen.decompose(np.stack([np.eye(3), matrix]), "omega/dense1")


# pi and damped eigenvalues.


def test_pi():
    rng = np.random.default_rng(0)
    omega, gamma = definite(rng, 5), 1e-4 * definite(rng, 3)
    values = [np.linalg.eigvalsh(matrix) for matrix in (omega, gamma)]
    np.testing.assert_allclose(damping.trace_ratio(*values), naive.pi(omega, gamma), rtol=1e-12)
    assert damping.trace_ratio(np.zeros(3), np.ones(2)) == 1
    assert damping.trace_ratio(np.ones(3), np.zeros(2)) == 1
    # One for each group.
    groups = damping.trace_ratio(np.array([[4.0, 4], [0, 0]]), np.array([[1.0], [1]]))
    np.testing.assert_array_equal(groups, [2, 1])


@pytest.mark.parametrize("scales", [(1e300, 1e-300), (1e-300, 1e300), (1e-320, 1.0), (1.0, 5e-324)])
def test_pi_is_finite_for_any_factors(scales):
    omega, gamma = scales[0] * np.ones(3), scales[1] * np.ones(2)
    pi = damping.trace_ratio(omega, gamma)
    assert np.isfinite(pi)
    assert np.isfinite(1 / pi)
    for strategy in damping.DAMPING_STRATEGIES:
        values = damping.damped_eigenvalues(omega, gamma, 1e-3, strategy)
        assert np.isfinite(values).all()
        assert np.all(values >= 1e-3)


def test_damped_eigenvalues():
    o, g = np.array([0.0, 0.5, 3.0]), np.array([0.0, 0.2])
    pi = np.sqrt((3.5 / 3) / 0.1)
    root = np.sqrt(0.04)
    found = damping.damped_eigenvalues(o, g, 0.04)
    np.testing.assert_allclose(found, np.outer(g + root / pi, o + pi * root), rtol=1e-14)
    found = damping.damped_eigenvalues(o, g, 0.04, "uniform")
    np.testing.assert_allclose(found, np.outer(g + root, o + root), rtol=1e-14)
    found = damping.damped_eigenvalues(o, g, 0.04, "exact")
    np.testing.assert_allclose(found, np.outer(g, o) + 0.04, rtol=1e-14)
    with pytest.raises(ValueError, match=r"damping_strategy \(='none'\) must be one of"):
        damping.damped_eigenvalues(o, g, 0.04, "none")


# The damped inverse.

LAYERS = {
    "dense": (kfc.Dense(3), (4,)),
    "dense without bias": (kfc.Dense(3, bias=False), (4,)),
    "convolution": (kfc.Conv2d(3, (2, 3)), (4, 4, 2)),
    "convolution without bias": (kfc.Conv2d(3, (2, 1), bias=False), (4, 4, 2)),
    "groups": (kfc.Conv2d(4, 2, groups=2), (3, 3, 4)),
    "depthwise": (kfc.Conv2d(4, 2, groups=4), (3, 3, 4)),
}


def matrices_by_hand(weight, bias, groups):
    """A layer's matrix by loops: outputs by (kernel row, kernel column, channel) and bias."""
    weight = weight.reshape(-1, weight.shape[-1])
    if bias is not None:
        weight = np.vstack([weight, bias])
    return np.stack(np.split(weight.T, groups))


@pytest.mark.parametrize("strategy", ["pi", "exact", "uniform"])
@pytest.mark.parametrize("name", LAYERS)
def test_damped_inverse_against_a_dense_solve(name, strategy):
    layer, shape = LAYERS[name]
    net = kfc.Sequential([layer], input_shape=shape, dtype=np.float64)
    groups = getattr(layer, "groups", 1)
    kind = next(iter(net.params)).split(".")[0]
    rng = np.random.default_rng(0)
    curvature = curvature_of(net)
    state = curvature.initial_state()
    axis = groups if groups > 1 else 0
    outputs, columns = state[f"gamma/{kind}"].shape[-1], state[f"omega/{kind}"].shape[-1]
    # Rank deficient and of different sizes, as factors of few examples are.
    omega = definite(rng, columns, columns // 2, groups=axis)
    gamma = 1e-2 * definite(rng, outputs, groups=axis)
    state |= {f"omega/{kind}": omega, f"gamma/{kind}": gamma}
    state |= curvature.decompose(state)
    vector = {key: rng.normal(size=value.shape) for key, value in net.params.items()}
    found = curvature.precondition(state, vector, 0.01, strategy)

    parts = matrices_by_hand(vector[f"{kind}.weight"], vector.get(f"{kind}.bias"), groups)
    actual = matrices_by_hand(found[f"{kind}.weight"], found.get(f"{kind}.bias"), groups)
    omega, gamma = omega.reshape(groups, columns, -1), gamma.reshape(groups, outputs, -1)
    for o, g, v, u in zip(omega, gamma, parts, actual, strict=True):
        if strategy == "uniform":
            o, g = o + 0.1 * np.eye(len(o)), g + 0.1 * np.eye(len(g))
            expected = np.linalg.solve(np.kron(g, o), v.ravel()).reshape(v.shape)
        else:
            expected = naive.damped_inverse(o, g, v, 0.01, factored=strategy == "pi")
        np.testing.assert_allclose(u, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factors_of_any_size(scale, dtype):
    net = kfc.Sequential([kfc.Dense(3)], input_shape=(4,), dtype=dtype)
    curvature = curvature_of(net)
    rng = np.random.default_rng(0)
    omega, gamma = scale * definite(rng, 5), definite(rng, 3) / scale
    state = curvature.initial_state()
    state |= {"omega/dense1": omega.astype(dtype), "gamma/dense1": gamma.astype(dtype)}
    state |= curvature.decompose(state)
    vector = {key: rng.normal(size=value.shape).astype(dtype) for key, value in net.params.items()}
    found = curvature.precondition(state, vector, 1e-3)
    matrix = np.vstack([vector["dense1.weight"], vector["dense1.bias"]]).T
    actual = np.vstack([found["dense1.weight"], found["dense1.bias"]]).T
    expected = naive.damped_inverse(omega, gamma, matrix, 1e-3)
    # The block has a condition number of some 1e3.
    bound = 1e4 * np.finfo(dtype).eps * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, atol=bound, rtol=0)


def test_damping_of_omega_and_gamma_scaled_against_each_other():
    # Damping (Omega, Gamma) with gamma is |T| times damping (Omega / |T|, Gamma) with gamma / |T|.
    rng = np.random.default_rng(0)
    omega, gamma = np.linalg.eigvalsh(definite(rng, 5)), np.linalg.eigvalsh(definite(rng, 3))
    for strategy in damping.DAMPING_STRATEGIES[:2]:
        whole = damping.damped_eigenvalues(omega, gamma, 1e-2, strategy)
        shared = damping.damped_eigenvalues(omega / 49, gamma, 1e-2 / 49, strategy)
        np.testing.assert_allclose(whole, 49 * shared, rtol=1e-12)


def test_traces_are_added_up_in_float64():
    # In float32 the small eigenvalues would be lost beside the large one.
    omega = np.array([1.0, *[2.0**-25] * 2**10], np.float32)
    gamma = np.ones(2, np.float32)
    found = damping.trace_ratio(omega, gamma)
    assert found.dtype == np.float64
    expected = np.sqrt((1 + 2.0**-15) / (2**10 + 1))
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_many_small_groups():
    matrices = definite(np.random.default_rng(0), 2, groups=eigen.LEAST_LOW_RANK)
    values, vectors = eigen.decompose(matrices, "omega/conv1")
    rebuilt = (vectors * values[:, None]) @ np.swapaxes(vectors, 1, 2)
    np.testing.assert_allclose(rebuilt, matrices, atol=1e-12)
