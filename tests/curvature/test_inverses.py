"""Damped inverses of factors, by Cholesky, beside eigendecompositions and solutions in float64."""

import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import inversion, lapack
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.inverses import DAMPING, InverseBlocks, watch_products
from kfc_numba.curvature.operators import BlockOperator

LOSS = kfc.SoftmaxCrossEntropy()


def semidefinite(size, rank, dtype=np.float64):
    rows = np.random.default_rng(size).normal(size=(rank, size))
    return (rows.T @ rows / rank).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 301])
def test_inverse(size, dtype):
    matrix = (semidefinite(size, 2 * size) + np.eye(size)).astype(dtype)
    found = matrix.copy()
    lapack.invert(found)
    expected = np.linalg.inv(matrix.astype(np.float64))
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, expected, atol=50 * np.finfo(dtype).eps * abs(expected).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 301])
def test_solution_with_the_cholesky_factor(size, rows, dtype):
    matrix = (semidefinite(size, 2 * size) + np.eye(size)).astype(dtype)
    lower = matrix.copy()
    lapack.cholesky(lower)
    expected = np.linalg.cholesky(matrix.astype(np.float64))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(np.tril(lower), expected, atol=50 * eps * abs(expected).max())
    given = np.random.default_rng(rows).normal(size=(rows, size)).astype(dtype)
    kept = given.copy()
    expected = given.astype(np.float64) @ np.linalg.inv(matrix.astype(np.float64))
    for transposed in (False, True):
        # Neither what is above the diagonal counts, nor how the rows are laid out.
        factor = np.tril(lower) + np.triu(np.full_like(lower, np.nan), 1)
        found = lapack.solve(factor, np.asfortranarray(given) if transposed else given)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, atol=100 * eps * abs(expected).max())
    np.testing.assert_array_equal(given, kept)


@pytest.mark.parametrize("routine", [lapack.cholesky, lapack.invert])
def test_the_lower_triangle_counts(routine):
    matrix = semidefinite(5, 9) + np.eye(5)
    lower = np.tril(matrix)
    routine(matrix)
    routine(lower)
    np.testing.assert_array_equal(np.tril(lower), np.tril(matrix))


@pytest.mark.parametrize("matrix", [np.zeros((2, 2)), np.array([[1.0, 2.0], [2.0, 1.0]])])
def test_a_matrix_that_is_not_positive_definite(matrix):
    for routine in (lapack.cholesky, lapack.invert):
        with pytest.raises(np.linalg.LinAlgError, match=r"potrf ended with info [12]"):
            routine(matrix.copy())


@pytest.mark.parametrize("groups", [None, 3])
def test_damping_is_added_to_the_diagonal(groups):
    matrices = [semidefinite(4 + 0 * k, 2 + k) for k in range(groups or 1)]
    damping = np.linspace(0.1, 0.3, groups or 1)
    expected = [np.linalg.inv(m + d * np.eye(4)) for m, d in zip(matrices, damping, strict=True)]
    given = np.stack(matrices) if groups else matrices[0]
    kept = given.copy()
    found = inversion.damped_inverse(given, damping if groups else damping[0], "omega/a")
    np.testing.assert_array_equal(given, kept)
    np.testing.assert_allclose(found, np.stack(expected) if groups else expected[0], rtol=1e-11)
    lower = np.tril(
        inversion.damped_inverse(given, damping if groups else damping[0], "omega/a", factor=True)
    )
    np.testing.assert_array_equal(given, kept)
    np.testing.assert_allclose(
        np.linalg.inv(lower @ np.swapaxes(lower, -1, -2)), found, rtol=1e-11, atol=1e-13
    )


def test_on_a_card_cusolvers_cholesky_inverts(monkeypatch):
    """With NaN where a matrix is not positive definite, for which its eigenvalues are taken."""
    solved = []

    def posv(matrix, right):
        solved.append(matrix.shape)
        try:
            np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return right * math.nan
        return np.linalg.solve(matrix, right)

    monkeypatch.setitem(sys.modules, "cupyx", ModuleType("cupyx"))
    monkeypatch.setitem(sys.modules, "cupyx.lapack", SimpleNamespace(posv=posv))
    monkeypatch.setattr(inversion, "is_cupy_array", lambda array: True)
    monkeypatch.setattr(inversion, "is_numpy_array", lambda array: False)
    good, bad = semidefinite(5, 9), np.diag([1.0, 2.0, -1e-9])
    for matrix, damping in ((good, 0.1), (bad, 1e-12)):
        found = inversion.damped_inverse(matrix, np.float64(damping), "omega/a")
        values, vectors = np.linalg.eigh(matrix)
        expected = vectors / (np.maximum(values, 0) + damping) @ vectors.T
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert solved == [(5, 5), (3, 3)]


