"""The block-tridiagonal inverse, on networks where theory says what it is."""

import curvature_reference as reference
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import damping
from kfc_numba.curvature.structures import curvature_of
from kfc_numba.curvature.tridiagonal import BlockTridiagonal

LOSS = kfc.SquaredError()


def stack(*units, bias=True, activation=None):
    layers = []
    for index, count in enumerate(units):
        if index and activation:
            layers.append(activation())
        layers.append(kfc.Dense(count, bias))
    return kfc.Sequential(layers, input_shape=(3,), dtype=np.float64)


def inverse(net, state, structure, value, strategy="pi"):
    """The damped inverse in full, column by column."""
    curvature = curvature_of(net, structure)
    size = sum(v.size for v in net.params.values())
    columns = [
        reference.flat(
            net, curvature.precondition(state, reference.unflat(net, e), value, strategy)
        )
        for e in np.eye(size)
    ]
    return np.array(columns).T


def computed(net, x, structure="tridiagonal"):
    curvature = curvature_of(net, structure)
    return curvature, curvature.compute(net.forward(x), LOSS, mode="fisher_exact")


def damped_fisher(net, x, curvature, state, value):
    """The exact Fisher matrix with factored damping of the blocks on the diagonal."""
    result = reference.exact_fisher(net, x, LOSS)
    for block in curvature.blocks:
        part = reference.slices(net)[block.name]
        o, g = (state[f"{kind}_values/{block.name}"] for kind in ("omega", "gamma"))
        more = damping.damped_eigenvalues(o, g, value) - np.outer(g, o)
        basis = block.basis(state)
        result[part, part] += (basis * more.ravel()) @ basis.T
    return result


@pytest.mark.parametrize("bias", [True, False])
def test_exact_for_two_linear_layers(bias):
    # Without a nonlinearity and with Gaussian predictions, derivatives do not depend on the
    # inputs: Kronecker products are exact, between layers too, and two layers are a chain.
    net = stack(2, 3, bias=bias)
    x = np.random.default_rng(0).normal(size=(6, 3))
    curvature, state = computed(net, x)
    expected = np.linalg.inv(damped_fisher(net, x, curvature, state, 0.1))
    found = inverse(net, state, "tridiagonal", 0.1)
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())
    # The block-diagonal inverse is another one.
    plain = inverse(net, state, "kronecker", 0.1)
    assert np.abs(plain - expected).max() > 0.01 * np.abs(expected).max()


def test_keeps_the_tridiagonal_part_of_deeper_linear_networks():
    # The chain's covariance has the blocks on and beside the diagonal that it was built from, and
    # its inverse has none beyond them.
    net = stack(2, 3, 2)
    x = np.random.default_rng(0).normal(size=(6, 3))
    curvature, state = computed(net, x)
    exact = damped_fisher(net, x, curvature, state, 0.1)
    found = inverse(net, state, "tridiagonal", 0.1)
    np.testing.assert_allclose(found, found.T, atol=1e-10 * np.abs(found).max())
    model = np.linalg.inv(found)
    first, second, third = reference.slices(net).values()
    for a, b in [
        (first, first),
        (first, second),
        (second, second),
        (second, third),
        (third, third),
    ]:
        np.testing.assert_allclose(model[a, b], exact[a, b], atol=1e-9 * np.abs(exact).max())
    assert np.abs(found[first, third]).max() < 1e-10 * np.abs(found).max()


def test_better_than_the_block_diagonal_inverse_with_nonlinearities():
    net = stack(4, 4, 3, activation=kfc.Tanh)
    x = np.random.default_rng(0).normal(size=(40, 3))
    curvature, state = computed(net, x)
    exact = damped_fisher(net, x, curvature, state, 1e-2)
    unit = np.eye(len(exact))
    errors = {
        structure: np.linalg.norm(inverse(net, state, structure, 1e-2) @ exact - unit)
        for structure in ("kronecker", "tridiagonal")
    }
    assert errors["tridiagonal"] < 0.8 * errors["kronecker"]


def test_without_correlations_it_is_block_diagonal():
    net = stack(2, 3, activation=kfc.Sigmoid)
    x = np.random.default_rng(0).normal(size=(6, 3))
    _, state = computed(net, x)
    state["omega_link/dense1"] = np.zeros_like(state["omega_link/dense1"])
    for strategy in ("pi", "uniform"):
        np.testing.assert_allclose(
            inverse(net, state, "tridiagonal", 0.1, strategy),
            inverse(net, state, "kronecker", 0.1, strategy),
            rtol=1e-10,
            atol=1e-12,
        )


def test_moments_between_layers_by_hand():
    net = stack(2, 3, activation=kfc.Tanh)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    curvature = curvature_of(net, "tridiagonal")
    found = curvature.estimate(
        net.forward(x), LOSS, curvature.initial_state(), mode="fisher_empirical", targets=y
    )
    p = net.params
    h = np.tanh(x @ p["dense1.weight"] + p["dense1.bias"])
    d2 = h @ p["dense2.weight"] + p["dense2.bias"] - y
    d1 = (d2 @ p["dense2.weight"].T) * (1 - h**2)
    one = np.ones((5, 1))
    omega = np.hstack([x, one]).T @ np.hstack([h, one]) / 5
    np.testing.assert_allclose(found["omega_next/dense1"], omega, rtol=1e-12)
    np.testing.assert_allclose(found["gamma_next/dense1"], d1.T @ d2 / 5, rtol=1e-12, atol=1e-14)


