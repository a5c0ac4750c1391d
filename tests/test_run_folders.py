"""Run folders: one process at a time, nothing replaced or lost, and the checkpoint is the truth."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dataset_files
import numpy as np
import pytest

from kfc_numba import checkpoint
from kfc_numba.cli import main
from kfc_numba.commands import CommandError, lock
from kfc_numba.commands.runfolder import RunFolder
from kfc_numba.model import load
from kfc_numba.optim import Adam
from kfc_numba.train import Trainer

TRAIN, TEST = 40, 20
FILES = ["checkpoint.safetensors", "curves.png", "history.json"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    dataset_files.write_mnist(folder / "mnist", dataset_files.mnist_arrays(0, TRAIN, TEST))
    return folder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KFC_NUMBA_DATA", raising=False)


def common(data, *more):
    return ["--dataset", "mnist", "--data", str(data), "--quiet", "--batch-size", "16", *more]


def train(data, *more, epochs=3):
    """Of a run of three steps an epoch."""
    words = ["--optimizer", "sgd", "--epochs", str(epochs), "--output", "run", *more]
    return main(["train", *common(data), *words])


def read(folder, name="history.json"):
    return json.loads((Path(folder) / name).read_text())


def arrays(folder, name="checkpoint.safetensors"):
    return checkpoint.load(Path(folder) / name)[0]


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def one_line(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def warning(capsys):
    """The only line of standard error, beside whatever is on standard output."""
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def assert_same_run(one, other):
    found, expected = arrays(one), arrays(other)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


# One process at a time.

HOLDER = """
import sys, time
from pathlib import Path
from kfc_numba.commands.lock import locked
with locked(Path("run")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder():
    """A process that holds the lock of the folder ``run``."""
    Path("run").mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_folder_in_use_is_refused(holder, data, capsys, resume):
    if resume:
        Path("run/history.json").write_text("{}")
    assert train(data, *resume) == 2
    message = f"--output: run is being written to by another run (process {holder.pid})"
    assert one_line(capsys) == f"kfc-numba train: {message}\n"
    assert names("run") == [".lock", *(["history.json"] if resume else [])]


@pytest.mark.parametrize("words", [["compare"], ["curvature"]])
def test_other_commands_keep_out_of_a_folder_in_use(holder, data, capsys, words):
    more = ["--dataset", "mnist", "--data", str(data), "--output", "run"]
    assert main([*words, *more]) == 2
    assert "is being written to by another run (process" in one_line(capsys)


def test_a_dead_process_holds_nothing(holder, data):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert names("run") == [".lock"]
    assert train(data, "--max-steps", "1") == 0
    assert names("run") == FILES


def test_two_at_once(data):
    words = ["train", *common(data), "--max-steps", "2", "--output", "run"]
    command = [sys.executable, "-m", "kfc_numba", *words]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    found = [(process.communicate(), process.returncode) for process in processes]
    assert sorted(code for _, code in found) == [0, 2]
    (out, err), _ = max(found, key=lambda pair: pair[1])
    assert out == ""
    assert "is being written to by another run" in err or "already holds a run" in err
    assert names("run") == FILES


def test_the_lock_of_a_file_that_is_gone_is_none(tmp_path, monkeypatch):
    """A holder removes its file at its end, maybe between another's opening and locking of it."""
    usual, calls = lock._take, []

    def take(descriptor):
        if not calls:
            (tmp_path / lock.NAME).unlink()
        calls.append(descriptor)
        return usual(descriptor)

    monkeypatch.setattr(lock, "_take", take)
    with lock.locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(CommandError, match="is being written to"), lock.locked(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


# What fails leaves nothing.


@pytest.mark.parametrize("output", [None, "run", "some/where/run"])
@pytest.mark.parametrize("command", ["train", "compare", "curvature"])
def test_what_fails_leaves_no_folder(data, monkeypatch, capsys, output, command):
    def fails(*arguments, **more):
        raise OSError(28, "No space left on device", "file")

    for name in ("run.Trainer", "compare.Trainer", "curvature.check_curvature"):
        monkeypatch.setattr(f"kfc_numba.commands.{name}", fails)
    words = [command, "--dataset", "mnist", "--data", str(data)]
    assert main([*words, *(["--output", output] if output else [])]) == 1
    assert capsys.readouterr().err.endswith("file: No space left on device\n")
    assert names(".") == []


def test_a_disk_that_fills_up_leaves_no_folder(data, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert train(data) == 1
    path = Path("run/checkpoint.safetensors")
    assert one_line(capsys) == f"kfc-numba train: {path}: No space left on device\n"
    assert names(".") == []


def test_a_folder_that_was_there_stays(data, monkeypatch):
    Path("run").mkdir()
    Path("run/mine.txt").write_text("mine")

    def fails(*arguments, **more):
        raise OSError(28, "No space left on device", "file")

    monkeypatch.setattr("kfc_numba.commands.run.Trainer", fails)
    assert train(data) == 1
    assert names("run") == ["mine.txt"]


@pytest.mark.parametrize("when", [0, 4])
def test_an_interrupt_keeps_what_there_is(data, monkeypatch, capsys, when):
    usual = Trainer.step

    def step(trainer, x, y):
        if trainer.steps == when:
            raise KeyboardInterrupt
        return usual(trainer, x, y)

    monkeypatch.setattr(Trainer, "step", step)
    if not when:
        monkeypatch.setattr(Trainer, "_evaluate", lambda *arguments: step(arguments[0], None, None))
    assert train(data) == 130
    line = one_line(capsys)
    if when:
        assert "to go on from the last evaluation: kfc-numba train --resume --output run" in line
        earlier = "checkpoint-step-0.safetensors"
        assert names("run") == sorted([earlier, "checkpoint.safetensors", "history.json"])
    else:
        message = "interrupted before the first evaluation: nothing is kept"
        assert line == f"kfc-numba train: {message}\n"
        assert names(".") == []


# Divergence.


def test_the_last_good_checkpoint_stays_when_a_run_diverges(data, capsys):
    """Evaluations that are finite and absurd, which come before the end, are not good ones."""
    usual = ["--evaluate-every", "1", "--learning-rate"]
    assert train(data, *usual, "1e15") == 1
    line = one_line(capsys)
    assert "not finite" in line or "loss is " in line
    assert "run/checkpoint.safetensors holds the state of the last good evaluation" in line
    assert "kfc-numba train --resume --output run --learning-rate VALUE" in line
    rows = [(row["step"], row["training_loss"]) for row in read("run")["history"]]
    good = [step for step, loss in rows if loss is not None and loss <= 10 * rows[0][1]]
    assert 1 <= len(good) < len(rows)
    assert int(arrays("run")["optimizer/step"]) == good[-1]

    # With the same rate it ends in the same way, and with another it does not; both are told.
    assert train(data, "--resume", "--learning-rate", "1e15", *usual[:2]) == 1
    assert one_line(capsys) == line
    assert train(data, "--resume", "--learning-rate", "0.003", *usual[:2]) == 0
    message = f"after step {good[-1]}: --learning-rate 0.003 in place of 1000000000000000.0\n"
    assert capsys.readouterr().err == message
    assert read("run")["config"]["optimizer"]["learning_rate"] == 0.003
    change = {"step": good[-1], "settings": {"learning_rate": [1e15, 0.003]}}
    assert read("run")["changes"] == [change]
    assert checkpoint.load("run/checkpoint.safetensors")[1]["notes"]["changes"] == [change]
    assert names("run") == FILES
    if good == [0]:
        assert train(data, *usual[:2], "--output", "straight", "--learning-rate", "0.003") == 0
        assert_same_run("run", "straight")


def test_checkpoints_before_the_last_are_kept_while_a_run_goes_on(data, monkeypatch, capsys):
    usual = Trainer.step

    def step(trainer, x, y):
        if trainer.steps == 7:
            raise FloatingPointError("loss is nan at step 7")
        return usual(trainer, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        assert train(data, "--evaluate-every", "1") == 1
    steps = [int(path.stem.rpartition("-")[2]) for path in RunFolder("run").earlier()]
    assert steps == [5, 6]
    assert int(arrays("run")["optimizer/step"]) == 7
    assert "checkpoint-step-5.safetensors, checkpoint-step-6.safetensors" in one_line(capsys)
    assert int(arrays("run", "checkpoint-step-5.safetensors")["optimizer/step"]) == 5
    Path("run/checkpoint-step-5.safetensors").replace("run/checkpoint.safetensors")
    assert train(data, "--resume") == 0
    assert names("run") == FILES
    assert train(data, "--evaluate-every", "1", "--output", "straight") == 0
    assert_same_run("run", "straight")


def test_a_bad_end_is_the_result_all_the_same(data, monkeypatch):
    usual = Trainer._evaluate

    def evaluate(trainer, *arguments):
        row = usual(trainer, *arguments)
        if row["step"] >= 6:
            row["training_loss"] = 1e6
        return row

    monkeypatch.setattr(Trainer, "_evaluate", evaluate)
    assert train(data) == 0
    assert int(arrays("run")["optimizer/step"]) == 9
    assert [path.name for path in RunFolder("run").earlier()][-1] == "checkpoint-step-3.safetensors"


def test_an_evaluation_that_is_not_finite_does_not_replace_the_checkpoint(
    data, monkeypatch, capsys
):
    usual = Trainer._evaluate

    def evaluate(trainer, *arguments):
        row = usual(trainer, *arguments)
        if row["step"] >= 6:
            row["training_loss"] = math.nan
        return row

    monkeypatch.setattr(Trainer, "_evaluate", evaluate)
    assert train(data) == 1
    assert "training loss is nan after step 9; run/checkpoint.safetensors" in one_line(capsys)
    assert int(arrays("run")["optimizer/step"]) == 3
    assert [row["training_loss"] for row in read("run")["history"]][2:] == [None, None]
    monkeypatch.setattr(Trainer, "_evaluate", usual)
    assert train(data, "--resume") == 0
    assert train(data, "--output", "straight") == 0
    assert_same_run("run", "straight")


def test_only_the_learning_rate_may_change(data, capsys):
    assert train(data, epochs=1) == 0
    capsys.readouterr()
    assert train(data, "--resume", "--momentum", "0.5") == 2
    assert "--momentum 0.5 does not fit: run was started with 0.9" in one_line(capsys)
    assert train(data, "--resume", "--learning-rate", "-1") == 2
    assert "--learning-rate (=-1) must be a number in [0, inf)" in one_line(capsys)
    assert train(data, "--resume", "--learning-rate", "0.5") == 0
    assert read("run")["changes"][0]["settings"] == {"learning_rate": [0.03, 0.5]}
    assert train(data, "--resume", "--learning-rate", "0.5") == 0
    assert len(read("run")["changes"]) == 1


# The checkpoint is believed, not history.json.


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("batch_size",), 8, "batch_size 8 (checkpoint: 16)"),
        (("seed",), 5, "seed 5 (checkpoint: 0)"),
        (("epochs",), 1, "epochs 1 (checkpoint: 3)"),
        (("dataset",), "cifar-10", "dataset cifar-10 (checkpoint: mnist)"),
        (("network",), "quick", "network quick (checkpoint: small)"),
        (("optimizer", "learning_rate"), 0.5, "learning_rate 0.5 (checkpoint: 0.03)"),
        (("optimizer", "nesterov"), True, "nesterov True (checkpoint: False)"),
        (("optimizer",), Adam().config(), "optimizer Adam (checkpoint: SGD)"),
    ],
)
def test_an_edited_history_is_not_believed(data, finished, capsys, place, value, message):
    copy_of(finished, "run")
    content = read("run")
    config = content["config"]
    for key in place[:-1]:
        config = config[key]
    config[place[-1]] = value
    Path("run/history.json").write_text(json.dumps(content))
    assert main(["train", "--resume", "--output", "run", "--quiet"]) == 0
    line = warning(capsys)
    assert line.startswith("run/history.json has ")
    assert message in line
    assert line.endswith("; the checkpoint counts\n")
    assert_same_run("run", finished)
    assert read("run")["config"] == read(finished)["config"]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = ["--optimizer", "sgd", "--epochs", "3", "--output", str(folder)]
    assert main(["train", *common(data), *words]) == 0
    return folder


def copy_of(folder, target):
    Path(target).mkdir()
    for path in Path(folder).iterdir():
        (Path(target) / path.name).write_bytes(path.read_bytes())


def test_without_its_checkpoint_a_run_is_not_begun_anew(finished, capsys):
    copy_of(finished, "run")
    Path("run/checkpoint.safetensors").unlink()
    before = Path("run/history.json").read_bytes()
    assert main(["train", "--resume", "--output", "run", "--quiet"]) == 2
    message = "run/checkpoint.safetensors is missing, of which history.json has 4 evaluations"
    assert message in one_line(capsys)
    assert Path("run/history.json").read_bytes() == before


def test_without_history_the_checkpoint_is_enough(data, finished):
    copy_of(finished, "run")
    Path("run/history.json").unlink()
    assert main(["train", "--resume", "--output", "run", "--quiet"]) == 0
    assert read("run") == read(finished)


def test_a_longer_run_that_is_killed_at_once_is_longer(data, finished, monkeypatch, capsys):
    """New settings are in the checkpoint before they are in history.json."""
    copy_of(finished, "run")

    def killed(*arguments):
        raise OSError(28, "No space left on device", "file")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", killed)
        assert train(data, "--resume", epochs=4) == 1
    capsys.readouterr()
    assert main(["train", "--resume", "--output", "run", "--quiet"]) == 0
    message = "run/history.json has epochs 3 (checkpoint: 4); the checkpoint counts\n"
    assert capsys.readouterr().err == message
    assert read("run")["history"][-1]["epoch"] == 4


def test_a_checkpoint_whose_notes_were_changed(data, finished, capsys):
    copy_of(finished, "run")
    found, header = checkpoint.load("run/checkpoint.safetensors")
    for change, message in (
        (lambda run: run["optimizer"].update(learning_rate=1.0), "optimizer are not of one run"),
        (lambda run: run.update(seed=9), "seed are not of one run"),
        (lambda run: run.update(batch_size="16"), "notes.run.batch_size must be an integer"),
        (lambda run: run["optimizer"].update(momentum=2), "--momentum (=2) must be"),
        (lambda run: run["optimizer"].update(other=2), "other"),
        (lambda run: run["optimizer"].pop("momentum"), "notes.run.optimizer lacks momentum"),
        (lambda run: run.update(network="vgg"), "notes.run.network must be one of small,"),
        (lambda run: run.clear(), "notes.run lacks dataset"),
    ):
        changed = copy.deepcopy(header)
        change(changed["notes"]["run"])
        checkpoint.save("run/checkpoint.safetensors", found, changed)
        assert main(["train", "--resume", "--output", "run", "--quiet"]) == 2
        line = one_line(capsys)
        assert line.startswith("kfc-numba train: run/checkpoint.safetensors is not what")
        assert message in line
    header["notes"] = {}
    checkpoint.save("run/checkpoint.safetensors", found, header)
    assert main(["train", "--resume", "--output", "run", "--quiet"]) == 2
    assert "it is of a program's training, not of kfc-numba train" in one_line(capsys)


WRONG = [None, True, -1, 0.5, "text", [], {}, [1], {"a": 1}, 10**30, 10**400, "inf", [[]], [None]]


def refusal():
    """What is said of the folder ``run``, or nothing."""
    try:
        RunFolder("run").read()
    except CommandError as error:
        return str(error)
    return None


def test_a_history_of_wrong_types_is_one_line(finished, capsys):
    copy_of(finished, "run")
    content = read("run")
    places = [("config",), ("history",), ("history", 0), ("changes",)]
    places += [("config", name) for name in content["config"]]
    places += [("config", "optimizer", name) for name in content["config"]["optimizer"]]
    places += [("history", 0, name) for name in content["history"][0]]
    count = 0
    for place in places:
        for value in [*WRONG, "nested"]:
            changed = copy.deepcopy(content)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            if value == inner.get(place[-1]) if isinstance(inner, dict) else False:
                continue
            inner[place[-1]] = value
            text = json.dumps(changed).replace('"nested"', "[" * 50_000 + "]" * 50_000)
            Path("run/history.json").write_text(text)
            message = refusal()
            if message:
                count += 1
                assert message.startswith("run/history.json is not what a run of this version")
                assert "\n" not in message
                assert len(message) < 500
    assert count > 200


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"nul", b'{"config": NaN}', b"9" * 5000, b'"' * 3]
)
def test_a_history_that_is_no_json_of_ours(finished, capsys, content):
    copy_of(finished, "run")
    Path("run/history.json").write_bytes(content)
    assert main(["train", "--resume", "--output", "run", "--quiet"]) == 2
    assert "run/history.json is not what a run of this version writes (" in one_line(capsys)
    assert Path("run/history.json").read_bytes() == content


