"""What is in the network after training is what the history is of, and training goes on exactly."""

import copy
import itertools

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import checkpoint, progress, train
from kfc_numba.averaged import Aside
from kfc_numba.optim import averaging, base

LOSS = kfc.SoftmaxCrossEntropy()
OPTIMIZERS = {
    "SGD": lambda: kfc.SGD(learning_rate=0.1, averaging=4),
    "Adam": lambda: kfc.Adam(learning_rate=0.05),
    "KFC": lambda: kfc.KFC(num_burnin_steps=2, curvature_update_period=2),
    "no average": lambda: kfc.SGD(learning_rate=0.1, averaging=None),
}


def data(count=40, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 5)).astype(np.float32)
    return x, (x[:, 0] > 0) + (x[:, 1] > 0).astype(np.int64)


X, Y = data()
HELD_OUT = data(30, seed=2)


def network(seed=0):
    layers = [kfc.Dense(8), kfc.BatchNorm(), kfc.ReLU(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=(5,), seed=seed)


def trainer(make=OPTIMIZERS["SGD"], net=None):
    return kfc.Trainer(net or network(), LOSS, make(), seed=3)


def fit(which, **more):
    options = {"batch_size": 10, "epochs": 2, "validation": HELD_OUT, "progress": False} | more
    return which.fit(X, Y, **options)


def copied(arrays):
    return {name: value.copy() for name, value in arrays.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def everything(which):
    """What the network shows, what training goes on from, and the rest."""
    last = which.raw_params | which.raw_buffers
    raw = {f"raw/{name}": value for name, value in last.items()}
    return copied(raw | which.net.params | which.net.buffers | which.optimizer_state)


def assert_shows_the_average(which):
    net, state = which.net, which.optimizer_state
    if which.optimizer.averaging is not None and state[averaging.WEIGHT] > 0:
        expected = averaging.average(state, net)
        assert_same(net.params | net.buffers, expected)
        for raw in (which.raw_params, which.raw_buffers):
            assert any(not np.array_equal(raw[name], expected[name]) for name in raw)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_who_predicts_after_fit_gets_what_the_history_promised(make):
    found = trainer(make)
    row = fit(found).rows[-1]
    loss, error = kfc.evaluate(found.net, LOSS, *HELD_OUT)
    assert (loss, error) == (row["validation_loss"], row["validation_error"])
    outputs = found.net.predict(HELD_OUT[0])
    assert error == pytest.approx(np.mean(outputs.argmax(axis=1) != HELD_OUT[1]), abs=1e-12)
    np.testing.assert_array_equal(found.evaluation_net().predict(HELD_OUT[0]), outputs)
    assert_shows_the_average(found)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_from_the_raw_parameters(make, tmp_path):
    once, twice, saved = trainer(make), trainer(make), trainer(make)
    fit(once, epochs=3)
    fit(twice, epochs=1)
    twice.net.predict(X)
    twice.evaluation_net().predict(X)
    fit(twice, epochs=2)
    fit(saved, epochs=1)
    saved.save(tmp_path / "c")
    loaded = kfc.Trainer.load(tmp_path / "c", network(9), LOSS, make())
    assert_same(everything(loaded), everything(saved))
    assert_shows_the_average(loaded)
    fit(loaded, epochs=2)
    loaded_again = copy.deepcopy(saved)
    fit(loaded_again, epochs=2)
    for other in (twice, loaded, loaded_again):
        assert_same(everything(other), everything(once))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_after_fit_go_on_from_the_raw_parameters_and_leave_them(make):
    found, net, optimizer = trainer(make), network(), make()
    state = optimizer.init(net)
    batches = [(X[k : k + 8], Y[k : k + 8]) for k in (0, 8, 16, 24)]
    for x, y in batches:
        optimizer.step(net, LOSS, x, y, state, seed=3)
    for batch in batches[:2]:
        found.step(*batch)
    found.fit(X, Y, batch_size=8, max_steps=1, stop=lambda row: True, progress=False)
    assert found.steps == 2  # it was evaluated, no more
    assert_shows_the_average(found)
    for batch in batches[2:]:
        found.step(*batch)
    assert_same(found.net.params | found.net.buffers, net.params | net.buffers)
    assert_same(found.optimizer_state, state)
    shown = found.evaluation_net()
    assert_same(shown.params | shown.buffers, optimizer.evaluation_arrays(net, state))


def test_a_step_that_fails_after_fit_leaves_the_averages():
    found = trainer()
    fit(found, epochs=1)
    shown, raw = copied(found.net.params), copied(found.raw_params)
    for x, y, error in (
        (np.full_like(X[:8], np.nan), Y[:8], ValueError),
        (X[:8], Y[:8].astype(float), TypeError),
        (X[:8].astype(complex), Y[:8], TypeError),
    ):
        with pytest.raises(error):
            found.step(x, y)
        assert_same(found.net.params, shown)
        assert_same(found.raw_params, raw)


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError, Stop])
@pytest.mark.parametrize("where", ["step", "evaluate", "stop"])
def test_however_fit_ends_the_network_has_the_average(monkeypatch, error, where):
    found, calls = trainer(), itertools.count()

    def fails(*arguments, **more):
        if next(calls) == 4:
            raise error
        return usual(*arguments, **more)

    usual = {"step": found.optimizer.step, "evaluate": kfc.evaluate, "stop": lambda row: False}[
        where
    ]
    with monkeypatch.context() as patch:
        patch.setattr(train, "warm", lambda *arguments, **more: 0)  # it takes steps, too
        patch.setattr(found.optimizer, "step", fails if where == "step" else found.optimizer.step)
        patch.setattr(train, "evaluate", fails if where == "evaluate" else kfc.evaluate)
        with pytest.raises(error):
            fit(found, epochs=6, stop=fails if where == "stop" else None)
    assert found.steps > 3
    assert_shows_the_average(found)
    # What went wrong has no part in what comes after it.
    steps = found.steps
    fit(found, epochs=None, total_steps=40)
    once = trainer()
    fit(once, epochs=None, total_steps=40)
    assert steps < found.steps == 40
    assert_same(everything(found), everything(once))


