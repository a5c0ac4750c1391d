"""The experiment `optimisation`: its order, its rules of verdicts, its tables and figures."""

import dataclasses
import math
import re

import pytest
from made_results import keep, made

import kfc_numba as kfc
from benchmarks.experiments import figures, optimisation, results, tasks
from benchmarks.experiments import optimisation_report as report
from benchmarks.experiments.claims import ABSTRACT, HOLDS, NOT, PART

RATES = {"KFC": 1e-2, "SGD": 1e-3, "Adam": 2e-3}


# The search.


def runner(tmp_path, monkeypatch, clock=lambda: 0.0, words=()):
    """A runner whose trainings are made up: SGD is best with a rate of 0.01, and batches cost."""
    seen = []

    def own_run(task, optimizer, plan, *, reference, growth):
        name, rate = type(optimizer).__name__, optimizer.learning_rate
        falls = RATES[name] * (1.5 if rate == 0.01 else 1) * 128 / plan.batch_size
        seen.append((task.name, name, plan.batch_size, rate, plan.seed, reference))
        found = made(name, falls, task=task.name, batch=plan.batch_size, learning_rate=rate)
        return dataclasses.replace(found, plan=plan)

    monkeypatch.setattr(optimisation, "own_run", own_run)
    monkeypatch.setattr(results, "machine", dict)
    options = optimisation.parse(["--seeds", "2", *words])
    store = results.Store(tmp_path / optimisation.NAME)
    found = [tasks.load("few-images").first(8, 4)]
    return optimisation.Runner(options, store, clock), found, seen


def test_what_matters_most_is_run_first(tmp_path, monkeypatch):
    search, found, seen = runner(tmp_path, monkeypatch, words=["--seeds", "3"])
    search.run_all([found[0], dataclasses.replace(found[0], name="cifar-quick")])
    assert [(task, name) for task, name, *_, seed, _ in seen if not seed] == [
        *[("few-images", "KFC")] * 2,
        *[("few-images", "SGD")] * 4,
        *[("cifar-quick", "KFC")] * 2,
        *[("cifar-quick", "SGD")] * 4,
        *[("few-images", "Adam")] * 4,
        *[("cifar-quick", "Adam")] * 4,
    ]
    settings = ("KFC", 128, kfc.KFC().learning_rate), ("SGD", 128, 0.01), ("Adam", 128, 0.001)
    assert [entry[:5] for entry in seen[-12:]] == [
        (task, *setting, seed)
        for part in (settings[:2], settings[2:])
        for seed in (1, 2)
        for task in ("few-images", "cifar-quick")
        for setting in part
    ]


def test_rates_first_and_then_the_other_batch_size_with_the_best(tmp_path, monkeypatch):
    search, (task,), seen = runner(tmp_path, monkeypatch)
    best = search.search(task, "SGD")
    assert [entry[2:4] for entry in seen] == [(128, 0.03), (128, 0.01), (128, 0.1), (256, 0.01)]
    assert (best.label, best.plan.batch_size) == ("SGD 0.01", 128)
    # Each is given up by what the best so far did.
    first, second, third, fourth = (entry[-1] for entry in seen)
    assert first is None
    assert second[-1]["training_loss"] > third[-1]["training_loss"] == best.loss
    assert fourth is third


def test_a_stop_keeps_what_there_is(tmp_path, monkeypatch):
    now = iter(range(1000))
    search, found, seen = runner(
        tmp_path, monkeypatch, lambda: 60.0 * next(now), ["--minutes", "3"]
    )
    with pytest.raises(optimisation.OutOfTimeError):
        search.run_all(found)
    assert [entry[1:3] for entry in seen] == [("KFC", 128), ("KFC", 256)]
    again, found, seen = runner(tmp_path, monkeypatch)
    again.run_all(found)
    assert seen[0][1:4] == ("SGD", 128, 0.03)
    assert not [entry for entry in seen if entry[1] == "KFC" and entry[4] == 0]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--budget", "0"], "--budget is 0.0"), (["--minutes", "-1"], "--minutes is -1.0")],
)
def test_options_that_mean_nothing(words, message, capsys):
    with pytest.raises(SystemExit):
        optimisation.main(words)
    assert f"{message}; required: above 0" in capsys.readouterr().err