def test_a_history_of_gigabytes_is_not_read(finished, capsys):
    copy_of(finished, "run")
    with open("run/history.json", "wb") as file:
        file.truncate(10**11)
    start = time.monotonic()
    assert main(["train", "--resume", "--output", "run", "--quiet"]) == 2
    assert "more than 33,554,432 bytes" in one_line(capsys)
    assert time.monotonic() - start < 60


# The curvature of a checkpoint.


def test_the_curvature_of_a_run_is_of_its_data_and_network(data, monkeypatch, capsys):
    assert train(data, "--network", "quick-norm", "--max-steps", "1") == 0
    seen = []

    def look(net, x, *arguments, **more):
        seen.append((len(net.params), net.input_shape, len(x)))
        raise CommandError("seen")

    monkeypatch.setattr("kfc_numba.commands.curvature.check_curvature", look)
    trained = len(load("run")[1].net.params)
    for place in ("run", "run/checkpoint.safetensors"):
        assert main(["curvature", "--checkpoint", place]) == 2
    assert seen == [(trained, (28, 28, 1), TRAIN)] * 2
    capsys.readouterr()
    assert main(["curvature", "--checkpoint", "run", "--network", "small"]) == 2
    assert "does not fit --network" in one_line(capsys)
    assert main(["curvature", "--checkpoint", "none"]) == 2
    assert "--checkpoint: none does not exist" in one_line(capsys)


