"""The programs of benchmarks/experiments: tasks, rules of stopping, stored results, reports."""

import dataclasses
import math

import matplotlib
import numpy as np
import pytest

import kfc_numba as kfc
from benchmarks.experiments import (
    defaults,
    defaults_report,
    long_runs,
    race,
    results,
    runs,
    tasks,
)

matplotlib.use("Agg")
HERE = {"processor": "p", "threads": 2, "finished": "2026-01-01T00:00:00"}


# Tasks.


@pytest.mark.parametrize("name", ["few-images", "fashion-bundled", "poisson", "digits"])
def test_tasks_fit_their_networks(name):
    task = tasks.load(name)
    net = task.build(0)
    assert len(task.train[0]) * len(task.validation[0]) > 0
    assert task.train[0].dtype == net.dtype
    few = task.first(8, 4)
    assert [len(a) for a in (*few.train, *few.validation)] == [8, 8, 4, 4]
    assert math.isfinite(kfc.evaluate(net, task.loss, *few.train)[0])
    assert few.checksum == task.first(8, 4).checksum != task.first(9, 4).checksum
    assert any((net.params[k] != v).any() for k, v in task.build(1).params.items())


def test_autoencoder_sees_pixels(monkeypatch, tmp_path):
    task = tasks.load("autoencoder", tmp_path)  # without all of Fashion-MNIST
    (x, y), (held, _) = task.train, task.validation
    assert x is y
    assert (x.min(), x.max(), x.shape[1]) == (0, 1, 784)
    assert len(x) == 8000
    assert len(held) == 2000
    bundled = kfc.datasets.load("fashion-mnist-10k").x_train
    np.testing.assert_array_equal(255 * held[-1], bundled[-1].ravel())
    shapes = [p.shape for k, p in task.build(0).params.items() if k.endswith("weight")]
    assert shapes == [(784, 400), (400, 100), (100, 25), (25, 100), (100, 400), (400, 784)]


def test_nothing_is_held_out_twice():
    (x, _), (held, _) = (t := tasks.load("few-images")).train, t.validation
    every, validation = tasks.load("fashion-bundled").train[0], tasks.load("fashion-bundled")
    np.testing.assert_array_equal(x, every[:200])
    np.testing.assert_array_equal(held, validation.validation[0])
    whole = kfc.datasets.load("fashion-mnist-10k").normalized()[0]
    np.testing.assert_array_equal(np.concatenate([every, held]), whole)


def test_solutions_of_the_poisson_equation():
    size = 5
    f, u = tasks.poisson_fields(3, size)
    matrix = np.zeros((size * size, size * size))
    for i in range(size):
        for j in range(size):
            for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                matrix[i * size + j, i * size + j] += (size + 1) ** 2
                if 0 <= i + di < size and 0 <= j + dj < size:
                    matrix[i * size + j, (i + di) * size + j + dj] -= (size + 1) ** 2
    for image, values in zip(f[..., 0], u, strict=True):
        solution = np.linalg.solve(matrix, image.ravel()).reshape(size, size)
        # Both solve a system of condition 14 in float64.
        np.testing.assert_allclose(values.reshape(3, 3), solution[1:4, 1:4], rtol=1e-12, atol=1e-14)


def test_data_that_are_not_there(tmp_path, capsys):
    assert list(defaults.available(["cifar-quick", "fashion"], tmp_path)) == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["skipped cifar-quick", "skipped fashion"]
    assert all(str(tmp_path) in line for line in lines)
    with pytest.raises(ValueError, match="task is 'cifar'; required: one of cifar-quick, "):
        tasks.load("cifar")


# When a run ends.


class Imagined:
    """A training whose loss is a function of its steps; a step takes a hundredth of a second."""

    def __init__(self, loss, fails=math.inf):
        self.loss, self.fails = loss, fails
        self.rows = [self.row(0)]

    def row(self, step):
        return {
            "step": step,
            "epoch": step / 10,
            "seconds": step / 100,
            "training_loss": self.loss(step),
            "validation_loss": self.loss(step),
            "validation_error": 0.1,
        }

    def train_to(self, steps):
        if steps >= self.fails:
            raise FloatingPointError("loss is nan")
        self.rows.append(self.row(steps))