# Claims.


def by_text(folder):
    return {claim.text: claim for claim in optimisation.claims(folder)}


@pytest.mark.parametrize(
    ("rate", "cost", "speed", "steps", "step"),
    [
        (10.1e-3, 0.03, HOLDS, HOLDS, HOLDS),
        (9.9e-3, 0.034, PART, PART, PART),
        (3.1e-3, 0.03, PART, PART, HOLDS),
        (2.9e-3, 0.03, NOT, NOT, HOLDS),
        (11e-3, 0.101, PART, HOLDS, NOT),
    ],
)
def test_verdicts_follow_from_the_numbers(tmp_path, rate, cost, speed, steps, step):
    # A loss needs log(2 / loss) / rate steps: ratios are those of rates and of costs.
    keep(tmp_path / "optimisation", [made("KFC", rate, cost=cost), made("SGD", 1e-3)])
    found = by_text(tmp_path)
    ratio = 1e-3 / rate
    assert found[ABSTRACT["iterations"]].verdict == steps
    assert f" {ratio:.2f} (`quick`, to a loss of" in found[ABSTRACT["iterations"]].ours
    assert f" {ratio * cost / 0.01:.2f} (`quick`" in found[ABSTRACT["seconds"]].ours
    assert found[ABSTRACT["cost"]].verdict == step
    assert f"costs {cost / 0.01:.2f} steps" in found[ABSTRACT["cost"]].ours
    assert found[ABSTRACT["seconds"]].verdict == speed


def test_the_lowest_level_of_both(tmp_path):
    # After 1,000 steps of 0.01 s: 2 exp(-1) = 0.74 and 2 exp(-1.5) = 0.45.
    made_runs = [made("KFC", 1.5e-3), made("SGD", 1e-3)]
    (found,) = report.compare(made_runs)
    assert found.level == 0.8
    assert found.seconds == pytest.approx((10 * math.log(2.5) / 1.5, 10 * math.log(2.5)))
    assert report.compare(made_runs[:1]) == []


def test_iterations_may_be_those_of_other_settings():
    made_runs = [
        made("KFC", 4e-3, cost=0.01),
        made("KFC", 5e-3, cost=0.02, batch=256),  # fewer steps, more seconds
        made("SGD", 1e-3),
        made("SGD", 1e-3, seed=1),
    ]
    (found,) = report.compare(made_runs)
    assert found.settings == ("KFC, batch 256", "SGD 0.03, batch 128")
    assert found.steps[0] / found.steps[1] == pytest.approx(1 / 5)
    assert found.seconds[0] / found.seconds[1] == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("plain", "normalised", "sgd", "verdict"),
    [(3e-3, 4e-3, 1e-3, HOLDS), (5e-3, 4e-3, 1e-3, PART), (5e-3, 1e-3, 2e-3, NOT)],
)
def test_batch_normalisation(tmp_path, plain, normalised, sgd, verdict):
    other = "cifar-quick-batchnorm"
    runs = [made("KFC", plain), made("KFC", normalised, task=other), made("SGD", sgd, task=other)]
    keep(tmp_path / "optimisation", runs)
    (claim,) = [c for c in optimisation.claims(tmp_path) if c.text.startswith("Batch norm")]
    assert claim.verdict == verdict


def test_runs_that_diverge_do_not_win():
    bad = made("KFC", -1e-2)
    assert bad.outcome == "diverged"
    assert report.compare([bad, made("SGD", 1e-3)]) == []
    assert "| diverged: training loss" in report.runs_table([bad])


# The section.


def complete(names=tuple(report.TASKS)):
    return [
        made(name, (1 + seed / 10) * RATES[name], task=task, seed=seed, learning_rate=0.01)
        for task in names
        for name in report.OPTIMIZERS
        for seed in range(3)
    ]