def test_the_curvature_of_a_checkpoint_that_does_not_fit(data, finished, capsys):
    found, header = checkpoint.load(finished / "checkpoint.safetensors")
    words = ["curvature", "--dataset", "mnist", "--data", str(data), "--checkpoint", "c"]
    for name, value, message in (
        ("optimizer/average/conv1.bias", np.zeros(1), "conv1.bias is float64 (1,)"),
        ("params/conv1.bias", np.zeros(1, np.float32), "conv1.bias is float32 (1,)"),
        ("optimizer/average/conv1.bias", np.full(16, np.nan), "conv1.bias must be finite"),
        ("optimizer/average/conv1.bias", np.full(16, 1e300), "conv1.bias must be finite"),
        ("optimizer/average_weight", np.ones(2), "average_weight must be"),
    ):
        checkpoint.save("c", found | {name: value}, header)
        assert main(words) == 2
        line = one_line(capsys)
        assert line.startswith("kfc-numba curvature: --checkpoint: c ")
        assert message in line
        assert not Path("runs").exists()
    del found["params/conv1.weight"]
    checkpoint.save("c", found, header)
    assert main(words) == 2
    assert "the checkpoint lacks conv1.weight" in one_line(capsys)


# Comparison.


def compare(data, *more):
    return main(["compare", *common(data), "--output", "both", *more])


