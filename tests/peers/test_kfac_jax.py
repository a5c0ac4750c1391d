"""Patch moments, curvature and damping against kfac-jax, in float64."""

import jax
import jax.numpy as jnp
import kfac_jax
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import conventions, fisher
from kfc_numba.curvature.structures import curvature_of
from kfc_numba.kernels import cpu

# Warnings of JAX and kfac-jax about their own internals are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES = 4


@pytest.fixture(autouse=True, scope="module")
def float64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def close(actual, expected, tolerance=1e-10):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("values", ["ones", "random"])
@pytest.mark.parametrize("padding", ["same", "valid", ((1, 0), (2, 1))])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 3)])
def test_patch_moments(kernel, stride, padding, values):
    x = (
        np.random.default_rng(0).normal(size=(2, 5, 6, 2))
        if values == "random"
        else np.ones((2, 5, 6, 2))
    )
    theirs = padding.upper() if isinstance(padding, str) else padding
    second, first = kfac_jax.patches_moments(jnp.asarray(x), kernel, strides=stride, padding=theirs)
    found = cpu.patch_second_moment(x, kernel, stride=stride, padding=padding)
    size = kernel[0] * kernel[1] * 2
    np.testing.assert_allclose(found[:-1, :-1], np.reshape(second, (size, size)), atol=1e-10)
    np.testing.assert_allclose(found[-1, :-1], np.reshape(first, size), atol=1e-10)


STRIDE, PADDING = (1, 2), ((1, 0), (1, 1))


def networks(kind):
    """The same network in both libraries, with the same parameters, and our loss."""
    net = kfc.Sequential(
        [
            kfc.Conv2d(3, (2, 3), stride=STRIDE, padding=PADDING),
            *(kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)),
        ],
        input_shape=(4, 5, 2),
        dtype=np.float64,
    )
    rng = np.random.default_rng(7)
    for value in net.params.values():
        value += rng.normal(size=value.shape) / 5

    def function(params, batch):
        x, y = batch
        s = jax.lax.conv_general_dilated(
            x,
            params["conv1.weight"],
            STRIDE,
            PADDING,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        h = jnp.tanh(s + params["conv1.bias"]).reshape(len(x), -1)
        z = h @ params["dense1.weight"] + params["dense1.bias"]
        if kind == "softmax":
            kfac_jax.register_softmax_cross_entropy_loss(z, y)
        elif kind == "squared":
            kfac_jax.register_squared_error_loss(z, y)
        elif kind == "normal":
            kfac_jax.register_normal_predictive_distribution(z, y, variance=1.0)
        else:
            kfac_jax.register_multi_bernoulli_predictive_distribution(z, y)
        return jnp.mean(jnp.sum(z, axis=1))  # only what is registered counts

    params = {name: jnp.asarray(value) for name, value in net.params.items()}
    x = np.random.default_rng(0).normal(size=(EXAMPLES, 4, 5, 2))
    y = np.random.default_rng(1).integers(0, 2, EXAMPLES if kind == "softmax" else (EXAMPLES, 3))
    y = y if kind == "softmax" else y.astype(float)
    loss = {
        "softmax": kfc.SoftmaxCrossEntropy(),
        "squared": kfc.SquaredError(),
        "normal": kfc.SquaredError(),
        "bernoulli": kfc.SigmoidCrossEntropy(),
    }[kind]
    return net, loss, function, params, (x, y)


KINDS = {"softmax": 1.0, "squared": 2.0, "normal": 1.0, "bernoulli": 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_products_with_the_exact_fisher(kind):
    net, loss, function, params, (x, y) = networks(kind)
    exact = kfac_jax.ImplicitExactCurvature(function, batch_size_extractor=lambda b: EXAMPLES)
    rng = np.random.default_rng(2)
    vector = {name: rng.normal(size=value.shape) for name, value in net.params.items()}
    arguments = (params, (jnp.asarray(x), jnp.asarray(y)))
    as_jax = {name: jnp.asarray(value) for name, value in vector.items()}
    found = fisher.fisher_vector_product(net, net.forward(x), loss, vector)
    for product in (exact.multiply_fisher, exact.multiply_ggn):
        for name, expected in product(arguments, as_jax).items():
            close(KINDS[kind] * found[name], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_and_blocks(kind):
    net, loss, function, params, (x, y) = networks(kind)
    estimator, state = estimated(function, params, x, y)
    ours = curvature_of(net).compute(net.forward(x), loss, mode="fisher_exact")
    locations = net.layers[0].shape[0] * net.layers[0].shape[1]
    seen = set()
    for block, block_state in zip(estimator.blocks, state.blocks_states, strict=True):
        convolution = isinstance(block, kfac_jax.Conv2DTwoKroneckerFactored)
        name = "conv1" if convolution else "dense1"
        seen.add(name)
        convention = conventions.kfac_jax(
            locations=locations if convolution else 1, loss_weight=KINDS[kind]
        )
        a, g = convention.to_factors(ours[f"omega/{name}"], ours[f"gamma/{name}"], (2, 3))
        theirs = [factor.value for factor in block_state.factors]
        if theirs[0].shape != a.shape:
            theirs = theirs[::-1]
        close(a, theirs[0])
        close(g, theirs[1])
    assert seen == {"conv1", "dense1"}


def estimated(function, params, x, y):
    batch = (jnp.asarray(x), jnp.asarray(y))
    estimator = kfac_jax.BlockDiagonalCurvature(function, default_estimation_mode="fisher_exact")
    estimator.finalize((params, batch))
    key = jax.random.PRNGKey(0)
    state = estimator.init(
        rng=key,
        func_args=(params, batch),
        exact_powers_to_cache=None,
        approx_powers_to_cache=None,
        cache_eigenvalues=False,
    )
    state = estimator.update_curvature_matrix_estimate(
        state=state,
        ema_old=0.0,
        ema_new=1.0,
        identity_weight=0.0,
        batch_size=EXAMPLES,
        rng=key,
        func_args=(params, batch),
    )
    return estimator, state


@pytest.mark.parametrize("strategy", ["exact", "pi"])
def test_damped_inverse(strategy):
    net, loss, function, params, (x, y) = networks("softmax")
    estimator, state = estimated(function, params, x, y)
    rng = np.random.default_rng(2)
    vector = {name: rng.normal(size=value.shape) for name, value in net.params.items()}
    curvature = curvature_of(net)
    ours = curvature.compute(net.forward(x), loss, mode="fisher_exact")
    found = curvature.precondition(ours, vector, 1e-2, strategy)
    expected = estimator.multiply_inverse(
        state=state,
        parameter_structured_vector={n: jnp.asarray(v) for n, v in vector.items()},
        identity_weight=conventions.kfac_jax(locations=1).to_damping(1e-2),
        exact_power=strategy == "exact",
        use_cached=False,
        pmap_axis_name=None,
    )
    for name, value in expected.items():
        close(found[name], value, 1e-8)