def falling(step, rate=1e-3):
    return math.exp(-rate * step)


def test_a_run_uses_its_budget():
    training = Imagined(falling)
    assert runs.train_for(training, 10.0) == ("done", None)
    seconds = np.array([row["seconds"] for row in training.rows])
    assert seconds[-1] == 10
    assert (np.diff(seconds) > 0).all()
    assert np.diff(seconds).max() <= runs.MOST_GAP * 10 + 0.01
    assert len(seconds) < 40


@pytest.mark.parametrize(
    ("training", "limits", "outcome", "problem", "before"),
    [
        (Imagined(falling, fails=50), {}, "diverged", "loss is nan", 0.5),
        (Imagined(lambda n: math.nan if n > 99 else 1.0), {}, "diverged", "loss nan at", 2),
        (Imagined(lambda n: 1.0 + 1e3 * (n > 9)), {}, "diverged", "loss 1001 at", 0.5),
        (Imagined(lambda n: 1 + 1e-3 * n), {}, "diverged", "still above 1, the first", 3.6),
        (Imagined(falling), {"level": 0.9}, "reached", None, 1.5),
        (Imagined(falling), {"give_up_after": 4.0}, "given up", "not reached after 4", 4.02),
        (
            Imagined(falling),
            {"reference": Imagined(lambda n: falling(n, 3e-3))},
            "given up",
            "training loss 0.",
            6,
        ),
    ],
)
def test_a_run_that_ends_early(training, limits, outcome, problem, before):
    if "reference" in limits:
        other = Imagined(limits["reference"].loss)
        runs.train_for(other, 10.0)
        limits = {"reference": other.rows}
    found, why = runs.train_for(training, 10.0, **limits)
    assert found == outcome
    assert (why is None) if problem is None else problem in why
    assert training.rows[-1]["seconds"] <= before


def test_a_run_nearly_as_good_is_not_given_up():
    reference, training = Imagined(falling), Imagined(lambda n: falling(n, 0.9e-3))
    runs.train_for(reference, 10.0)
    assert runs.train_for(training, 10.0, reference=reference.rows) == ("done", None)


def test_compiling_is_in_nobodys_seconds():
    calls = []

    def run():
        calls.append(0)
        if len(calls) < 3:
            raise runs.CompiledError
        return "result"

    assert runs.uncompiled(run) == "result"
    assert len(calls) == 3


def test_rivals_average_as_kfc_does():
    for name in ("sgd", "adam"):
        assert defaults.rival(name, 0.01).averaging == kfc.KFC().averaging


# Results.


def imagined(
    name, loss=falling, *, task="poisson", batch=32, seed=0, rate=0.01, budget=10.0, fails=math.inf,
    level=None, epochs=None, finished="2026-01-01T00:00:00",
):  # fmt: skip
    """A result as if a training with this loss had been run."""
    training = Imagined(loss, fails)
    outcome, problem = runs.train_for(training, budget, level=level)
    settings = {"optimizer": name, "learning_rate": rate}
    plan = results.Plan(
        task, 0, settings, batch, seed, None if epochs else budget, epochs=epochs, level=level
    )
    about = HERE | {"finished": finished}
    return results.Result(plan, outcome, problem, training.rows, about)


def test_seconds_to_a_loss():
    result = imagined("SGD")
    steps, seconds = result.reached(math.exp(-0.5))
    # The logarithm is linear between rows, here exactly.
    assert steps == pytest.approx(500, rel=1e-12)
    assert seconds == pytest.approx(5, rel=1e-12)
    assert result.reached(0.3) is None
    assert result.reached(2.0) == (0, 0.0)
    rows = [Imagined(lambda n: n).row(n) for n in (3, 2)]
    rows[0]["training_loss"] = math.inf
    assert dataclasses.replace(result, rows=rows).reached(2.5) == (2, 0.02)


