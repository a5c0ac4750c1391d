"""One step of the optimizer: its bounds, and what a step that fails leaves behind."""

import curvature_reference as reference
import numpy as np
import pytest
from naive import sample_by_weight

import kfc_numba as kfc
from kfc_numba.curvature import lapack

LOSS = kfc.SoftmaxCrossEntropy()


def network(seed=0):
    layers = [kfc.Conv2d(2, 2), kfc.BatchNorm(), kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=(3, 3, 2), seed=seed, dtype=np.float64)


def plain_network():
    layers = [kfc.Conv2d(2, 2), kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=(3, 3, 2), dtype=np.float64)


def batch(count=6):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 3, 3, 2)), rng.integers(0, 3, count)


def first_move(net, **arguments):
    """What the first step adds to the parameters, and the state after it."""
    x, y = batch()
    arguments = {"loss_bound": None, "weight_decay": 0} | arguments
    optimizer = kfc.KFC(learning_rate=1.0, estimation_mode="fisher_exact", **arguments)
    state = optimizer.init(net)
    before = reference.flat(net, net.params)
    optimizer.step(net, LOSS, x, y, state)
    return reference.flat(net, net.params) - before, state, optimizer


def partial_fisher(net, x, wanted):
    """The exact Fisher matrix as a sample of the examples by the trace of F_R has it."""
    outputs = np.exp(net.predict(x))
    traces = 1 - ((outputs / outputs.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
    factors = sample_by_weight(traces, wanted) if wanted else np.ones(len(x))
    shares = [
        f * reference.exact_fisher(net, x[i : i + 1], LOSS) for i, f in enumerate(factors) if f
    ]
    return sum(shares) / len(x)


@pytest.mark.parametrize("wanted", [2, 3, 5, 6, None])
def test_kl_bound_holds_by_the_exact_fisher(wanted):
    x, _ = batch()
    exact = partial_fisher(plain_network(), x, wanted if wanted != len(x) else None)
    free, *_ = first_move(plain_network(), kl_bound=None)
    length, how = free @ exact @ free, {"exact_examples": wanted, "balance_layers": False}
    for bound in (1e-3 * length, 0.5 * length):
        v, *_ = first_move(plain_network(), kl_bound=bound, **how)
        assert v @ exact @ v == pytest.approx(bound, rel=1e-8)
        np.testing.assert_allclose(v, free * np.sqrt(bound / length), rtol=1e-8)
    v, *_ = first_move(plain_network(), kl_bound=2 * length, **how)
    np.testing.assert_array_equal(v, free)
    v, *_ = first_move(plain_network(), kl_bound=0.1 * length, exact_examples=wanted)  # balanced
    assert v @ exact @ v == pytest.approx(0.1 * length, rel=1e-8)
    assert v @ free < 0.999 * np.linalg.norm(v) * np.linalg.norm(free)


def test_the_bound_is_about_twice_the_divergence_of_predictions():
    x, _ = batch()
    net = plain_network()
    old = np.exp(net.predict(x))
    first_move(net, kl_bound=1e-6, exact_examples=None)
    new = np.exp(net.predict(x))
    p, q = (z / z.sum(axis=1, keepdims=True) for z in (old, new))
    divergence = np.mean(np.sum(p * np.log(p / q), axis=1))
    assert divergence == pytest.approx(0.5e-6, rel=0.01)


def test_a_small_batch_bounds_the_step_as_a_whole():
    # The first example, which is an eighth of the batch, says next to nothing.
    x, y = batch(8)
    x[0] *= 1e-3
    net = plain_network()
    exact = reference.exact_fisher(net, x, LOSS)
    before = reference.flat(net, net.params)
    optimizer = kfc.KFC(learning_rate=1.0, kl_bound=1e-2, loss_bound=None, weight_decay=0)
    optimizer.step(net, LOSS, x, y, optimizer.init(net))
    v = reference.flat(net, net.params) - before
    assert v @ exact @ v == pytest.approx(1e-2, rel=1e-8)


def test_a_network_that_couples_examples_is_looked_at_as_a_whole():
    # v^T F v is half the second derivative of the KL divergence: by differences, in training mode.
    x, y = batch(8)
    net = network()
    before = {name: value.copy() for name, value in net.params.items()}
    optimizer = kfc.KFC(learning_rate=1.0, kl_bound=1e-4, loss_bound=None, weight_decay=0)
    optimizer.step(net, LOSS, x, y, optimizer.init(net))
    after = {name: value.copy() for name, value in net.params.items()}

    def probabilities(way):
        for name, value in net.params.items():
            value[:] = before[name] + way * (after[name] - before[name])
        outputs = net.forward(x, training=True).outputs
        return np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)

    old, h = probabilities(0), 0.02
    # Third derivatives cancel between the two directions.
    ahead, behind = (np.sum(old * np.log(old / probabilities(way))) / 8 for way in (h, -h))
    assert (ahead + behind) / h**2 == pytest.approx(1e-4, rel=1e-4)


def test_predictions_that_leave_nothing_open_bound_nothing():
    """All of them: v^T F v is 0, and the step is not shortened."""
    x, y = batch(8)
    net = plain_network()
    for name in ("dense1.weight", "dense1.bias"):
        net.params[name][...] = 0
    net.params["dense1.bias"][0] = 1e4
    optimizer = kfc.KFC(learning_rate=1.0, kl_bound=1e-2, loss_bound=None, weight_decay=0)
    state = optimizer.init(net)
    optimizer.step(net, LOSS, x, y, state)
    assert all(np.isfinite(value).all() for value in net.params.values())


def test_norm_constraint_holds_by_the_approximate_fisher():
    x, y = batch()
    net = plain_network()
    _, gradients = net.value_and_grad(x, y, LOSS)
    gradient = reference.flat(net, gradients)
    free, *_ = first_move(plain_network(), kl_bound=None)
    length = -free @ gradient  # g^T Fhat(damping)^-1 g
    assert length > 0
    v, *_ = first_move(plain_network(), kl_bound=None, norm_constraint=0.1 * length)
    np.testing.assert_allclose(v, np.sqrt(0.1) * free, rtol=1e-9)
    v, *_ = first_move(plain_network(), kl_bound=None, norm_constraint=2 * length)
    np.testing.assert_array_equal(v, free)


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "diagonal", "full"])
def test_step_is_the_damped_inverse_times_the_gradient(structure):
    x, y = batch()
    net = network()
    _, gradients = net.value_and_grad(x, y, LOSS)
    gradient = reference.flat(net, gradients)
    v, state, optimizer = first_move(
        net, structure=structure, kl_bound=None, damping=0.1, damping_strategy="exact"
    )
    curvature = optimizer.curvature(net)
    if structure == "ekfac":
        assert not curvature.lacks_estimates(state)
    for layer, block in curvature.dense(state, 0.1, "exact").items():
        part = reference.slices(net)[layer]
        np.testing.assert_allclose(v[part], -np.linalg.solve(block, gradient[part]), rtol=1e-7)


