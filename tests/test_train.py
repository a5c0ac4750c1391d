"""Training against a loop written out, and through interruptions."""

import inspect
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kfc_numba import batches, train
from kfc_numba.commands import options
from kfc_numba.evaluation import evaluate
from kfc_numba.history import History
from kfc_numba.layers.activation import ReLU
from kfc_numba.layers.dense import Dense
from kfc_numba.layers.dropout import Dropout
from kfc_numba.layers.norm import BatchNorm
from kfc_numba.losses import SoftmaxCrossEntropy, SquaredError
from kfc_numba.optim import SGD, CosineDecay
from kfc_numba.random import generator
from kfc_numba.sequential import Sequential
from kfc_numba.train import Trainer

LOSS = SoftmaxCrossEntropy()
COUNT = 23


def network(seed=0):
    layers = [Dense(8), BatchNorm(), ReLU(), Dropout(0.2), Dense(3)]
    return Sequential(layers, input_shape=(5,), seed=seed)


def data(count=COUNT, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 5)).astype(np.float32)
    return x, (x[:, 0] > 0) + (x[:, 1] > 0).astype(np.int64)


def trainer(optimizer=None, seed=3):
    return Trainer(network(), LOSS, optimizer or SGD(averaging=4), seed=seed)


def fit(which, **arguments):
    arguments = {"batch_size": 6, "total_epochs": 3, "progress": False} | arguments
    return which.fit(*data(), **arguments)


def arrays(which):
    """All that training goes on from, and what the network shows."""
    last = which.raw_params | which.raw_buffers
    raw = {f"raw/{name}": value for name, value in last.items()}
    return {**raw, **which.net.params, **which.net.buffers, **which.optimizer_state}


def assert_same(one, other):
    found, expected = arrays(one), arrays(other)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert without_seconds(one.history) == without_seconds(other.history)


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


def test_fit_is_the_loop_written_out():
    x, y = data()
    held_out = data(10, seed=2)
    found = trainer()
    history = fit(found, validation=held_out, training_sample=7)

    net, optimizer = network(), SGD(averaging=4)
    state = optimizer.init(net)
    sample = generator(3, "training sample").permutation(COUNT)[:7]

    def row(epoch):
        average = network()
        shown = optimizer.evaluation_arrays(net, state)
        average.params = {name: shown[name] for name in net.params}
        average.buffers = {name: shown[name] for name in net.buffers}
        outputs, logits = average.predict(held_out[0]), average.predict(x[sample])
        return [
            4 * epoch,
            epoch,
            LOSS.value(logits, y[sample]),
            LOSS.value(outputs, held_out[1]),
            np.mean(outputs.argmax(axis=1) != held_out[1]),
        ]

    expected = [row(0)]
    for epoch in range(3):
        order = generator(3, "shuffle", epoch).permutation(COUNT)
        for batch in (order[:6], order[6:12], order[12:18], order[18:]):
            optimizer.step(net, LOSS, x[batch], y[batch], state, seed=3)
        expected.append(row(epoch + 1))
    for name, value in net.params.items():
        np.testing.assert_array_equal(found.raw_params[name], value, err_msg=name)
    names = ("step", "epoch", "training_loss", "validation_loss", "validation_error")
    rows = [[row[name] for name in names] for row in history.rows]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    assert history is found.history


def plain_network(seed=0):
    return Sequential([Dense(8), ReLU(), Dense(3)], input_shape=(5,), seed=seed)


# Examples, batch size, and the batches of a pass in a network with batch normalisation and without.
LEFT_OVER = [
    (9, 4, [4, 5], [4, 4, 1]),
    (8, 4, [4, 4], [4, 4]),
    (10, 4, [4, 4, 2], [4, 4, 2]),
    (5, 4, [5], [4, 1]),
    (3, 4, [3], [3]),
    (7, 3, [3, 4], [3, 3, 1]),
    (5, 2, [2, 3], [2, 2, 1]),
]


