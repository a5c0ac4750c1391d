"""Theorems of Grosse and Martens (2016): closed form, invariance, relation to whitening."""

import itertools

import curvature_reference as reference
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature.structures import curvature_of
from kfc_numba.layers.base import Layer

# Theorem 1: stationary activations.
#
# All cyclic shifts of an image, as a batch, are stationary exactly: the mean of a[u] a[u + o] is
# the image's autocorrelation on the torus, for all u. With predictions that are Gaussian at each
# location, derivatives are uncorrelated in space, and of the same second moments everywhere.

SIZES, KERNEL, CHANNELS = (3, 4), (3, 3), 2


@pytest.fixture(scope="module")
def stationary():
    image = np.random.default_rng(0).normal(size=(*SIZES, CHANNELS))
    shifts = itertools.product(*map(range, SIZES))
    x = np.array([np.roll(image, shift, axis=(0, 1)) for shift in shifts])
    net = kfc.Sequential(
        [kfc.Conv2d(2, KERNEL, padding="same"), kfc.Dense(2, bias=False)],
        input_shape=image.shape,
        dtype=np.float64,
    )
    return net, x, image


def beta(d, e):
    """Locations t with t + d and t + e in the image."""
    return np.prod([t - max(a, b, 0) + min(a, b, 0) for t, a, b in zip(SIZES, d, e, strict=True)])


def autocorrelation(image, j, k, offset):
    moved = np.roll(image[..., k], (-offset[0], -offset[1]), axis=(0, 1))
    return np.mean(image[..., j] * moved)