DIVERGING = "sgd learning_rate=1e15"


def test_a_run_that_diverges_is_a_row(data, capsys):
    runs = ["--run", DIVERGING, "--run", "sgd", "--epochs", "2"]
    assert compare(data, *runs) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    (row,) = [line for line in lines if line.startswith(DIVERGING)]
    assert "diverged (" in row
    assert " at step " in row
    (row,) = [line for line in lines if line.startswith("sgd ") and "1e15" not in line]
    assert "6 steps" in row
    found = read("both", "comparison.json")["runs"]
    assert [run["status"] for run in found.values()] == ["diverged", "finished"]
    assert found[DIVERGING]["problem"] in out
    assert train(data, "--evaluate-every", "1", epochs=2) == 0
    assert_same_run("both/2-sgd", "run")
    assert Path("both/curves.png").exists()
    # It has been told; it is not tried again.
    before = Path("both/comparison.json").read_bytes()
    capsys.readouterr()
    assert compare(data, *runs, "--resume") == 0
    assert capsys.readouterr().out == out
    assert Path("both/comparison.json").read_bytes() == before


def test_status_where_all_runs_diverge(data, capsys):
    assert compare(data, "--run", DIVERGING, "--epochs", "2") == 1
    out, err = capsys.readouterr()
    assert err == "kfc-numba compare: all runs diverged\n"
    assert "diverged (" in out


