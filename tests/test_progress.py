"""Progress: a bar for a terminal, lines for a log, and nothing that ends a training."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest

from kfc_numba import progress
from kfc_numba.layers.dense import Dense
from kfc_numba.losses import SoftmaxCrossEntropy
from kfc_numba.optim import SGD
from kfc_numba.sequential import Sequential
from kfc_numba.train import Trainer

ROW = {
    "step": 79,
    "epoch": 0.5,
    "seconds": 12.345,
    "training_loss": 0.43215,
    "validation_loss": 0.5,
    "validation_error": 0.16204,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Gone(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def fit(**more):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 5)).astype(np.float32), rng.integers(3, size=20)
    trainer = Trainer(
        Sequential([Dense(3)], input_shape=(5,)), SoftmaxCrossEntropy(), SGD(averaging=4)
    )
    arguments = {"batch_size": 5, "epochs": 3, "validation": (x, y)} | more
    return trainer.fit(x, y, **arguments)


def test_a_log_has_a_line_for_each_evaluation(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    history = fit()
    lines = sys.stderr.getvalue().split("\n")
    assert lines.pop() == ""
    if lines[0].startswith("compiling kernels"):  # the first time
        del lines[0]
    assert lines == [progress.line(row, 12) for row in history.rows]
    assert len(lines) == 4
    assert "\r" not in sys.stderr.getvalue()


def test_a_line():
    assert progress.line(ROW, 158) == (
        "step 79/158, epoch 0.50, 12.3 s: training loss 0.4321, validation loss 0.5, error 0.162"
    )
    alone = ROW | {"validation_loss": None, "validation_error": None}
    assert progress.line(alone, 158) == "step 79/158, epoch 0.50, 12.3 s: training loss 0.4321"
    large = ROW | {"step": 123_456, "training_loss": 1.23456e30, "validation_loss": float("nan")}
    assert len(progress.line(large, 123_456)) <= 100


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "300")
    history = fit()
    text = sys.stderr.getvalue()
    assert text.startswith("\rcompiling")
    last = text.replace("\n", "\r").rstrip("\r").split("\r")[-1]
    assert last.startswith("epoch 3/3: 100%")
    assert "12/12" in last
    row = history.rows[-1]
    assert f"loss {row['training_loss']:.4g}, error {row['validation_error']:.4g}" in last
    assert max(map(len, text.replace("\n", "\r").split("\r"))) <= 100


def test_a_narrow_terminal_has_a_narrow_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    fit()
    assert max(map(len, sys.stderr.getvalue().replace("\n", "\r").split("\r"))) <= 60


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_a_terminal_that_does_not_know_its_size(monkeypatch):
    import pty

    leader, follower = pty.openpty()
    with open(follower, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("COLUMNS", "100")
        os.set_blocking(leader, False)
        with progress.progress(True, 0, 3, 1):
            assert b"compiling:   0%|  " in os.read(leader, 10_000)
    os.close(leader)


def test_without_a_number_of_epochs_or_validation_data(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    fit(epochs=None, max_steps=5, validation=None)
    last = sys.stderr.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith("epoch 2: 100%")
    assert "error" not in last


def test_the_first_step_is_no_measure_of_the_others():
    bar = progress.Bar(Terminal(), 7, 100, None)
    for name in ("start_t", "last_print_t"):
        setattr(bar._bar, name, getattr(bar._bar, name) - 1000)  # so long did it compile
    bar.step(1.0, 1)
    found = bar._bar.format_dict
    assert found["n"] == found["initial"] == 8
    assert found["elapsed"] < 500
    bar.close()


@pytest.mark.parametrize("stream", [None, "closed", Gone()])
def test_a_stream_that_is_gone_ends_no_training(monkeypatch, stream):
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert fit().rows[-1]["step"] == 12


def test_nothing_is_shown_unasked(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    fit(progress=False)
    assert sys.stderr.getvalue() == ""


NOTEBOOK = """
import sys, types
sys.modules["ipykernel"] = types.ModuleType("ipykernel")
import tqdm.auto
from kfc_numba import progress
class Own(tqdm.auto.tqdm):
    pass
tqdm.auto.tqdm = Own
print(type(progress.progress(True, 0, 3, 1)._bar).__name__)
"""


def test_a_notebook_has_the_bar_of_tqdm_auto():
    environment = os.environ | {"TERM": "dumb"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", NOTEBOOK],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "Own\n"
