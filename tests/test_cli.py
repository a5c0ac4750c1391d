"""The command line: what it writes, that it goes on where it stopped, and what it refuses."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import dataset_files
import numba
import numpy as np
import pytest

from kfc_numba import checkpoint, networks
from kfc_numba.cli import main
from kfc_numba.commands import CommandError, compare, options
from kfc_numba.commands.train import history_table
from kfc_numba.datasets import Dataset
from kfc_numba.history import History
from kfc_numba.losses import SoftmaxCrossEntropy
from kfc_numba.optim import KFC, SGD, Adam
from kfc_numba.train import Trainer

TRAIN, TEST = 40, 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder with a small data set in the format of MNIST."""
    folder = tmp_path_factory.mktemp("data")
    dataset_files.write_mnist(folder / "mnist", dataset_files.mnist_arrays(0, TRAIN, TEST))
    return folder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KFC_NUMBA_DATA", raising=False)


def arguments(data, *more, optimizer="sgd", epochs=3, batch_size=16):
    """Of a run of a few steps: three an epoch."""
    return [
        *("train", "--dataset", "mnist", "--data", str(data), "--quiet"),
        *("--optimizer", optimizer, "--learning-rate", "0.003"),
        *("--epochs", str(epochs), "--batch-size", str(batch_size)),
        *more,
    ]


KFC_OPTIONS = (
    *("--damping", "1", "--num-burnin-steps", "2", "--curvature-update-period", "2"),
    *("--inverse-update-period", "3"),
)


def images(seed=0):
    """The data set of `data`, normalised by hand."""
    arrays = dataset_files.mnist_arrays(seed, TRAIN, TEST)
    x, x_test = (arrays[name].astype(np.float64)[..., None] for name in ("x_train", "x_test"))
    mean, std = x.mean(), x.std()
    x, x_test = (((a - mean) / std).astype(np.float32) for a in (x, x_test))
    return x, arrays["y_train"].astype(np.int64), x_test, arrays["y_test"].astype(np.int64)


def read(folder):
    return json.loads((Path(folder) / "history.json").read_text())


def arrays(folder):
    found, _ = checkpoint.load(Path(folder) / "checkpoint.safetensors")
    return found


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same_run(one, other):
    found, expected = arrays(one), arrays(other)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert without_seconds(read(one)["history"]) == without_seconds(read(other)["history"])