def test_a_comparison_is_not_replaced(data, capsys):
    assert compare(data, "--optimizers", "sgd", "--max-steps", "1") == 0
    before = {path: path.read_bytes() for path in Path("both").rglob("*") if path.is_file()}
    capsys.readouterr()
    for more in (["--optimizers", "adam"], ["--optimizers", "sgd"]):
        assert compare(data, *more, "--max-steps", "1") == 2
        assert one_line(capsys) == (
            "kfc-numba compare: --output: both already holds a comparison, which is not "
            "overwritten; continue it with --resume or give another folder\n"
        )
    assert train(data, "--output", "both") == 2
    assert "both already holds a comparison" in one_line(capsys)
    for path, content in before.items():
        assert path.read_bytes() == content


@pytest.mark.parametrize("when", [(0, 0), (0, 4), (1, 0), (1, 4)])
def test_a_comparison_that_was_interrupted_goes_on(data, monkeypatch, capsys, when):
    words = ["--optimizers", "sgd", "adam", "--epochs", "2", "--evaluate-every", "2"]
    assert compare(data, *words) == 0
    Path("both").rename("straight")
    usual, runs = Trainer.step, []

    def step(trainer, x, y):
        if trainer.history.rows and trainer not in runs:
            runs.append(trainer)
        if trainer in runs and (runs.index(trainer), trainer.steps) == when:
            raise KeyboardInterrupt
        return usual(trainer, x, y)

    capsys.readouterr()
    monkeypatch.setattr(Trainer, "step", step)
    assert compare(data, *words) == 130
    assert one_line(capsys) == (
        "kfc-numba compare: interrupted; to go on: kfc-numba compare --resume --output both\n"
    )
    monkeypatch.setattr(Trainer, "step", usual)
    assert main(["compare", "--resume", "--output", "both", "--quiet"]) == 0
    for name in ("1-sgd", "2-adam"):
        assert_same_run(f"both/{name}", f"straight/{name}")
        assert names(f"both/{name}") == names(f"straight/{name}")
    assert names("both") == names("straight")
    found, expected = (read(f, "comparison.json")["runs"] for f in ("both", "straight"))
    for label, run in expected.items():
        for entry in (run, found[label]):
            del entry["last"]["seconds"]
            for reached in entry["reached"]:
                del reached["seconds"]
        assert found[label] == run


