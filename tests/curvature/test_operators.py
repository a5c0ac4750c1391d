"""Linear operators against dense matrices, and SciPy's solvers on them as they are."""

import functools

import curvature_reference as reference
import numpy as np
import pytest
import scipy.sparse.linalg as sparse

import kfc_numba as kfc
from kfc_numba.curvature import operators
from kfc_numba.curvature.structures import curvature_of

LOSS = kfc.SoftmaxCrossEntropy()


def network(dtype=np.float64):
    layers = [kfc.Conv2d(2, 2, groups=2), kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=(3, 3, 2), dtype=dtype)


NET = network()
X = np.random.default_rng(0).normal(size=(5, 3, 3, 2))
SIZE = sum(value.size for value in NET.params.values())


@functools.cache
def exact_matrix():
    return reference.exact_fisher(NET, X, LOSS)


def power(matrix, exponent):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


def close(actual, expected, tolerance=1e-9):
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


def dense(operator):
    return operator @ np.eye(operator.shape[0])


def check_spectral(operator, matrix):
    """All that an operator knows, against its dense matrix."""
    assert operator.shape == matrix.shape
    close(dense(operator), matrix)
    close(operator.T @ np.eye(len(matrix)), matrix)
    close(operator.eigenvalues(), np.linalg.eigvalsh(matrix))
    assert operator.trace() == pytest.approx(np.trace(matrix), rel=1e-9)
    assert operator.logdet() == pytest.approx(np.linalg.slogdet(matrix)[1], rel=1e-9)
    # A sample is the symmetric root times a standard normal vector.
    found = operator.sample(np.random.default_rng(4), 3)
    normal = np.random.default_rng(4).standard_normal((3, len(matrix)))
    close(found, normal @ power(matrix, 0.5))


@pytest.mark.parametrize("strategy", ["pi", "exact"])
@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "diagonal", "full"])
def test_block_operators(structure, strategy):
    operator = operators.block_curvature(
        NET, X, LOSS, structure=structure, damping=0.1, strategy=strategy
    )
    curvature = curvature_of(NET, structure)
    state = curvature.compute(NET.forward(X), LOSS, mode="fisher_exact")
    matrix = np.zeros((SIZE, SIZE))
    for layer, block in curvature.dense(state, 0.1, strategy).items():
        part = reference.slices(NET)[layer]
        matrix[part, part] = block
    check_spectral(operator, matrix)
    check_spectral(operator.inverse(), np.linalg.inv(matrix))
    check_spectral(operator.inverse().sqrt(), power(matrix, -0.5))
    more = np.zeros((SIZE, SIZE))
    for layer, block in curvature.dense(state, 0.2, strategy).items():
        more[reference.slices(NET)[layer], reference.slices(NET)[layer]] = block
    close(dense(operator.damp(0.2, strategy)), more)
    close(dense(operator.inverse().damp(0.2, strategy)), np.linalg.inv(more))
    check_spectral(operator.damp(0.2, strategy).damp(0.1, strategy), matrix)
    vector = np.random.default_rng(2).normal(size=SIZE)
    close(operator.inverse() @ (operator @ vector), vector)
    root = operator.inverse().sqrt()
    close(root @ (root @ vector), operator.inverse() @ vector)


def test_block_operator_of_an_optimizer():
    net = network(np.float32)
    optimizer = kfc.KFC(num_burnin_steps=0)
    state = optimizer.init(net)
    optimizer.step(net, LOSS, X, np.array([0, 1, 2, 0, 1]), state)
    operator = operators.BlockOperator(optimizer.curvature(net), state, damping=1e-3, strategy="pi")
    vector = np.random.default_rng(2).normal(size=SIZE).astype(np.float32)
    expected = optimizer.curvature(net).precondition(
        state, reference.unflat(net, vector), 1e-3, "pi"
    )
    found = operator.inverse() @ vector
    assert found.dtype == np.float32
    close(found, reference.flat(net, expected), 1e-6)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_exact_fisher(batch_size):
    exact = exact_matrix()
    matrix = exact + 0.1 * np.eye(SIZE)
    operator = operators.exact_fisher(NET, X, LOSS, damping=0.1, batch_size=batch_size)
    close(dense(operator), matrix)
    close(operator.T @ np.eye(SIZE), matrix)
    close(operator.diagonal(), np.diag(matrix))
    assert operator.trace() == pytest.approx(np.trace(matrix), rel=1e-9)
    assert operators.ExactFisher(NET, X, LOSS).damping == 0
    check_spectral(operator.decompose(), matrix)
    check_spectral(operator.inverse(), np.linalg.inv(matrix))
    check_spectral(operator.inverse().sqrt(), power(matrix, -0.5))
    check_spectral(operator.decompose().damp(0.3), exact + 0.3 * np.eye(SIZE))


