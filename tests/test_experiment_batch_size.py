"""Batch size and machines: steps to a loss, the model of workers, and its one measurable end."""

import dataclasses
import json
import math
import os
from itertools import pairwise

import numpy as np
import pytest

import kfc_numba as kfc
from benchmarks.experiments import (
    batch_size,
    data_parallel,
    iterations,
    results,
    step_costs,
    tasks,
    workers,
)
from benchmarks.experiments import batch_size_report as report
from benchmarks.experiments.records import Records
from kfc_numba.curvature.blockdiagonal import BlockDiagonal

ABOUT = {"processor": "p", "threads": 2, "finished": "2026-01-01T00:00:00"}


# Runs in steps.


def made(name, losses, *, batch=128, seed=0, rate=0.03, outcome="reached", level=1.0):
    """A result with a training loss for each step."""
    names = ("step", "epoch", "seconds", "training_loss", "validation_loss", "validation_error")
    rows = [
        dict(zip(names, (n, 0.0, math.nan, loss, None, None), strict=True))
        for n, loss in enumerate(losses)
    ]
    settings = {"optimizer": name, "learning_rate": rate}
    plan = results.Plan("cifar-quick", 0, settings, batch, seed, level=level, steps=100)
    return results.Result(plan, outcome, None, rows, ABOUT)


def halving(steps):
    """Losses from 4 to 1 in a number of steps."""
    return [4.0 ** (1 - n / steps) for n in range(steps + 1)]


def test_evaluations_come_first_and_last():
    steps = list(iterations.evaluations(100))
    assert steps[:3] == [1, 2, 3]
    assert steps[-1] == 100
    assert max(b / a for a, b in pairwise(steps[4:])) <= iterations.GROWTH
    assert list(iterations.evaluations(1)) == [1]


def few_images():
    return tasks.load("few-images").first(32, 8)


def test_a_run_in_steps_ends_at_its_level():
    task, optimizer = few_images(), kfc.SGD(learning_rate=0.03)
    plan = results.plan_for(task, optimizer, 16, 0, steps=9, level=0.0, sample=16)
    whole = iterations.run_steps(task, optimizer, plan)
    assert (whole.outcome, whole.rows[-1]["step"]) == ("done", 9)
    assert all(math.isnan(row["seconds"]) for row in whole.rows)
    assert iterations.steps_to(whole, 0.0) == math.inf
    level = whole.rows[3]["training_loss"]
    plan = dataclasses.replace(plan, level=level)
    early = iterations.run_steps(task, optimizer, plan)
    assert early.outcome == "reached"
    assert 0 < early.rows[-1]["step"] <= 3
    assert iterations.steps_to(early, level) <= 3


@pytest.mark.parametrize(
    ("losses", "problem"),
    [
        ([4.0, 3.5, 2.5, 1.5, 1.0], "not reached after 4 steps"),
        # After half of 8 steps it is compared with what this one had after a quarter of them.
        ([4.0, 3.0, 2.8, 2.5, 2.2, 2.0, 1.8, 1.5, 1.0], "training loss 2.83 after 4 steps"),
        ([4.0, 3.5, 2.9, 2.5, 2.2, 2.0, 1.8, 1.5, 1.0], None),
    ],
)
def test_a_run_of_the_search_that_cannot_win(losses, problem, monkeypatch):
    """Its loss is 2.83 after each of four steps."""
    best = made("SGD", losses)

    class Imagined:
        def __init__(self, *_, **__):
            self.history = kfc.History()

        def fit(self, *_, total_steps, **__):
            row = {"step": total_steps, "seconds": 1.0, "training_loss": 2.83}
            self.history.rows.append(row)

    monkeypatch.setattr(kfc, "Trainer", Imagined)
    task, optimizer = few_images(), kfc.SGD()
    plan = results.plan_for(task, optimizer, 16, 0, steps=4, level=1.0)
    found = iterations.run_steps(task, optimizer, plan, best=best)
    if problem is None:
        assert (found.outcome, found.problem) == ("done", None)
    else:
        assert found.outcome == "given up"
        assert problem in found.problem


def test_a_run_that_diverged_reached_nothing():
    assert iterations.steps_to(made("SGD", halving(4)), 2.0) == pytest.approx(2)
    assert iterations.steps_to(made("SGD", halving(4), outcome="diverged"), 2.0) == math.inf