@pytest.mark.parametrize("factors", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("groups", [None, 2])
def test_between_inverses(groups, factors):
    rng = np.random.default_rng(0)
    count = groups or 1
    left, right = (
        np.stack([semidefinite(size, 2 * size + g) + np.eye(size) for g in range(count)])
        for size in (4, 7)
    )
    matrix = rng.normal(size=(count, 4, 7))
    expected = np.linalg.inv(left) @ matrix @ np.linalg.inv(right)
    kept = [
        np.linalg.cholesky(of) if factor else np.linalg.inv(of)
        for of, factor in zip((left, right), factors, strict=True)
    ]
    if not groups:
        matrix, expected, *kept = matrix[0], expected[0], kept[0][0], kept[1][0]
    found = inversion.between_inverses(matrix, *kept, factors)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_what_stays_a_factor():
    assert inversion.keeps_factor(1569, 10, 1)
    assert inversion.keeps_factor(1569, 10, 31)
    assert not inversion.keeps_factor(1569, 10, 32)
    assert not inversion.keeps_factor(64, 801, 1)
    assert not inversion.keeps_factor(1569, 10, 0)  # for how long is not known


def test_damping_below_rounding():
    """Cholesky fails where rounding has made an eigenvalue negative: others stand in."""
    matrix = semidefinite(60, 5, np.float32)
    matrix -= np.float32(1e-6) * np.eye(60, dtype=np.float32)
    with pytest.raises(np.linalg.LinAlgError):
        lapack.invert(matrix + np.float32(1e-8) * np.eye(60, dtype=np.float32))
    found = inversion.damped_inverse(matrix, np.float64(1e-8), "omega/a")
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, found.T, atol=1e-4 * abs(found).max())
    assert np.linalg.eigvalsh(found.astype(np.float64)).max() == pytest.approx(1e8, rel=1e-3)
    lower = inversion.damped_inverse(matrix, np.float64(1e-8), "omega/a", factor=True)
    assert np.isfinite(lapack.solve(lower, matrix)).all()
    lower = np.tril(lower)
    np.testing.assert_allclose(lower @ lower.T, matrix, atol=2e-6 * abs(matrix).max())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_factors_that_are_not_finite(value):
    matrix = np.eye(3)
    matrix[1, 1] = value
    with pytest.raises(FloatingPointError, match="factor gamma/conv1 is not finite"):
        inversion.damped_inverse(matrix, np.float64(0.1), "gamma/conv1")


def trained(**settings):
    layers = [kfc.Conv2d(4, 3, groups=2), kfc.Tanh(), kfc.BatchNorm(), kfc.Flatten(), kfc.Dense(3)]
    net = kfc.Sequential(layers, input_shape=(6, 5, 4), seed=0, dtype=np.float64)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6, 5, 4)), rng.integers(0, 3, 20)
    trainer = kfc.Trainer(net, LOSS, kfc.KFC(**settings))
    for _ in range(4):
        trainer.step(x, y)
    return trainer


def decomposed(state, plain):
    """The same factors with their eigendecompositions."""
    return dict(state) | plain.decompose(state)


#: An inversion at each step leaves Cholesky factors; inverses are for many.
FREQUENT = pytest.mark.parametrize("growth", [0.1, 0.0], ids=["factors", "inverses"])


@FREQUENT
def test_both_ways_are_the_same_matrix(growth):
    trainer = trained(period_growth=growth)
    net, state = trainer.net, trainer.optimizer_state
    blocks = trainer.optimizer.curvature(net)
    assert isinstance(blocks, InverseBlocks)
    assert not any("vectors" in name or "values" in name for name in state)
    dense = next(block for block in blocks.blocks if block.name == "dense1")
    assert dense.keep_factors(state) == (False, growth > 0)
    plain = BlockDiagonal(net)
    rng = np.random.default_rng(1)
    vector = {name: rng.normal(size=value.shape) for name, value in net.params.items()}
    for factor in (1.0, 3.0):  # of the damping of the inverses, and of another
        for strategy in ("pi", "exact", "uniform"):
            for power in (-1.0, -0.5, 1.0):
                damping = factor * float(state[DAMPING])
                found = blocks.apply(state, vector, damping, strategy, power=power)
                expected = plain.apply(
                    decomposed(state, plain), vector, damping, strategy, power=power
                )
                for name, value in expected.items():
                    atol = 1e-9 * abs(value).max()
                    np.testing.assert_allclose(found[name], value, atol=atol)
    for name, value in plain.dense(decomposed(state, plain), 0.1).items():
        np.testing.assert_allclose(blocks.dense(state, 0.1)[name], value, atol=1e-10)


