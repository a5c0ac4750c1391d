"""SVHN with the paper's network: made files of the official format, and the report."""

import math

import numpy as np
import pytest

import kfc_numba as kfc
from benchmarks.experiments import results, svhn

ABOUT = {"processor": "p", "threads": 2, "finished": "2026-01-01T00:00:00"}


def test_the_network_is_the_papers():
    net = svhn.network((32, 32, 3), 0)
    shapes = {name: value.shape for name, value in net.params.items() if "weight" in name}
    assert shapes == {
        "conv1.weight": (5, 5, 3, 96),
        "conv2.weight": (5, 5, 96, 128),
        "conv3.weight": (5, 5, 128, 256),
        "dense1.weight": (4 * 4 * 256, 2048),
        "dense2.weight": (2048, 2048),
        "dense3.weight": (2048, 10),
    }
    rates = [s.layer.rate for s in net.layers if isinstance(s.layer, kfc.Dropout)]
    assert tuple(rates) == svhn.DROPOUT


def test_made_files_are_read(tmp_path):
    svhn.make_files(tmp_path)
    task = svhn.load(tmp_path, part=16)
    (x, y), (held, _) = task.train, task.validation
    assert (x.shape, len(held)) == ((90, 32, 32, 3), 30)
    # Brightness tells the digit; 0 is the brightest, label 10 of the file.
    means = [x[y == digit].mean() for digit in (*range(1, 10), 0)]
    assert (np.diff(means) > 0).all()
    assert math.isfinite(kfc.evaluate(task.build(0), task.loss, x[:4], y[:4])[0])


def test_without_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("KFC_NUMBA_DATA", raising=False)
    words = ["--data", str(tmp_path), "--results", str(tmp_path), "--output", str(tmp_path)]
    assert svhn.main(words) == 1
    shown = capsys.readouterr().out
    assert str(tmp_path) in shown
    assert "**Not run: the data are not at hand.**" in shown
    assert svhn.COMMAND in svhn.section(tmp_path)
    svhn.draw(tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_options_that_mean_nothing(capsys):
    with pytest.raises(SystemExit):
        svhn.parse(["--budget", "0"])
    assert "--budget is 0.0; required" in capsys.readouterr().err


def test_a_run_on_made_files(tmp_path, capsys):
    words = ["--fast", "--results", str(tmp_path), "--output", str(tmp_path)]
    assert svhn.main(words) == 0
    assert "SVHN, 90 images" in capsys.readouterr().out
    found = [result.label for result in results.Store(tmp_path / "svhn").newest()]
    assert sorted(found) == ["KFC", "SGD 0.01", "SGD 0.03"]
    assert (tmp_path / "figures" / "svhn.png").read_bytes().startswith(b"\x89PNG")
    before = svhn.section(tmp_path)
    assert svhn.main([*words, "--report-only"]) == 0
    assert svhn.section(tmp_path) == before


@pytest.mark.parametrize(
    ("natural", "verdict"),
    [
        (30.0, "holds"),
        (50.0, "holds in part"),
        (90.0, "does not hold here"),
        (None, "does not hold here"),
    ],
)
def test_verdict(natural, verdict):
    assert svhn.verdict(natural, 90.0) == verdict


def made(name, losses, rate=0.01, outcome="done"):
    """A result with a row every ten seconds and steps."""
    names = ("step", "epoch", "seconds", "training_loss", "validation_loss", "validation_error")
    rows = [
        dict(zip(names, (10 * n, 0.1 * n, 10.0 * n, loss, loss, 0.25), strict=True))
        for n, loss in enumerate(losses)
    ]
    plan = results.Plan("svhn", 0, {"optimizer": name, "learning_rate": rate}, 128, 0, 40.0)
    return results.Result(plan, outcome, "why" if outcome != "done" else None, rows, ABOUT)


def test_section_of_results(tmp_path):
    store = results.Store(tmp_path / "svhn", read_only=True)
    runs = [
        made("KFC", [2.0, 0.5, 0.25, 0.2, 0.1]),
        made("SGD", [2.0, 1.5, 1.0, 0.75, 0.5]),
        made("SGD", [2.0, 900.0], 0.1, "diverged"),
    ]
    for result in runs:
        store.get(result.plan, lambda r=result: r)
    text = svhn.section(tmp_path)
    assert "It holds.** SGD 0.01 ends with a training loss of 0.5, after 40 s and 40 steps" in text
    assert "4.00 times sooner, in 4.0 times fewer steps" in text
    assert "| SGD 0.1" in text
    svhn.draw(tmp_path, tmp_path)
    assert (tmp_path / "figures" / "svhn.svg").is_file()