def test_results_have_the_names_that_they_had():
    paths = list(results.RESULTS.glob("*.json"))
    assert paths
    for path in paths:
        plan = json.loads(path.read_text())["plan"]
        assert results.Plan(**plan).file_name == path.name
    plan = made("SGD", halving(4)).plan
    assert plan.file_name != dataclasses.replace(plan, steps=99).file_name


def test_the_search_widens_until_the_best_rate_is_inside(tmp_path, monkeypatch):
    needed = {0.03: 60, 0.1: 50, 0.01: 70, 0.3: 40, 1.0: 45}
    seen = []

    def run_steps(task, optimizer, plan, *, best):
        rate = optimizer.learning_rate if isinstance(optimizer, kfc.SGD) else None
        seen.append((rate, plan.seed, best.label if best else None))
        return made("SGD" if rate else "KFC", halving(needed.get(rate, 9)), rate=rate)

    monkeypatch.setattr(batch_size, "run_steps", run_steps)
    options = batch_size.parse(["--batches", "128", "--seeds", "2"])
    store = results.Store(tmp_path, read_only=True)
    batch_size.Search(few_images(), options, store).run()
    assert seen == [
        (None, 0, None),
        (0.03, 0, None),
        (0.1, 0, "SGD 0.03"),
        (0.01, 0, "SGD 0.1"),
        (0.3, 0, "SGD 0.1"),
        (1.0, 0, "SGD 0.3"),
        (None, 1, None),
        (0.3, 1, None),
    ]


# The model.

COSTS = workers.Costs(
    by_examples={
        "step": {1: 1.0, 2: 1.5, 8: 4.5, 16: 9.0},
        "statistics": {1: 2.0, 16: 32.0},
        "length": {1: 0.5, 16: 8.0},
    },
    by_layer={"precondition": {"a": 3.0, "b": 2.0, "c": 2.0}, "decompose": {"a": 30.0, "b": 50.0}},
    numbers={"parameters": 1000, "factors": 5000, "eigenvectors": 6000},
)
SLOW = workers.Network("slow", 4000.0, 0.25)


def test_seconds_of_messages():
    assert SLOW.allgather(4000, 1) == SLOW.allreduce(4000, 1) == 0
    assert SLOW.allgather(4000, 2) == pytest.approx(0.25 + 0.5)
    assert SLOW.allreduce(4000, 8) == pytest.approx(2 * (3 * 0.25 + 7 / 8))
    sums = {size: SLOW.allreduce(size, 2) for size in (4, 400, 40_000)}
    found = workers.Network.measured("found", sums, 2)
    assert (found.bandwidth, found.latency) == (pytest.approx(4000), pytest.approx(0.25))


def test_shares_of_a_batch():
    assert COSTS.share("step", 16, 1) == 9
    assert COSTS.share("step", 16, 4) == pytest.approx(1.5 + (4.5 - 1.5) * 2 / 6)
    assert COSTS.share("step", 9, 4) == pytest.approx(1.5 + (4.5 - 1.5) / 6)  # three examples
    assert COSTS.share("step", 32, 1) == 18
    assert COSTS.share("step", 16, 64) == 1


