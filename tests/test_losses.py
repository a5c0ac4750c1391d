"""Losses against loops, differences, and the distributions they stand for."""

import itertools
import math

import numpy as np
import pytest

from kfc_numba import Conv2d, Sequential
from kfc_numba.losses import Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError
from kfc_numba.random import generator

LOSSES = [SoftmaxCrossEntropy(), SquaredError(), SigmoidCrossEntropy()]
SHAPES = [(5, 4), (3, 2, 2, 3)]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=repr)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def outputs_and_targets(loss, shape, dtype=np.float64):
    rng = np.random.default_rng(7)
    outputs = (2 * rng.standard_normal(shape)).astype(dtype)
    if isinstance(loss, SoftmaxCrossEntropy):
        return outputs, rng.integers(shape[-1], size=shape[:-1])
    if isinstance(loss, SquaredError):
        return outputs, rng.standard_normal(shape)
    return outputs, rng.random(shape)


def reference_value(loss, output, target):
    """Negative log-likelihood of one example, from the definition of the density."""
    if isinstance(loss, SoftmaxCrossEntropy):
        rows, labels = output.reshape(-1, output.shape[-1]), np.ravel(target)
        return -sum(
            math.log(math.exp(row[label]) / sum(map(math.exp, row)))
            for row, label in zip(rows, labels, strict=True)
        )
    pairs = list(zip(output.ravel(), target.ravel(), strict=True))
    if isinstance(loss, SquaredError):
        density = [math.exp(-((t - z) ** 2) / 2) / math.sqrt(2 * math.pi) for z, t in pairs]
        constant = len(pairs) * math.log(math.sqrt(2 * math.pi))
        return -sum(map(math.log, density)) - constant
    ones = [(1 / (1 + math.exp(-z)), t) for z, t in pairs]
    return -sum(t * math.log(p) + (1 - t) * math.log(1 - p) for p, t in ones)


def possible_targets(loss, outputs):
    """Every target of one-example outputs with its probability."""
    if isinstance(loss, SoftmaxCrossEntropy):
        rows = np.exp(outputs.reshape(-1, outputs.shape[-1]))
        rows /= rows.sum(axis=1, keepdims=True)
        for labels in itertools.product(range(rows.shape[1]), repeat=len(rows)):
            probability = math.prod(row[label] for row, label in zip(rows, labels, strict=True))
            yield np.reshape(labels, outputs.shape[:-1]), probability
    else:
        ones = 1 / (1 + np.exp(-outputs.ravel()))
        for bits in itertools.product((0, 1), repeat=ones.size):
            terms = [p if bit else 1 - p for p, bit in zip(ones, bits, strict=True)]
            yield np.reshape(bits, outputs.shape), math.prod(terms)


def fisher(loss, outputs):
    """F_R of one-example outputs as a matrix, column by column."""
    size = outputs.size
    units = np.eye(size).reshape(size, *outputs.shape)
    return np.stack([loss.fisher_product(outputs, unit).ravel() for unit in units], axis=1)


@every_loss
@every_shape
def test_values_follow_the_definition(loss, shape):
    outputs, targets = outputs_and_targets(loss, shape)
    expected = [reference_value(loss, z, t) for z, t in zip(outputs, targets, strict=True)]
    np.testing.assert_allclose(loss.values(outputs, targets), expected, rtol=1e-12)
    assert loss.value(outputs, targets) == pytest.approx(np.mean(expected), rel=1e-12)


@every_loss
@every_shape
def test_derivative_is_that_of_each_example(loss, shape):
    outputs, targets = outputs_and_targets(loss, shape)
    derivative = loss.derivative(outputs, targets)
    step = 1e-5
    for index in np.ndindex(shape):
        near = outputs.copy(), outputs.copy()
        near[0][index] += step
        near[1][index] -= step
        up, down = (loss.values(z, targets)[index[0]] for z in near)
        # Central differences: error about step^2 plus rounding / step.
        assert derivative[index] == pytest.approx((up - down) / (2 * step), abs=2e-9)


@every_loss
@every_shape
def test_float32_agrees_with_float64_and_keeps_its_dtype(loss, shape):
    outputs, targets = outputs_and_targets(loss, shape, np.float32)
    exact = outputs.astype(np.float64)
    derivative = loss.derivative(outputs, targets)
    assert derivative.dtype == np.float32
    assert loss.values(outputs, targets).dtype == np.float64
    np.testing.assert_allclose(derivative, loss.derivative(exact, targets), atol=1e-6)
    np.testing.assert_allclose(loss.values(outputs, targets), loss.values(exact, targets), 1e-6)
    product = loss.fisher_product(outputs, outputs)
    assert product.dtype == np.float32
    np.testing.assert_allclose(product, loss.fisher_product(exact, exact), atol=2e-6)
    assert all(column.dtype == np.float32 for column in loss.fisher_columns(outputs))


