"""The start of KFC: statistics of the first batches weigh the same, however they come."""

import numpy as np
import pytest

import kfc_numba as kfc

LOSS = kfc.SquaredError()


def network():
    return kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)


def batches(count):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(5, 3)), rng.normal(size=(5, 2))) for _ in range(count)]


def omega(x):
    """Mean over examples of abar abar^T: whatever the parameters."""
    rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return rows.T @ rows / len(x)


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("ema", [0.0, 0.5, 0.95])
def test_burn_in_is_a_plain_average(ema):
    data = batches(6)
    optimizer = kfc.KFC(
        num_burnin_steps=4, curvature_ema=ema, curvature_update_period=2, period_growth=0
    )
    net = network()
    state = optimizer.init(net)
    optimizer.prepare(net, LOSS, data[:4], state)
    average = mean([omega(x) for x, _ in data[:4]])
    np.testing.assert_allclose(state["omega/dense1"], average, rtol=1e-12)
    # The batch of the first step was among those of the burn-in.
    optimizer.step(net, LOSS, *data[0], state)
    np.testing.assert_allclose(state["omega/dense1"], average, rtol=1e-12)
    optimizer.step(net, LOSS, *data[1], state)
    np.testing.assert_allclose(state["omega/dense1"], average, rtol=1e-12)
    # From then on a moving average, in which the burn-in has the weight of its four batches.
    optimizer.step(net, LOSS, *data[4], state)
    weight = (1 - ema**4) * ema / ((1 - ema**4) * ema + 1 - ema)
    expected = weight * average + (1 - weight) * omega(data[4][0])
    np.testing.assert_allclose(state["omega/dense1"], expected, rtol=1e-12)


@pytest.mark.parametrize("ema", [0.0, 0.95])
def test_without_burn_in_the_first_steps_are_it(ema):
    data = batches(9)
    optimizer = kfc.KFC(
        num_burnin_steps=6,
        curvature_ema=ema,
        curvature_update_period=4,
        inverse_update_period=100,
        period_growth=0,
        learning_rate=0.01,
        inversion="eigen",
    )
    net = network()
    state = optimizer.init(net)
    decomposed = []
    for step, (x, y) in enumerate(data):
        before = state["omega_values/dense1"]
        optimizer.step(net, LOSS, x, y, state)
        if step < 6:
            expected = mean([omega(x) for x, _ in data[: step + 1]])
            np.testing.assert_allclose(state["omega/dense1"], expected, rtol=1e-12)
        if state["omega_values/dense1"] is not before:
            decomposed.append(step)
            np.testing.assert_allclose(
                state["omega_values/dense1"], np.linalg.eigvalsh(state["omega/dense1"]), rtol=1e-9
            )
    # With 1, 2 and 4 batches, and when the start is complete with 6; then by the period.
    assert decomposed == [0, 1, 3, 5]
    assert state["factor_batches"] == 7  # and at step 8


def test_both_ways_start_from_the_same_statistics():
    data = batches(5)
    states = []
    for prepared in (True, False):
        # Steps of next to nothing, so that derivatives are those of one network.
        optimizer = kfc.KFC(num_burnin_steps=5, learning_rate=0.0, estimation_mode="fisher_exact")
        net = network()
        state = optimizer.init(net)
        if prepared:
            optimizer.prepare(net, LOSS, data, state)
            optimizer.step(net, LOSS, *data[0], state)
        else:
            for x, y in data:
                optimizer.step(net, LOSS, x, y, state)
        states.append(state)
    for name in ("omega", "gamma", "omega_inverse", "gamma_inverse"):
        one, other = (state[f"{name}/dense1"] for state in states)
        np.testing.assert_allclose(one, other, rtol=1e-12)
    assert states[0]["factor_weight"] == states[1]["factor_weight"]


def test_no_burn_in():
    data = batches(3)
    optimizer = kfc.KFC(curvature_update_period=2, inverse_update_period=2, period_growth=0)
    net = network()
    state = optimizer.init(net)
    for (x, y), count in zip(data, (1, 1, 2), strict=True):
        before = state["omega_inverse/dense1"]
        optimizer.step(net, LOSS, x, y, state)
        assert state["factor_batches"] == count
        assert (state["omega_inverse/dense1"] is before) == (int(state["step"]) == 2)


def test_burn_in_takes_effect_whole_or_not_at_all():
    data = batches(3)
    data[2][0][1] = 1e308  # the outputs are infinite
    optimizer = kfc.KFC(num_burnin_steps=3)
    net = network()
    state = optimizer.init(net)
    kept = {name: value.copy() for name, value in state.items()}
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) in batch 2 of the burn-in"):
        optimizer.prepare(net, LOSS, data, state)
    assert list(state) == list(kept)
    for name, value in kept.items():
        np.testing.assert_array_equal(state[name], value)
    data[2] = (np.full((5, 3), 1e200), data[2][1])  # finite, but not its second moment
    net.params["dense1.weight"][:] = 0
    with pytest.raises(FloatingPointError, match="burn-in of omega/dense1 is not finite"):
        optimizer.prepare(net, LOSS, data, state)
    assert state["factor_batches"] == 0
