"""Batch size and machines: steps to a loss, the model of workers, and its one measurable end."""

import sys
from pathlib import Path

import numpy as np
import pytest

import kfc_numba as kfc

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are not installed

from benchmarks.experiments import data_parallel  # noqa: E402

# Data-parallel steps.

SMALL = {"batch": 24, "steps": 6, "network": "small", "shape": (12, 12, 1), "dtype": "float64"}
OPTIMIZERS = {
    "SGD": kfc.SGD(averaging=None),
    # On all examples: which are left out depends on the whole batch.
    "KFC": kfc.KFC(averaging=None, exact_fraction=1.0),
    "KFC, all targets": kfc.KFC(
        averaging=None, exact_fraction=1.0, estimation_mode="fisher_exact", damping_strategy="exact"
    ),
    "KFC, given targets": kfc.KFC(
        averaging=None, estimation_mode="fisher_empirical", loss_bound=None, momentum=0.5
    ),
}


def test_two_processes_do_the_steps_of_one():
    jobs = [data_parallel.Job(optimizer, **SMALL) for optimizer in OPTIMIZERS.values()]
    context = data_parallel.spawning()
    board = data_parallel.board_for(jobs, 2, context)
    results = data_parallel.in_processes(data_parallel.train, board, context, jobs)
    for name, job, *found in zip(OPTIMIZERS, jobs, *results, strict=True):
        net = job.worker(data_parallel.Board(1, 0, "float64"), 0).net
        trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), job.optimizer)
        first = {name: value.copy() for name, value in net.params.items()}
        for _ in range(job.steps):
            trainer.step(*job.data())
        for parameter, expected in net.params.items():
            assert np.abs(expected - first[parameter]).max() > 1e-4
            np.testing.assert_array_equal(found[0][parameter], found[1][parameter], name)
            # Sums over halves of the batch: steps of a nearly singular curvature magnify rounding.
            np.testing.assert_allclose(found[0][parameter], expected, 1e-8, 1e-10, err_msg=name)


def fails(board, rank, argument):
    if rank:
        raise ValueError("no data")
    board.wait()


def test_a_worker_that_fails_ends_all():
    context = data_parallel.spawning()
    board = data_parallel.Board(2, 1, "float64", context)
    with pytest.raises(RuntimeError, match=r"worker \d: (ValueError: no data|BrokenBarrierError)"):
        data_parallel.in_processes(fails, board, context, None)