@every_loss
@every_shape
def test_results_are_new_arrays_and_do_not_depend_on_memory_order(loss, shape):
    outputs, targets = outputs_and_targets(loss, shape)
    before = outputs.copy()
    turned = np.asfortranarray(outputs)
    for z in (outputs, turned):
        derivative, product = loss.derivative(z, targets), loss.fisher_product(z, z)
        np.testing.assert_array_equal(derivative, loss.derivative(outputs, targets))
        np.testing.assert_array_equal(product, loss.fisher_product(outputs, outputs))
        np.testing.assert_array_equal(
            loss.sample(z, generator(0, "a")), loss.sample(outputs, generator(0, "a"))
        )
        derivative += 1
        product += 1
    np.testing.assert_array_equal(outputs, before)


@pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[2]], ids=repr)
@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 2, 3)], ids=str)
def test_fisher_is_the_mean_outer_product_over_targets(loss, shape):
    outputs = 1.5 * np.random.default_rng(3).standard_normal(shape)
    expected, total = np.zeros((outputs.size, outputs.size)), 0.0
    for target, probability in possible_targets(loss, outputs):
        derivative = loss.derivative(outputs, target).ravel()
        expected += probability * np.outer(derivative, derivative)
        total += probability
    assert total == pytest.approx(1)
    np.testing.assert_allclose(fisher(loss, outputs), expected, atol=1e-14)


def test_fisher_of_the_normal_distribution_is_met_at_the_monte_carlo_rate():
    loss, count = SquaredError(), 40_000
    outputs = np.tile([0.5, -3.0, 20.0], (count, 1))
    derivatives = loss.derivative(outputs, loss.sample(outputs, generator(1, "targets")))
    # Entries of the mean of d d^T have variances 2 / count (diagonal) and 1 / count.
    deviation = np.sqrt((1 + np.eye(3)) / count)
    found = derivatives.T @ derivatives / count
    assert np.all(np.abs(found - fisher(loss, outputs[:1])) < 4 * deviation)
    assert np.all(np.abs(derivatives.mean(axis=0)) < 4 / math.sqrt(count))


@every_loss
@every_shape
def test_columns_are_a_square_root_of_the_fisher(loss, shape):
    outputs, _ = outputs_and_targets(loss, shape)
    v = np.random.default_rng(2).standard_normal(shape)
    columns = list(loss.fisher_columns(outputs))
    assert len(columns) == outputs[0].size
    result = np.zeros(shape)
    for c in columns:
        inner = (c * v).reshape(len(c), -1).sum(axis=1)
        result += c * inner.reshape(-1, *[1] * (len(shape) - 1))
    np.testing.assert_allclose(result, loss.fisher_product(outputs, v), atol=1e-14)


def test_softmax_samples_by_the_inverse_distribution_function_in_order():
    outputs, _ = outputs_and_targets(LOSSES[0], (50, 2, 3, 4))
    uniform = generator(5, "targets", 1).random(50 * 6)
    expected = []
    for row, u in zip(outputs.reshape(-1, 4), uniform, strict=True):
        below, label = 0.0, -1
        while below <= u:
            label += 1
            below += math.exp(row[label]) / sum(map(math.exp, row))
        expected.append(label)
    found = LOSSES[0].sample(outputs, generator(5, "targets", 1))
    assert len(set(expected)) == 4
    np.testing.assert_array_equal(found, np.reshape(expected, (50, 2, 3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_samples_have_the_predicted_frequencies(dtype):
    count, row = 40_000, np.array([0.0, 1.0, -2.0, 0.5])
    outputs = np.tile(row, (count, 1)).astype(dtype)
    labels = LOSSES[0].sample(outputs, generator(2, "targets"))
    ones = LOSSES[2].sample(outputs, generator(2, "targets"))
    assert ones.dtype == dtype
    assert set(np.unique(ones)) == {0, 1}
    softmax, sigmoid = np.exp(row) / np.exp(row).sum(), 1 / (1 + np.exp(-row))
    for found, p in ((np.bincount(labels) / count, softmax), (ones.mean(axis=0), sigmoid)):
        assert np.all(np.abs(found - p) < 4 * np.sqrt(p * (1 - p) / count))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal_samples_lie_around_the_outputs(dtype):
    outputs, _ = outputs_and_targets(LOSSES[1], (3, 2, 2, 3), dtype)
    found = LOSSES[1].sample(outputs, generator(8, "targets"))
    drawn = generator(8, "targets").standard_normal(outputs.shape, dtype)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, outputs + drawn, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[2]], ids=repr)
def test_huge_logits_stay_finite_and_right(loss, dtype):
    outputs = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [1e30, 0.0, 0.0]], dtype)
    softmax = isinstance(loss, SoftmaxCrossEntropy)
    targets = np.array([1, 2, 0]) if softmax else np.array([[0, 1, 1], [0, 0, 1], [1, 1, 0]])
    expected = [2e4, 0, 0] if softmax else [2e4 + math.log(2), 0, 2 * math.log(2)]
    np.testing.assert_allclose(loss.values(outputs, targets), expected, rtol=1e-7)
    rng = generator(0, "targets")
    arrays = [loss.derivative(outputs, targets), loss.fisher_product(outputs, outputs)]
    for array in (*arrays, *loss.fisher_columns(outputs), loss.sample(outputs, rng)):
        assert np.isfinite(array).all()
    assert np.all(np.abs(arrays[0]) <= 1)