def test_store_keeps_what_was_run(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "machine", lambda: {k: HERE[k] for k in ("processor", "threads")})
    result = imagined("SGD", lambda n: math.nan if n > 99 else 1.0)
    store = results.Store(tmp_path / "new")
    assert store.get(result.plan, lambda: result) is result
    again = results.Store(tmp_path / "new")
    assert result.plan in again
    found = again.get(result.plan, lambda: pytest.fail("ran again"))
    assert (found.plan, found.outcome, found.problem) == (
        result.plan, result.outcome, result.problem,
    )  # fmt: skip
    assert math.isnan(found.rows[-1]["training_loss"])
    assert found.rows[:-1] == result.rows[:-1]
    assert [p.suffix for p in (tmp_path / "new").iterdir()] == [".json"]

    for change in ({"seed": 1}, {"checksum": 1}, {"budget": 9.0}, {"level": 0.5}):
        assert dataclasses.replace(result.plan, **change) not in again
    settings = result.plan.optimizer | {"momentum": 0.8}
    assert dataclasses.replace(result.plan, optimizer=settings) not in again

    monkeypatch.setattr(results, "machine", lambda: {"processor": "another", "threads": 2})
    with pytest.raises(SystemExit, match="two machines are not to be compared"):
        results.Store(tmp_path / "new")
    assert len(results.Store(tmp_path / "new", read_only=True).newest()) == 1


def test_newest_results(tmp_path):
    store = results.Store(tmp_path, read_only=True)
    old = imagined("KFC", finished="2026-01-01T00:00:00")
    new = imagined("KFC", budget=5.0, finished="2026-01-02T00:00:00")
    other = imagined("KFC", seed=1, finished="2025-01-01T00:00:00")
    for result in (new, old, other):
        store.get(result.plan, lambda r=result: r)
    assert {id(r) for r in store.newest()} == {id(new), id(other)}


# The report of `defaults`.


def made_results(kfc_runs):
    """Two settings of SGD, the better of them with two seeds, and runs of KFC."""
    good = [imagined("SGD", seed=seed, batch=128) for seed in (0, 1)]
    return [
        imagined("SGD", lambda n: falling(n, 5e-4), rate=0.001),
        imagined("SGD", fails=3, rate=0.1),
        *good,
        *kfc_runs,
    ]


def test_ratio_to_the_best_sgd():
    twice = [imagined("KFC", lambda n: falling(n, 2e-3), seed=seed) for seed in (0, 1)]
    half = [imagined("KFC", lambda n: falling(n, 5e-4), seed=seed, batch=128) for seed in (0, 1)]
    (fast, slow) = defaults_report.compare(made_results(twice + half))
    assert (fast.batch_size, slow.batch_size) == (32, 128)
    assert fast.level == pytest.approx(math.exp(-1))  # of SGD 0.01 after 10 seconds
    assert fast.sgd_seconds == pytest.approx(10)
    assert fast.kfc_seconds == pytest.approx(5)
    assert fast.ratio == pytest.approx(0.5)
    assert math.isinf(slow.kfc_seconds)
    assert slow.ratio == pytest.approx(defaults_report.NOT_REACHED)
    claims = defaults_report.claims(made_results(twice + half), [fast, slow])
    mean, worst, diverged, error = claims
    assert mean.ratio == pytest.approx(1)
    assert (worst.ratio, diverged.ratio) == (slow.ratio, 0)
    assert "batch 128" in worst.what
    assert error.ratio == 1


