"""Numbers that are not finite, and masks: refused by name, and training as if there were none."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import evaluation
from kfc_numba.random import generator

LOSS = kfc.SoftmaxCrossEntropy()
COUNT = 40


def network(first=None, dtype=np.float32):
    first = [kfc.Conv2d(4, 3, padding="same")] if first is None else first
    layers = [*first, kfc.BatchNorm(), kfc.ReLU(), kfc.Flatten(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=(6, 6, 2), dtype=dtype)


def data():
    rng = np.random.default_rng(1)
    return rng.standard_normal((COUNT, 6, 6, 2)).astype(np.float32), rng.integers(3, size=COUNT)


X, Y = data()
BAD = X.copy()
BAD[17, 2, 3, 1] = np.nan
OPTIMIZERS = {
    "SGD": kfc.SGD,
    "Adam": kfc.Adam,
    "KFC": kfc.KFC,
    "burn-in": lambda: kfc.KFC(num_burnin_steps=4),
    "burn-in of EKFAC": lambda: kfc.KFC(num_burnin_steps=4, structure="ekfac"),
    "burn-in of the empirical Fisher": lambda: kfc.KFC(
        num_burnin_steps=4, estimation_mode="fisher_empirical"
    ),
}


def trainer(make=kfc.SGD, net=None):
    return kfc.Trainer(net or network(), LOSS, make(), seed=3)


def fit(which, x=X, **more):
    options = {"batch_size": 10, "epochs": 2, "training_sample": 1, "progress": False} | more
    return which.fit(x, Y, **options)


def everything(which):
    arrays = which.net.params | which.net.buffers | which.optimizer_state
    return {name: value.copy() for name, value in arrays.items()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_after_a_bad_example_training_is_as_if_it_had_never_come(make):
    found, clean = trainer(make), trainer(make)
    message = "x has 1 value that is not finite, example 17 of the data"
    with pytest.raises(ValueError, match=f"^{message}$"):
        fit(found, BAD)
    seen = generator(3, "shuffle", 0).permutation(COUNT)
    burnt = found.optimizer.num_burnin_steps > 0
    assert found.steps == (0 if burnt else list(seen).index(17) // 10)
    fit(found)
    fit(clean)
    assert found.steps == clean.steps == 8
    assert_same(everything(found), everything(clean))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_step_on_a_bad_batch_changes_nothing(make, value):
    found = trainer(make)
    found.step(X[:10], Y[:10])
    before = everything(found)
    x = X[10:20].copy()
    x[3, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"^x has 1 value that is not finite, example 3 of the b"):
        found.step(x, Y[10:20])
    x[7, 1:3, 0, 0] = value
    message = "^x has 3 values that are not finite, the first in example 3 of the batch$"
    with pytest.raises(ValueError, match=message):
        found.step(x, Y[10:20])
    assert_same(everything(found), before)
    optimizer, state = found.optimizer, found.optimizer_state
    with pytest.raises(ValueError, match=message):
        optimizer.step(found.net, LOSS, x, Y[10:20], state)
    assert_same(everything(found), before)


def test_burn_in_names_the_batch():
    found = trainer(OPTIMIZERS["burn-in"])
    before = everything(found)
    batches = [(X[:10], Y[:10]), (BAD[10:20], Y[10:20])]
    message = "^x has 1 value that is not finite, example 7 of batch 1 of the burn-in$"
    with pytest.raises(ValueError, match=message):
        found.optimizer.prepare(found.net, LOSS, batches, found.optimizer_state)
    assert_same(everything(found), before)


class HalfPrepared(kfc.SGD):
    """Somebody's optimizer, which changes its state while it looks at batches."""

    num_burnin_steps = 4

    def prepare(self, net, loss, batches, state, *, seed=0):
        for x, y in batches:
            loss_of_batch, gradients = net.value_and_grad(x, y, loss)
            for name, gradient in gradients.items():
                state[f"momentum/{name}"] = state[f"momentum/{name}"] + gradient
            if not np.isfinite(loss_of_batch):
                raise FloatingPointError("loss")


def test_burn_in_of_any_optimizer_is_all_or_nothing():
    found, clean = trainer(HalfPrepared), trainer(HalfPrepared)
    with pytest.raises(
        ValueError, match=r"^x has 1 value that is not finite, example 17 of the da"
    ):
        fit(found, BAD)
    assert_same(everything(found), everything(trainer(HalfPrepared)))
    fit(found)
    fit(clean)
    assert_same(everything(found), everything(clean))


# Layers that a bad pixel does not come through: pooling takes the larger, strides step over it.
SWALLOWED = {
    "pooling": [kfc.MaxPool2d(2)],
    "stride": [kfc.Conv2d(4, 1, stride=3)],
}


@pytest.mark.parametrize("first", SWALLOWED.values(), ids=SWALLOWED)
def test_what_the_network_would_not_have_noticed_is_refused_too(first):
    x = X.copy()
    x[17, 2, 4, 1] = -np.inf
    net = network(first)
    if not isinstance(first[0], kfc.MaxPool2d):
        assert np.isfinite(net.predict(x)).all()
    for use in (
        lambda: fit(trainer(net=net), x),
        lambda: trainer(net=net).step(x, Y),
        lambda: kfc.evaluate(net, LOSS, x, Y),
    ):
        with pytest.raises(ValueError, match="x has 1 value that is not finite, example 17 of"):
            use()