def snapshot(net, state):
    arrays = {**net.params, **{f"state {k}": v for k, v in net.buffers.items()}, **state}
    return {name: value.copy() for name, value in arrays.items()}


def assert_unchanged(net, state, kept):
    now = {**net.params, **{f"state {k}": v for k, v in net.buffers.items()}, **state}
    assert list(now) == list(kept)
    for name, value in now.items():
        np.testing.assert_array_equal(value, kept[name])


@pytest.mark.parametrize("structure", ["kronecker", "full"])
def test_decomposition_that_fails(structure, monkeypatch):
    x, y = batch()
    net = network()
    optimizer = kfc.KFC(
        inverse_update_period=2, period_growth=0, structure={"dense1": structure}, inversion="eigen"
    )
    state = optimizer.init(net)
    for _ in range(2):
        optimizer.step(net, LOSS, x, y, state)
    kept = snapshot(net, state)

    def failing(matrix):
        raise np.linalg.LinAlgError("no convergence")

    with monkeypatch.context() as patch:
        patch.setattr(lapack, "eigh", failing)
        with pytest.raises(np.linalg.LinAlgError, match=r"factor omega/conv1 .* at step 2"):
            optimizer.step(net, LOSS, x, y, state)
    assert_unchanged(net, state, kept)
    optimizer.step(net, LOSS, x, y, state)
    assert state["step"] == 3