@pytest.mark.parametrize(("own", "rival", "ratio"), [(0.3, 0.1, 3), (0, 0, 1), (0.1, 0, math.inf)])
def test_validation_errors_beside_the_best_rival(own, rival, ratio):
    def ending(name, error, **more):
        result = imagined(name, **more)
        result.rows[-1]["validation_error"] = error
        return result

    made = [
        ending("SGD", rival + 0.2),
        ending("Adam", rival),
        ending("Adam", 0.0, rate=0.1, loss=lambda n: falling(n, 1e-4)),  # not the least loss
        ending("KFC", own),
        ending("KFC", own / 2, batch=128),
        ending("KFC", 0.9, batch=512, fails=1),
    ]
    claim = defaults_report.error_claim(made)
    assert claim.ratio == pytest.approx(ratio)
    assert defaults_report.error_claim(made[:3]) is None


def test_small_batches_are_not_compared_but_count_where_they_diverge():
    made = made_results([imagined("KFC"), imagined("KFC", batch=8, fails=1)])
    (found,) = comparisons = defaults_report.compare(made)
    assert found.batch_size == 32
    claims = {claim.what: claim.ratio for claim in defaults_report.claims(made, comparisons)}
    assert claims["diverged runs of KFC(), of 2 with batches of 8 or more"] == 1
    assert claims["validation error, KFC() / best rival, worst: poisson, batch 32"] == 1


def test_a_diverged_run_is_a_row_that_says_so():
    # It had reached the level before: that does not count.
    peak = imagined("KFC", lambda n: falling(n, 1e-2) if n < 400 else 1e5)
    assert peak.reached(0.4) is not None
    made = made_results([peak, imagined("KFC", seed=1, fails=1)])
    (found,) = defaults_report.compare(made)
    assert (found.bad, found.ratio) == (2, pytest.approx(defaults_report.NOT_REACHED))
    text = defaults_report.page(made, picture=False)
    assert "2 of 2" in defaults_report.comparison_table([found], "github")
    assert "- poisson, batch 32, seed 1: loss is nan" in text
    assert "- poisson, batch 32, seed 0: training loss 1e+05 at step" in text
    assert "Of 4 runs of rivals 1 diverged" in text


def test_losses_of_labels_below_a_thousandth_are_equal():
    def label(rate):
        return lambda n: falling(n, rate)

    made = [
        imagined("SGD", label(1e-2), task="digits"),
        imagined("KFC", label(2e-2), task="digits"),
    ]
    (found,) = defaults_report.compare(made)
    assert found.level == tasks.LEAST
    assert found.sgd_seconds == pytest.approx(math.log(1000))
    assert found.ratio == pytest.approx(0.5)


def test_defaults_end_to_end(tmp_path, monkeypatch, capsys):
    words = ["--fast", "--tasks", "few-images", "--optimizers", "kfc", "sgd", "--rates", "1e-4"]
    words += ["1e-3", "--results", str(tmp_path / "results"), "--output", str(tmp_path)]
    monkeypatch.setattr(kfc, "KFC", lambda: kfc.SGD(learning_rate=2e-3))  # quicker
    monkeypatch.setattr(kfc.SGD, "config", _named(kfc.SGD.config))
    assert defaults.main(words) == 0
    page = (tmp_path / "defaults.md").read_text()
    assert len(list((tmp_path / "results").glob("few-images-*.json"))) == 2
    assert "| few-images" in page
    assert "best SGD 0.001" in page
    assert (tmp_path / "defaults.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(defaults, "own_run", lambda *_, **__: pytest.fail("ran again"))
    assert defaults.main(words) == 0
    assert (tmp_path / "defaults.md").read_text() == page
    capsys.readouterr()
    assert defaults.main([*words, "--report-only"]) == 0
    assert (tmp_path / "defaults.md").read_text() == page
    assert "few-images" in capsys.readouterr().out


def _named(config):
    """SGD with the rate of the stand-in calls itself KFC."""

    def renamed(self):
        found = config(self)
        return found | {"optimizer": "KFC"} if self.learning_rate == 2e-3 else found

    return renamed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "--seeds is 0"),
        (["--batches", "32", "0"], "--batches is 0"),
        (["--budget-factor", "0"], "--budget-factor is 0.0"),
    ],
)
def test_options_that_mean_nothing(words, message, capsys):
    with pytest.raises(SystemExit):
        defaults.main(words)
    assert f"{message}; required" in capsys.readouterr().err


