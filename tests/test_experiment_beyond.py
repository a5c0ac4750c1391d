"""The experiment `beyond`: what is run, how verdicts follow, what the section says."""

import dataclasses
import math
import re

import pytest
from made_results import keep, made

import kfc_numba as kfc
from benchmarks.experiments import beyond, beyond_report, results, tasks
from benchmarks.experiments.claims import HOLDS, NOT, OURS, PART

ADAPTIVE = {"use_adaptive_damping": True}


def variant(label, rate, task="autoencoder", **more):
    structure = label.partition(" ")[2] or "kronecker"
    settings = ADAPTIVE if structure == "adaptive" else {"structure": structure}
    return made("KFC", rate, task=task, **settings, **more)


def test_variants_are_told_apart_by_their_labels(tmp_path):
    runs = [variant(label, 1e-3) for label in beyond.VARIANTS]
    assert [run.label for run in runs] == list(beyond.VARIANTS)
    for label, settings in beyond.VARIANTS.items():
        assert results.label_of(kfc.KFC(**settings).config()) == label
    keep(tmp_path / "beyond", runs)
    assert len(beyond_report.load(tmp_path)) == 4


@pytest.mark.parametrize(
    ("rate", "verdict", "ratio"), [(1.1e-3, HOLDS, 0.91), (0.95e-3, PART, 1.05), (5e-4, NOT, 2.0)]
)
def test_iterations_to_the_loss_of_the_one_that_ended_higher(tmp_path, rate, verdict, ratio):
    keep(tmp_path / "beyond", [variant("KFC", 1e-3), variant("KFC ekfac", rate)])
    (claim,) = beyond.claims(tmp_path)
    assert claim.verdict == verdict
    loss = 2 * math.exp(-1000 * min(rate, 1e-3))
    assert f"{ratio:.2f} on an autoencoder" in claim.ours
    assert f"(loss {loss:.3g})" in claim.ours


def test_the_median_over_tasks_decides(tmp_path):
    rates = {"autoencoder": 5e-4, "cifar-resnet": 2e-3, "cifar-quick": 3e-3}
    runs = [variant("KFC", 1e-3, task) for task in rates]
    runs += [variant("KFC ekfac", rate, task) for task, rate in rates.items()]
    keep(tmp_path / "beyond", runs)
    (claim,) = beyond.claims(tmp_path)
    assert claim.verdict == HOLDS
    assert [f"{value:.2f} on" in claim.ours for value in (2, 0.5, 1 / 3)] == [True] * 3


def test_a_variant_that_diverges_does_not_hold(tmp_path):
    bad = dataclasses.replace(variant("KFC tridiagonal", 1e-3), outcome="diverged", problem="nan")
    keep(tmp_path / "beyond", [variant("KFC", 1e-3), bad])
    (claim,) = beyond.claims(tmp_path)
    assert claim.verdict == NOT
    assert "tridiagonal KFC diverges on an autoencoder" in claim.ours
    line = next(x for x in beyond.section(tmp_path).splitlines() if "| tridiagonal KFC " in x)
    assert line.rstrip("| ").endswith("1")


def test_the_residual_network_is_beside_the_best_sgd(tmp_path):
    task = "cifar-resnet"
    runs = [variant("KFC", 5e-3, task), made("SGD", 1e-3, task=task, learning_rate=0.1)]
    keep(tmp_path / "beyond", [*runs, made("SGD", 2e-4, task=task, learning_rate=0.3)])
    (claim,) = beyond.claims(tmp_path)
    assert (claim.verdict, "0.20 on a residual" in claim.ours) == (PART, True)
    assert claim.source == OURS
    caption = next(x for x in beyond.section(tmp_path).splitlines() if x.startswith("*Training"))
    # Of SGD the rate that is drawn; 128 times 10 examples are an epoch of made runs.
    assert re.search(
        r"CIFAR-10, 1,280 images, \d+ iterations .*: SGD 0.1 and KFC, seed 0\.", caption
    )


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ({}, 0.1),
        ({0.1: 1.0}, 0.3),
        ({0.1: 1.0, 0.3: 0.5}, 1.0),  # the best is the largest
        ({0.1: 1.0, 0.3: 0.5, 1.0: math.inf}, None),  # or between two others
        ({0.1: 0.5, 0.3: 1.0}, 0.03),  # or the least
        ({0.1: math.inf, 0.3: math.inf}, 0.03),
        ({0.03: 0.5, 0.1: 0.6, 0.3: 1.0}, None),  # nothing is left
    ],
)
def test_the_search_goes_on_beyond_the_end_that_the_best_is_at(losses, rate):
    assert beyond.next_rate((0.1, 0.3), losses, (0.03, 0.1, 0.3, 1.0)) == rate


