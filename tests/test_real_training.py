"""A short training run of the command line on real images, held against figures."""

import json
from pathlib import Path

import pytest

from kfc_numba.cli import main

STEPS = 60
# Mean over seeds 0 to 3, and a margin of about four of their standard deviations.
FIGURES = {
    "kfc": {"training_loss": (0.206, 0.035), "validation_error": (0.135, 0.03)},
    "sgd": {"training_loss": (0.515, 0.06), "validation_error": (0.199, 0.022)},
}


@pytest.mark.parametrize("optimizer", FIGURES)
def test_sixty_steps_reach_the_usual_figures(tmp_path, optimizer):
    folder = tmp_path / "run"
    rate = {"kfc": "0.03", "sgd": "0.01"}[optimizer]
    words = ["train", "--quiet", "--optimizer", optimizer, "--learning-rate", rate]
    assert main([*words, "--max-steps", str(STEPS), "--output", str(folder)]) == 0
    row = json.loads(Path(folder, "history.json").read_text())["history"][-1]
    assert row["step"] == STEPS
    for name, (mean, margin) in FIGURES[optimizer].items():
        assert row[name] == pytest.approx(mean, abs=margin), name