def test_layers_are_divided_evenly():
    times = {"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.0}
    assert workers.division(times, 2) == {"a": 0, "b": 1, "c": 1, "d": 0}
    assert [COSTS.divided("precondition", n) for n in (1, 2, 3, 9)] == [7, 4, 3, 3]


def test_a_training_by_the_model():
    plain = workers.training(COSTS, SLOW, kfc.SGD(), 16, 2, 10)
    assert plain.computing == pytest.approx(10 * 4.5)
    assert plain.sending == pytest.approx(10 * 2 * (0.25 + 0.5))
    optimizer = kfc.KFC(period_growth=0, curvature_update_period=4, inverse_update_period=8)
    natural = workers.training(COSTS, SLOW, optimizer, 16, 2, 9.5)  # at 0, 4, 8; at 0, 8
    length, statistics = 0.5 + 7.5 * 7 / 15, 2 + 30 * 7 / 15
    own = 9.5 * (4.5 + length + 4) + 3 * statistics + 2 * 50
    assert natural.computing == pytest.approx(own)
    sent = 9.5 * (1.5 + 0.25 + 0.5 + 2 * (0.25 + 0.5e-3)) + 3 * 2 * (0.25 + 2.5) + 2 * (0.25 + 3)
    assert natural.sending == pytest.approx(sent)
    assert natural.total == natural.computing + natural.sending
    beside = workers.training(COSTS, SLOW, optimizer, 16, 2, 9.5, beside=True)
    assert beside.computing == pytest.approx(own - 2 * 50)
    assert beside.sending == pytest.approx(sent - 2 * (0.25 + 3))


def test_more_workers_want_larger_batches():
    steps = {2: 100.0, 16: 30.0, 64: math.inf}
    free = workers.Network("free", math.inf, 0.0)
    best = [workers.best_batch(COSTS, free, kfc.SGD(), steps, n).batch for n in (1, 16)]
    assert best == [2, 16]
    assert list(workers.powers_of_two(9)) == [1, 2, 4, 8]


def test_updates_are_those_of_a_training(monkeypatch):
    decompositions = []
    decompose = BlockDiagonal.decompose
    monkeypatch.setattr(
        BlockDiagonal, "decompose", lambda *a: decompositions.append(0) or decompose(*a)
    )
    optimizer = kfc.KFC(curvature_update_period=3)
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,))
    trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), optimizer)
    x, y = np.eye(3, dtype=np.float32), np.array([0, 1, 1])
    for _ in range(37):
        trainer.step(x, y)
    batches = int(trainer.optimizer_state["factor_batches"])
    assert workers.updates(optimizer, 36.5) == (batches, len(decompositions))


# Data-parallel steps.

SMALL = {"batch": 24, "steps": 6, "network": "small", "shape": (12, 12, 1), "dtype": "float64"}
OPTIMIZERS = {
    "SGD": kfc.SGD(averaging=None),
    # On all examples: which are left out depends on the whole batch.
    "KFC": kfc.KFC(averaging=None, exact_examples=None, curvature_examples=None),
    "KFC, all targets": kfc.KFC(
        averaging=None,
        exact_examples=None,
        curvature_examples=None,
        estimation_mode="fisher_exact",
        damping_strategy="exact",
    ),
    "KFC, given targets": kfc.KFC(
        averaging=None,
        curvature_examples=None,
        estimation_mode="fisher_empirical",
        loss_bound=None,
        momentum=0.5,
    ),
}


def test_two_processes_do_the_steps_of_one():
    jobs = [data_parallel.Job(optimizer, **SMALL) for optimizer in OPTIMIZERS.values()]
    context = data_parallel.spawning()
    board = data_parallel.board_for(jobs, 2, context)
    both = data_parallel.in_processes(data_parallel.train, board, context, jobs)
    for name, job, *found in zip(OPTIMIZERS, jobs, *both, strict=True):
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
    if rank and argument == "raises":
        raise ValueError("no data")
    if rank:
        os._exit(3)
    board.wait()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", r"worker \d: (ValueError: no data|BrokenBarrierError)"),
        ("dies", "worker 1: it ended without a result"),
    ],
)
def test_a_worker_that_fails_ends_all(how, message):
    context = data_parallel.spawning()
    board = data_parallel.Board(2, 1, "float64", context)
    with pytest.raises(RuntimeError, match=message):
        data_parallel.in_processes(fails, board, context, how)


def test_a_batch_that_is_not_to_be_divided():
    worker = data_parallel.Job(kfc.SGD(), **SMALL).worker(data_parallel.Board(1, 0, "float64"), 0)
    worker.board.workers = 5
    with pytest.raises(ValueError, match="x has 24 examples; required: a multiple of 5"):
        worker.step(*data_parallel.Job(kfc.SGD(), **SMALL).data())


# The report.


@pytest.mark.parametrize(
    ("sgd", "natural", "verdict"),
    [
        (0.2, 0.6, "holds"),
        (0.3, 0.6, "holds in part"),
        (0.1, 0.4, "holds in part"),
        (0.5, 0.4, "does not hold here"),
    ],
)
def test_verdict_on_batches(sgd, natural, verdict):
    assert report.batch_verdict(sgd, natural) == verdict


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([(2.0, 3.0), (0.5, 1.2)], "holds"),
        ([(2.0, 3.0), (2.0, 1.2)], "holds in part"),
        ([(2.0, 3.0), (0.5, 0.9)], "holds in part"),
        ([(2.0, 0.9), (0.5, 0.9)], "does not hold here"),
    ],
)
def test_verdict_on_machines(ratios, verdict):
    assert report.machines_verdict(ratios) == verdict