@FREQUENT
def test_inverses_are_used_as_they_are_kept(growth):
    """Another inverse in the state is another step: nothing is computed again."""
    trainer = trained(period_growth=growth)
    net, state = trainer.net, dict(trainer.optimizer_state)
    blocks, damping = trainer.optimizer.curvature(net), float(state[DAMPING])
    before = blocks.precondition(state, net.params, damping)
    state["omega_inverse/dense1"] = 2 * state["omega_inverse/dense1"]
    after = blocks.precondition(state, net.params, damping)
    factor = 1 / 4 if growth else 2  # the factor is one of the matrix itself
    np.testing.assert_allclose(after["dense1.weight"], factor * before["dense1.weight"])


def test_curvature_that_is_computed_without_a_damping_is_decomposed():
    trainer = trained()
    net = trainer.net
    x = np.random.default_rng(2).normal(size=(8, 6, 5, 4))
    blocks, plain = trainer.optimizer.curvature(net), BlockDiagonal(net)
    states = [c.compute(net.forward(x), LOSS, mode="fisher_exact") for c in (blocks, plain)]
    assert all(np.isfinite(value).all() for value in states[0].values())
    assert "omega_vectors/dense1" in states[0]
    found, expected = (
        c.precondition(state, net.params, damping=0.1)
        for c, state in zip((blocks, plain), states, strict=True)
    )
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-10 * abs(value).max())


def test_operators_decompose_a_state_with_inverses():
    trainer = trained()
    net, state = trainer.net, trainer.optimizer_state
    plain = BlockDiagonal(net)
    found = BlockOperator(trainer.optimizer.curvature(net), state)
    expected = BlockOperator(plain, decomposed(state, plain))
    np.testing.assert_allclose(found.eigenvalues(), expected.eigenvalues(), rtol=1e-9, atol=1e-15)
    vector = np.random.default_rng(0).normal(size=found.shape[0])
    np.testing.assert_allclose(found @ vector, expected @ vector, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"inversion": "eigen"},
        {"damping_strategy": "exact"},
        {"damping_strategy": "uniform"},
        {"structure": "ekfac"},
        {"structure": {"dense1": "full"}},
        {"use_adaptive_damping": True},
        {"decomposition_lag": 2},
    ],
    ids=str,
)
def test_where_factors_are_decomposed(settings):
    state = trained(**settings).optimizer_state
    assert not any("inverse" in name for name in state)
    assert any("vectors" in name for name in state)


def test_damping_holds_until_the_next_inversion():
    trainer = trained(
        damping=lambda step: 0.1 * (step + 1), inverse_update_period=3, period_growth=0.0
    )
    assert trainer.optimizer_state[DAMPING] == 0.1 * 4  # of step 3, the last one
    x, y = np.ones((5, 6, 5, 4)), np.array([0, 1, 2, 0, 1])
    kept = trainer.optimizer_state["omega_inverse/dense1"]
    trainer.step(x, y)
    assert trainer.optimizer_state[DAMPING] == 0.1 * 4
    assert trainer.optimizer_state["omega_inverse/dense1"] is kept


def test_a_bad_inversion():
    with pytest.raises(ValueError, match=r"inversion \(='lu'\) must be one of .*'cholesky'"):
        kfc.KFC(inversion="lu")


def wide(bias=True, **settings):
    """Three dense layers: at each location, wide, and narrow; and a step's products."""
    layers = [kfc.Dense(12), kfc.Tanh(), kfc.Flatten(), kfc.Dense(30, bias=bias), kfc.Tanh()]
    net = kfc.Sequential([*layers, kfc.Dense(2)], input_shape=(3, 4), seed=0, dtype=np.float64)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 3, 4)), rng.integers(0, 2, 9)
    trainer = kfc.Trainer(net, LOSS, kfc.KFC(**settings))
    for _ in range(4):
        trainer.step(x, y)
    trace = net.forward(x, training=True)
    watch = trainer.optimizer.watch(trace, 4)
    gradients = net.backward(trace, LOSS.derivative(trace.outputs, y) / 9, capture=watch)
    return trainer, trace, gradients


@FREQUENT
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_as_products(growth, bias):
    trainer, trace, gradients = wide(bias, period_growth=growth)
    assert set(trace.outer) == {"dense2"}
    state = trainer.optimizer_state
    blocks, damping = trainer.optimizer.curvature(trainer.net), float(state[DAMPING])
    expected = blocks.precondition(state, gradients, damping)
    # It is the products that are taken, not the sum.
    others = gradients | {n: np.nan * g for n, g in gradients.items() if n.startswith("dense2")}
    found = blocks.precondition(state, others, damping, outer=trace.outer)
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12 * abs(value).max())
    # With another damping the inverses are of no use, and factors are decomposed.
    found = blocks.precondition(state, gradients, 2 * damping, outer=trace.outer)
    expected = blocks.precondition(state, gradients, 2 * damping)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("settings", [{"l2_reg": 0.01}, {"inversion": "eigen"}])