def test_solvers_of_scipy():
    exact = exact_matrix()
    start = np.ones(SIZE)
    values = sparse.eigsh(
        operators.exact_fisher(NET, X, LOSS), 3, v0=start, return_eigenvectors=False
    )
    close(np.sort(values), np.linalg.eigvalsh(exact)[-3:])
    target = np.random.default_rng(2).normal(size=SIZE)
    operator = operators.exact_fisher(NET, X, LOSS, damping=1e-2)
    expected = np.linalg.solve(exact + 1e-2 * np.eye(SIZE), target)
    solution, failed = sparse.cg(operator, target, rtol=1e-10, maxiter=500)
    assert not failed
    close(solution, expected, 1e-8)
    # An inverse of approximate curvature is a preconditioner as it is.
    inverse = operators.block_curvature(NET, X, LOSS, structure="full", damping=1e-2).inverse()
    solution, failed = sparse.cg(operator, target, rtol=1e-10, maxiter=500, M=inverse)
    assert not failed
    close(solution, expected, 1e-8)
    largest = sparse.eigsh(
        operators.block_curvature(NET, X, LOSS), 1, v0=start, return_eigenvectors=False
    )
    assert largest == pytest.approx(operators.block_curvature(NET, X, LOSS).eigenvalues()[-1])


def test_low_rank():
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    matrix = (vectors * [3.0, 0.5]) @ vectors.T
    operator = operators.LowRankOperator(vectors, np.array([3.0, 0.5]))
    close(dense(operator), matrix)
    assert operator.logdet() == -np.inf
    whole = operators.LowRankOperator(np.eye(2), np.array([1.0, 1e-17]))
    assert whole.logdet() == -np.inf
    with pytest.raises(ValueError, match="which rounding makes of 0"):
        whole.inverse()
    check_spectral(operator.damp(0.5), matrix + 0.5 * np.eye(6))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "diagonal", "full"])
def test_a_matrix_that_is_singular_but_for_rounding_is_not_inverted(structure, dtype):
    # Two inputs that are multiples of each other, and constant outputs of one class each.
    net = kfc.Sequential([kfc.Dense(3)], input_shape=(2,), seed=1, dtype=dtype)
    x = np.random.default_rng(0).normal(size=(7, 1)) * [1.0, 0.3]
    if structure == "diagonal":  # an input that is never there
        x[:, 1] = 0
    operator = operators.block_curvature(net, x, LOSS, structure=structure)
    if structure != "diagonal":  # what used to be taken for regular
        assert operator.eigenvalues()[0] < 1e-6 * operator.eigenvalues()[-1]
    assert operator.logdet() == -np.inf
    for root in (lambda: operator.inverse(), lambda: operator.inverse().sqrt()):
        with pytest.raises(ValueError, match="damping must be above 0"):
            root()
    values = operator.eigenvalues()
    damped = operator.damp(1e-3).inverse()
    assert damped.trace() == pytest.approx(np.sum(1 / (values + 1e-3)), rel=1e-3)
    curvature = curvature_of(net, structure)
    state = curvature.compute(net.forward(x), LOSS, mode="fisher_exact")
    if structure != "diagonal":
        with pytest.raises(ValueError, match=r"damping \(=0\) must be above 0 .* layer dense1"):
            curvature.apply(state, net.params, 0.0)


def test_a_regular_matrix_with_small_eigenvalues_is_inverted():
    # A condition number of 1e8 is far from what rounding makes in float64.
    net = kfc.Sequential([kfc.Dense(2, bias=False)], input_shape=(3,), dtype=np.float64)
    x = np.random.default_rng(0).normal(size=(9, 3)) * [1.0, 1e-2, 1e-4]
    operator = operators.block_curvature(net, x, kfc.SquaredError())
    matrix = np.kron(x.T @ x / 9, np.eye(2))
    assert operator.inverse().trace() == pytest.approx(np.trace(np.linalg.inv(matrix)), rel=1e-6)
    assert operator.logdet() == pytest.approx(np.linalg.slogdet(matrix)[1], rel=1e-9)


