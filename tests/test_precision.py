"""Tensor cores are used where they are asked for, and nowhere else."""

import json
import sys
import threading
from pathlib import Path

import dataset_files
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import cli
from kfc_numba.commands.config import config_from
from kfc_numba.graph import Graph
from kfc_numba.kernels import cpu
from kfc_numba.precision import tensor_cores, uses_tensor_cores


def test_off_unless_asked_for_and_within_the_context_alone():
    assert not uses_tensor_cores()
    with tensor_cores():
        assert uses_tensor_cores()
        with tensor_cores(False):
            assert not uses_tensor_cores()
        assert uses_tensor_cores()
    assert not uses_tensor_cores()
    with pytest.raises(KeyError), tensor_cores():
        raise KeyError
    assert not uses_tensor_cores()
    with pytest.raises(TypeError, match=r"^enabled \(=1\)"), tensor_cores(1):
        pass


def test_other_threads_have_to_ask_themselves():
    seen = []
    with tensor_cores():
        thread = threading.Thread(target=lambda: seen.append(uses_tensor_cores()))
        thread.start()
        thread.join()
    assert seen == [False]


@pytest.mark.parametrize(
    ("structure", "file"), [("ekfac", "example_gradients"), ("tridiagonal", "tridiagonal")]
)
def test_statistics_are_summed_without(monkeypatch, structure, file):
    """On the CPU, where it makes no difference: which products would use them."""
    product, seen = cpu.matmul, set()

    def noted(*arguments, **settings):
        caller = sys._getframe(1).f_code.co_filename
        seen.add((Path(caller).stem, uses_tensor_cores()))
        return product(*arguments, **settings)

    monkeypatch.setattr(cpu, "matmul", noted)
    rng = np.random.default_rng(0)
    net = kfc.Sequential([kfc.Dense(5), kfc.Tanh(), kfc.Dense(3)], input_shape=(4,))
    trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), kfc.KFC(structure=structure))
    with tensor_cores():
        trainer.step(rng.normal(size=(20, 4)), rng.integers(0, 3, 20))
    assert {("dense", True), (file, False)} <= seen
    assert ("dense", False) not in seen
    assert (file, True) not in seen


def test_command_line(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(cli.train, "command", lambda arguments: seen.append(uses_tensor_cores()))
    assert cli.main(["train"]) == 0
    assert cli.main(["train", "--tf32"]) == 2
    assert "--tf32 needs --device cuda, --device is cpu" in capsys.readouterr().err
    monkeypatch.setattr(cli.run, "check_device", lambda device: device)
    assert cli.main(["train", "--device", "cuda", "--tf32"]) == 0
    assert seen == [False, True]
    assert not uses_tensor_cores()


# Runs are in one precision, or say where it changes.


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A command on a data set, on what it takes for a card; and in which precision it trained."""
    data = tmp_path / "data"
    dataset_files.write_mnist(data / "mnist", dataset_files.mnist_arrays(0, 40, 20))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.run, "check_device", lambda device: device)
    monkeypatch.setattr(Graph, "to", lambda net, device: net)
    seen, fit = [], kfc.Trainer.fit

    def noted(*arguments, **settings):
        seen.append(uses_tensor_cores())
        return fit(*arguments, **settings)

    monkeypatch.setattr(kfc.Trainer, "fit", noted)

    def run(command, *more):
        words = ["--dataset", "mnist", "--data", str(data), "--quiet", "--output", command, *more]
        assert cli.main([command, *words]) == 0
        return seen.pop()

    return run


ON_CARD = ("--device", "cuda")
TRAIN = ("train", "--optimizer", "sgd", "--batch-size", "20", "--epochs")


def content(folder="train"):
    return json.loads(Path(folder, "history.json").read_text())


def test_a_resumed_run_keeps_its_precision(asked, capsys):
    assert asked(*TRAIN, "1", *ON_CARD, "--tf32")
    assert content()["config"]["tf32"] is True
    assert asked(*TRAIN, "2", *ON_CARD, "--resume")
    assert "changes" not in content()
    assert "TF32" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--device", "cpu"), (*ON_CARD, "--no-tf32")])
def test_where_it_does_not_that_is_said_and_kept(asked, capsys, words):
    asked(*TRAIN, "1", *ON_CARD, "--tf32")
    assert not asked(*TRAIN, "2", *words, "--resume")
    assert "after step 2: products in float32 in place of TF32\n" in capsys.readouterr().err
    assert content()["config"]["tf32"] is False
    changes = [{"step": 2, "settings": {"tf32": [True, False]}}]
    assert content()["changes"] == changes
    assert not asked(*TRAIN, "3", *ON_CARD, "--resume")
    assert content()["changes"] == changes
    assert asked(*TRAIN, "4", *ON_CARD, "--tf32", "--resume")
    assert "after step 6: products in TF32 in place of float32\n" in capsys.readouterr().err
    assert [change["settings"]["tf32"] for change in content()["changes"]] == [
        [True, False],
        [False, True],
    ]


def test_a_finished_run_keeps_what_it_was_made_in(asked, capsys):
    asked(*TRAIN, "1", *ON_CARD, "--tf32")
    asked(*TRAIN, "1", "--resume")
    assert content()["config"]["tf32"] is True
    assert "TF32" not in capsys.readouterr().err


def test_a_resumed_comparison_keeps_its_precision_too(asked, capsys):
    words = ("compare", "--run", "sgd", "--batch-size", "20", "--epochs")
    assert asked(*words, "1", *ON_CARD, "--tf32")
    assert asked("compare", "--epochs", "2", *ON_CARD, "--resume")
    assert not asked("compare", "--epochs", "3", "--resume")
    assert "sgd, after step 4: products in float32 in place of TF32\n" in capsys.readouterr().err
    [folder] = [path.parent for path in Path("compare").glob("*/history.json")]
    assert content(folder)["changes"] == [{"step": 4, "settings": {"tf32": [True, False]}}]


def test_runs_of_before_are_in_float32(asked):
    asked(*TRAIN, "1")
    config = content()["config"]
    assert config.pop("tf32") is False
    assert config_from("config", config).tf32 is False
    with pytest.raises(ValueError, match=r"config\.tf32"):
        config_from("config", config | {"tf32": 1})