@every_loss
def test_outputs_that_are_not_finite_show_in_the_value_without_a_warning(loss):
    for bad in (np.nan, np.inf, -np.inf):
        outputs, targets = outputs_and_targets(loss, (5, 4))
        outputs[2] = bad
        assert not math.isfinite(loss.value(outputs, targets))
        assert np.isfinite(loss.values(outputs, targets)[[0, 1, 3, 4]]).all()
        loss.derivative(outputs, targets)


def test_the_mean_is_taken_in_float64():
    # Added up in float32 the small values would vanish beside the large one.
    outputs = np.full((100_001, 1), 1e-3, np.float32)
    outputs[0] = 1e4
    expected = 0.5 * (1e8 + 100_000 * float(np.float32(1e-3)) ** 2) / 100_001
    assert SquaredError().value(outputs, np.zeros_like(outputs)) == pytest.approx(expected, 1e-12)


def test_errors():
    z = np.array([[0.1, 0.2, 0.0], [3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]])
    assert LOSSES[0].error(z, [1, 2, 1]) == pytest.approx(2 / 3)
    assert LOSSES[1].error(z, z + np.diag([1, 2, 0])) == pytest.approx(5 / 9)
    targets = [[1, 0.9, 1], [1, 0, 0.2], [0, 0, 1]]  # wrong: 0.0 for 1, 2.0 for 0.2, -3.0 for 1
    assert LOSSES[2].error(z, targets) == pytest.approx(3 / 9)


@pytest.mark.parametrize(
    ("loss", "targets", "error", "message"),
    [
        (LOSSES[0], np.zeros(3), TypeError, "targets must be integers, got dtype float64"),
        (LOSSES[0], [0, 1], ValueError, r"targets must have shape \(3,\), got \(2,\)"),
        (LOSSES[0], [0, 4, 1], ValueError, "targets must be from 0 to 3, got 0 to 4"),
        (LOSSES[0], [0, -1, 1], ValueError, "targets must be from 0 to 3, got -1 to 1"),
        (LOSSES[1], np.zeros(3), ValueError, r"targets must have shape \(3, 4\), got \(3,\)"),
        (LOSSES[1], np.full((3, 4), np.inf), ValueError, "targets must be finite"),
        (LOSSES[1], np.zeros((3, 4), complex), TypeError, "targets must hold real numbers"),
        (LOSSES[2], np.full((3, 4), 2), ValueError, "targets must be from 0 to 1, got 2 to 2"),
        (LOSSES[2], np.full((3, 4), np.nan), ValueError, "targets must be from 0 to 1"),
        (LOSSES[2], np.zeros((3, 1)), ValueError, r"targets must have shape \(3, 4\)"),
    ],
)
def test_targets_that_do_not_fit(loss, targets, error, message):
    outputs = np.zeros((3, 4))
    for call in (loss.values, loss.derivative, loss.error):
        with pytest.raises(error, match=message):
            call(outputs, targets)


def test_outputs_that_do_not_fit():
    with pytest.raises(ValueError, match="outputs must have classes as their last axis"):
        LOSSES[0].value(np.zeros(3), [0, 1, 2])
    for loss in LOSSES:
        with pytest.raises(TypeError, match="outputs must be float32 or float64, got dtype int64"):
            loss.sample(np.zeros((3, 4), np.int64), generator(0, "a"))
        with pytest.raises(ValueError, match=r"v must have the shape \(3, 4\)"):
            loss.fisher_product(np.zeros((3, 4)), np.zeros((3, 1)))