@pytest.mark.parametrize(("count", "size", "coupled", "free"), LEFT_OVER)
def test_an_example_left_over_joins_the_batch_before_in_networks_with_batch_norm(
    tmp_path, monkeypatch, capfd, count, size, coupled, free
):
    x, y = data(count)
    for make, sizes in ((network, coupled), (plain_network, free)):
        seen = []
        step = Trainer.step

        def recorded(self, inputs, targets, step=step, seen=seen):
            seen.append(inputs.copy())
            return step(self, inputs, targets)

        straight = Trainer(make(), LOSS, SGD(averaging=4), seed=3)
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", recorded)
            straight.fit(x, y, batch_size=size, epochs=3, evaluate_every=1)
        assert [len(batch) for batch in seen] == 3 * sizes
        for epoch in range(3):  # each pass has every example once, in the order of its shuffle
            passed = np.concatenate(seen[epoch * len(sizes) : (epoch + 1) * len(sizes)])
            np.testing.assert_array_equal(
                passed, x[generator(3, "shuffle", epoch).permutation(count)]
            )
        steps = 3 * len(sizes)
        ends = [i + e / count for i in range(3) for e in np.cumsum(sizes)]
        epochs = [row["epoch"] for row in straight.history.rows]
        np.testing.assert_allclose(epochs, [0, *ends], rtol=1e-15)
        assert f"{steps}/{steps}" in capfd.readouterr().err  # the bar ends where it said
        # Stopped in the middle of the second pass and continued.
        file = tmp_path / make.__name__
        options = {"batch_size": size, "total_epochs": 3, "evaluate_every": 1, "progress": False}
        stopped = Trainer(make(), LOSS, SGD(averaging=4), seed=3)
        stopped.fit(x, y, **options, max_steps=len(sizes) + 1, checkpoint=file)
        resumed = Trainer.load(file, make(1), LOSS, SGD(averaging=4))
        resumed.fit(x, y, **options)
        assert_same(resumed, straight)


@pytest.mark.parametrize(("count", "size"), [(1, 4), (1, 1), (3, 1)])
def test_one_example_is_no_batch_for_batch_norm(count, size):
    which = trainer()
    before = {name: value.copy() for name, value in arrays(which).items()}
    with pytest.raises(ValueError, match=r"BatchNorm\(.*more than one value .*shape \(1, 8\)"):
        which.fit(*data(count), batch_size=size, epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"BatchNorm\(.*more than one value .*shape \(1, 8\)"):
        which.step(*data(1))
    for name, value in arrays(which).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    free = Trainer(plain_network(), LOSS, SGD(), seed=3)
    free.fit(*data(count), batch_size=size, epochs=1, progress=False)
    assert free.steps == count
    free.step(*data(1))


def test_a_batch_size_of_one_is_kept_where_an_example_has_locations():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3, 4, 2)).astype(np.float32), rng.standard_normal((3, 4, 2))
    which = Trainer(Sequential([BatchNorm()], input_shape=(4, 2)), SquaredError(), SGD(), seed=0)
    which.fit(x, y.astype(np.float32), batch_size=1, epochs=2, progress=False)
    assert which.steps == 6