def test_the_page_says_what_is_missing(tmp_path):
    assert optimisation.section(tmp_path) is None
    assert optimisation.claims(tmp_path) == []
    search = [
        made(name, 1e-4, task=task, learning_rate=rate, batch=batch)
        for task in report.TASKS
        for name in report.OPTIMIZERS
        for rate, batch in [*((rate, 128) for rate in report.RATES.get(name, ())), (0.01, 256)]
        if (name, rate, batch) != ("SGD", 0.01, 128)
    ]
    folder = keep(tmp_path / "optimisation", [*complete(), *search])
    assert report.missing(tmp_path) == "Nothing is missing."
    for path in [*folder.glob("cifar-quick-norm-adam*"), *folder.glob("cifar-quick-sgd-*-128-2*")]:
        path.unlink()
    assert report.missing(tmp_path) == (
        "Missing: 1 of 3 seeds of SGD on `quick`; Adam on `quick` with response normalisation."
    )
    lost = ("sgd-0.03-*", "sgd-0.1-*", "kfc-256-*")
    for path in (p for name in lost for p in folder.glob(f"cifar-quick-batchnorm-{name}")):
        path.unlink()
    missing = report.missing(tmp_path)
    assert "batch size 256 of KFC on `quick` with batch normalisation;" in missing
    assert "; learning rates 0.03 and 0.1 of SGD on `quick` with batch normalisation;" in missing
    section = optimisation.section(tmp_path)
    assert section.startswith("## Optimisation\n")
    assert report.missing(tmp_path) in section


def test_a_table_and_a_figure(tmp_path):
    keep(tmp_path / "optimisation", complete(["cifar-quick-norm"]))
    section = optimisation.section(tmp_path)
    optimisation.draw(tmp_path, tmp_path)
    links = re.findall(r"\((figures/[^)]+)\)", section)
    assert links == [f"figures/optimisation-cifar-quick-norm.{end}" for end in ("png", "svg")]
    for link in links:
        assert (tmp_path / link).stat().st_size > 1000
    assert "seeds 0, 1 and 2" in section
    assert "processor p, threads 2, commit c0ffee" in section
    line = next(line for line in section.splitlines() if line.startswith("| 0.8 "))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # Of the middle seed: log(2.5) / (1.1 rate) steps of a hundredth of a second.
    steps = [math.log(2.5) / (1.1 * RATES[name]) for name in report.OPTIMIZERS]
    assert cells[1:4] == [f"{s / 100:.3g}" for s in steps]
    assert cells[5:8] == [f"{s:,.0f}" for s in steps]
    assert cells[4] == cells[8] == "0.10"


def test_logarithmic_axes_have_plain_numbers():
    figure, ((axes,),) = figures.new()
    axes.plot([1, 3000], [12, 48])
    figures.logarithmic(axes)
    figure.canvas.draw()
    inside = [
        [label.get_text() for label, tick in zip(labels, ticks, strict=True) if low <= tick <= high]
        for labels, ticks, (low, high) in (
            (axes.get_xticklabels(), axes.get_xticks(), axes.get_xlim()),
            (axes.get_yticklabels(), axes.get_yticks(), axes.get_ylim()),
        )
    ]
    assert inside == [["1", "10", "100", "1000"], ["20", "50"]]
    figure, ((axes,),) = figures.new()
    axes.plot([1, 2], [0.66, 1.6])
    figures.logarithmic(axes, "y")
    (low, high), ticks = axes.get_ylim(), axes.get_yticks()
    # One of 1, 2 and 5 alone would lie in it.
    assert [f"{t:g}" for t in ticks if low <= t <= high] == ["0.7", "0.8", "0.9", "1"]


def test_fast_runs_leave_nothing(tmp_path, monkeypatch, capsys):
    def own_run(task, optimizer, plan, **_):
        assert plan.budget < 1
        return dataclasses.replace(made(type(optimizer).__name__, 1e-3, budget=0.2), plan=plan)

    monkeypatch.setattr(optimisation, "own_run", own_run)
    assert optimisation.main(["--fast", "--output", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]
    assert not list((results.RESULTS / "optimisation").glob("few-images*"))
    assert "few-images, KFC, batch 16, seed 0: done" in capsys.readouterr().out
    assert optimisation.main(["--report-only", "--results", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "no results\n"