def test_factor_that_is_not_finite():
    # Inputs so large that their second moments overflow, before weights of zero.
    net = kfc.Sequential([kfc.Dense(3)], input_shape=(2,), dtype=np.float64)
    net.params["dense1.weight"][:] = 0
    optimizer = kfc.KFC()
    state = optimizer.init(net)
    kept = snapshot(net, state)
    with pytest.raises(FloatingPointError, match=r"factor omega/dense1 is not finite at step 0"):
        optimizer.step(net, LOSS, np.full((3, 2), 1e200), np.array([0, 1, 2]), state)
    assert_unchanged(net, state, kept)


def test_huge_and_vanishing_factors_give_finite_steps():
    for scale in (1e-60, 1e60):
        net = plain_network()
        net.params["dense1.weight"] /= scale
        net.params["conv1.weight"][:] = 0
        x, y = batch()
        optimizer = kfc.KFC(loss_bound=None)
        state = optimizer.init(net)
        optimizer.step(net, LOSS, x * 1e30, y, state)
        assert all(np.isfinite(value).all() for value in net.params.values())


def test_squares_that_overflow_in_float32():
    net = kfc.Sequential([kfc.Dense(1)], input_shape=(1,))
    x, y = np.ones((4, 1)), np.full((4, 1), 1e25)
    free, bounded = (
        kfc.KFC(kl_bound=bound, loss_bound=None, exact_examples=None) for bound in (None, 0.25)
    )
    moves = []
    for optimizer in (free, bounded):
        copy = kfc.Sequential([kfc.Dense(1)], input_shape=(1,))
        state = optimizer.init(copy)
        optimizer.step(copy, kfc.SquaredError(), x, y, state)
        moves.append(copy.predict(x) - net.predict(x))
    assert moves[0][0] > 1e20  # of which the square is no float32
    assert np.mean(moves[1].astype(float) ** 2) == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("length", [np.inf, np.nan])
@pytest.mark.parametrize("wanted", [None, 3])
def test_a_squared_length_that_is_not_finite(length, wanted, monkeypatch):
    from kfc_numba.curvature import fisher
    from kfc_numba.optim import exact_forms

    def forms(net, trace, *arguments):
        return np.full((len(trace.outputs), 1, 1), length)

    with monkeypatch.context() as patch:
        patch.setattr(exact_forms, "example_forms", forms)
        patch.setattr(fisher, "example_forms", forms)
        net = plain_network()
        optimizer = kfc.KFC(exact_examples=wanted, weight_decay=0)
        state = optimizer.init(net)
        kept = snapshot(net, state)
        with pytest.raises(FloatingPointError, match=r"v\^T F v of the step is .* at step 0"):
            optimizer.step(net, LOSS, *batch(), state)
        assert_unchanged(net, state, kept)


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "diagonal", "full"])
def test_one_example(structure):
    net = plain_network()
    x, y = batch(1)
    optimizer = kfc.KFC(structure=structure)
    state = optimizer.init(net)
    losses = [optimizer.step(net, LOSS, x, y, state) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_arguments():
    with pytest.raises(ValueError, match=r"num_estimator_samples \(=0\) must be an integer"):
        kfc.KFC(num_estimator_samples=0)
    with pytest.raises(ValueError, match=r"structure \(='kfac'\) must be one of"):
        kfc.KFC(structure="kfac")
    with pytest.raises(ValueError, match=r"damping_strategy \(='exact'\) must be 'pi' or"):
        kfc.KFC(structure="tridiagonal", damping_strategy="exact")
    for structure in ("diagonal", "full"):
        with pytest.raises(ValueError, match=r"kfac_approx \(='reduce'\) must be 'expand'"):
            kfc.KFC(structure=structure, kfac_approx="reduce")
    for mode in ("fisher_exact", "fisher_empirical"):
        with pytest.raises(ValueError, match=r"num_estimator_samples \(=2\) must be 1 with"):
            kfc.KFC(estimation_mode=mode, num_estimator_samples=2)
    with pytest.raises(ValueError, match=r"adaptation .* must be None without use_adaptive"):
        kfc.KFC(adaptation={"min_damping": 1e-3})
    with pytest.raises(ValueError, match="structure names 'conv7'"):
        kfc.KFC(structure={"conv7": "full"}).init(plain_network())
