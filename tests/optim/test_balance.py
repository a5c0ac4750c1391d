"""Layers that a step takes as far, by exact curvature, as the approximation says."""

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature.fisher import layer_blocks, layer_slopes, parameter_slices
from kfc_numba.kernels import cpu
from kfc_numba.optim.balance import (
    EMA,
    balanced,
    forms_by_layer,
    initial_balance,
    next_balance,
)
from kfc_numba.optim.exact_forms import layer_forms

SOFTMAX = kfc.SoftmaxCrossEntropy()


def network(normalised=False):
    layers = [
        *(kfc.Conv2d(3, 3, stride=2, padding=1), *[kfc.BatchNorm()] * normalised, kfc.Tanh()),
        *(kfc.Conv2d(4, 2, groups=1), kfc.ReLU(), kfc.Flatten(), kfc.Dense(3)),
    ]
    return kfc.Sequential(layers, input_shape=(6, 6, 2), seed=0, dtype=np.float64)


def batch(count=40):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, count)
    return rng.normal(size=(count, 6, 6, 2)) + 0.5 * y[:, None, None, None], y


def direction_of(net, seed=1):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=value.shape) for name, value in net.params.items()}


def test_slopes_of_layers_are_products_with_gradients_of_single_examples():
    net, (x, y) = network(), batch(5)
    direction, trace = direction_of(net), net.forward(x)
    derivative = SOFTMAX.derivative(trace.outputs, y)
    found = layer_slopes(net, trace, derivative, direction)
    assert list(found) == ["dense1", "conv2", "conv1"]
    for i in range(len(x)):
        _, gradients = net.value_and_grad(x[i : i + 1], y[i : i + 1], SOFTMAX)
        for layer, slopes in found.items():
            names = [name for name in net.params if name.startswith(layer + ".")]
            expected = sum(np.sum(gradients[name] * direction[name]) for name in names)
            assert slopes[i] == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_slopes_with_batch_normalisation_add_up_to_the_gradient_of_the_batch():
    net, (x, y) = network(normalised=True), batch(20)
    direction, trace = direction_of(net), net.forward(x, training=True)
    derivative = SOFTMAX.derivative(trace.outputs, y)
    found = layer_slopes(net, trace, derivative, direction)
    gradients = net.backward(trace, derivative)
    for layer, slopes in found.items():
        names = [name for name in net.params if name.startswith(layer + ".")]
        expected = sum(np.sum(gradients[name] * direction[name]) for name in names)
        assert slopes.sum() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("wanted", [None, 25])
def test_forms_are_those_of_the_blocks_of_the_exact_fisher_in_the_mean(wanted):
    net, (x, _) = network(), batch()
    direction, trace = direction_of(net), net.forward(x)
    blocks, places = layer_blocks(net, trace, SOFTMAX), parameter_slices(net)
    flat = np.concatenate([value.ravel() for value in direction.values()])
    expected = []
    for layer, block in blocks.items():
        own = [place for name, place in places.items() if name.startswith(layer + ".")]
        part = flat[own[0].start : own[-1].stop]
        expected.append(part @ block @ part)
    rng = np.random.default_rng(0)
    draws = [layer_forms(net, trace, x, SOFTMAX, direction, wanted, rng) for _ in range(800)]
    draws = [list(draw.values()) for draw in draws]  # the last layer first
    expected = expected[::-1]
    error = np.std(draws, axis=0) / np.sqrt(len(draws))
    # A part of the batch that is chosen by weight is another sum, close to that of all.
    rel = 0.25 if wanted else 0
    assert np.all(np.abs(np.mean(draws, axis=0) - expected) < 4 * error + rel * np.array(expected))


NAMES = ["conv1", "conv2", "dense1"]


def start():
    return initial_balance(kfc.KFC(), network())


def after(state, forms, slopes):
    """Entries of the state that change."""
    by_layer = [dict(zip(NAMES, map(float, values), strict=True)) for values in (forms, slopes)]
    return next_balance(state, *by_layer)


def scales_of(state):
    return np.array([float(state[f"layer_scale/{name}"]) for name in NAMES])


def ratios_of(state):
    return np.array([float(state[f"layer_ratio/{name}"]) for name in NAMES])


def test_scales():
    state = start()
    assert scales_of(state).tolist() == [1, 1, 1]
    forms, slopes = np.array([900.0, 4.0, 1.0]), np.array([9.0, 1.0, 1.0])
    found = after(state, forms, slopes)
    scales = scales_of(found)
    # Each part is as long by F as the approximation has it, but for what all have in common.
    lengths = scales**2 * forms / slopes
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-12)
    assert scales @ slopes == pytest.approx(slopes.sum(), rel=1e-12)
    assert ratios_of(state).tolist() == [0, 0, 0]
    # One that is the same for all layers, however large, changes nothing.
    again = after(state | found, 1e20 * forms, slopes)
    np.testing.assert_allclose(scales_of(again), scales, rtol=1e-12)


def test_ratios_are_averaged():
    state, rng, logs = start(), np.random.default_rng(0), []
    for _ in range(4):
        forms, slopes = np.exp(rng.normal(size=(2, 3)))
        state |= after(state, forms, slopes)
        logs.append(np.maximum(np.log(forms / slopes), 0))
    assert 0 < np.count_nonzero(logs) < 12
    logs -= np.mean(logs, axis=1, keepdims=True)
    weights = EMA ** np.arange(4)[::-1]
    np.testing.assert_allclose(ratios_of(state), weights @ logs / weights.sum(), rtol=1e-12)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("which", ["forms", "slopes"])