def test_a_comparison_can_be_made_longer(data, capsys):
    words = ["--optimizers", "sgd", "adam", "--evaluate-every", "2"]
    assert compare(data, *words, "--epochs", "2") == 0
    Path("both").rename("straight")
    assert compare(data, *words, "--epochs", "1") == 0
    assert compare(data, "--resume", "--epochs", "2") == 0
    for name in ("1-sgd", "2-adam"):
        found, expected = arrays(f"both/{name}"), arrays(f"straight/{name}")
        for key, value in found.items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "both"
    words = ["--optimizers", "sgd", "--run", "adam batch_size=20", "--max-steps", "2"]
    assert main(["compare", *common(data), *words, "--output", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizers", "adam"], "--resume keeps the runs of {}, which are sgd, adam batch_size"),
        (["--seed", "1"], "--seed 1 does not fit: {} was started with 0, and a resumed comp"),
        (["--batch-size", "32"], "--batch-size 32 does not fit: {} was started with 16,"),
        (["--network", "quick"], "--network quick does not fit: {} was started with small,"),
        (["--max-steps", "1"], "--max-steps 1 does not fit: {}/1-sgd has done 2 already"),
    ],
)
def test_settings_that_a_resumed_comparison_does_not_have(compared, capsys, words, message):
    before = (compared / "comparison.json").read_bytes()
    assert main(["compare", "--resume", "--output", str(compared), *words]) == 2
    assert message.format(compared) in one_line(capsys)
    assert (compared / "comparison.json").read_bytes() == before