def test_training_reaches_the_least_squares_solution():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((200, 5)).astype(np.float32)
    y = (x @ rng.standard_normal((5, 2)) + rng.standard_normal((200, 2))).astype(np.float32)
    columns = np.column_stack([x, np.ones(len(x))])
    _, residuals, _, _ = np.linalg.lstsq(columns, y.astype(np.float64))
    least = 0.5 * residuals.sum() / len(x)
    net = Sequential([Dense(2)], input_shape=(5,))
    method = SGD(learning_rate=CosineDecay(initial=0.1, steps=200), averaging=20)
    history = Trainer(net, SquaredError(), method).fit(
        x, y, batch_size=40, max_steps=200, progress=False
    )
    assert history.rows[0]["training_loss"] > 2 * least
    assert least <= history.rows[-1]["training_loss"] < 1.0005 * least


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({}, [0, 4, 8, 12]),
        ({"evaluate_every": 5}, [0, 5, 10, 12]),
        ({"evaluate_every": 100}, [0, 12]),
        ({"total_epochs": None, "total_steps": 6}, [0, 4, 6]),
        ({"total_epochs": None, "epochs": 2, "max_steps": 6}, [0, 4, 6]),
        ({"max_steps": 4}, [0, 4]),
        ({"total_epochs": 1, "max_steps": 9}, [0, 4]),
        ({"epochs": 1}, [0, 4]),
        ({"batch_size": 100}, [0, 1, 2, 3]),
    ],
)
def test_when_it_evaluates_and_ends(arguments, steps):
    history = fit(trainer(), **arguments)
    assert [row["step"] for row in history.rows] == steps
    per_epoch = 1 if "batch_size" in arguments else 4
    whole, rest = np.divmod(steps, per_epoch)
    epochs = whole + 6 * rest / COUNT
    np.testing.assert_allclose(history.column("epoch"), epochs, rtol=1e-12)
    assert np.isnan(history.column("validation_loss")).all()
    assert json.loads(history.to_json()) == history.rows


def test_history_as_json_and_columns():
    history = History([{"step": 0, "training_loss": math.inf, "validation_error": None}])
    history.rows.append({"step": 3, "training_loss": 0.1, "validation_error": math.nan})
    np.testing.assert_array_equal(history.column("training_loss"), [math.inf, 0.1])
    np.testing.assert_array_equal(history.column("validation_error"), [math.nan, math.nan])
    assert json.loads(history.to_json(), parse_constant=pytest.fail) == [
        {"step": 0, "training_loss": None, "validation_error": None},
        {"step": 3, "training_loss": 0.1, "validation_error": None},
    ]


def test_totals_count_from_the_start_of_training():
    found, once = trainer(), trainer()
    fit(found, total_epochs=1)
    assert len(fit(found, total_epochs=1).rows) == 2  # nothing is left to do
    fit(found, total_epochs=None, total_steps=6)
    fit(found, evaluate_every=None)
    fit(once)
    np.testing.assert_equal(arrays(found), arrays(once))
    assert [row["step"] for row in found.history.rows] == [0, 4, 6, 8, 12]


def test_epochs_and_steps_are_those_of_the_call():
    found, once = trainer(), trainer()
    for _ in range(2):
        fit(found, total_epochs=None, epochs=1)
    fit(found, total_epochs=None, max_steps=1)
    fit(found, total_epochs=None, max_steps=2, epochs=1)
    assert [row["step"] for row in found.history.rows] == [0, 4, 8, 9, 11]
    # The pass that it stopped in is ended first, and counts as one.
    fit(found, total_epochs=None, epochs=2)
    assert [row["step"] for row in found.history.rows[5:]] == [12, 16]
    fit(once, total_epochs=4)
    np.testing.assert_equal(arrays(found), arrays(once))
    # The first that is reached ends it.
    fit(found, total_epochs=6, epochs=1, max_steps=7, total_steps=100)
    assert found.steps == 20
    fit(found, total_epochs=6, epochs=5, max_steps=70, total_steps=22)
    assert found.steps == 22
    fit(found, total_epochs=6, epochs=5)
    assert found.steps == 24
    assert [row["epoch"] for row in found.history.rows] == sorted(
        row["epoch"] for row in found.history.rows
    )


def test_progress_counts_from_the_start_of_training(capfd):
    found = trainer()
    fit(found, total_epochs=None, epochs=1)
    fit(found, total_epochs=None, epochs=2, progress=True)
    err = capfd.readouterr().err
    assert "step 12/12, epoch 3.00" in err