def test_an_interrupt_while_a_step_is_written_does_not_leave_half_of_it(monkeypatch):
    found, once = trainer(OPTIMIZERS["KFC"]), trainer(OPTIMIZERS["KFC"])
    usual, failed = base.shift, []

    class Parameters(dict):
        def items(self):
            for index, item in enumerate(super().items()):
                if index == 2 and found.steps == 3 and not failed:
                    failed.append(item)
                    raise KeyboardInterrupt
                yield item

    def shift(*arguments):
        return Parameters(usual(*arguments))

    for k in range(3):
        found.step(X[k : k + 8], Y[k : k + 8])
    with monkeypatch.context() as patch:
        patch.setattr(base.StepChecks, "arrays", lambda *arguments: None)
        patch.setattr(base, "update_average", lambda *how: {})
        patch.setattr(base, "shift", shift)
        with pytest.raises(KeyboardInterrupt):
            found.step(X[3:11], Y[3:11])
    assert failed
    assert found.steps == 4
    for k in range(4):
        once.step(X[k : k + 8], Y[k : k + 8])
    assert_same(found.net.params, once.net.params)


def test_an_interrupt_while_progress_is_shown_loses_no_place(monkeypatch):
    found, once = trainer(), trainer()
    calls = itertools.count()

    def shown(self, loss, epoch):
        if next(calls) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, "step", shown)
        with pytest.raises(KeyboardInterrupt):
            fit(found, epochs=3)
    assert found.steps == 6
    fit(found, epochs=None, total_epochs=3)
    fit(once, epochs=3)
    # The average over steps and all else is that of a run that nothing came into.
    assert_same(everything(found), everything(once))


class Interrupted(dict):
    """Parameters; the copy that comes next is cut short."""

    def items(self):
        for index, item in enumerate(super().items()):
            if index == 2:
                raise KeyboardInterrupt
            yield item


@pytest.mark.parametrize("moment", ["when the average is left", "when training goes on"])
def test_an_interrupt_while_parameters_are_exchanged_loses_none(monkeypatch, moment):
    found, once = trainer(), trainer()
    fit(once, epochs=3)
    fit(found, epochs=1)
    raw = copied(found.raw_params)
    if moment == "when training goes on":
        found._aside._raw = Interrupted(found._aside._raw)
        with pytest.raises(KeyboardInterrupt):
            found.step(X[:10], Y[:10])
        found._aside._raw = dict(dict.items(found._aside._raw))
    else:
        found._aside.go_on(*found._trained)
        monkeypatch.setattr(
            found.optimizer,
            "evaluation_arrays",
            lambda net, state: Interrupted(averaging.average(state, net)),
        )
        with pytest.raises(KeyboardInterrupt):
            found._aside.leave_averages(*found._trained)
        monkeypatch.undo()
    assert found.steps == 4
    assert_same(found.raw_params, raw)
    found._aside.leave_averages(*found._trained)
    assert_shows_the_average(found)
    fit(found, epochs=2)
    assert_same(everything(found), everything(once))


def test_the_network_has_the_average_when_it_is_asked_whether_to_stop():
    """Who keeps the best network keeps the one that the row is of."""
    found, kept = trainer(), []

    def stop(row):
        kept.append((row, copy.deepcopy(found.net)))

    fit(found, epochs=3, stop=stop)
    assert len(kept) == 4
    for row, net in kept:
        assert kfc.evaluate(net, LOSS, *HELD_OUT)[0] == row["validation_loss"]
    once = trainer()
    fit(once, epochs=3)
    assert_same(everything(found), everything(once))


