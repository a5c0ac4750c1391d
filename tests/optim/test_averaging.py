"""The running average against the sum that it stands for."""

import math

import numpy as np
import pytest

from kfc_numba.optim.averaging import average, initial_average, timescale_at, update_average


@pytest.mark.parametrize("timescale", [0.5, 3.0, 1e6])
def test_average_is_the_weighted_sum_from_the_first_step(timescale):
    rng = np.random.default_rng(0)
    path = [{"a": rng.standard_normal((2, 3)), "b": rng.standard_normal(4)} for _ in range(12)]
    state = initial_average(path[0])
    for k, params in enumerate(path, start=1):
        state.update(update_average(state, params, timescale))
        weights = [math.exp(-(k - i) / timescale) for i in range(1, k + 1)]
        for name in params:
            expected = sum(w * p[name] for w, p in zip(weights, path, strict=False))
            found = average(state, params)[name]
            np.testing.assert_allclose(found, expected / sum(weights), rtol=1e-13, atol=1e-15)


def test_before_the_first_step_it_is_the_parameters():
    params = {"a": np.arange(3.0, dtype=np.float32)}
    np.testing.assert_array_equal(average(initial_average(params), params)["a"], params["a"])


def test_small_changes_of_float32_parameters_are_not_lost():
    # At this timescale an increment is a fifth of what float32 resolves near 1.
    timescale, theta = 1e5, np.ones(1, np.float32)
    state = initial_average({"a": theta})
    state["average_weight"][...] = timescale
    state["average/a"][...] = 0.998
    for _ in range(1000):
        state.update(update_average(state, {"a": theta}, timescale))
    expected = 1 - 0.002 * math.exp(-1000 / timescale)
    assert state["average/a"][0] == pytest.approx(expected, abs=1e-9)
    assert average(state, {"a": theta})["a"].dtype == np.float32


def test_state_is_not_changed_in_place():
    params = {"a": np.ones(3)}
    state = initial_average(params)
    update_average(state, params, 2.0)
    assert state["average_weight"] == 0
    assert not state["average/a"].any()


def test_timescales_below_one_are_a_part_of_the_steps():
    assert [timescale_at(value, 100) for value in (0.1, 0.999, 1.0, 1.5)] == [10.0, 99.9, 1.0, 1.5]
    assert timescale_at(0.1, 3) == 1.0