def test_the_rule_and_what_deviates_are_of_the_results(tmp_path):
    keep(tmp_path / "beyond", [made("KFC", 1e-3, task="autoencoder", damping=0.002)])
    assert "KFC is `KFC()` with damping 0.002, which adaptive" in beyond.section(tmp_path)
    keep(tmp_path / "beyond", [variant("KFC ekfac", 2e-3)])
    section = beyond.section(tmp_path)
    assert "(George and others (2018)): **holds**." in section
    assert "EKFAC over KFC at most 1, and up to 1.1 in part;" in section


def test_section_and_figure(tmp_path):
    assert beyond.section(tmp_path) is None
    assert beyond.claims(tmp_path) == []
    beyond.draw(tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())
    keep(tmp_path / "beyond", [variant("KFC", 1e-3), variant("KFC ekfac", 2e-3)])
    section = beyond.section(tmp_path)
    assert section.startswith("## Beyond the paper\n")
    steps = 500  # half of those of KFC
    assert f"| {steps} " in next(x for x in section.splitlines() if "| EKFAC " in x)
    assert (
        "tridiagonal KFC on an autoencoder of dense layers on Fashion-MNIST"
        in (section[section.index("Missing: ") :])
    )
    beyond.draw(tmp_path, tmp_path)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"beyond.png", "beyond.svg"}


def test_what_is_run(tmp_path, monkeypatch):
    seen = []

    def run(task, optimizer, plan):
        seen.append((results.label_of(plan.optimizer), plan.seed, plan.epochs))
        rate = 1e-3 * (2 if "0.003" in seen[-1][0] else 1)
        return dataclasses.replace(made("SGD", rate), plan=plan)

    monkeypatch.setattr(beyond, "run", run)
    options = beyond.parse(["--seeds", "2"])
    task = dataclasses.replace(tasks.load("few-images").first(8, 4), name="autoencoder")
    store = results.Store(tmp_path, any_machine=True)
    beyond.run_task(task, options, store)
    epochs = beyond.TASKS["autoencoder"][1]
    assert seen == [
        *[(f"SGD {rate:g}", 0, epochs) for rate in (0.001, 0.003, 0.01)],
        *[(label, seed, epochs) for label in beyond.VARIANTS for seed in (0, 1)],
        ("SGD 0.003", 1, epochs),
    ]
    # Iterations are the same on any machine.
    monkeypatch.setattr(results, "machine", lambda: {"processor": "another", "threads": 99})
    beyond.run_task(task, options, results.Store(tmp_path, any_machine=True))
    assert len(seen) == 12


def test_a_run_of_epochs(monkeypatch):
    monkeypatch.setattr(beyond, "load_kernels", lambda *_: None)
    task = tasks.load("few-images").first(64, 16)
    optimizer = kfc.SGD(learning_rate=1e-3)
    plan = results.plan_for(task, optimizer, 16, 0, epochs=2, sample=32)
    result = beyond.run(task, optimizer, plan)
    assert (result.outcome, result.rows[-1]["step"]) == ("done", 8)
    assert [row["step"] for row in result.rows] == list(range(9))