def test_an_inverse_is_made_of_statistics_of_one_moment():
    # Averages go on between decompositions; the inverse stays that of the last one, exactly.
    net = stack(4, 3, 2, activation=kfc.Tanh)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    optimizer = kfc.KFC(
        structure="tridiagonal",
        damping=1e-4,
        curvature_ema=0.5,
        curvature_update_period=1,
        inverse_update_period=4,
        period_growth=0,
    )
    state = optimizer.init(net)
    for step in range(8):
        optimizer.step(net, LOSS, x, y, state)
        if step % 4 == 0:
            for kind in ("omega", "gamma"):
                latest, link = state[f"{kind}_next/dense1"], state[f"{kind}_link/dense1"]
                np.testing.assert_array_equal(link, latest)
                assert not np.shares_memory(link, latest)
            decomposed = inverse(net, state, "tridiagonal", 1e-4)
            least = np.linalg.eigvalsh((decomposed + decomposed.T) / 2)[0]
            assert least > 0
        np.testing.assert_array_equal(inverse(net, state, "tridiagonal", 1e-4), decomposed)


@pytest.mark.parametrize("value", [1e-4, 1e-2])
def test_default_periods_with_little_damping(value):
    net = stack(10, 10, 10, 2, activation=kfc.Tanh)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 3))
    y = np.sin(2 * x[:, :2])
    trainer = kfc.Trainer(net, LOSS, kfc.KFC(structure="tridiagonal", damping=value))
    history = trainer.fit(x, y, batch_size=32, max_steps=40, progress=False)
    losses = [row["training_loss"] for row in history.rows]
    assert losses[-1] < 0.9 * losses[0]


def test_training_and_memory():
    net = stack(4, 2, activation=kfc.Tanh)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    optimizer = kfc.KFC(
        structure="tridiagonal", learning_rate=0.5, damping=0.1, momentum=0.0, loss_bound=None
    )
    state = optimizer.init(net)
    first = optimizer.step(net, LOSS, x, y, state)
    for _ in range(10):
        last = optimizer.step(net, LOSS, x, y, state)
    assert last < 0.5 * first
    curvature = optimizer.curvature(net)
    total = sum(sum(kinds.values()) for kinds in curvature.memory().values())
    held = curvature.initial_state()
    assert total == sum(array.nbytes for array in held.values() if array.ndim)


def test_networks_and_damping_that_do_not_fit():
    convolution = kfc.Sequential(
        [kfc.Conv2d(2, 2), kfc.Flatten(), kfc.Dense(2)], input_shape=(3, 3, 1)
    )
    with pytest.raises(ValueError, match="needs dense layers on vectors, conv1 is"):
        curvature_of(convolution, "tridiagonal")
    locations = kfc.Sequential([kfc.Dense(2)], input_shape=(2, 2, 3))
    with pytest.raises(ValueError, match="needs dense layers on vectors, dense1 is"):
        curvature_of(locations, "tridiagonal")
    node = kfc.Input((3,))
    hidden = kfc.Dense(3)(node)
    branched = kfc.Graph(node, kfc.Dense(2)(kfc.Add()(hidden, node)))
    with pytest.raises(ValueError, match="needs a chain of layers, add1 breaks it"):
        curvature_of(branched, "tridiagonal")
    net = stack(2, 2)
    x = np.random.default_rng(0).normal(size=(6, 3))
    curvature, state = computed(net, x)
    with pytest.raises(ValueError, match=r"damping_strategy \(='exact'\) must be 'pi' or"):
        curvature.precondition(state, net.params, 0.1, "exact")
    with pytest.raises(ValueError, match=r"power \(=1.0\) must be -1"):
        curvature.apply(state, net.params, 0.1, power=1.0)


def test_dense_blocks_are_those_of_the_factors():
    net = stack(2, 2, activation=kfc.Tanh)
    curvature, state = computed(net, np.random.default_rng(0).normal(size=(9, 3)))
    block = curvature_of(net, "kronecker")
    assert BlockTridiagonal(net).approx == block.approx == "expand"
    for how in ((), (0.5,), (0.5, "pi")):
        found, expected = curvature.dense(state, *how), block.dense(state, *how)
        assert found.keys() == expected.keys()
        for name, matrix in found.items():
            np.testing.assert_array_equal(matrix, expected[name])


def test_float32_networks_have_states_and_results_of_float32():
    net = kfc.Sequential([kfc.Dense(2), kfc.Dense(2)], input_shape=(3,), dtype=np.float32)
    curvature = curvature_of(net, "tridiagonal")
    initial = curvature.initial_state()
    x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    state = curvature.compute(net.forward(x), LOSS, mode="fisher_exact")
    for name, value in state.items():
        assert value.dtype == initial[name].dtype
        assert not value.ndim or value.dtype == np.float32
    found = curvature.precondition(state, net.params, 0.1, "pi")
    assert all(value.dtype == np.float32 for value in found.values())


def test_without_a_strategy_damping_has_factors_by_traces():
    net = stack(2, 2, activation=kfc.Tanh)
    curvature, state = computed(net, np.random.default_rng(0).normal(size=(9, 3)))
    expected = curvature.apply(state, net.params, 0.1, "pi")
    for name, value in curvature.apply(state, net.params, 0.1).items():
        np.testing.assert_array_equal(value, expected[name])