def test_where_products_are_not_the_gradient_or_of_no_use(settings):
    _, trace, _ = wide(**settings)
    assert trace.outer == {}


class Half(kfc.Dense):
    """A dense layer of which half of the units do not learn."""

    def backward(self, arrays, saved, dy, context, **settings):
        dx, gradients = super().backward(arrays, saved, dy, context, **settings)
        kept = np.float32(np.arange(self.units) % 2)
        return dx, {name: value * kept for name, value in gradients.items()}


def test_a_dense_layer_with_gradients_of_its_own():
    _, trace, _ = wide()
    assert "dense2" in trace.outer
    net = kfc.Sequential([Half(30)], input_shape=(36,), seed=0)
    x, y = np.random.default_rng(0).standard_normal((9, 36)), np.arange(9) % 30
    trace = net.forward(x, training=True)
    net.backward(trace, LOSS.derivative(trace.outputs, y), capture=watch_products(trace))
    assert trace.outer == {}


def test_where_products_pay():
    """A count of multiplications: rows by both inverses and by each other, or the sum by both."""
    for rows, outputs, inputs in [(9, 30, 37), (200, 30, 37), (128, 1000, 785), (700, 1000, 785)]:
        by_rows = rows * outputs**2 + rows * inputs**2 + rows * outputs * inputs
        whole = outputs**2 * inputs + outputs * inputs**2
        assert inversion.rows_pay(rows, outputs, inputs) == (by_rows < whole)
    assert not inversion.rows_pay(128, 10, 1569)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [False, True])
def test_wide_matrices_are_the_kernels(factor, dtype, monkeypatch):
    """LAPACK computes the same, and is not asked."""
    matrix, damping = semidefinite(600, 40, dtype), np.float64(0.1)
    with monkeypatch.context() as patch:
        patch.setattr(inversion, "_WIDE", 601)
        expected = inversion.damped_inverse(matrix, damping, "omega/a", factor=factor)
    for routine in ("cholesky", "invert"):
        monkeypatch.delattr(lapack, routine)
    found = inversion.damped_inverse(matrix, damping, "omega/a", factor=factor)
    if factor:
        found, expected = np.tril(found), np.tril(expected)
    atol = 300 * np.finfo(dtype).eps * abs(expected).max()  # a condition of some hundreds
    np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("factor", [False, True])
def test_wide_matrices_without_enough_damping(factor, monkeypatch):
    """What rounding makes indefinite comes from the eigendecomposition, as of narrow ones."""
    monkeypatch.setattr(inversion, "_WIDE", 1)
    matrix = np.diag([1.0, 2.0, -1e-9])
    found = inversion.damped_inverse(matrix, np.float64(1e-12), "omega/a", factor=factor)
    if factor:
        lower = np.tril(found)
        np.testing.assert_allclose(lower @ lower.T, np.diag([1.0, 2.0, 1e-12]), rtol=1e-9)
    else:
        np.testing.assert_allclose(found, np.diag([1.0, 0.5, 1e12]), rtol=1e-9)


def test_bases_do_not_depend_on_who_computes_them(monkeypatch):
    """In threads, before them, and on all: whatever a block says, each has what is its own."""
    net = kfc.Sequential(
        [kfc.Conv2d(5, 3), kfc.ReLU(), kfc.Flatten(), kfc.Dense(300), kfc.ReLU(), kfc.Dense(4)],
        input_shape=(6, 6, 2), dtype="float64", seed=0,
    )  # fmt: skip
    curvature = InverseBlocks(net)
    rng = np.random.default_rng(0)
    trace = net.forward(rng.normal(size=(9, 6, 6, 2)), training=True)
    state = curvature.initial_state()
    state |= curvature.average(state, curvature.estimate(trace, LOSS, state, rng=rng), 0.9)
    state[DAMPING] = np.array(0.1)
    blocks = [type(block) for block in curvature.blocks]
    assert len({block.needs_no_thread() for block in curvature.blocks}) == 2
    expected = curvature.bases(state)
    for answer in (True, False):
        for kind in set(blocks):
            monkeypatch.setattr(kind, "needs_no_thread", lambda self, answer=answer: answer)
        found = curvature.bases(state)
        assert list(found) == list(expected)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
