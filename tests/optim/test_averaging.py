"""The running average against the sum that it stands for."""

import math

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.optim.averaging import average, initial_average, timescale_at, update_average


def network(dtype=np.float64):
    return kfc.Sequential([kfc.Dense(4), kfc.BatchNorm()], input_shape=(3,), dtype=dtype)


@pytest.mark.parametrize("timescale", [0.5, 3.0, 1e6])
def test_average_is_the_weighted_sum_from_the_first_step(timescale):
    rng, net, path = np.random.default_rng(0), network(), []
    state = initial_average(net)
    for k in range(1, 13):
        params = {name: rng.standard_normal(value.shape) for name, value in net.params.items()}
        mean, variance = rng.standard_normal(4), rng.uniform(0.1, 3, 4)
        net.buffers |= {"norm1.mean": mean, "norm1.variance": variance}
        path.append(params | {"norm1.mean": mean, "norm1.variance": np.sqrt(variance)})
        state.update(update_average(state, net, params, timescale))
        weights = [math.exp(-(k - i) / timescale) for i in range(1, k + 1)]
        found = average(state, net)
        assert list(found) == [*net.params, "norm1.mean", "norm1.variance"]
        for name, value in found.items():
            expected = sum(w * p[name] for w, p in zip(weights, path, strict=True)) / sum(weights)
            power = 2 if name == "norm1.variance" else 1  # of the roots, and squared again
            np.testing.assert_allclose(value, expected**power, rtol=1e-13, atol=1e-15)


def test_before_the_first_step_it_is_what_the_network_holds():
    net = network()
    found = average(initial_average(net), net)
    assert found == {**net.params, **net.buffers}


def test_small_changes_of_float32_parameters_are_not_lost():
    # At this timescale an increment is a fifth of what float32 resolves near 1.
    timescale, net = 1e5, network(np.float32)
    theta = net.params | {"dense1.bias": np.ones(4, np.float32)}
    state = initial_average(net)
    state["average_weight"][...] = timescale
    state["average/dense1.bias"][...] = 0.998
    for _ in range(1000):
        state.update(update_average(state, net, theta, timescale))
    expected = 1 - 0.002 * math.exp(-1000 / timescale)
    np.testing.assert_allclose(state["average/dense1.bias"], expected, rtol=0, atol=1e-9)
    assert all(value.dtype == np.float32 for value in average(state, net).values())


def test_state_is_not_changed_in_place():
    net = network()
    state = initial_average(net)
    update_average(state, net, net.params, 2.0)
    assert state["average_weight"] == 0
    assert not any(value.any() for name, value in state.items() if name.startswith("average/"))


def test_timescales_below_one_are_a_part_of_the_steps():
    assert [timescale_at(value, 100) for value in (0.1, 0.999, 1.0, 1.5)] == [10.0, 99.9, 1.0, 1.5]
    assert timescale_at(0.1, 3) == 1.0