def test_the_checkpoints_of_a_comparison_are_believed(data, compared, capsys):
    copy_tree(compared, "both")
    content = read("both", "comparison.json")
    for run in content["runs"].values():
        run["status"] = "waiting"
    Path("both/comparison.json").write_text(json.dumps(content))
    assert main(["compare", "--resume", "--output", "both", "--quiet"]) == 0
    found = read("both", "comparison.json")["runs"]
    assert found == read(compared, "comparison.json")["runs"]
    # One of another comparison, or of none.
    content["runs"]["sgd"]["config"]["seed"] = 3
    Path("both/comparison.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["compare", "--resume", "--output", "both", "--quiet"]) == 2
    assert "both/1-sgd is not a run of this comparison: its seed is 0," in one_line(capsys)
    # Without its folder it is done anew, whatever is said of it.
    copy_tree(compared, "again")
    for path in list(Path("again/1-sgd").iterdir()):
        path.unlink()
    assert main(["compare", "--resume", "--output", "again", "--quiet"]) == 0
    assert_same_run("again/1-sgd", compared / "1-sgd")
    Path("again/1-sgd/checkpoint.safetensors").unlink()
    capsys.readouterr()
    assert main(["compare", "--resume", "--output", "again", "--quiet"]) == 2
    assert "again/1-sgd/checkpoint.safetensors is missing, of which history" in one_line(capsys)


def copy_tree(folder, target):
    for path in Path(folder).rglob("*"):
        if path.is_file():
            copy = Path(target) / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


def test_a_comparison_keeps_out_of_the_folder_of_a_run(data, capsys):
    assert train(data, "--max-steps", "1", "--output", "both/1-sgd") == 0
    before = Path("both/1-sgd/history.json").read_bytes()
    capsys.readouterr()
    assert compare(data, "--optimizers", "sgd", "--max-steps", "1") == 2
    assert "--output: both/1-sgd already holds a run" in one_line(capsys)
    assert names("both") == ["1-sgd"]
    assert Path("both/1-sgd/history.json").read_bytes() == before


def test_there_must_be_a_comparison_to_resume(capsys):
    assert main(["compare", "--resume"]) == 2
    assert "--resume needs --output FOLDER" in one_line(capsys)
    assert main(["compare", "--resume", "--output", "."]) == 2
    assert "holds no comparison to resume: comparison.json is missing" in one_line(capsys)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"runs": []}',
        b'{"runs": {"sgd": 1}}',
        b'{"runs": {"sgd": {"config": {}, "status": "finished", "problem": null}}}',
        b'{"runs": {"sgd": {"config": {}, "status": "well", "problem": null}}}',
        b'{"runs": {"../../x": {"config": {}, "status": "waiting", "problem": null}}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_comparison_is_one_line(capsys, content):
    Path("both").mkdir()
    Path("both/comparison.json").write_bytes(content)
    assert main(["compare", "--resume", "--output", "both"]) == 2
    assert "both/comparison.json is not what this version writes (" in one_line(capsys)
    assert Path("both/comparison.json").read_bytes() == content


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train runs", "no run to resume: history.json is missing; runs/a and runs/b have one"),
        ("train runs/none", "to resume: there is no such folder; runs/a and runs/b have one"),
        ("train runs/c", "it holds a comparison: kfc-numba compare --resume"),
        ("train runs/r", "to resume: history.json is missing; it holds a report"),
        ("train none/none", "none/none holds no run to resume: there is no such folder"),
        ("train file", "file holds no run to resume: it is a file"),
        ("compare runs/a", "it holds a run: kfc-numba train --resume"),
        ("compare runs", "no comparison to resume: comparison.json is missing; runs/c has one"),
        ("train \0", "holds no run to resume: there is no such folder"),
    ],
)
def test_a_folder_to_resume_that_is_the_wrong_one(words, expected, capsys):
    for name in ("a/history.json", "b/checkpoint.safetensors", "c/comparison.json"):
        (Path("runs") / name).parent.mkdir(parents=True)
        (Path("runs") / name).touch()
    Path("runs/r").mkdir()
    Path("runs/r/curvature.json").touch()
    Path("file").touch()
    command, folder = words.split(" ")
    assert main([command, "--resume", "--output", folder]) == 2
    assert one_line(capsys).endswith(f"{expected}\n")
