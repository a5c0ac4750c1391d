"""Adam against the algorithm of its paper written out."""

import math

import numpy as np
import plain
import pytest

from kfc_numba.optim import Adam


def reference(steps, alpha, beta1, beta2, epsilon, l2_reg):
    path = [dict(plain.network().params)]
    m = {name: np.zeros(3) for name in path[0]}
    v = {name: np.zeros(3) for name in path[0]}
    for t in range(1, steps + 1):
        grads = plain.gradient(path[-1], *plain.batch(t - 1), l2_reg)
        new = {}
        for name, g in grads.items():
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            m_hat, v_hat = m[name] / (1 - beta1**t), v[name] / (1 - beta2**t)
            new[name] = path[-1][name] - alpha * m_hat / (np.sqrt(v_hat) + epsilon)
        path.append(new)
    return path


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
@pytest.mark.parametrize("l2_reg", [0.0, 0.3])
def test_steps_follow_the_paper(betas, l2_reg):
    beta1, beta2 = betas
    optimizer = Adam(learning_rate=0.1, beta1=beta1, beta2=beta2, epsilon=1e-3, l2_reg=l2_reg)
    expected = reference(7, 0.1, beta1, beta2, 1e-3, l2_reg)
    plain.assert_paths_equal(plain.trained(optimizer, 7), expected, rtol=1e-12)


def test_a_schedule_of_the_betas_leaves_the_averages_unbiased():
    # With a gradient that never changes the averages are that gradient and its square.
    net = plain.network()
    optimizer = Adam(beta1=lambda step: 0.9 / (step + 1), beta2=lambda step: 0.5 + step / 20)
    state = optimizer.init(net)
    g = {name: np.array([1.0, -2.0, 3.0]) for name in net.params}
    for step in range(5):
        deltas, changes = optimizer.delta(net, None, None, None, None, 0.0, g, state, step, 0)
        state.update(changes)
        for name, delta in deltas.items():
            np.testing.assert_allclose(delta, -1e-3 * np.sign(g[name]), rtol=1e-7)


def test_float32_stays_float32():
    path = plain.trained(Adam(learning_rate=0.1), 5, np.float32)
    assert all(value.dtype == np.float32 for value in path[-1].values())
    # Small gradients are divided by their own size, so roundings count relative to them.
    plain.assert_paths_equal(path, reference(5, 0.1, 0.9, 0.999, 1e-8, 0.0), rtol=2e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": math.inf}, r"learning_rate \(=inf\) must be a number in \[0, inf\)"),
        ({"beta1": 1.0}, r"beta1 \(=1.0\) must be a number in \[0, 1\)"),
        ({"beta2": -0.1}, r"beta2 \(=-0.1\) must be a number in \[0, 1\)"),
        ({"epsilon": 0}, r"epsilon \(=0\) must be a number in \(0, inf\)"),
    ],
)
def test_hyperparameters_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Adam(**arguments)