@pytest.mark.parametrize("go_on", ["fit", "step"])
@pytest.mark.parametrize("how", ["in place", "another array", "all of them"])
def test_a_change_by_hand_wins(how, go_on, tmp_path):
    found = trainer()
    fit(found)
    shown = copied(found.net.params)
    if how == "in place":
        found.net.params["dense2.bias"][1] += 0.5
    elif how == "another array":
        found.net.params["dense2.bias"] = np.array([0.1, 0.2, 0.3], np.float32)
    else:
        for name, value in network(5).params.items():
            found.net.params[name][...] = value
    wanted = copied(found.net.params)
    assert_same(found.evaluation_net().params, wanted)
    # The same as a network with these parameters all along, and no average so far.
    expected = copy.deepcopy(found)
    expected._aside = Aside()
    expected.optimizer_state.update(averaging.initial_average(expected.net))
    found.save(tmp_path / "c")
    assert_same(found.net.params, wanted)
    assert_same(found.raw_params, wanted)
    for which in (found, expected):
        if go_on == "fit":
            fit(which)
        else:
            which.step(X[:10], Y[:10])
    assert_same(everything(found), everything(expected))
    assert how != "in place" or not np.array_equal(found.net.params["dense2.bias"], shown)
    loaded = kfc.Trainer.load(tmp_path / "c", network(9), LOSS, OPTIMIZERS["SGD"]())
    assert_same(loaded.net.params, wanted)
    if go_on == "fit":
        fit(loaded)
    else:
        loaded.step(X[:10], Y[:10])
    assert_same(everything(loaded), everything(expected))


def test_a_change_of_statistics_by_hand_wins_too():
    found = trainer()
    fit(found)
    found.net.buffers["norm1.variance"] = np.full(8, 0.5, np.float32)
    wanted = copied(found.net.params | found.net.buffers)
    assert_same(found.raw_params | found.raw_buffers, wanted)
    shown = found.evaluation_net()
    assert_same(shown.params | shown.buffers, wanted)
    expected = copy.deepcopy(found)
    expected._aside = Aside()
    expected.optimizer_state.update(averaging.initial_average(expected.net))
    for which in (found, expected):
        which.step(X[:10], Y[:10])
    assert_same(everything(found), everything(expected))


def test_statistics_fit_the_parameters_that_they_are_shown_with():
    """Weights that shrink: their average is larger, and so are its activations."""
    layers = [kfc.Dense(8), kfc.BatchNorm(momentum=0.0), kfc.ReLU(), kfc.Dense(3)]
    kind = kfc.SGD(learning_rate=0.1, weight_decay=0.2, averaging=0.3)
    found = kfc.Trainer(kfc.Sequential(layers, input_shape=(5,)), LOSS, kind)
    for _ in range(60):
        found.step(X, Y)
    found._aside.leave_averages(*found._trained)

    def distance(net):
        """How far predictions are from those by the statistics of the data themselves."""
        return np.abs(net.predict(X) - net.forward(X, training=True).outputs).max()

    other = found.evaluation_net()
    other.buffers = found.raw_buffers
    assert distance(found.net) < 0.25 * distance(other)


def test_a_change_is_evaluated_as_it_is():
    """The old average is not what the next row is of."""
    found = trainer()
    fit(found)
    found.net.params["dense2.bias"][...] = [50, 0, 0]
    found.fit(X, Y, batch_size=10, epochs=1, evaluate_every=1, validation=HELD_OUT, progress=False)
    rows = [row for row in found.history.rows if row["step"] > 8]
    assert [row["step"] for row in rows] == [9, 10, 11, 12]
    assert found.history.rows[2]["validation_loss"] < 2
    assert all(row["validation_loss"] > 10 for row in rows)


def test_arrays_are_the_same_objects():
    found = trainer()
    before = dict(found.net.params)
    fit(found)
    found.step(X[:10], Y[:10])
    fit(found)
    for name, value in found.net.params.items():
        assert value is before[name]


def test_two_trainers_of_one_network():
    """The second goes on from what the first has left, and the first from what the second has."""
    net = network()
    first, second = trainer(net=net), trainer(net=net)
    fit(first)
    left = copied(net.params)
    assert_same(second.raw_params, left)
    fit(second, epochs=1)
    between = copied(net.params)
    assert any(not np.array_equal(between[name], left[name]) for name in left)
    assert_same(first.raw_params, between)


def test_what_is_made_of_a_network_after_fit_is_of_the_average():
    found = trainer()
    fit(found)
    average = averaging.average(found.optimizer_state, found.net)
    expected = {name: average[name] for name in found.net.params}
    posterior = kfc.laplace.KroneckerPosterior(found.net, LOSS).fit(X)
    assert_same(posterior.mean, expected)
    assert_same(copy.deepcopy(found.net).params, expected)
    assert_same(found.evaluation_net().params, expected)


def test_the_file_has_the_raw_parameters_and_the_average(tmp_path):
    found, raw = trainer(), trainer()
    fit(found, checkpoint=tmp_path / "c")
    fit(raw)
    raw._aside.go_on(*raw._trained)
    arrays, _ = checkpoint.load(tmp_path / "c")
    assert_same({name: arrays[f"params/{name}"] for name in raw.net.params}, copied(raw.net.params))
    averages = {name: arrays[f"optimizer/average/{name}"] for name in raw.net.params}
    assert_same({n: v.astype(np.float32) for n, v in averages.items()}, found.net.params)