def test_targets_of_small_integer_types():
    outputs, _ = outputs_and_targets(LOSSES[2], (5, 4))
    bits = np.arange(20).reshape(5, 4) % 3 == 0
    for dtype in (bool, np.uint8, np.int8):
        targets = bits.astype(dtype)
        for loss in LOSSES[1:]:
            exact = bits.astype(np.float64)
            np.testing.assert_array_equal(
                loss.values(outputs, targets), loss.values(outputs, exact)
            )
            np.testing.assert_array_equal(
                loss.derivative(outputs, targets), loss.derivative(outputs, exact)
            )


@every_loss
def test_one_example(loss):
    """And a component more than there are examples."""
    outputs, targets = outputs_and_targets(loss, (5, 2, 2, 3))
    columns = list(loss.fisher_columns(outputs[:1]))
    assert len(columns) == 12
    for column, whole in zip(columns, loss.fisher_columns(outputs), strict=True):
        np.testing.assert_array_equal(column, whole[:1])
    np.testing.assert_allclose(
        loss.values(outputs[:1], targets[:1]), loss.values(outputs, targets)[:1], rtol=1e-15
    )


@every_loss
def test_value_and_derivative_are_those_apart(loss):
    for dtype in (np.float32, np.float64):
        outputs, targets = outputs_and_targets(loss, (4, 2, 3, 5), dtype)
        value, derivative = loss.value_and_derivative(outputs, targets)
        assert type(value) is float
        assert value == pytest.approx(loss.value(outputs, targets), rel=1e-15)
        assert value == pytest.approx(loss.values(outputs, targets).mean(), rel=1e-15)
        np.testing.assert_array_equal(derivative, loss.derivative(outputs, targets))


def test_errors_are_counted_at_every_location():
    outputs = np.zeros((2, 3, 2, 4))
    outputs[..., 1] = 1
    targets = np.ones((2, 3, 2), int)
    targets[1, 2, 0] = targets[0, 0, 1] = 3
    assert LOSSES[0].error(outputs, targets) == pytest.approx(2 / 12)
    # Neither an output of zero nor a target of one half is above.
    assert LOSSES[2].error(np.array([[0.0, 0.0]]), [[0.5, 0.4]]) == 0
    assert LOSSES[2].error(np.array([[1.0, 1.0]]), [[0.5, 0.6]]) == 0.5


@every_loss
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_warning_for_outputs_as_large_as_there_are(loss, dtype):
    largest = np.finfo(dtype).max
    outputs = np.array([[largest, -largest, 1.0], [-largest, largest, 0.0]], dtype)
    targets = np.array([2, 0]) if loss is LOSSES[0] else np.array([[0.0, 1, 1], [1, 0, 1]])
    far = targets if loss is not LOSSES[1] else -outputs.astype(np.float64)
    loss.values(outputs, far)
    loss.derivative(outputs, far)
    loss.value_and_derivative(outputs, far)
    loss.error(outputs, far)
    assert loss.derivative(outputs, targets).dtype == dtype


def test_the_squared_error_of_float32_is_not_rounded():
    outputs = np.array([[1.0, 3.0]], np.float32)
    targets = np.array([[1.0 + 1e-9, 3.0 - 1e-9]])
    assert LOSSES[1].error(outputs, targets) == pytest.approx(1e-18, rel=1e-6)
    assert LOSSES[1].value(outputs, targets) == pytest.approx(1e-18, rel=1e-6)
    small = np.array([[1e-30]], np.float32)
    assert LOSSES[1].error(small, np.zeros((1, 1), np.float32)) == pytest.approx(1e-60, rel=1e-6)


@every_loss
@every_shape
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_predictive_mean_is_the_mean_over_targets(loss, shape, dtype):
    outputs, _ = outputs_and_targets(loss, shape, dtype)
    found = loss.predictive_mean(outputs)
    assert found.dtype == dtype
    assert not np.may_share_memory(found, outputs)
    exact = outputs.astype(np.float64)
    if loss is LOSSES[0]:
        terms = np.exp(exact)
        expected = terms / terms.sum(axis=-1, keepdims=True)
    else:
        expected = exact if loss is LOSSES[1] else 1 / (1 + np.exp(-exact))
    np.testing.assert_allclose(found, expected, rtol=16 * np.finfo(dtype).eps)


@every_loss
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predict_proba_of_a_network(loss, dtype):
    net = Sequential([Conv2d(3, 3, padding="same")], input_shape=(4, 5, 2), dtype=dtype)
    x = np.random.default_rng(1).standard_normal((7, 4, 5, 2)).astype(dtype)
    found = net.predict_proba(x, loss, batch_size=3)
    assert found.shape == (7, 4, 5, 3)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, loss.predictive_mean(net.predict(x)))
    if loss is LOSSES[0]:
        np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)