def test_the_usual_batch_size_is_that_of_the_command_line():
    usual = inspect.signature(Trainer.fit).parameters["batch_size"].default
    assert usual == options.BATCH_SIZE == 128
    found = trainer()
    found.fit(*data(140), epochs=1, progress=False)
    assert found.steps == 2


@pytest.mark.parametrize("stopped", [0, 3, 4, 7])
def test_resuming_is_as_if_nothing_had_happened(tmp_path, stopped):
    straight = trainer()
    fit(straight, evaluate_every=1)
    first = trainer()
    fit(first, evaluate_every=1, checkpoint=tmp_path / "c", stop=lambda row: row["step"] == stopped)
    assert first.steps == stopped
    second = Trainer.load(tmp_path / "c", network(seed=8), LOSS, SGD(averaging=4))
    fit(second, evaluate_every=1, checkpoint=tmp_path / "c")
    assert_same(second, straight)
    third = Trainer.load(tmp_path / "c", network(seed=8), LOSS, SGD(averaging=4))
    assert_same(third, straight)


def test_a_checkpoint_is_written_where_nothing_is_left_to_do(tmp_path):
    found = trainer()
    fit(found)
    fit(found, checkpoint=tmp_path / "c")
    assert_same(Trainer.load(tmp_path / "c", network(seed=8), LOSS, SGD(averaging=4)), found)


def test_a_run_that_was_asked_to_stop_stays_stopped(tmp_path):
    seen = []

    def stop(row):
        seen.append(row["step"])
        return row["step"] == 8

    fit(trainer(), stop=stop, checkpoint=tmp_path / "c")
    loaded = Trainer.load(tmp_path / "c", network(), LOSS, SGD(averaging=4))
    fit(loaded, stop=stop)
    assert seen == [0, 4, 8, 8]
    assert loaded.steps == 8


def test_evaluation_does_not_act_on_training():
    often, never = trainer(), trainer()
    fit(often, evaluate_every=1, validation=data(10))
    fit(never, evaluate_every=1000, training_sample=1)
    for name, value in arrays(never).items():
        np.testing.assert_array_equal(arrays(often)[name], value)


def test_evaluation_net_has_the_average_and_is_left_behind():
    found = trainer()
    raw = found.evaluation_net()
    initial = {n: value.copy() for n, value in (found.net.params | found.net.buffers).items()}
    fit(found)
    net = found.evaluation_net()
    expected = found.optimizer.evaluation_arrays(found.net, found.optimizer_state)
    last = found.raw_params | found.raw_buffers
    for name, value in (net.params | net.buffers).items():
        np.testing.assert_array_equal(value, expected[name])
        np.testing.assert_array_equal((raw.params | raw.buffers)[name], initial[name])
        np.testing.assert_array_equal(value, (found.net.params | found.net.buffers)[name])
        assert not np.array_equal(value, last[name])
    row = found.history.rows[-1]
    assert evaluate(net, LOSS, *data())[0] == pytest.approx(row["training_loss"], rel=1e-12)


def test_evaluate_does_not_depend_on_the_batches():
    net = network()
    x, y = data()
    whole = net.predict(x)
    for batch_size in (1, 6, 100):
        loss, error = evaluate(net, LOSS, x, y, batch_size=batch_size)
        assert loss == pytest.approx(LOSS.value(whole, y), rel=1e-6)
        assert error == pytest.approx(LOSS.error(whole, y), rel=1e-12)


class BurnIn(SGD):
    """Keeps the batches it was prepared with."""

    num_burnin_steps = 5

    def prepare(self, net, loss, batches, state, *, seed=0):
        self._seen = [(x.copy(), y.copy()) for x, y in batches]
        state["momentum/dense1.bias"] = state["momentum/dense1.bias"] + len(self._seen)


