"""Adaptive learning rate, momentum and damping of KFC, against dense matrices."""

import numpy as np
import pytest
from naive import sample_by_weight

import kfc_numba as kfc
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.optim import KFC, Adaptation

SOFTMAX, SQUARED = kfc.SoftmaxCrossEntropy(), kfc.SquaredError()
# Central differences of eighth order: errors of order 1e-12 at steps of 0.01.
STENCIL = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}


def network(dtype=np.float64):
    layers = [kfc.Dense(3), kfc.Tanh(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=(4,), seed=2, dtype=dtype)


def batch(key=0, count=12):
    rng = np.random.default_rng(key)
    return rng.normal(size=(count, 4)), rng.integers(0, 3, count)


def flat(net, arrays):
    return np.concatenate([np.ravel(arrays[name]) for name in net.params])


def momenta(net, state):
    return flat(net, {name: state[f"momentum/{name}"] for name in net.params})


def prediction(params, x):
    """Outputs of `network`, in plain NumPy."""
    hidden = np.tanh(x @ params["dense1.weight"] + params["dense1.bias"])
    return hidden @ params["dense2.weight"] + params["dense2.bias"]


def dense_fisher(net, x):
    """Exact Fisher matrix of the softmax, from differences of predictions."""
    params, columns = {name: value.copy() for name, value in net.params.items()}, []
    for value in params.values():
        entries = value.reshape(-1)
        for index, old in enumerate(entries.copy()):
            column = 0
            for distance, weight in STENCIL.items():
                for sign in (1, -1):
                    entries[index] = old + sign * distance * 0.01
                    column = column + sign * weight / 0.01 * prediction(params, x)
            entries[index] = old
            columns.append(column)
    jacobian = np.stack(columns, axis=2)
    z = np.exp(prediction(params, x))
    total = 0
    for p, j in zip(z / z.sum(axis=1, keepdims=True), jacobian, strict=True):
        total = total + j.T @ (np.diag(p) - np.outer(p, p)) @ j
    return total / len(x)


def stepped(optimizer, steps, net=None, loss=SOFTMAX, make=batch):
    """Network and state after some steps."""
    net = net or network()
    state = optimizer.init(net)
    for step in range(steps):
        optimizer.step(net, loss, *make(step), state)
    return net, state


def partial_fisher(net, x, wanted):
    """The exact Fisher matrix as a sample of the examples by the trace of F_R has it."""
    outputs = np.exp(net.predict(x))
    traces = 1 - ((outputs / outputs.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
    factors = sample_by_weight(traces, wanted) if wanted else np.ones(len(x))
    shares = [f * dense_fisher(net, x[i : i + 1]) for i, f in enumerate(factors) if f]
    return sum(shares) / len(x)


def objective(net, x, y, eta=0.0, loss=SOFTMAX):
    theta = flat(net, net.params)
    return loss.value(net.predict(x), y) + eta / 2 * theta @ theta


@pytest.mark.parametrize("wanted", [3, None])
@pytest.mark.parametrize(("rate", "momentum"), [(True, True), (True, False), (False, True)])
def test_coefficients_solve_the_dense_system(rate, momentum, wanted):
    eta, damping, fixed_rate, fixed_momentum = 0.02, 0.3, 0.07, 0.6
    optimizer = KFC(
        use_adaptive_learning_rate=rate,
        use_adaptive_momentum=momentum,
        learning_rate=fixed_rate,
        momentum=lambda step: fixed_momentum,
        damping=damping,
        l2_reg=eta,
        loss_bound=None,
        exact_examples=wanted,
    )
    net = network()
    state = optimizer.init(net)
    for step in range(3):
        x, y = batch(step)
        before = flat(net, net.params)
        d0 = momenta(net, state)
        g = flat(net, net.value_and_grad(x, y, SOFTMAX)[1]) + eta * before
        fisher = partial_fisher(net, x, wanted)
        optimizer.step(net, SOFTMAX, x, y, state)
        delta = momenta(net, state)
        blocks = optimizer.curvature(net).dense(state, damping, "pi")
        start, proposal = 0, np.empty_like(g)
        for block in blocks.values():
            part = slice(start, start := start + len(block))
            proposal[part] = -np.linalg.solve(block, g[part])
        matrix = fisher + (damping + eta) * np.eye(len(g))
        v = np.stack([proposal, d0], axis=1)
        if not step:
            # Nothing to take momentum of: one equation, or none.
            alpha = -(g @ proposal) / (proposal @ matrix @ proposal) if rate else fixed_rate
            expected = np.array([alpha, fixed_momentum * (not momentum)])
        elif rate and momentum:
            expected = -np.linalg.solve(v.T @ matrix @ v, v.T @ g)
        elif rate:
            alpha = -(g + matrix @ d0 * fixed_momentum) @ proposal
            expected = np.array([alpha / (proposal @ matrix @ proposal), fixed_momentum])
        else:
            mu = -(g + matrix @ proposal * fixed_rate) @ d0
            expected = np.array([fixed_rate, mu / (d0 @ matrix @ d0)])
        found = [state["learning_rate"], state["momentum"]]
        np.testing.assert_allclose(found, expected, rtol=1e-7)
        np.testing.assert_allclose(delta, v @ expected, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(flat(net, net.params), before + delta, rtol=1e-13)
        change = g @ delta + delta @ matrix @ delta / 2
        assert state["model_change"] == pytest.approx(change, rel=1e-7)
        if rate and momentum:
            assert change == pytest.approx(g @ delta / 2, rel=1e-7)


def test_kl_bound_holds_for_the_whole_adaptive_step():
    settings = {
        "use_adaptive_learning_rate": True,
        "use_adaptive_momentum": True,
        "exact_examples": None,
        "damping": 0.1,
        "loss_bound": None,
    }
    for count in (0, 2):
        nets = [stepped(KFC(kl_bound=1.0, **settings), count) for _ in range(2)]
        x, y = batch(9)
        fisher = dense_fisher(nets[0][0], x)
        moves = []
        for (net, state), bound in zip(nets, (None, 1e-4), strict=True):
            KFC(kl_bound=bound, **settings).step(net, SOFTMAX, x, y, state)
            moves.append(momenta(net, state))
        free, short = moves
        length = free @ fisher @ free
        assert length > 1e-3
        np.testing.assert_allclose(short, free * np.sqrt(1e-4 / length), rtol=1e-7)


def linear(key=0):
    rng = np.random.default_rng(key)
    return rng.normal(size=(20, 4)), rng.normal(size=(20, 3))


def quadratic(**settings):
    """A problem whose objective is its quadratic model, and an optimizer that has its Hessian."""
    net = kfc.Sequential([kfc.Dense(3)], input_shape=(4,), dtype=np.float64)
    optimizer = KFC(
        structure="full",
        estimation_mode="fisher_exact",
        use_adaptive_learning_rate=True,
        use_adaptive_damping=True,
        momentum=0.0,
        loss_bound=None,
        exact_examples=None,
        **settings,
    )
    return net, optimizer


@pytest.mark.parametrize("eta", [0.0, 0.1])
def test_a_quadratic_problem_is_solved_in_one_step(eta):
    # Damping stays out of the way here: it is in the model, but not in the objective.
    net, optimizer = quadratic(
        damping=1e-11,
        l2_reg=eta,
        adaptation=Adaptation(damping_adaptation_interval=1, min_damping=1e-20),
    )
    net, state = stepped(optimizer, 1, net, SQUARED, lambda step: linear())
    x, y = linear()
    ones = np.hstack([x, np.ones((20, 1))])
    best = np.linalg.solve(ones.T @ ones / 20 + eta * np.eye(5), ones.T @ y / 20)
    np.testing.assert_allclose(net.params["dense1.weight"], best[:-1], atol=1e-9)
    np.testing.assert_allclose(net.params["dense1.bias"], best[-1], atol=1e-9)
    assert state["reduction_ratio"] == pytest.approx(1, abs=1e-9)
    assert state["learning_rate"] == pytest.approx(1, abs=1e-9)
    assert state["damping"] == 1e-11 * (19 / 20)


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("eta", [0.0, 0.1])
def test_damping_decays_by_w1_where_the_model_is_right(interval, eta):
    # With damping as large as the curvature: left out of rho it is exactly 1.
    settings = {"damping_adaptation_interval": interval, "damping_adaptation_decay": 0.9}
    for included in (False, True):
        adaptation = Adaptation(include_damping_in_quad_change=included, **settings)
        net, optimizer = quadratic(damping=0.5, l2_reg=eta, adaptation=adaptation)
        state = optimizer.init(net)
        expected = 0.5
        for step in range(2 * interval):
            x, y = linear(step)
            before, theta = objective(net, x, y, eta, SQUARED), flat(net, net.params)
            optimizer.step(net, SQUARED, x, y, state)
            if (step + 1) % interval == 0:
                delta = flat(net, net.params) - theta
                actual = objective(net, x, y, eta, SQUARED) - before
                predicted = actual + included * expected / 2 * delta @ delta
                assert state["reduction_ratio"] == pytest.approx(actual / predicted, rel=1e-10)
                expected *= 0.9**interval
            assert state["damping"] == pytest.approx(expected, rel=1e-14)
            assert (state["damping"] != 0.5) == (step + 1 >= interval)


def test_a_poor_model_raises_damping_to_its_bound():
    adaptation = Adaptation(damping_adaptation_interval=1, max_damping=0.12)
    optimizer = KFC(
        learning_rate=60.0, loss_bound=None, use_adaptive_damping=True, damping=0.1,
        adaptation=adaptation,
    )  # fmt: skip
    net, x, y = network(), *batch()
    state = optimizer.init(net)
    values = [0.1]
    for _ in range(5):
        before = objective(net, x, y)
        optimizer.step(net, SOFTMAX, x, y, state)
        ratio = state["reduction_ratio"]
        if state["model_change"] < 0:
            actual = objective(net, x, y) - before
            assert ratio == pytest.approx(actual / state["model_change"], rel=1e-9)
        else:
            assert ratio == 0
        assert ratio < 0.25
        values.append(float(state["damping"]))
    w1 = 19 / 20
    np.testing.assert_allclose(values, [0.1, 0.1 / w1, 0.1 / w1**2, 0.1 / w1**3, 0.12, 0.12])


def test_thresholds_and_lower_bound():
    rule = Adaptation(
        damping_adaptation_interval=2,
        damping_adaptation_decay=0.5,
        damping_lower_threshold=0.1,
        damping_upper_threshold=0.6,
        min_damping=0.3,
        max_damping=3.0,
    )
    cases = {0.05: 3.0, 0.1: 1.0, 0.11: 1.0, 0.6: 1.0, 0.61: 0.3, -1e300: 3.0, 1e300: 0.3}
    assert {ratio: rule.next_damping(1.0, ratio) for ratio in cases} == cases
    assert rule.next_damping(0.5, 0.05) == 2.0
    usual = Adaptation()
    assert usual.next_damping(1.0, 0.76) == (19 / 20) ** 5
    assert usual.next_damping(1.0, 0.24) == 1 / (19 / 20) ** 5
    assert usual.next_damping(1.0, 0.75) == usual.next_damping(1.0, 0.25) == 1.0


def wide_batch(key):
    """Inputs of unlike sizes: neither the gradient nor Newton's step is good at any damping."""
    x, y = batch(key, 60)
    return x * np.array([10, 1, 1, 0.1]), y


def model_value(settings, gamma, eta):
    """Least M of the second step with a given gamma, by dense algebra; and that step."""
    net, state = stepped(KFC(**settings), 1, make=wide_batch)
    x, y = wide_batch(1)
    theta, d0 = flat(net, net.params), momenta(net, state)
    g = flat(net, net.value_and_grad(x, y, SOFTMAX)[1]) + eta * theta
    matrix = dense_fisher(net, x) + (float(state["damping"]) + eta) * np.eye(len(g))
    blocks = KFC(**settings).curvature(net).dense(state, gamma, "pi")
    start, proposal = 0, np.empty_like(g)
    for block in blocks.values():
        part = slice(start, start := start + len(block))
        proposal[part] = -np.linalg.solve(block, g[part])
    v = np.stack([proposal, d0], axis=1)
    fixed = settings["learning_rate"], settings["momentum"](1)
    c = np.array(fixed)
    if settings["use_adaptive_learning_rate"]:
        c = -np.linalg.solve(v.T @ matrix @ v, v.T @ g)
    return g @ v @ c + (v @ c) @ matrix @ (v @ c) / 2, v @ c


@pytest.mark.parametrize("adaptive", [False, True])
def test_gamma_of_the_least_model_value(adaptive, monkeypatch):
    eta, damping, choices = 0.01, 1e-2, set()
    for gamma in (1e-3, 0.3, 100.0):
        settings = {
            "use_adaptive_damping": True,
            "use_adaptive_learning_rate": adaptive,
            "use_adaptive_momentum": adaptive,
            "learning_rate": 0.3,
            "momentum": lambda step: 0.5,
            "damping": damping,
            "l2_reg": eta,
            "loss_bound": None,
            "exact_examples": None,
            "estimation_mode": "fisher_exact",
            "curvature_update_period": 100,
            "inverse_update_period": 100,
            "period_growth": 0,
            "adaptation": Adaptation(preconditioner_damping_interval=2),
        }
        w = (19 / 20) ** 2
        values = (gamma, gamma * w, gamma / w)
        tried = [model_value(settings, value, eta) for value in values]
        best = int(np.argmin([value for value, _ in tried]))
        choices.add(best)
        net, state = stepped(KFC(**settings), 1, make=wide_batch)
        assert state["preconditioner_damping"] == damping + eta
        state["preconditioner_damping"] = np.array(gamma)

        def decompose(self, state):
            raise AssertionError("another decomposition")

        with monkeypatch.context() as patch:
            patch.setattr(BlockDiagonal, "decompose", decompose)
            KFC(**settings).step(net, SOFTMAX, *wide_batch(1), state)
        assert state["preconditioner_damping"] == pytest.approx(values[best], rel=1e-14)
        assert state["model_change"] == pytest.approx(tried[best][0], rel=1e-7)
        np.testing.assert_allclose(momenta(net, state), tried[best][1], rtol=1e-6, atol=1e-12)
    assert len(choices) > 1  # otherwise it tells nothing apart


def test_gamma_follows_lambda_where_it_is_not_tried():
    adaptation = Adaptation(damping_adaptation_interval=1, preconditioner_damping_interval=None)
    optimizer = KFC(use_adaptive_damping=True, adaptation=adaptation, l2_reg=0.02)
    net = network()
    state = optimizer.init(net)
    for step in range(3):
        damping = float(state["damping"])
        optimizer.step(net, SOFTMAX, *batch(step), state)
        assert state["preconditioner_damping"] == damping + 0.02
    assert damping != KFC().damping
