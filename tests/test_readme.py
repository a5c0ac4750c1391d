"""The README: its examples run, its table is what the program wrote, its links lead somewhere."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import cli
from kfc_numba.commands import train
from kfc_numba.datasets import Dataset

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def few_images(monkeypatch):
    """The first images of the bundled set in place of all of them."""
    found = kfc.datasets.load("fashion-mnist-10k")
    few = Dataset(
        name=found.name,
        x_train=found.x_train[:60],
        y_train=found.y_train[:60],
        x_test=found.x_test[:20],
        y_test=found.y_test[:20],
        classes=found.classes,
    )
    monkeypatch.setattr(kfc.datasets, "load", lambda name, *rest, **more: few)
    return few


@pytest.mark.parametrize("code", blocks("python"))
def test_examples_run(code, few_images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "runs/mine" in code:
        assert cli.main(["train", "--output", "runs/mine", "--epochs", "1", "--quiet"]) == 0
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    for name in set(names) & {"history", "classes", "value", "loss", "probabilities"}:
        value = names[name]
        if name == "history":
            value = value.column("training_loss")
        assert np.isfinite(value).all()
    if "history" in names:
        assert len(names["classes"]) == len(few_images.x_test)
        last = names["history"].rows[-1]
        assert last["epoch"] == 5
        wrong = np.mean(names["classes"] != few_images.y_test)
        assert last["validation_error"] == pytest.approx(wrong, abs=1e-12)
    if "model" in names:
        assert set(names["names"]) <= set(few_images.classes)
        np.testing.assert_array_equal(
            names["probabilities"], names["model"].predict_proba(few_images.x_test)
        )
        assert Path("clothes.safetensors").stat().st_size < 200_000
        assert names["trainer"].history.rows[-1]["epoch"] == 40


def test_there_are_examples():
    assert len(blocks("python")) == 4
    short = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(short) <= 14


def commands():
    lines = [line.partition("   #")[0] for block in blocks("sh") for line in block.splitlines()]
    return [words[1:] for words in map(shlex.split, lines) if words[:1] == ["kfc-numba"]]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words, monkeypatch):
    seen = []
    for module in (cli.train, cli.compare, cli.info, cli.warm):
        monkeypatch.setattr(module, "command", seen.append)
    if "--help" in words:
        with pytest.raises(SystemExit):
            cli.main(words)
        return
    assert cli.main(words) == 0
    assert len(seen) == 1
    for run in getattr(seen[0], "run", None) or ():
        cli.compare.parse_run(run)


def test_the_usual_data_set_is_the_one_that_is_told_of():
    assert train.DATASET == "fashion-mnist-10k"
    for name in kfc.datasets.names():
        assert f"`{name}`" in README


def test_the_table_is_what_the_program_wrote(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_readme_picture

    comparison = json.loads((ROOT / "docs" / "comparison.json").read_text(encoding="utf-8"))
    assert make_readme_picture.with_table(README, comparison) == README
    assert list(comparison["runs"]) == list(make_readme_picture.RUNS)
    for run in comparison["runs"].values():
        assert f"{100 * run['last']['validation_error']:.2f}%" in README
    (size,) = {run["config"]["batch_size"] for run in comparison["runs"].values()}
    assert f"batches of {size} images" in README
    del sys.modules["make_readme_picture"]


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    local = [target for target in targets if not target.startswith("http")]
    assert "docs/curves.png" in local
    for target in local:
        assert (ROOT / target).exists(), target
    assert (ROOT / "docs" / "curves.png").stat().st_size < 200_000