def test_burn_in_sees_the_first_batches_once(tmp_path):
    x, y = data()
    optimizer = BurnIn()
    found = trainer(optimizer)
    fit(found, checkpoint=tmp_path / "c", stop=lambda row: row["step"] == 4)
    orders = [generator(3, "shuffle", epoch).permutation(COUNT) for epoch in range(2)]
    chosen = [*np.split(orders[0], [6, 12, 18]), orders[1][:6]]
    assert len(optimizer._seen) == 5
    for (inputs, targets), batch in zip(optimizer._seen, chosen, strict=True):
        np.testing.assert_array_equal(inputs, x[batch])
        np.testing.assert_array_equal(targets, y[batch])
    again = BurnIn()
    loaded = Trainer.load(tmp_path / "c", network(), LOSS, again)
    fit(loaded)
    fit(found)
    assert not hasattr(again, "_seen")
    assert_same(loaded, found)
    # A run that stopped before its first step is prepared when it goes on.
    fit(trainer(BurnIn()), checkpoint=tmp_path / "d", stop=lambda row: True)
    start = Trainer.load(tmp_path / "d", network(), LOSS, BurnIn())
    fit(start)
    assert_same(start, found)


def test_seconds_are_those_of_training_alone(monkeypatch):
    clock = [0.0]

    class Slow(BurnIn):
        def step(self, *arguments, **more):
            clock[0] += 1.0
            return super().step(*arguments, **more)

        def prepare(self, net, loss, batches, state, *, seed=0):
            for _ in batches:
                clock[0] += 10.0

    def slow_evaluate(*arguments):
        clock[0] += 1000.0
        return evaluate(*arguments)

    def slow_generator(*key):
        clock[0] += 0.5
        return generator(*key)

    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(batches, "generator", slow_generator)
    monkeypatch.setattr(train, "evaluate", slow_evaluate)
    found = trainer(Slow())
    fit(found, total_epochs=2, validation=data())
    # Five batches and two shuffles to prepare, then a shuffle and four steps an epoch.
    assert [row["seconds"] for row in found.history.rows] == [0.0, 55.5, 60.0]
    found.step(*data())
    assert fit(found).rows[-1]["seconds"] == 65.5


def test_progress_goes_to_standard_error_or_nowhere(capfd):
    fit(trainer(), validation=data())
    assert capfd.readouterr() == ("", "")
    fit(trainer(), validation=data(), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == len(err.splitlines()) == 4
    assert "step 12/12, epoch 3.00" in err
    assert "validation loss" in err


def test_a_loss_that_is_not_finite_ends_training_with_the_last_good_parameters(tmp_path):
    x, y = data()
    last = generator(3, "shuffle", 0).permutation(COUNT)[18:]
    x[last[0]] = 1e30  # its square is too large for float32
    found = trainer()
    with pytest.raises(FloatingPointError, match="is not finite at step 3"):
        found.fit(x, y, batch_size=6, epochs=2, progress=False, checkpoint=tmp_path / "c")
    good = trainer()
    fit(good, max_steps=3)
    assert found.steps == 3
    np.testing.assert_equal(arrays(found), arrays(good))
    assert Trainer.load(tmp_path / "c", network(), LOSS, SGD(averaging=4)).steps == 0


X, Y = data()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"epochs": None},
            ValueError,
            "epochs, max_steps, total_epochs or total_steps must be given",
        ),
        ({"total_epochs": 0}, ValueError, r"total_epochs \(=0\) must be an integer of at least 1"),
        ({"total_steps": 1.0}, TypeError, r"total_steps \(=1.0\) must be an integer"),
        ({"batch_size": 0}, ValueError, r"batch_size \(=0\) must be an integer of at least 1"),
        ({"batch_size": 2.5}, TypeError, r"batch_size \(=2.5\) must be an integer of at least 1"),
        ({"epochs": 0}, ValueError, r"epochs \(=0\) must be an integer of at least 1"),
        ({"max_steps": True}, TypeError, r"max_steps \(=True\) must be an integer"),
        ({"evaluate_every": -1}, ValueError, r"evaluate_every \(=-1\) must be an integer"),
        ({"training_sample": 0}, ValueError, r"training_sample \(=0\) must be an integer"),
        ({"y": Y[1:]}, ValueError, r"y: targets must have shape \(23,\), got \(22,\)"),
        ({"y": Y + 1}, ValueError, "y: targets must be from 0 to 2, got 1 to 3"),
        ({"y": Y / 1}, TypeError, "y: targets must be integers, got dtype float64"),
        ({"x": X[:, 1:]}, ValueError, r"x has shape \(23, 4\), the network takes \(examples, 5\)"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, r"x has no examples, its shape is \(0, 5\)"),
        (
            {"x": X[0]},
            ValueError,
            r"network takes .*; one example is a batch of one, see \[None\]$",
        ),
        ({"x": X.astype("U")}, TypeError, "x must hold real numbers, got dtype <U"),
        ({"validation": X}, TypeError, r"validation must be a pair \(x, y\)"),
        ({"validation": (X, Y[2:])}, ValueError, "targets of validation: targets must have shape"),
        ({"validation": (X[:, :2], Y)}, ValueError, r"inputs of validation has shape \(23, 2\)"),
    ],
)
def test_arguments_that_do_not_fit(arguments, error, message):
    found = trainer()
    with pytest.raises(error, match=message):
        found.fit(**{"x": X, "y": Y, "batch_size": 6, "epochs": 1, "progress": False} | arguments)
    assert not found.history.rows
    assert found.steps == 0


