"""SGD against its recursion written out."""

import numpy as np
import plain
import pytest

from kfc_numba.optim import SGD, ExponentialDecay


def reference(steps, alpha, mu, nesterov, l2_reg):
    path = [dict(plain.network().params)]
    velocity = {name: np.zeros(3) for name in path[0]}
    for step in range(steps):
        params = path[-1]
        grads = plain.gradient(params, *plain.batch(step), l2_reg)
        rate = alpha(step)
        new = {}
        for name, g in grads.items():
            velocity[name] = mu * velocity[name] - rate * g
            ahead = mu * velocity[name] - rate * g
            new[name] = params[name] + (ahead if nesterov else velocity[name])
        path.append(new)
    return path


@pytest.mark.parametrize("mu", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("l2_reg", [0.0, 0.3])
def test_steps_follow_the_recursion(mu, nesterov, l2_reg):
    optimizer = SGD(learning_rate=0.1, momentum=mu, nesterov=nesterov, l2_reg=l2_reg)
    expected = reference(6, lambda step: 0.1, mu, nesterov, l2_reg)
    plain.assert_paths_equal(plain.trained(optimizer, 6), expected, rtol=1e-12)


def test_schedules_are_called_with_the_number_of_steps_done():
    alpha = ExponentialDecay(initial=0.2, rate=0.5)
    expected = reference(5, lambda step: 0.2 * 0.5**step, 0.9, False, 0.0)
    found = plain.trained(SGD(learning_rate=alpha, momentum=lambda step: 0.9), 5)
    plain.assert_paths_equal(found, expected, rtol=1e-12)


def test_float32_stays_float32():
    path = plain.trained(SGD(learning_rate=0.1, l2_reg=0.1, nesterov=True), 5, np.float32)
    assert all(value.dtype == np.float32 for value in path[-1].values())
    # Five steps of a few float32 roundings each.
    plain.assert_paths_equal(path, reference(5, lambda step: 0.1, 0.9, True, 0.1), rtol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"learning_rate": -0.1}, ValueError, r"learning_rate \(=-0.1\) must be a number in \[0"),
        ({"learning_rate": "0.1"}, TypeError, r"learning_rate \(='0.1'\) must be a number"),
        ({"learning_rate": None}, TypeError, r"learning_rate \(=None\) must be a number"),
        ({"learning_rate": True}, TypeError, r"learning_rate \(=True\) must be a number"),
        ({"momentum": 1}, ValueError, r"momentum \(=1\) must be a number in \[0, 1\) or a call"),
        ({"nesterov": 1}, TypeError, r"nesterov \(=1\) must be True or False"),
        ({"l2_reg": float("nan")}, ValueError, r"l2_reg \(=nan\) must be a number in \[0, inf\)"),
        ({"averaging": 0}, ValueError, r"averaging \(=0\) must be a number in \(0, inf\) or None"),
        ({"averaging": lambda step: 3}, TypeError, "averaging .* must be a number in"),
    ],
)
def test_hyperparameters_out_of_range(arguments, error, message):
    with pytest.raises(error, match=message):
        SGD(**arguments)