def one_line(capsys):
    """The only line of standard error, and nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


# What a run leaves.


def test_a_run_is_the_library_with_the_same_settings(data, capsys):
    assert main(arguments(data, "--seed", "7", "--output", "run")) == 0
    x, y, x_test, y_test = images()
    net = networks.build("small", (28, 28, 1), 10, seed=7)
    optimizer = SGD(learning_rate=0.003)
    trainer = Trainer(net, SoftmaxCrossEntropy(), optimizer, seed=7)
    history = trainer.fit(
        x, y, batch_size=16, epochs=3, validation=(x_test, y_test), progress=False
    )
    found = arrays("run")
    for name, value in trainer.raw_params.items():
        np.testing.assert_array_equal(found[f"params/{name}"], value, err_msg=name)
    content = read("run")
    assert without_seconds(content["history"]) == without_seconds(history.rows)
    assert content["config"] == {
        "dataset": "mnist",
        "data": str(data),
        "data_checksum": content["config"]["data_checksum"],
        "network": "small",
        "optimizer": optimizer.config(),
        "tf32": False,
        "batch_size": 16,
        "epochs": 3,
        "max_steps": None,
        "evaluate_every": None,
        "seed": 7,
    }
    assert content["environment"]["numpy"] == np.__version__
    assert content["environment"]["threading_layer"] == numba.threading_layer()
    assert sorted(p.name for p in Path("run").iterdir()) == [
        "checkpoint.safetensors",
        "curves.png",
        "history.json",
    ]
    assert capsys.readouterr().err == ""


def test_figures_of_the_last_row_follow_from_the_checkpoint(data, capsys):
    assert main(arguments(data, "--optimizer", "kfc", *KFC_OPTIONS, "--output", "run")) == 0
    x, y, x_test, y_test = images()
    net = networks.build("small", (28, 28, 1), 10)
    found = arrays("run")
    for name in net.params:
        net.params[name] = found[f"optimizer/average/{name}"].astype(np.float32)
    row = read("run")["history"][-1]
    assert (row["step"], row["epoch"]) == (9, 3)
    for inputs, labels, name in ((x, y, "training"), (x_test, y_test, "validation")):
        logits = net.predict(inputs).astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        loss = -np.log(p[np.arange(len(labels)), labels]).mean()
        assert row[f"{name}_loss"] == pytest.approx(loss, rel=1e-6)
    error = np.mean(logits.argmax(axis=1) != y_test)
    assert row["validation_error"] == pytest.approx(error, rel=1e-12)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2  # all that --quiet leaves
    assert f"error on 20 test images: {100 * error:.2f}% after 9 steps" in out[0]
    assert out[1] == "written to run: checkpoint.safetensors, curves.png, history.json"
    table = history_table(History(read("run")["history"])).splitlines()
    headers = "step    epoch    seconds    training loss    validation loss    validation error"
    assert table[0].strip() == headers
    last = [float(word) for word in table[5].split()]
    expected = [9, 3, row["seconds"], row["training_loss"], row["validation_loss"], error]
    np.testing.assert_allclose(last, expected, atol=0.051)
    np.testing.assert_allclose(last[3:], expected[3:], atol=5.1e-5)


def test_folders_that_are_not_named_get_a_number(data):
    for _ in range(2):
        assert main(arguments(data, "--max-steps", "1")) == 0
    assert main(arguments(data, "--max-steps", "1", optimizer="adam")) == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == [
        "mnist-small-adam",
        "mnist-small-sgd",
        "mnist-small-sgd-2",
    ]
    assert_same_run("runs/mnist-small-sgd", "runs/mnist-small-sgd-2")


def test_progress_and_headline_go_to_standard_error(data, capsys):
    loud = [word for word in arguments(data, epochs=1) if word != "--quiet"]
    assert main(loud) == 0
    out, err = capsys.readouterr()
    headline, *lines = err.splitlines()
    if lines[0].startswith("compiling kernels"):  # the first time
        del lines[0]
    assert headline == (
        "network small on mnist (40 training and 20 test images) by SGD(learning_rate=0.003), "
        "batch size 16"
    )
    rows = read("runs/mnist-small-sgd")["history"]
    assert [line.split(",")[0] for line in lines] == ["step 0/3", "step 3/3"]
    assert f"validation loss {rows[-1]['validation_loss']:.4g}" in lines[-1]
    assert out.startswith(history_table(History(rows)))
    assert len(out.splitlines()) == 6


def test_a_resumed_run_that_is_done_says_so(data, capsys):
    assert main([*arguments(data, epochs=1), "--output", "run"]) == 0
    capsys.readouterr()
    for more, said in (([], True), (["--quiet"], False), (["--epochs", "2"], False)):
        assert main(["train", "--resume", "--output", "run", *more]) == 0
        text = "run is done; more --epochs or --max-steps go on with it\n"
        assert (text in capsys.readouterr().err) == said


def test_a_headline_of_many_settings_is_wrapped(data, capsys):
    loud = [word for word in arguments(data, optimizer="kfc") if word != "--quiet"]
    structure = ["--structure", "ekfac", "--use-adaptive-learning-rate", "--max-loss-increase", "1"]
    assert main([*loud, *KFC_OPTIONS, *structure, "--max-steps", "1"]) == 0
    err = capsys.readouterr().err
    headline = err[: err.index("step 0/1")]
    assert "num_burnin_steps=2" in headline
    assert "momentum" not in headline.replace("\n ", "")  # it is the usual
    assert 1 < headline.count("\n") < 5
    assert max(map(len, err.splitlines())) <= 100


def test_without_matplotlib_there_is_no_plot(data, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    loud = [word for word in arguments(data, "--max-steps", "1") if word != "--quiet"]
    assert main([*loud, "--output", "run"]) == 0
    assert not Path("run/curves.png").exists()
    assert 'curves.png needs matplotlib: pip install "kfc_numba[plot]"' in capsys.readouterr().out


def test_a_long_table_is_thinned():
    rows = [
        {"step": n, "epoch": n / 7, "seconds": 0.0, "training_loss": 1.0}
        | {"validation_loss": None, "validation_error": None}
        for n in range(102)
    ]
    lines = history_table(History(rows)).splitlines()[2:]
    assert [int(line.split()[0]) for line in lines] == [*range(0, 102, 6), 101]
    assert lines[0].split()[4:] == ["-", "-"]


# Resuming.


def test_a_run_can_be_made_longer(data):
    assert main(arguments(data, "--output", "straight")) == 0
    assert main(arguments(data, "--output", "run", epochs=1)) == 0
    before = read("run")["history"]
    assert main(["train", "--resume", "--output", "run", "--epochs", "3", "--quiet"]) == 0
    assert_same_run("run", "straight")
    assert read("run")["history"][:2] == before  # with its seconds: not done anew
    assert read("run")["config"] == read("straight")["config"]


def test_resuming_what_is_finished_changes_nothing(data, capsys):
    assert main(arguments(data, "--output", "run", epochs=1)) == 0
    before, out = arrays("run"), capsys.readouterr().out
    content = read("run")
    assert main(["train", "--resume", "--output", "run", "--quiet"]) == 0
    assert capsys.readouterr().out == out
    assert read("run") == content
    for name, value in arrays("run").items():
        np.testing.assert_array_equal(value, before[name])


KILLER = """
import os, signal, sys
from kfc_numba import cli
replace, writes = os.replace, []
def last(source, target):
    writes.append(target)
    if sum(str(name).endswith(sys.argv[1]) for name in writes) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = last
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.mark.parametrize(("file", "number"), [("checkpoint.safetensors", 3), ("history.json", 4)])
def test_a_killed_run_ends_bit_identically(data, file, number):
    kfc = arguments(data, *KFC_OPTIONS, "--evaluate-every", "2", optimizer="kfc")
    assert main([*kfc, "--output", "straight"]) == 0
    command = [sys.executable, "-W", "error", "-c", KILLER, file, str(number)]
    killed = subprocess.run(
        [*command, *kfc, "--output", "run"], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = read("run")["history"]
    assert [row["step"] for row in before] == [0, 2]
    assert main(["train", "--resume", "--output", "run", "--quiet"]) == 0
    assert_same_run("run", "straight")
    assert read("run")["history"][:2] == before  # with its seconds: not done anew


def test_an_interrupt_is_one_line_and_keeps_the_last_evaluation(data, monkeypatch, capsys):
    assert main(arguments(data, "--output", "straight")) == 0
    usual = Trainer.step

    def step(trainer, x, y):
        if trainer.steps == 5:
            raise KeyboardInterrupt
        return usual(trainer, x, y)

    capsys.readouterr()
    monkeypatch.setattr(Trainer, "step", step)
    assert main(arguments(data, "--output", "run")) == 130
    assert one_line(capsys) == (
        "kfc-numba train: interrupted; to go on from the last evaluation: "
        "kfc-numba train --resume --output run\n"
    )
    assert [row["step"] for row in read("run")["history"]] == [0, 3]
    monkeypatch.setattr(Trainer, "step", usual)
    assert main(["train", "--resume", "--output", "run", "--quiet"]) == 0
    assert_same_run("run", "straight")


def test_an_interrupt_before_training_is_one_line(data, monkeypatch, capsys):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("kfc_numba.datasets.load", interrupted)
    assert main(arguments(data)) == 130
    assert one_line(capsys) == "kfc-numba train: interrupted\n"
    assert not Path("runs").exists()


# What is refused.


def test_a_run_is_not_overwritten(data, capsys):
    assert main(arguments(data, "--output", "run", "--max-steps", "1")) == 0
    before = Path("run/history.json").read_bytes()
    capsys.readouterr()
    assert main(arguments(data, "--output", "run")) == 2
    assert one_line(capsys) == (
        "kfc-numba train: --output: run already holds a run, which is not overwritten; continue "
        "it with --resume or give another folder\n"
    )
    assert Path("run/history.json").read_bytes() == before


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(arguments(data, "--output", str(folder), epochs=2)) == 0
    return folder


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "8"], "--batch-size 8 does not fit: {} was started with 16, and a"),
        (["--network", "quick"], "--network quick does not fit: {} was started with small,"),
        (["--optimizer", "kfc"], "--optimizer kfc does not fit: {} was started with sgd,"),
        (["--momentum", "0.1"], "--momentum 0.1 does not fit: {} was started with 0.9"),
        (["--damping", "0.1"], "--damping 0.1 does not fit: {} was started with None"),
        (["--seed", "1"], "--seed 1 does not fit: {} was started with 0,"),
        (["--epochs", "1"], "--epochs 1 does not fit: {} has done 2 already"),
        (["--max-steps", "2"], "--max-steps 2 does not fit: {} has done 6 already"),
        (["--data", "{other}"], "data set 'mnist' holds other images than those that {} was"),
    ],
)
def test_settings_that_a_resumed_run_does_not_have(finished, tmp_path, capsys, more, message):
    dataset_files.write_mnist(tmp_path / "other", dataset_files.mnist_arrays(1, TRAIN, TEST))
    more = [word.format(other=tmp_path / "other") for word in more]
    before = (finished / "history.json").read_bytes()
    assert main(["train", "--resume", "--output", str(finished), "--quiet", *more]) == 2
    assert message.format(finished) in one_line(capsys)
    assert (finished / "history.json").read_bytes() == before