def test_other_data_in_the_middle_of_a_pass():
    found = trainer()
    fit(found, max_steps=2)
    with pytest.raises(ValueError, match="x has 22 examples, the pass that training stopped in"):
        found.fit(X[1:], Y[1:], batch_size=6, epochs=2, progress=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((network(), LOSS, SGD), TypeError, "optimizer must be an .* got the class SGD"),
        ((network(), SquaredError, SGD()), TypeError, "loss must be a loss .* the class Squ"),
        ((X, LOSS, SGD()), TypeError, "net must be a network, got ndarray"),
    ],
)
def test_objects_of_the_wrong_kind(arguments, error, message):
    with pytest.raises(error, match=message):
        Trainer(*arguments)


def test_seed_out_of_range():
    with pytest.raises(ValueError, match=r"seed \(=-1\) must be an integer of at least 0"):
        Trainer(network(), LOSS, SGD(), seed=-1)


def run(threads, *arguments, code=0):
    """One process of run_to_kill.py, which has to end with the exit status given."""
    script = Path(__file__).with_name("run_to_kill.py")
    environment = os.environ | {"NUMBA_NUM_THREADS": str(threads)}
    found = subprocess.run(
        [sys.executable, "-W", "error", script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == code, found.stderr
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Results of runs without interruption on one thread, by optimizer."""
    folder, results = tmp_path_factory.mktemp("straight"), {}

    def result(optimizer):
        if optimizer not in results:
            run(1, optimizer, folder / optimizer, folder / f"{optimizer}.npz", "never")
            results[optimizer] = dict(np.load(folder / f"{optimizer}.npz"))
        return results[optimizer]

    return result


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("optimizer", ["SGD", "KFC"])
def test_a_killed_run_ends_bit_identically(tmp_path, straight, optimizer, threads):
    expected = straight(optimizer)
    checkpoint, result = tmp_path / "run.safetensors", tmp_path / "result.npz"
    run(threads, optimizer, checkpoint, result, "step", 5, code=-signal.SIGKILL)
    assert checkpoint.exists()
    assert not result.exists()
    run(threads, optimizer, checkpoint, result, "write", 2, code=-signal.SIGKILL)
    run(threads, optimizer, checkpoint, result, "never")
    found = dict(np.load(result))
    assert found.keys() == expected.keys()
    assert found["step"] == 11
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