def test_layers_of_which_there_is_no_telling(bad, which):
    values = {"forms": np.array([8.0, 2.0, 2.0]), "slopes": np.ones(3)}
    state = start()
    state |= after(state, **values)
    values[which][1] = bad
    found = after(state, **values)
    assert ratios_of(found)[1] == pytest.approx(ratios_of(state)[1])
    assert np.isfinite(scales_of(found)).all()
    # Where nothing is known of it yet it goes as far as the others in the mean.
    scales = scales_of(after(start(), **values))
    assert scales[1] == pytest.approx(np.sqrt(scales[0] * scales[2]))
    values[which][:] = bad
    assert after(state, **values) == {}


def test_numbers_whose_quotient_is_none():
    found = after(start(), [1e-320, 1.0, 4.0], [1e10, 1.0, 1.0])
    np.testing.assert_allclose(scales_of(found)[1:] / scales_of(found)[0], [1, 0.5], rtol=1e-12)


def test_a_layer_that_damping_holds_back_stays_so():
    found = after(start(), [1e-20, 1.0, 9.0], np.ones(3))
    np.testing.assert_allclose(scales_of(found), np.array([3, 3, 1]) * 3 / 7, rtol=1e-12)


def test_a_direction_with_balanced_layers():
    net, (x, _) = network(), batch()
    natural, gradients, trace = direction_of(net), direction_of(net, 2), net.forward(x)
    gradients = {name: 1e-3 * (natural[name] + 0.1 * g) for name, g in gradients.items()}
    state, changes = start(), {}

    def forms(direction):
        return forms_by_layer(net, trace, x, SOFTMAX, direction, seed=3, step=7)

    asked = []
    given = balanced(
        lambda gamma: asked.append(gamma) or natural, forms, net, gradients, state, changes
    )
    found = given(0.5)
    assert asked == [0.5]
    for name, value in found.items():
        scale = float(changes["layer_scale/" + name.partition(".")[0]])
        np.testing.assert_allclose(value, scale * natural[name], rtol=1e-14)
    assert scales_of(changes).max() > 1.01
    # Until they are computed again they stay.
    later = {}
    again = balanced(lambda gamma: natural, None, net, gradients, state | changes, later)(0.5)
    assert later == {}
    for name, value in found.items():
        np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize(
    "settings",
    [
        {"balance_layers": False},
        {"loss_bound": None},
        {"loss_bound": None, "norm_constraint": 0.1},
        {"use_adaptive_learning_rate": True},
        {"use_adaptive_momentum": True},
        {"use_adaptive_damping": True},
    ],
)
def test_where_nothing_is_balanced(settings):
    assert initial_balance(kfc.KFC(**settings), network()) == {}
    precondition = dict  # any function
    assert balanced(precondition, None, network(), {}, {}, {}) is precondition


def test_one_layer_has_nothing_to_be_balanced_with():
    net = kfc.Sequential([kfc.Dense(3)], input_shape=(4,))
    assert initial_balance(kfc.KFC(), net) == {}
    assert len(initial_balance(kfc.KFC(loss_bound=None, kl_bound=1.0), network())) == 7


def smooth_fields():
    """Where neighbouring locations are alike, and the approximation takes them for independent."""
    rng = np.random.default_rng(0)
    waves = np.exp(2j * np.pi * np.outer(np.arange(12), np.arange(3)) / 12)
    coefficients = rng.normal(size=(1000, 3, 3)) + 1j * rng.normal(size=(1000, 3, 3))
    x = np.real(np.einsum("nij,hi,wj->nhw", coefficients, waves, waves))[..., None] / 3
    y = np.stack([np.sin(x[:, 3, 3, 0]), x[:, 8, 8, 0] * x[:, 2, 9, 0]], axis=1)
    return np.float32(x), np.float32(y)


def test_balanced_layers_are_trained_sooner():
    x, y = smooth_fields()
    loss, ratios = kfc.SquaredError(), []
    for seed in range(3):
        losses = []
        for balance in (False, True):
            layers = [kfc.Conv2d(8, 3, padding=1), kfc.Tanh(), kfc.Conv2d(16, 3, padding=1)]
            layers += [kfc.Tanh(), kfc.AvgPool2d(2), kfc.Flatten(), kfc.Dense(32), kfc.Tanh()]
            layers.append(kfc.Dense(2))
            net = kfc.Sequential(layers, input_shape=(12, 12, 1), seed=seed)
            trainer = kfc.Trainer(net, loss, kfc.KFC(balance_layers=balance), seed=seed)
            trainer.fit(x, y, batch_size=100, max_steps=150, progress=False)
            losses.append(loss.value(net.predict(x), y))
        ratios.append(losses[1] / losses[0])
    assert np.median(ratios) < 0.7  # 0.2 to 0.5 after 200 steps


@pytest.mark.parametrize("shape", [(), (0,), (7,), (300, 70), (40_000,)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaled(shape, dtype):
    x = np.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    found, other = cpu.many.scaled([x, x], [0.3, -1.7])
    np.testing.assert_array_equal(found, dtype(0.3) * x, strict=True)
    np.testing.assert_array_equal(other, dtype(-1.7) * x, strict=True)