# Long runs.


@pytest.mark.parametrize(
    ("task", "losses", "step", "ratio"),
    [
        ("poisson", [4, 2, 3, 1, 2.5, 1], 4, 2.5),
        ("poisson", [1e-4, 1e-5, 3e-5], 2, 3.0),
        ("digits", [1, 1e-5, 5e-4, 1.5e-3], 3, 1.5),
        ("digits", [1, 0.9, 0.5], 0, 1.0),
        ("digits", [1, math.inf, 1], 1, math.inf),
    ],
)
def test_largest_rise(task, losses, step, ratio):
    result = imagined("KFC", task=task, epochs=20)
    rows = [Imagined(lambda n: losses[n]).row(n) for n in range(len(losses))]
    result = dataclasses.replace(result, rows=rows)
    rise = long_runs.largest_rise(result)
    assert (rise.step, rise.ratio) == (step, pytest.approx(ratio))
    assert long_runs.failed(result) == (ratio > 2)


def test_a_loss_that_is_no_number_fails():
    result = imagined("KFC", epochs=20)
    rows = [Imagined(lambda n: [1, math.nan, 1][n]).row(n) for n in range(3)]
    assert long_runs.failed(dataclasses.replace(result, rows=rows))


# The race.


def test_rivals_race_with_their_best_settings():
    level = 0.5
    made = [
        imagined("KFC", lambda n: falling(n, 4e-3), level=level),
        imagined("KFC", lambda n: falling(n, 1e-2), level=level, batch=128),
        imagined("SGD", lambda n: falling(n, 1e-3), level=level),
        imagined("SGD", lambda n: falling(n, 2e-3), level=level, rate=0.1),
        imagined("SGD", lambda n: falling(n, 2e-3), level=level, rate=0.1, seed=1),
        imagined("Adam", lambda n: falling(n, 1e-4), level=level),
        imagined("torch Muon", lambda n: falling(n, 4e-3), level=level),
    ]  # fmt: skip
    sgd = race.chosen_runs(made, "SGD", level)
    assert [(r.label, r.plan.seed) for r in sgd] == [("SGD 0.1", 0), ("SGD 0.1", 1)]
    assert race.medians(sgd, level)[1] == pytest.approx(100 * math.log(2) / 20)
    assert race.chosen_runs(made, "Adam", level) == []
    own, other, steps = race.claims(made, level)
    assert (own.ratio, other.ratio, steps.ratio) == tuple(map(pytest.approx, (0.2, 0.4, 0.2)))
    assert own.met
    assert not other.met
    page = race.page(made, level)
    assert "more than 10" in page
    assert (
        "Not run, and in no ratio: `torch-sgd`, `torch-adam`, `torch-adamw`, `torch-soap`.\n"
        in page
    )
    assert race.names_of(made)[0] == "KFC"


def test_the_search_gives_up_what_cannot_win(tmp_path, monkeypatch):
    seen = []

    def own_run(task, optimizer, plan, *, give_up_after, growth):
        rate = optimizer.learning_rate
        seen.append((plan.batch_size, rate, plan.seed, give_up_after))
        return imagined("SGD", lambda n: falling(n, rate), level=plan.level, rate=rate)

    monkeypatch.setattr(race, "own_run", own_run)
    options = race.parse(["--batches", "8", "--rates", "0.01", "0.1", "0.03", "--seeds", "2"])
    racer = race.Racer(race.made_task(), options, results.Store(tmp_path, read_only=True))
    racer.race("sgd")
    at = [-math.log(0.6) / rate / 100 for rate in (0.01, 0.1)]
    assert [entry[:3] for entry in seen] == [(8, 0.01, 0), (8, 0.1, 0), (8, 0.03, 0), (8, 0.1, 1)]
    limits = [math.inf, at[0], at[1], math.inf]
    assert [entry[3] for entry in seen] == pytest.approx(limits)
    with pytest.raises(SystemExit):
        race.parse(["--level", "0"])