def test_a_loss_says_its_name():
    names = ["SoftmaxCrossEntropy()", "SquaredError()", "SigmoidCrossEntropy()"]
    assert [repr(loss) for loss in LOSSES] == names


@every_loss
@every_shape
def test_fisher_trace_is_that_of_the_columns(loss, shape):
    outputs = np.random.default_rng(0).normal(size=shape)
    columns = [column.reshape(len(outputs), -1) for column in loss.fisher_columns(outputs)]
    expected = sum((column**2).sum(axis=1) for column in columns)
    np.testing.assert_allclose(loss.fisher_trace(outputs), expected, rtol=1e-12)
    np.testing.assert_allclose(Loss.fisher_trace(loss, outputs), expected, rtol=1e-12)


@pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[2]], ids=repr)
@pytest.mark.parametrize("shape", [(3, 4), (2, 2, 1, 3)], ids=str)
@pytest.mark.parametrize("far", [1.0, 30.0])
def test_divergence_is_the_mean_over_targets(loss, shape, far):
    rng = np.random.default_rng(5)
    outputs, after = rng.normal(size=shape), far * rng.normal(size=shape)
    found = loss.divergence(outputs, after)
    for i, value in enumerate(found):
        one, other = outputs[i : i + 1], after[i : i + 1]
        expected = sum(
            p * (loss.value(other, t) - loss.value(one, t)) for t, p in possible_targets(loss, one)
        )
        assert value == pytest.approx(expected, rel=1e-9)
    np.testing.assert_array_equal(loss.divergence(outputs, outputs), 0)


@pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[2]], ids=repr)
def test_divergence_of_small_differences_is_half_of_the_fisher_form(loss):
    rng = np.random.default_rng(6)
    outputs, change = rng.normal(size=(4, 3)), 1e-4 * rng.normal(size=(4, 3))
    form = (change * loss.fisher_product(outputs, change)).sum(axis=1)
    np.testing.assert_allclose(2 * loss.divergence(outputs, outputs + change), form, rtol=1e-3)


@pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[2]], ids=repr)
def test_divergence_of_sure_predictions(loss):
    """In logits of hundreds, of float32, without a warning; not finite where outputs are not."""
    outputs = np.array([[800.0, 0.0], [800.0, 0.0], [800.0, 0.0]], np.float32)
    after = np.array([[900.0, 0.0], [0.0, 700.0], [np.inf, np.nan]], np.float32)
    found = loss.divergence(outputs, after)
    assert found.dtype == np.float64
    assert found[0] == pytest.approx(0, abs=1e-12)
    assert found[1] > 300
    assert not np.isfinite(found[2])
    assert LOSSES[1].divergence(outputs, after) is None


class Poisson(Loss):
    """A loss of one's own, whose outputs are logarithms of rates."""

    def values(self, outputs, targets):
        return (np.exp(outputs) - targets * outputs).sum(axis=1)

    def derivative(self, outputs, targets):
        return np.exp(outputs) - targets


def test_a_loss_of_ones_own():
    outputs, counts = np.array([[0.0, 1.0], [-1.0, 0.5]]), np.array([[1, 2], [0, 3]])
    loss = Poisson()
    value, derivative = loss.value_and_derivative(outputs, counts)
    assert type(value) is float
    assert value == loss.value(outputs, counts) == loss.values(outputs, counts).mean()
    np.testing.assert_array_equal(derivative, loss.derivative(outputs, counts))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_the_least_of_a_loss(dtype):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (5, 3, 2)).astype(dtype)
    loss = SigmoidCrossEntropy()
    assert loss.least(y) == 0
    if dtype is np.int64:
        return
    y[::2] = rng.uniform(0.05, 0.95, y[::2].shape)
    logits = np.log(np.clip(y.astype(np.float64), 1e-12, 1)) - np.log(np.clip(1 - y, 1e-12, 1))
    assert loss.least(y) == pytest.approx(loss.value(logits, y.astype(np.float64)), rel=1e-5)
    # A minimum: any other outputs have more.
    for _ in range(20):
        other = logits + rng.normal(scale=0.1, size=logits.shape)
        assert loss.value(other, y.astype(np.float64)) > loss.least(y)


@pytest.mark.parametrize("loss", [SquaredError(), SoftmaxCrossEntropy()])
def test_other_losses_can_fall_to_zero(loss):
    assert loss.least(np.array([0, 1])) == 0
