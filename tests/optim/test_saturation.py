"""Steps from predictions that are sure and wrong."""

import math

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.arrays import combine
from kfc_numba.optim import restraint, saturation, setting
from kfc_numba.optim.exact_forms import form

SHAPE = (8, 8, 1)


def images(scale, examples=64, seed=0):
    """Spots, whose place is the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, examples)
    x = rng.random((examples, *SHAPE))
    for i, label in enumerate(y):
        row, column = 4 * (label // 2), 4 * (label % 2)
        x[i, row : row + 4, column : column + 4] += 1
    return (scale * x).astype(np.float32), y


def network(seed=0, *more):
    layers = [kfc.Conv2d(6, 3, padding=1), kfc.ReLU(), kfc.MaxPool2d(2), *more, kfc.Flatten()]
    return kfc.Sequential([*layers, kfc.Dense(4)], input_shape=SHAPE, seed=seed)


def losses(x, y, net=None, steps=60, batch=16, loss=None, **settings):
    trainer = kfc.Trainer(
        net or network(), loss or kfc.SoftmaxCrossEntropy(), kfc.KFC(**settings), seed=0
    )
    rng = np.random.default_rng(1)
    chosen = [rng.integers(0, len(x), batch) for _ in range(steps)]
    return [trainer.step(x[i], y[i]) for i in chosen]


@pytest.mark.parametrize(
    ("batch", "more"),
    [(8, ()), (64, ()), (64, (kfc.Dropout(0.2),)), (8, (kfc.BatchNorm(),))],
    ids=["few", "many", "dropout", "norm"],
)
def test_inputs_that_nobody_scaled(batch, more):
    """Such as pixels from 0 to 255; batch normalisation puts them right."""
    found = losses(*images(1000.0), network(0, *more), batch=batch)
    assert np.isfinite(found).all()
    assert max(found) < 1.3 * found[0]
    assert np.mean(found[-5:]) < 0.5 * found[0]


def test_without_a_look_at_predictions_they_diverge(monkeypatch):
    monkeypatch.setattr(saturation, "SURE", math.inf)
    for module in (restraint, setting):
        monkeypatch.setattr(module, "is_restrained", lambda optimizer: False)
    try:
        found = losses(*images(1000.0))
    except FloatingPointError:
        return
    assert max(found) > 10 * found[0]


def test_bits_of_bernoulli_distributions():
    x, y = images(3000.0)
    bits = (np.arange(4) == y[:, None]).astype(np.float32)
    found = losses(x, bits, loss=kfc.SigmoidCrossEntropy())
    assert max(found) < 1.3 * found[0]
    assert np.mean(found[-5:]) < 0.5 * found[0]


@pytest.mark.parametrize("loss", [kfc.SoftmaxCrossEntropy(), kfc.SquaredError()])
def test_a_usual_training_is_left_alone(loss, monkeypatch):
    x, y = images(1.0)
    if isinstance(loss, kfc.SquaredError):
        y = 1e4 * np.eye(4)[y]  # a loss far above the trace, which is that of any outputs
    asked = []
    monkeypatch.setattr(saturation, "by_trial", lambda *given: asked.append(1))
    losses(x, y, loss=loss)
    assert not asked


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_that_are_sure_and_right_are_left_alone(dtype):
    """However sure: what they leave open is as small as their loss, down to its rounding."""
    loss, y = kfc.SoftmaxCrossEntropy(), np.arange(30) % 3
    for margin in (0.0, 3.0, 10.0, 14.0, 16.0, 18.0, 30.0, 100.0):
        outputs = margin * np.eye(3)[y] + np.random.default_rng(0).normal(size=(30, 3))
        outputs = outputs.astype(dtype)
        traces = loss.fisher_trace(outputs)
        for targets, expected in ((y, False), ((y + 1) % 3, margin > 5)):
            value = loss.value(outputs, targets)
            assert saturation.is_sure_and_wrong(value, traces, outputs.dtype) == expected


def saturated(examples=40):
    x, y = images(1000.0, examples)
    net, loss = network(), kfc.SoftmaxCrossEntropy()
    trace = net.forward(x, training=True)
    gradients = net.backward(trace, loss.derivative(trace.outputs, y) / examples)
    return net, trace, x, y, loss, gradients


def bounded(bound, rate=10.0):
    optimizer = kfc.KFC(learning_rate=rate, loss_bound=None, kl_bound=bound)
    state = optimizer.init(network())
    return setting.setting_of(optimizer, network(), state, 0, 40, True)


@pytest.mark.parametrize("wanted", [None, 40, 16])
@pytest.mark.parametrize("bound", [0.01, 3.0])
def test_the_step_changes_predictions_by_about_the_bound(bound, wanted):
    given = net, trace, x, _, loss, direction = saturated()
    found = saturation.by_trial(*given, bounded(bound), 0.0, wanted)
    targets = list(given[3])  # as a program may give them
    assert (
        saturation.by_trial(*given[:3], targets, *given[4:], bounded(bound), 0.0, wanted) == found
    )
    scale = math.sqrt(bound / found)
    assert scale < 10.0
    moved = network()
    moved.params.update(combine(1, net.params, -scale, direction))
    seen = slice(wanted)
    far = loss.divergence(trace.outputs[seen], moved.forward(x[seen]).outputs).mean()
    assert 2 * far <= saturation.LEEWAY * bound
    # And hardly less than that allows.
    moved.params.update(combine(1, net.params, -10.1 * scale, direction))
    far = loss.divergence(trace.outputs[seen], moved.forward(x[seen]).outputs).mean()
    assert 2 * far > bound


def test_what_the_fisher_matrix_says_is_the_least():
    given = saturated()
    assert saturation.by_trial(*given, bounded(3.0), 1e20, None) == 1e20
    assert saturation.by_trial(*given, bounded(None), 0.5, None) == 0.5
    assert saturation.by_trial(*given, bounded(3.0), math.inf, None) == math.inf  # an error


def test_outputs_that_are_not_finite_are_too_far():
    net, trace, x, y, loss, direction = saturated()
    far = {name: 1e30 * value for name, value in direction.items()}
    found = saturation.by_trial(net, trace, x, y, loss, far, bounded(3.0), 0.0, None)
    assert 1e20 < math.sqrt(found) < math.inf


def test_logits_do_not_run_away_where_predictions_stay_as_they_are():
    """All sure of one class, and wrong: what makes them surer changes no prediction."""
    x, _ = images(1.0, 40)
    net, loss, y = network(), kfc.SoftmaxCrossEntropy(), np.ones(40, np.int64)
    net.params["dense1.bias"][:] = [300.0, 0.0, 0.0, 0.0]
    trace = net.forward(x, training=True)
    surer = {name: np.zeros_like(value) for name, value in net.params.items()}
    surer["dense1.bias"][0] = -1.0  # the step is against a direction
    found = saturation.by_trial(net, trace, x, y, loss, surer, bounded(3.0), 0.0, None)
    scale = math.sqrt(3.0 / found)
    assert scale == pytest.approx(saturation.LEEWAY * 3.0, rel=0.5)
    moved = network()
    moved.params.update(combine(1, net.params, -scale, surer))
    rise = loss.value(moved.forward(x).outputs, y) - loss.value(trace.outputs, y)
    assert 0 < rise <= saturation.LEEWAY * 3.0


@pytest.mark.parametrize("difference", [True, False])
def test_a_form_is_not_below_zero(difference):
    """As rounding has it of some directions where one probability is nearly one."""
    x, _ = images(1.0, 40)
    net, loss = network(), kfc.SoftmaxCrossEntropy()
    net.params["dense1.bias"][:] = [20.0, 0.0, 0.0, 0.0]
    rng, forms = np.random.default_rng(0), []
    trace = net.forward(x, training=True)
    for _ in range(100):
        direction = {n: rng.normal(size=v.shape).astype(v.dtype) for n, v in net.params.items()}
        forms.append(form(net, trace, x, loss, direction, None, float(difference)))
    assert min(forms) == 0 < max(forms)