def test_what_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match=r"power of -1\.0 needs eigenvalues above 0, the least is"):
        operators.block_curvature(NET, X, LOSS).inverse()
    for bad in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"damping \(=.*must be a number in \[0, inf\)"):
            operators.exact_fisher(NET, X, LOSS, damping=bad)
    with pytest.raises(TypeError, match=r"damping \(='1'\) must be a number"):
        operators.block_curvature(NET, X, LOSS, damping="1")
    with pytest.raises(ValueError, match=r"batch_size \(=0\) must be an integer of at least 1"):
        operators.exact_fisher(NET, X, LOSS, batch_size=0)
    with pytest.raises(ValueError, match=r"damping_strategy \(='all'\) must be one of"):
        operators.block_curvature(NET, X, LOSS, strategy="all")
    chain = kfc.Sequential([kfc.Dense(2), kfc.Dense(2)], input_shape=(3,))
    with pytest.raises(ValueError, match="curvature must be block-diagonal"):
        operators.BlockOperator(curvature_of(chain, "tridiagonal"), {})
    monkeypatch.setattr(operators, "LARGEST", 15 * SIZE)
    operators.exact_fisher(NET, X, LOSS).decompose()
    monkeypatch.setattr(operators, "LARGEST", 100)
    with pytest.raises(ValueError, match=r"a root of 15 x \d+ entries, at most 100"):
        operators.exact_fisher(NET, X, LOSS).decompose()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_low_rank_in_powers_damping_and_rank(dtype):
    vectors = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0].astype(dtype)
    tolerance = 100 * np.finfo(dtype).eps
    for rank in (0, 2, 6):
        values = np.arange(1.0, rank + 1).astype(dtype)
        matrix = (vectors[:, :rank] * values) @ vectors[:, :rank].T
        operator = operators.LowRankOperator(vectors[:, :rank], values)
        assert operator.dtype == dtype
        assert dense(operator).dtype == dtype
        np.testing.assert_allclose(dense(operator), matrix, atol=tolerance)
        root = operator.sqrt()
        np.testing.assert_allclose(dense(root) @ dense(root), matrix, atol=10 * tolerance)
        # Damping goes under the power that was taken before.
        damped = root.damp(0.25)
        expected = power(matrix.astype(np.float64) + 0.25 * np.eye(6), 0.5)
        np.testing.assert_allclose(dense(damped), expected, atol=10 * tolerance)
        assert (rank == 6) == np.isfinite(operator.logdet())
        if rank == 6:
            inverse = np.linalg.inv(matrix.astype(np.float64))
            np.testing.assert_allclose(dense(operator.inverse()), inverse, atol=10 * tolerance)
        nothing = operators.LowRankOperator(vectors[:, :rank], values, power=0.0)
        np.testing.assert_allclose(dense(nothing), np.eye(6), atol=tolerance)
    # What rounding makes of zero is as large as the largest value, the rows, and the precision.
    for rows, singular in ((5, True), (7, False)):
        least = rows * np.finfo(dtype).eps * 3.0
        close_to_zero = operators.LowRankOperator(vectors, np.array([3.0] * 5 + [least], dtype))
        assert np.isinf(close_to_zero.logdet()) == singular
    assert operators.LowRankOperator(vectors, np.ones(6)).damping == 0
    # Rounding is relative to the largest value: without any, the least damping counts.
    alone = operators.LowRankOperator(vectors[:, :0], values[:0], damping=1e-20)
    assert alone.logdet() == pytest.approx(6 * np.log(1e-20))
    for wrong in (-1.0, np.inf):
        with pytest.raises(
            ValueError, match=rf"^damping \(={wrong}\) must be a number in \[0, inf"
        ):
            operators.LowRankOperator(vectors, np.ones(6), damping=wrong)


def test_without_a_strategy_damping_is_exact():
    curvature = curvature_of(NET, "kronecker")
    state = curvature.compute(NET.forward(X), LOSS, mode="fisher_exact")
    plain = dense(operators.BlockOperator(curvature, state))
    close(dense(operators.BlockOperator(curvature, state, damping=0.5)), plain + 0.5 * np.eye(SIZE))
    close(dense(operators.BlockOperator(curvature, state).damp(0.5)), plain + 0.5 * np.eye(SIZE))
    close(dense(operators.block_curvature(NET, X, LOSS, damping=0.5)), plain + 0.5 * np.eye(SIZE))
    for block, matrix in zip(curvature.blocks, curvature.dense(state).values(), strict=True):
        np.testing.assert_array_equal(block.dense(state), matrix)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "diagonal", "full"])
def test_operators_have_the_dtype_of_the_network(structure, dtype):
    net = network(dtype)
    operator = operators.block_curvature(net, X.astype(dtype), LOSS, structure=structure)
    assert operator.dtype == dtype
    assert operator.sample(np.random.default_rng(0), 2).dtype == dtype
    state = operator.state
    for block in operator.curvature.blocks:
        vector = {short: np.ones(shape, dtype) for short, shape in block.shapes.items()}
        assert block.eigenvalues(state, 0.5, "exact").dtype == dtype
        found = block.apply(state, vector, 0.5, "exact")
        assert all(value.dtype == dtype for value in found.values())
        # What rounding makes of zero: the largest eigenvalue, by the rows decomposed.
        matrix = block.dense(state)
        rows = {"conv1": 5 + 1, "dense1": 9 + 3}[block.name] if block.has_factors else block.size
        if structure != "diagonal":
            assert block.basis(state).dtype == dtype
            largest = np.linalg.eigvalsh(matrix)[-1]
            expected = largest * rows * np.finfo(dtype).eps
            assert block.rounding(state) == pytest.approx(expected, rel=1e-4)
