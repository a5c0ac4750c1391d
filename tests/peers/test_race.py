"""The PyTorch side of benchmarks/experiments/race.py: the same training as ours."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kfc_numba as kfc

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are not installed

from benchmarks.experiments import pytorch_runs, race, runs
from benchmarks.peers import pytorch

LAYOUTS = [pytest.param(layout, id=name) for name, layout in pytorch.FORMATS.items()]
STEPS = (1, 4, 9)  # of 16 examples of 96: the second pass is begun


def rival(settings, layout, seed=3):
    return pytorch_runs.TorchTraining(
        race.made_task(), settings, 16, seed, sample=40, layout=layout
    )


def trained(settings, layout):
    training = rival(settings, layout)
    for steps in STEPS:
        training.train_to(steps)
    return training


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("averaging", [None, 3.0, 0.5])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_training_is_ours(name, averaging, layout):
    settings = pytorch_runs.config_of(name, 1e-3, averaging)
    rate = {"learning_rate": 1e-3, "averaging": averaging}
    optimizer = kfc.SGD(momentum=0.9, **rate) if name == "SGD" else kfc.Adam(**rate)
    own = runs.OwnTraining(race.made_task(), optimizer, 16, 3)
    own.sample = 40
    for steps in STEPS:
        own.trainer.fit(
            *own.task.train,
            batch_size=16,
            total_steps=steps,
            evaluate_every=steps,
            validation=own.task.validation,
            progress=False,
            training_sample=40,
        )
    rows = trained(settings, layout).rows
    assert len(rows) == len(own.rows) == 4
    for theirs, ours in zip(rows, own.rows, strict=True):
        assert (theirs["step"], theirs["epoch"]) == (ours["step"], pytest.approx(ours["epoch"]))
        for column in ("training_loss", "validation_loss"):
            # Nine steps of float32, whose sums have other orders; a step changes the third digit.
            assert theirs[column] == pytest.approx(ours[column], rel=2e-4)
    assert abs(rows[0]["training_loss"] / rows[1]["training_loss"] - 1) > 1e-3


def test_muon_takes_convolutions_for_matrices():
    settings = pytorch_runs.config_of("Muon", 0.01, None)
    first, last = (
        [p.detach().clone() for p in trained(settings, layout).rival.parameters()]
        for layout in pytorch.FORMATS.values()
    )
    start = list(rival(settings, torch.contiguous_format).rival.parameters())
    for contiguous, channels_last, before in zip(first, last, start, strict=True):
        # Orthogonalising does not depend on the order of columns; it is done in bfloat16.
        change = (contiguous - before).abs().max()
        assert change > 1e-3
        assert (contiguous - channels_last).abs().max() < 0.3 * change

    # The first step of a convolution by hand, from the definition of an orthogonal factor.
    training = rival(settings, torch.contiguous_format)
    training.train_to(1)
    weight, before = next(training.rival.parameters()), start[0]
    step = (before * (1 - 0.01 * 0.1) - weight).detach().reshape(len(weight), -1).numpy()
    values = np.linalg.svd(step / (0.01 * 0.2 * np.sqrt(max(step.shape))), compute_uv=False)
    # Five steps of Newton and Schulz, by design, leave singular values in about 0.7 to 1.2.
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_soap_trains_the_same_in_either_format():
    settings = pytorch_runs.config_of("SOAP", 0.003, None)
    first, last = (trained(settings, layout) for layout in pytorch.FORMATS.values())
    losses = [[row["training_loss"] for row in training.rows] for training in (first, last)]
    assert losses[0][-1] < 0.98 * losses[0][0]
    # Directions of small eigenvalues turn with the last bits of a gradient.
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