def test_the_same_settings_may_be_repeated(finished):
    before = read(finished)
    again = ["--resume", "--output", str(finished), "--optimizer", "sgd", "--batch-size", "16"]
    assert main(["train", *again, "--learning-rate", "3e-3", "--quiet"]) == 0
    assert read(finished) == before


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("history.json", b"{", "history.json is not what a run of this version writes (Expecting"),
        (
            "history.json",
            b"{}",
            "history.json is not what a run of this version writes (the file lacks config",
        ),
        (
            "history.json",
            b'{"config": {"dataset": "mnist"}, "history": []}',
            "history.json is not what a run of this version writes (",
        ),
        ("checkpoint.safetensors", b"no", "checkpoint.safetensors must be a whole kfc_numba"),
    ],
)
def test_a_damaged_run_is_not_resumed(data, capsys, file, content, message):
    assert main(arguments(data, "--output", "run", "--max-steps", "1")) == 0
    (Path("run") / file).write_bytes(content)
    capsys.readouterr()
    assert main(["train", "--resume", "--output", "run", "--quiet"]) == 2
    assert message in one_line(capsys)
    assert (Path("run") / file).read_bytes() == content


MNIST = ["train", "--dataset", "mnist", "--data", "{data}"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a command: train, compare, curvature, warm or info"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--learning-rat", "1"], "--learning-rat is no option; did you mean --learning-"),
        (["train", "--lr", "1"], "train: --lr is no option; did you mean --learning-rate?"),
        (["train", "--Batch_Size=8"], "--Batch_Size is no option; did you mean --batch-size?"),
        (["train", "--qqq"], "train: --qqq is no option; --help lists those that there are"),
        (["train", "-lr", "1"], "train: -lr is no option; did you mean --learning-rate?"),
        (["train", "--run", "sgd"], "train: --run is no option; kfc-numba compare has it"),
        (["compare", "--damping", "1"], "an optimizer are given as --run 'NAME damping=VALUE'"),
        (["train", "extra"], "train: 'extra' is not expected: settings are --NAME VALUE (see --he"),
        (["train", "--epochs", "0"], "--epochs: '0' must be an integer of at least 1"),
        (["train", "--epochs", "2.5"], "--epochs: '2.5' must be an integer of at least 1"),
        (["train", "--seed", "-1"], "--seed: '-1' must be an integer of at least 0"),
        (["train", "--batch-size"], "--batch-size: expected one argument"),
        (["train", "--network", "vgg"], "--network: invalid choice: 'vgg' (choose from"),
        (["train", "--dataset", "imagenet"], "--dataset: invalid choice: 'imagenet' (choose from"),
        (["train", "--optimizer", "lbfgs"], "--optimizer: invalid choice: 'lbfgs' (choose from"),
        (["train", "--threads", "4096"], "--threads 4096 must be from 1 to "),
        (["train", "--learning-rate", "-1"], "--learning-rate (=-1) must be a number in [0, inf)"),
        (["train", "--learning-rate", "nan"], "--learning-rate (=nan) must be a number in [0, inf"),
        (["train", "--damping", "0"], "--damping (=0) must be a number in (0, inf)"),
        (["train", "--damping", "low"], "--damping (='low') must be a number in (0, inf)"),
        (["train", "--averaging", "0"], "--averaging (=0) must be a number in (0, inf) or None"),
        (["train", "--estimation-mode", "x"], "--estimation-mode (='x') must be one of ('fisher_"),
        (["train", "--inverse-update-period", "0"], "--inverse-update-period (=0) must be an int"),
        (["train", "--nesterov"], "--nesterov is no option of kfc; sgd has it"),
        (["train", "--optimizer", "sgd", "--nesterov", "2"], "--nesterov (=2) must be True or Fal"),
        (["train", "--data", "."], "--data is '.'; 'fashion-mnist-10k' ships with the package"),
        (["train", "--dataset", "svhn", "--data", "."], "data set 'svhn' not found: train_32x32"),
        (["train", "--dataset", "svhn", "--data", "no"], "--data is 'no', which does not exist"),
        (["train", "--resume"], "--resume needs --output FOLDER"),
        (["train", "--resume", "--output", "."], "holds no run to resume: history.json is missing"),
        ([*MNIST, "--output", "{data}/mnist/train-images-idx3-ubyte.gz"], "--output: "),
        (["compare", "--optimizers", "kfc", "bfgs"], "--optimizers: invalid choice: 'bfgs'"),
        (["compare", "--run", "bfgs"], "run 'bfgs' must begin with an optimizer: adam, kfc, sgd"),
        (["compare", "--run", ""], "run '' must begin with an optimizer: adam, kfc, sgd"),
        (["compare", "--run", "sgd momentum"], "run 'sgd momentum': 'momentum' must be NAME=VALU"),
        (["compare", "--run", "sgd damping=1"], "run 'sgd damping=1': 'damping=1' must be NAME="),
        (["compare", "--run", "sgd lr=1"], "a NAME of sgd; did you mean learning_rate?"),
        (["compare", "--run", "sgd momentum=1"], "run 'sgd momentum=1': --momentum (=1) must be"),
        (["compare", "--run", "sgd batch_size=0"], "batch_size must be an integer of at least 1"),
        (["compare", "--optimizers", "sgd", "sgd"], "two of the runs are the same"),
        (["compare", "--losses", "0"], "--losses: '0' must be a finite number above 0"),
        (["compare", "--losses", "inf"], "--losses: 'inf' must be a finite number above 0"),
        (["compare", "--losses", "9" * 400], "9' must be a finite number above 0"),
        (["train", "--epochs", "9" * 2000 + "x"], " [...] "),
        (["info", "--seed", "1"], "info: --seed is no option; kfc-numba train has it"),
        (["info", "--thread", "1"], "info: --thread is no option; did you mean --threads?"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(data, capsys, words, message):
    words = [word.format(data=data) for word in words]
    assert main(words) == 2
    line = one_line(capsys)
    assert line.startswith("kfc-numba")
    assert message in line
    assert len(line) <= 1000
    assert not Path("runs").exists()


def test_images_that_a_network_does_not_fit(monkeypatch, capsys):
    x, y = np.arange(18, dtype=np.uint8).reshape(2, 3, 3, 1), np.arange(2)
    few = Dataset(name="few", x_train=x, y_train=y, x_test=x, y_test=y, classes=("a", "b"))
    monkeypatch.setattr("kfc_numba.datasets.load", lambda *names, **more: few)
    assert main(["train", "--output", "run"]) == 2
    assert "network 'small' does not fit images of shape (3, 3, 1)" in one_line(capsys)
    assert not Path("run").exists()


def test_a_full_disk_is_one_line(data, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device", "run/checkpoint.safetensors")

    monkeypatch.setattr("kfc_numba.checkpoint.save", full)
    assert main(arguments(data, "--output", "run")) == 1
    line = one_line(capsys)
    assert line == "kfc-numba train: run/checkpoint.safetensors: No space left on device\n"


# Options of optimizers.


def test_options_are_the_arguments_of_the_constructors(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for kind in (KFC, SGD, Adam):
        for name in kind().config().keys() - {"optimizer"}:
            assert f"\n  --{name.replace('_', '-')} " in text


@pytest.mark.parametrize(("optimizer", "kind"), [("kfc", KFC), ("sgd", SGD), ("adam", Adam)])
def test_defaults_are_those_of_the_constructors(optimizer, kind):
    usual = kind().config()
    assert options.build(optimizer, {}).config() == usual
    given = {"averaging": None, "learning_rate": 0.5}
    assert options.build(optimizer, given).config() == usual | given
    again = options.rebuild(options.build(optimizer, given).config())
    assert type(again) is kind
    assert again.config() == usual | given


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("none", None), ("None", None), ("true", True), ("False", False), ("12", 12)],
        *[("1e-3", 1e-3), (".5", 0.5), ("-3", -3), ("expand", "expand")],
    ],
)
def test_literals(text, value):
    found = options.literal(text)
    assert found == value
    assert type(found) is type(value)