def made_runs():
    """KFC needs the fewer steps, the larger the batch, by its square root; SGD always as many."""
    return [
        made("KFC", halving(64)),
        made("KFC", halving(16), batch=2048),
        made("SGD", halving(90)),
        made("SGD", halving(80), rate=0.1),
        made("SGD", halving(90), rate=0.1, seed=1),
        made("SGD", halving(80), rate=0.01, batch=2048),
        made("SGD", [4.0, 500.0], rate=0.1, batch=2048, outcome="diverged"),
        made("SGD", halving(90)[:70], rate=0.03, batch=2048, outcome="given up"),
    ]


def test_steps_of_the_best_settings():
    found = report.found_in(made_runs(), (2.0, 1.0))
    assert found.level == 1.0
    assert found.to_level("SGD") == pytest.approx({128: 85, 2048: 80})
    assert found.exponent("KFC") == pytest.approx(0.5)
    assert report.batch_text(found, 1.0)[1] == "holds"
    table = report.search_table(found, (2.0, 1.0))
    assert "diverged by step 1 " in table
    assert "more than 69 " in table
    slower = [*made_runs()[1:], made("KFC", [4.0, 3.0, 1.5], outcome="done")]
    assert report.found_in(slower, (2.0, 1.0)).level == 2.0
    assert "Not known" in report.batch_claim(report.found_in(slower, (1.0,)))
    assert report.found_in(made_runs()[2:], (2.0, 1.0)) is None
    assert report.found_in(made_runs()[:5], (2.0, 1.0)) is None  # one batch size in common


def write(folder):
    store = results.Store(folder / "batch_size", read_only=True)
    for result in made_runs():
        store.get(result.plan, lambda r=result: r)


def test_section_and_figures(tmp_path):
    assert batch_size.section(tmp_path) is None
    batch_size.draw(tmp_path, tmp_path)
    write(tmp_path)
    text = batch_size.section(tmp_path)
    assert text.startswith("## Batch size and machines\n")
    assert "4.0 times fewer" in text
    assert "have not been measured" in text
    records = Records("batch_size_costs", tmp_path)
    steps = {"1": 0.001, "2048": 2.0}
    layers = {part: {"a": 0.01, "b": 0.02} for part in ("precondition", "decompose")}
    costs = {
        "by_examples": {"step": steps, "statistics": steps, "length": steps},
        "by_layer": layers,
        "numbers": {"parameters": 1000, "factors": 5000, "eigenvectors": 6000},
    }
    cases = [{"optimizer": "SGD", "batch": 128, "steps": 10, "alone": [1.25], "both": [0.5]}]
    records.get("costs", lambda: costs)
    records.get("two_processes", lambda: {"sums": {"4": 1e-4, "4000": 1e-3}, "cases": cases})
    text = batch_size.section(tmp_path)
    assert "have not been measured" not in text
    assert "| SGD, batch 128, 10 steps | 1.25" in text
    assert text == batch_size.section(tmp_path)
    batch_size.draw(tmp_path, tmp_path)
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    stems = ("batch_size_iterations", "batch_size_workers")
    assert names == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    for name in names:
        if name.endswith(".png"):
            assert f"figures/{name}" in text


def test_costs_are_those_of_the_model():
    job = data_parallel.Job(kfc.SGD(), 1, 1, "small", (12, 12, 1))
    record = step_costs.measure(job, (1, 2), 1)
    costs = workers.Costs.from_record(record)
    assert all(set(times) == {1, 2} for times in costs.by_examples.values())
    assert set(costs.by_layer["decompose"]) == {"conv1", "conv2", "dense1"}
    net = job.worker(data_parallel.Board(1, 0, "float32"), 0).net
    assert costs.numbers["parameters"] == sum(p.size for p in net.params.values())
    shapes = [(26, 16), (16 * 25 + 1, 32), (net.params["dense1.weight"].shape[0] + 1, 10)]
    assert costs.numbers["factors"] == sum(d * d + i * i for d, i in shapes)
    assert costs.numbers["eigenvectors"] == sum(d * d + i * i for d, i in shapes)
    assert workers.training(costs, workers.FAST, kfc.KFC(), 2, 2, 3).total > 0