def closed_form(image):
    """beta(d, d') Omega~(j, j', d' - d), with the bias last."""
    offsets = list(itertools.product(*(range(-(k // 2), k // 2 + 1) for k in KERNEL)))
    columns = [(d, j) for d in offsets for j in range(CHANNELS)]
    result = np.empty((len(columns) + 1,) * 2)
    for (p, (d, j)), (q, (e, k)) in itertools.product(enumerate(columns), repeat=2):
        offset = (e[0] - d[0], e[1] - d[1])
        result[p, q] = beta(d, e) * autocorrelation(image, j, k, offset)
    for p, (d, j) in enumerate(columns):
        result[p, -1] = result[-1, p] = beta(d, (0, 0)) * image[..., j].mean()
    result[-1, -1] = np.prod(SIZES)
    return result


def test_closed_form_of_the_factors(stationary):
    net, x, image = stationary
    state = curvature_of(net).compute(net.forward(x), kfc.SquaredError(), mode="fisher_exact")
    np.testing.assert_allclose(state["omega/conv1"], closed_form(image), atol=1e-12)
    weight = net.params["dense1.weight"]
    np.testing.assert_allclose(state["gamma/conv1"], weight @ weight.T, atol=1e-13)


def test_closed_form_of_the_fisher_block(stationary):
    net, x, image = stationary
    fisher = reference.exact_fisher(net, x, kfc.SquaredError())
    part = reference.slices(net)["conv1"]
    block = reference.matrix_block(net, fisher[part, part], "conv1")[0]
    weight = net.params["dense1.weight"]
    expected = np.kron(weight @ weight.T, closed_form(image))
    np.testing.assert_allclose(block, expected, atol=1e-10 * np.abs(expected).max())
    # E[Db Db'] = |T| Gamma.
    last = np.arange(2) * 19 + 18
    np.testing.assert_allclose(block[np.ix_(last, last)], 12 * weight @ weight.T, atol=1e-10)


def test_white_derivatives_leave_activations_alone(stationary):
    # Theorem 4's form: beta(d, d') Omega~(j, j', d' - d) 1[i = i'].
    net, x, image = stationary
    old = net.params["dense1.weight"].copy()
    net.params["dense1.weight"][:] = np.linalg.qr(old)[0]
    try:
        fisher = reference.exact_fisher(net, x, kfc.SquaredError())
    finally:
        net.params["dense1.weight"][:] = old
    part = reference.slices(net)["conv1"]
    block = reference.matrix_block(net, fisher[part, part], "conv1")[0]
    expected = np.kron(np.eye(2), closed_form(image))
    np.testing.assert_allclose(block, expected, atol=1e-10 * np.abs(expected).max())


# Theorem 3: invariance. Without padding, since its zeros are not transformed.


class Affine(Layer):
    """phi'(S) = phi(S U + c) V + d across channels, phi = tanh."""

    kind = "affine"

    def __init__(self, u, c, v, d):
        self.u, self.c, self.v, self.d = u, c, v, d

    def forward(self, arrays, inputs, context):
        y = np.tanh(inputs[0] @ self.u + self.c)
        return y @ self.v + self.d, (y,)

    def backward(self, arrays, saved, dy, context, *, need_inputs=True, need_parameters=True):
        inner = (dy @ self.v.T) * (1 - saved[0] ** 2)
        return (np.ascontiguousarray(inner @ self.u.T),), {}


def network(activation):
    layers = [
        *(kfc.Conv2d(3, 2), activation, kfc.Conv2d(2, 2, stride=2), kfc.Tanh()),
        *(kfc.Flatten(), kfc.Dense(4), kfc.Sigmoid(), kfc.Dense(2)),
    ]
    net = kfc.Sequential(layers, input_shape=(5, 5, 3), seed=1, dtype=np.float64)
    rng = np.random.default_rng(3)
    for value in net.params.values():
        value += rng.normal(size=value.shape) / 10
    return net


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(30, 5, 5, 3)), rng.normal(size=(30, 2))


def before(weight, bias, u, c):
    """Parameters of a convolution whose outputs S become (S - c) U^-1."""
    inverse = np.linalg.inv(u)
    weight[:] = weight @ inverse
    bias[:] = (bias - c) @ inverse


def after(weight, bias, v, d):
    """Parameters of a convolution that sees A V + d instead of A, with the same outputs."""
    weight[:] = np.einsum("kc,yxcf->yxkf", np.linalg.inv(v), weight)
    bias[:] -= np.einsum("c,yxcf->f", d, weight)


def sigmoid_network():
    """tanh(s) = 2 sigmoid(2 s) - 1."""
    net = network(kfc.Sigmoid())
    p = net.params
    before(p["conv1.weight"], p["conv1.bias"], np.eye(3) / 2, 0)
    after(p["conv2.weight"], p["conv2.bias"], np.eye(3) / 2, np.full(3, 0.5))
    return net, None


def affine_network():
    rng = np.random.default_rng(5)
    u, v = np.eye(3) + rng.normal(size=(2, 3, 3)) / 3
    c, d = rng.normal(size=(2, 3)) / 2
    net = network(Affine(u, c, v, d))
    p = net.params
    before(p["conv1.weight"], p["conv1.bias"], u, c)
    after(p["conv2.weight"], p["conv2.bias"], v, d)
    return net, None


def colour_network():
    """Another colour space: luma and two scaled colour differences, with an offset."""
    yuv = np.array([[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.1]]).T
    offset = np.array([0.1, 0.5, 0.5])
    net = network(kfc.Tanh())
    after(net.params["conv1.weight"], net.params["conv1.bias"], yuv, offset)
    return net, lambda x: x @ yuv + offset


TRANSFORMED = {"sigmoid": sigmoid_network, "affine": affine_network, "colours": colour_network}


# Undamped steps of "reduce" are long where derivatives of locations cancel.
RATES = {"expand": 0.1, "reduce": 0.003}


def kfc_step(net, x, y, approx):
    curvature = curvature_of(net, approx=approx)
    state = curvature.compute(net.forward(x), kfc.SquaredError(), mode="fisher_exact")
    _, gradients = net.value_and_grad(x, y, kfc.SquaredError())
    for name, change in curvature.precondition(state, gradients, 0.0, "exact").items():
        net.params[name] -= RATES[approx] * change


def sgd_step(net, x, y, approx):
    _, gradients = net.value_and_grad(x, y, kfc.SquaredError())
    for name, change in gradients.items():
        net.params[name] -= 0.03 * change


def distances(name, step, approx="expand"):
    """Largest difference of predictions between a network and its twin, before and after steps."""
    (x, y), plain = data(), network(kfc.Tanh())
    twin, transform = TRANSFORMED[name]()
    other = transform(x) if transform else x
    result = [np.abs(plain.predict(x) - twin.predict(other)).max()]
    moved = plain.predict(x)
    for _ in range(4):
        step(plain, x, y, approx)
        step(twin, other, y, approx)
        result.append(np.abs(plain.predict(x) - twin.predict(other)).max())
    assert np.abs(plain.predict(x) - moved).max() > 0.02
    return result


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("name", TRANSFORMED)
def test_kfc_does_not_see_the_transformation(name, approx):
    assert max(distances(name, kfc_step, approx)) < 1e-7


@pytest.mark.parametrize("name", TRANSFORMED)
def test_gradient_descent_does(name):
    before_steps, *after_steps = distances(name, sgd_step)
    assert before_steps < 1e-12
    assert max(after_steps) > 1e-3