def test_documentation_is_read_from_docstrings():
    class Base:
        """Base.

        Parameters
        ----------
        a, b : int
            How many. And more.
        c : float
            Of the base.
        """

    class Derived(Base):
        """Derived.

        Parameters
        ----------
        c
            See `Base`.
        d : {"x", "y"}
            Which one.
        e : bool

        Raises
        ------
        ValueError
            Always.
        """

    found = options.documentation(Derived)
    assert found["a"] == found["b"] == "how many"
    assert found["c"] == "of the base"
    assert found["d"] == "which one: x, y"
    assert found["e"] == "true or false"


# Threads.


def test_threads_are_set_and_put_back(data, capsys):
    before = numba.get_num_threads()
    assert main(arguments(data, "--max-steps", "1", "--threads", "1", "--output", "run")) == 0
    assert read("run")["environment"]["threads"] == 1
    assert numba.get_num_threads() == before
    assert main(["train", "--threads", "1", "--batch-size", "0"]) == 2
    assert main(["info", "--threads", "1"]) == 0
    assert f"1 of at most {numba.config.NUMBA_NUM_THREADS}" in capsys.readouterr().out
    assert numba.get_num_threads() == before


# Comparison.


def test_compare_is_the_runs_by_themselves(data, capsys):
    common = ["--dataset", "mnist", "--data", str(data), "--epochs", "20", "--quiet"]
    kfc = "kfc damping=1 learning-rate=0.1 num_burnin_steps=2 batch_size=20"
    losses = ["--losses", "0.5", "2", "1e-9"]
    command = ["compare", *common, "--run", kfc, "--optimizers", "sgd", *losses]
    assert main([*command, "--seed", "3", "--output", "both"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    alone = ["--damping", "1", "--learning-rate", "0.1", "--num-burnin-steps", "2"]
    alone += ["--batch-size", "20", "--evaluate-every", "1", "--seed", "3", "--output", "alone"]
    assert main(["train", *common, *alone]) == 0
    assert_same_run("both/2-kfc", "alone")

    content = json.loads(Path("both/comparison.json").read_text())
    assert list(content["runs"]) == ["sgd", kfc]
    for run, name in zip(content["runs"].values(), ("1-sgd", "2-kfc"), strict=True):
        rows = read(f"both/{name}")["history"]
        assert run["last"] == rows[-1]
        assert run["config"] == read(f"both/{name}")["config"]
        assert [entry["loss"] for entry in run["reached"]] == [2, 0.5, 1e-9]
        for entry in run["reached"]:
            at = [row for row in rows if row["training_loss"] <= entry["loss"]][:1]
            expected = [(row["step"], row["seconds"]) for row in at] or [(None, None)]
            assert (entry["step"], entry["seconds"]) == expected[0]
    reached = content["runs"][kfc]["reached"]
    assert reached[0]["step"] < reached[1]["step"]
    assert reached[2]["step"] is None

    lines = out.splitlines()
    assert "to loss 2" in lines[0]
    assert "to loss 0.5" in lines[0]
    assert "1e-09" not in lines[0]
    assert out.startswith(compare.table(content) + "\n")
    assert max(map(len, lines)) <= 100
    wide = compare.table(content, "plain").splitlines()
    line = next(line for line in wide if line.startswith(kfc))
    for entry in reached[:2]:
        assert f"{entry['step']} steps, {entry['seconds']:.1f} s" in line
    assert f"loss {content['runs'][kfc]['last']['training_loss']:.3f}, 40 steps" in line
    assert Path("both/curves.png").read_bytes()[:4] == b"\x89PNG"


def test_seconds_of_a_comparison_are_without_compilation(data, monkeypatch):
    calls = []
    usual = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda t, *a: calls.append(t) or usual(t, *a))
    common = ["--dataset", "mnist", "--data", str(data), "--max-steps", "2", "--quiet"]
    assert main(["compare", *common, "--optimizers", "sgd", "adam", "--output", "both"]) == 0
    assert len(calls) == 6
    assert len(set(map(id, calls))) >= 2
    for name in ("1-sgd", "2-adam"):
        assert int(arrays(f"both/{name}")["optimizer/step"]) == 2


def test_a_run_as_written():
    run = compare.parse_run("kfc  learning-rate=0.1 --damping=1e-2 batch_size=512")
    assert run.label == "kfc learning-rate=0.1 --damping=1e-2 batch_size=512"
    assert run.optimizer == "kfc"
    assert run.settings == {"learning_rate": 0.1, "damping": 0.01, "batch_size": 512}
    with pytest.raises(CommandError, match="must begin with an optimizer"):
        compare.parse_run("  ")


# As a process of its own.


def run(*words, **more):
    command = [sys.executable, "-W", "error", "-m", "kfc_numba", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def test_as_a_process():
    found = run("train", "--epochs", "none")
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("kfc-numba: argument --epochs: 'none' must be an integer")
    assert found.stderr.count("\n") == 1


def evaluations(folder):
    return len(read(folder)["history"]) if Path(folder, "history.json").exists() else 0


INTERRUPTIBLE = """
import signal, sys
from kfc_numba.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have had it ignored
sys.exit(main())
"""


def test_a_real_interrupt(data):
    words = arguments(data, "--output", "run", epochs=10_000)
    command = [sys.executable, "-W", "error", "-c", INTERRUPTIBLE, *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        # Not while it compiles: an interrupt within a finaliser of LLVM's objects is lost.
        while process.poll() is None and evaluations("run") < 3:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.startswith("kfc-numba train: interrupted; to go on")
    assert err.count("\n") == 1