def test_the_sample_that_evaluations_use_is_looked_at_first():
    found = trainer()
    with pytest.raises(
        ValueError, match=r"^x has 1 value that is not finite, example 17 of the da"
    ):
        fit(found, BAD, training_sample=COUNT)
    assert found.steps == 0
    assert not found.history.rows
    part = generator(3, "training sample").permutation(COUNT)[:8]
    x = X.copy()
    x[part[3]] = np.nan
    with pytest.raises(ValueError, match=f"^x has 72 val.*, the first in example {part[3]} of the"):
        fit(found, x, training_sample=8)


def test_validation_data_are_refused_before_anything_is_done():
    found = trainer()
    bad = re.escape("inputs of validation has 1 value that is not finite, example 17 of the data")
    with pytest.raises(ValueError, match=f"^{bad}$"):
        fit(found, validation=(BAD, Y))
    assert found.steps == 0
    assert not found.history.rows
    fit(found, max_steps=3)
    with pytest.raises(ValueError, match=f"^{bad}$"):
        fit(found, validation=(BAD, Y))
    assert found.steps == 3


def test_evaluate_names_the_example():
    # In the second of its batches.
    with pytest.raises(
        ValueError, match=r"^x has 1 value that is not finite, example 17 of the da"
    ):
        kfc.evaluate(network(), LOSS, BAD, Y, batch_size=10)


def test_numbers_beyond_the_type_of_the_network():
    x = X.astype(np.float64)
    x[17, 0, 0, 0] = 1e39
    message = "^x has 1 value that is not finite in float32, example 17 of the batch$"
    with pytest.raises(ValueError, match=message):
        trainer().step(x, Y)
    with pytest.raises(ValueError, match=message.replace("batch", "data")):
        fit(trainer(), x)
    with pytest.raises(ValueError, match=message.replace("batch", "data")):
        kfc.evaluate(network(), LOSS, x, Y)
    trainer(net=network(dtype=np.float64)).step(x / 10, Y)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.longdouble, bool])
def test_all_types_of_numbers_are_taken(dtype):
    x = (X > 0).astype(dtype)
    found, same = trainer(), trainer()
    assert found.step(x, Y) == same.step(x.astype(np.float32), Y)
    assert np.isfinite(kfc.evaluate(found.net, LOSS, x, Y)).all()


def test_inputs_are_looked_at_once_in_a_step(monkeypatch):
    found, looked = trainer(OPTIMIZERS["burn-in"]), []
    kernels = evaluation.kernels

    def all_finite(array):
        looked.append(len(array))
        return kernels(array).all_finite(array)

    namespace = SimpleNamespace(all_finite=all_finite)
    monkeypatch.setattr(evaluation, "kernels", lambda array: namespace)
    found.step(X[:10], Y[:10])
    assert looked == [10]
    fit(found, epochs=1)
    # Four batches of burn-in, four of training; the sample of one example to begin with, and at
    # each evaluation.
    assert sorted(looked[1:]) == [1, 1, 1, *8 * [10]]


MASK = np.zeros(X.shape, bool)
MASK[17, :2, 0, 0] = MASK[20, 0, 0, 0] = True
MASKED = np.ma.array(X, mask=MASK)
NO_MASK = np.ma.array(X, mask=False)


def uses(net, x, y):
    return {
        "predict": lambda: net.predict(x),
        "value_and_grad": lambda: net.value_and_grad(x, y, LOSS),
        "evaluate": lambda: kfc.evaluate(net, LOSS, x, y),
        "step": lambda: kfc.Trainer(net, LOSS, kfc.SGD()).step(x, y),
        "fit": lambda: kfc.Trainer(net, LOSS, kfc.SGD()).fit(x, y, epochs=1, progress=False),
        "validation": lambda: kfc.Trainer(net, LOSS, kfc.SGD()).fit(
            X, Y, epochs=1, progress=False, validation=(x, y)
        ),
        "posterior": lambda: kfc.laplace.KroneckerPosterior(net, LOSS).fit(x),
        "curvature": lambda: kfc.check_curvature(net, x[:30], LOSS, exact_examples=2),
    }


@pytest.mark.parametrize("use", uses(None, None, None))
def test_masked_entries_are_refused(use):
    with pytest.raises(
        ValueError, match=r"has 3 masked values, the first in example 17; .* no mask"
    ):
        uses(network(), MASKED, Y)[use]()
    uses(network(), NO_MASK, np.ma.array(Y))[use]()


@pytest.mark.parametrize("use", ["posterior", "curvature"])
def test_curvature_of_bad_data_is_refused(use):
    with pytest.raises(
        ValueError, match=r"^x has 1 value that is not finite, example 17 of the da"
    ):
        uses(network(), BAD, Y)[use]()


@pytest.mark.parametrize("use", ["value_and_grad", "evaluate", "step", "fit", "validation"])
def test_masked_targets_are_refused(use):
    y = np.ma.array(Y, mask=Y < 0)
    y[5] = np.ma.masked
    with pytest.raises(ValueError, match=r"(y|targets.*) has 1 masked value, example 5; "):
        uses(network(), X, y)[use]()


def test_masked_images_in_a_list_are_refused():
    with pytest.raises(ValueError, match=r"^x has 3 masked values, the first in example 17; "):
        network().predict(list(MASKED))
    np.testing.assert_array_equal(network().predict(list(NO_MASK)), network().predict(X))


def test_targets_that_are_not_finite():
    y = np.zeros((COUNT, 3), np.float32)
    y[4, 1] = np.nan
    found = kfc.Trainer(network(), kfc.SquaredError(), kfc.SGD())
    message = "targets must be finite, got 1 value that is not finite, example 4$"
    with pytest.raises(ValueError, match=f"^{message}"):
        found.step(X, y)
    with pytest.raises(ValueError, match=f"^y: {message}"):
        found.fit(X, y, epochs=1, progress=False)
    assert found.steps == 0
