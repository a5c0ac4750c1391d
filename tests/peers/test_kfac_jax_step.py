"""Whole adaptive steps against the optimizer of kfac-jax, in float64.

Both have the exact Fisher matrix (nothing is sampled), the same damping in the model and in the
preconditioner, and the same network and batches; so their steps are the same steps.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import conventions
from kfc_numba.optim import Adaptation

# Warnings of JAX and kfac-jax about their own internals are not ours to mend.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kfac_jax

pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES, STEPS = 6, 4
DAMPING = 0.05


@pytest.fixture(autouse=True, scope="module")
def float64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def network():
    net = kfc.Sequential(
        [kfc.Conv2d(3, (2, 3)), kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)],
        input_shape=(4, 5, 2),
        dtype=np.float64,
    )
    rng = np.random.default_rng(7)
    for value in net.params.values():
        value += rng.normal(size=value.shape) / 5
    return net


def theirs(params, batch):
    x, y = batch
    s = jax.lax.conv_general_dilated(
        x, params["conv1.weight"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jnp.tanh(s + params["conv1.bias"]).reshape(len(x), -1)
    z = h @ params["dense1.weight"] + params["dense1.bias"]
    kfac_jax.register_softmax_cross_entropy_loss(z, y)
    return -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(len(y)), y])


def batches():
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(EXAMPLES, 4, 5, 2)), rng.integers(0, 3, EXAMPLES)) for _ in range(STEPS)
    ]


@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize(("rate", "momentum"), [(True, True), (True, False), (False, True)])
def test_adaptive_steps(rate, momentum, included):
    common = {
        "use_adaptive_learning_rate": rate,
        "use_adaptive_momentum": momentum,
        "use_adaptive_damping": True,
        "curvature_ema": 0.9,
        "curvature_update_period": 1,
        "inverse_update_period": 1,
        "num_burnin_steps": 0,
    }
    rule = {
        "damping_adaptation_interval": 2,
        "damping_adaptation_decay": 0.9,
        "include_damping_in_quad_change": included,
        "min_damping": 1e-6,
    }
    convention = conventions.kfac_jax(locations=9)
    optimizer = kfac_jax.Optimizer(
        jax.value_and_grad(theirs),
        l2_reg=0.0,
        initial_damping=convention.to_damping(DAMPING),
        learning_rate_schedule=None if rate else lambda step: jnp.asarray(0.3),
        momentum_schedule=None if momentum else lambda step: jnp.asarray(0.4),
        estimation_mode="fisher_exact",
        use_exact_inverses=True,
        debug=True,
        **common,
        **rule,
    )
    net = network()
    params = {name: jnp.asarray(value) for name, value in net.params.items()}
    data = batches()
    key = jax.random.PRNGKey(0)
    their_state = optimizer.init(params, key, (jnp.asarray(data[0][0]), jnp.asarray(data[0][1])))

    ours = kfc.KFC(
        learning_rate=0.3,
        momentum=lambda step: 0.4,
        damping=DAMPING,
        loss_bound=None,
        exact_examples=None,
        estimation_mode="fisher_exact",
        damping_strategy="exact",
        weight_decay=0.0,
        adaptation=Adaptation(preconditioner_damping_interval=None, **rule),
        **common,
    )
    state = ours.init(net)
    # A step before the first: from nothing, adaptive momentum alone is 0 / 0 in kfac-jax.
    rng = np.random.default_rng(3)
    velocities = {name: rng.normal(size=value.shape) / 20 for name, value in net.params.items()}
    state |= {f"momentum/{name}": value for name, value in velocities.items()}
    their_state.velocities = {name: jnp.asarray(value) for name, value in velocities.items()}
    dampings = []
    for step, (x, y) in enumerate(data):
        params, their_state, stats = optimizer.step(
            params, their_state, key, batch=(jnp.asarray(x), jnp.asarray(y)), global_step_int=step
        )
        value = ours.step(net, kfc.SoftmaxCrossEntropy(), x, y, state)
        assert value == pytest.approx(float(stats["loss"]), rel=1e-10)
        rate_of_step = float(state["learning_rate"])
        assert rate_of_step == pytest.approx(float(stats["learning_rate"]), rel=1e-7)
        found = float(state["momentum"])
        assert found == pytest.approx(float(stats["momentum"]), rel=1e-6, abs=1e-9)
        if included:
            predicted = float(stats["quad_model_change"])
            assert state["model_change"] == pytest.approx(predicted, rel=1e-6)
        if (step + 1) % 2 == 0:
            assert state["reduction_ratio"] == pytest.approx(float(stats["rho"]), rel=1e-6)
        dampings.append(float(state["damping"]))
        their_damping = convention.from_damping(float(their_state.damping))
        assert dampings[-1] == pytest.approx(their_damping, rel=1e-12)
        for name, expected in params.items():
            np.testing.assert_allclose(net.params[name], expected, rtol=1e-7, atol=1e-9)
    assert dampings[0] == DAMPING != dampings[1]
