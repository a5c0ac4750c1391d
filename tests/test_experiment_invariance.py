"""The experiment on invariance: maps, twins, curves, and what its page says of numbers."""

import argparse
import dataclasses
import json
import math

import gradcheck
import matplotlib
import numpy as np
import pytest

from benchmarks.experiments import invariance
from benchmarks.experiments import invariance_coordinates as maps
from benchmarks.experiments import invariance_curves as curves
from benchmarks.experiments import invariance_curves_report as curves_report
from benchmarks.experiments import invariance_proof as proof
from benchmarks.experiments import invariance_report as report
from benchmarks.experiments.records import Records
from benchmarks.experiments.results import Plan, Result, Store
from kfc_numba import networks
from kfc_numba.curvature import fisher

matplotlib.use("Agg")
METHODS = {method.name: method for method in proof.METHODS}
CASES = proof.cases(maps.Moments.of(proof.colour_images()[0]))
HARDEST = CASES[proof.HARDEST]


# Maps.


def test_maps_undo_and_follow_each_other():
    rng = np.random.default_rng(0)
    first, second = maps.random_map(4, rng), maps.random_map(4, rng)
    x = rng.normal(size=(5, 4))
    np.testing.assert_allclose(first.inverse()(first(x)), x, atol=1e-13)
    np.testing.assert_allclose(first.then(second)(x), second(first(x)), atol=1e-13)
    np.testing.assert_allclose(first.linear()(0 * x), 0)
    assert first(x.astype(np.float32)).dtype == np.float32


def test_colours():
    # White, black, blue and red: luma, and 0.5 without colour, 1 for the purest blue and red.
    rgb = np.array([[1.0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 0, 0]])
    y, cb, cr = maps.ycbcr()(rgb).T
    np.testing.assert_allclose(y, [1, 0, 0.114, 0.299], atol=1e-12)
    np.testing.assert_allclose(cb[:3], [0.5, 0.5, 1], atol=1e-12)
    np.testing.assert_allclose(cr[[0, 1, 3]], [0.5, 0.5, 1], atol=1e-12)


def test_standardised_and_whitened():
    images = np.random.default_rng(0).integers(0, 256, (1500, 2, 2, 3)).astype(np.uint8)
    images[..., 1] = images[..., 0] // 2 + images[..., 1] // 2
    moments = maps.Moments.of(images, 255)
    pixels = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(moments.mean, pixels.mean(axis=0), rtol=1e-12)
    named = maps.coordinates_of(moments)
    standard, white = named["standardised"](pixels), named["whitened"](pixels)
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(standard.std(axis=0), 1, rtol=1e-10)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(3), atol=1e-10)
    np.testing.assert_allclose(named["from 0 to 255"](pixels), images.reshape(-1, 3), atol=1e-10)


def test_channel_map_is_a_layer():
    layer = maps.ChannelMap(maps.random_map(3, np.random.default_rng(0)))
    gradcheck.check_layer(layer, [(2, 2, 3)])


# Twins.


def test_fisher_rows_are_of_the_exact_fisher_matrix():
    net = proof.network(HARDEST)
    x = np.random.default_rng(0).normal(size=(6, 7, 7, 3))
    trace = net.forward(x)
    rows = proof.fisher_rows(net, trace)
    expected = fisher.dense_fisher(net, trace, proof.LOSS)
    direction = {k: np.random.default_rng(1).normal(size=v.shape) for k, v in net.params.items()}
    vector = proof.to_vector(net, direction)
    flat = fisher.flatten(net, direction)
    np.testing.assert_allclose(
        np.linalg.norm(rows @ vector) ** 2, flat @ expected @ flat, rtol=1e-10
    )
    before = {name: value.copy() for name, value in net.params.items()}
    proof.add_vector(net, vector)
    for name, value in net.params.items():
        np.testing.assert_allclose(value - before[name], direction[name], atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_twins(case):
    kfc_found = proof.compare(case, METHODS["KFC"].start, 2)
    sgd_found = proof.compare(case, METHODS["SGD"].start, 1)
    assert (kfc_found["start"] < 1e-13) is case.holds
    assert report.to_rounding(kfc_found) is case.holds
    assert report.worst(sgd_found) > report.DIFFERENT


@pytest.mark.parametrize("name", ["exact Fisher", "exact blocks", "KFC, reduce"])
def test_other_invariant_methods(name):
    assert METHODS[name].invariant
    assert report.to_rounding(proof.compare(HARDEST, METHODS[name].start, 1))


@pytest.mark.parametrize("name", ["EKFAC", "diagonal Fisher", "KFC, damped", "Adam"])
def test_methods_that_see_coordinates(name):
    assert not METHODS[name].invariant
    assert report.worst(proof.compare(HARDEST, METHODS[name].start, 1)) > report.DIFFERENT


WRONG = {
    "transposed": lambda m: maps.AffineMap(m.matrix.T, m.offset),
    "without its offset": lambda m: m.linear(),
    "off by 0.1%": lambda m: maps.AffineMap(1.001 * m.matrix, m.offset),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_map_is_seen(wrong, monkeypatch):
    seeing = maps.seeing
    monkeypatch.setattr(proof, "seeing", lambda arrays, m: seeing(arrays, WRONG[wrong](m)))
    found = proof.compare(HARDEST, METHODS["KFC"].start, 1)
    assert found["start"] > 1e-5
    assert not report.to_rounding(found)


def test_a_method_that_fails_is_a_result():
    def start():
        def step(net, x, y):
            raise FloatingPointError("loss is nan")

        return step

    found = proof.compare(HARDEST, start, 3)
    assert found["problem"] == "loss is nan"
    assert found["differences"] == [math.inf]
    assert not report.to_rounding(found)


def test_damping_shows_as_its_power():
    dampings = [1e-14, 1e-12, 1e-10]
    found = proof.damping_sweep(HARDEST, dampings, 1)["differences"]
    assert report.slope(dampings, found["pi"]) == pytest.approx(0.5, abs=0.1)
    dampings = [1e-10, 1e-9, 1e-8]
    found = proof.damping_sweep(HARDEST, dampings, 1)["differences"]
    assert report.slope(dampings, found["exact"]) == pytest.approx(1, abs=0.1)


# Curves.


@pytest.fixture(scope="module")
def images():
    return curves.Images.load(invariance.FAST_DATASET, None, 16)


def test_curves_begin_at_one_function(images):
    names = list(maps.coordinates_of(images.moments))
    usual = curves.task_in(images, names[0])
    expected = usual.build(0).predict(usual.train[0])
    x = usual.train[0][:, curves.BORDER : -curves.BORDER, curves.BORDER : -curves.BORDER]
    assert not usual.train[0][:, 0].any()
    quick = networks.build("quick", x.shape[1:], 10)
    np.testing.assert_allclose(quick.predict(np.ascontiguousarray(x)), expected, atol=1e-5)
    for name in names[1:]:
        task = curves.task_in(images, name)
        assert np.abs(task.train[0] - usual.train[0]).max() > 0.1
        with maps.pixels_are_meant():
            outputs = task.build(0).predict(task.train[0])
        # float32: pixels of 255 are subtracted from biases of their size.
        np.testing.assert_allclose(outputs, expected, atol=2e-4 * np.abs(expected).max())


def test_runs_of_all_coordinates(images, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "SAMPLE", 16)
    options = argparse.Namespace(batches=[8], seeds=range(1), rates=[1e-3, 1e-2], tune=False)
    options.less_damped = False
    folder = tmp_path / report.NAME / report.CURVES
    found = list(curves.runs(images, options, Store(folder)))
    assert [r.rows[-1]["step"] for r in found] == [2] * len(found)
    read = curves_report.Curves.read(folder)
    assert len(read.of("KFC")) == len(read.of("SGD")) == 4
    assert curves_report.coordinates(read.results[0]) == "standardised"
    # Two steps of KFC, in float32, go the same way but for damping.
    assert read.spread("KFC") < read.spread("SGD")
    text = report.section(tmp_path)
    assert text.startswith("## Invariance\n")
    report.draw(tmp_path, tmp_path)
    assert (tmp_path / "figures" / "invariance-curves.png").is_file()
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    list(curves.runs(images, options, Store(folder)))
    assert kept == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


# What the page says.


def cell(value, *, condition=100.0, invariant=True):
    return {"differences": [value], "condition": condition, "invariant": invariant}


def twins(kfc_value, sgd_value, other=0.5):
    methods = {"KFC": cell(kfc_value), "SGD": cell(sgd_value, condition=None, invariant=False)}
    last = {"KFC": cell(other), "SGD": cell(0.5, condition=None, invariant=False)}
    return report.Proof(
        [
            {"name": "a", "holds": True, "steps": 1, "methods": methods},
            {"name": "b", "holds": False, "steps": 1, "methods": last},
        ]
    )


def test_rule_of_rounding():
    assert report.to_rounding(cell(1e-14))
    assert not report.to_rounding(cell(1e-13))  # the condition allows 2.2e-14
    assert report.to_rounding(cell(1e-13, condition=1e4))
    assert not report.to_rounding(cell(1e-5, condition=1e16))  # large, whatever the condition
    assert not report.to_rounding(cell("inf"))


def test_verdicts_of_twins():
    assert twins(1e-15, 0.5).verdict == report.HOLDS
    assert twins(1e-15, 1e-5).verdict == report.PART  # SGD does not see the map
    assert twins(1e-15, 0.5, other=1e-9).verdict == report.PART
    assert twins(1e-9, 0.5).verdict == report.NOT


def test_slopes():
    x = [10.0**e for e in range(-12, 1)]
    assert report.slope(x, [0.1 * v for v in x]) == pytest.approx(1)
    assert report.slope(x, [0.1 * v**0.5 for v in x]) == pytest.approx(0.5)
    assert report.slope(x, ["inf"] * len(x)) is None


def made_run(name, where, losses, outcome="done", rate=0.01, **more):
    optimizer = {"optimizer": name, "learning_rate": rate, **more}
    rows = [{"step": i, "seconds": 0.0, "training_loss": loss} for i, loss in enumerate(losses)]
    about = {"finished": "2026-01-01T00:00:00"}
    plan = Plan(f"{curves.PREFIX}{where}", 0, optimizer, 8, 0, epochs=1)
    return Result(plan, outcome, None, rows, about)


@pytest.mark.parametrize(
    ("kfc_last", "sgd_last", "verdict"),
    [
        (1.01, 2.0, report.HOLDS),
        (1.2, 2.0, report.PART),
        (1.2, 1.1, report.NOT),
        (1.01, 1.02, report.PART),
    ],
)
def test_verdicts_of_curves(kfc_last, sgd_last, verdict):
    runs = [
        made_run("KFC", "standardised", [2.0, 1.0]),
        made_run("SGD", "standardised", [2.0, 1.0]),
        made_run("SGD", "standardised", [2.0, 1.5], rate=0.1),
        made_run("KFC", "ycbcr", [2.0, kfc_last]),
        made_run("SGD", "ycbcr", [2.0, sgd_last]),
    ]
    found = curves_report.Curves(runs)
    assert found.rate == 0.01
    assert found.spread("KFC") == pytest.approx(kfc_last - 1)
    assert found.verdict == verdict
    assert f"{kfc_last - 1:.1%}" in curves_report.curves_table(found, "github")


def test_steps_to_the_same_loss():
    usual = made_run("KFC", "standardised", [4.0, 2.0, 1.0, 0.5])
    slower = made_run("KFC", "ycbcr", [4.0, 3.0, 2.0, 1.0])
    # Rows are at steps 0 to 3; the loss of 1 is reached at 2 and at 3.
    assert curves_report.steps_ratio(slower, usual) == pytest.approx(1.5)
    assert curves_report.steps_ratio(usual, slower) == pytest.approx(1 / 1.5)


def test_less_damping_is_another_way():
    runs = [
        made_run(name, where, [2.0, loss + (where == "ycbcr") / 4], **more)
        for name, loss, more in (("KFC", 1.0, {}), ("KFC", 2.0, {"damping": 0.5}), ("SGD", 4.0, {}))
        for where in ("standardised", "ycbcr")
    ]
    found = curves_report.Curves(runs)
    assert found.ways == ["KFC", "KFC, damping 0.5", "SGD"]
    assert [found.spread(name) for name in found.ways] == [0.25, 0.125, 0.0625]
    assert (
        "damping 0.5 those of KFC differ by at most 12.5%" in curves_report.curves_parts(found)[1]
    )


def test_curves_that_diverged():
    usual, other = made_run("SGD", "standardised", [2.0, 1.0]), made_run("SGD", "ycbcr", [2.0])
    other = dataclasses.replace(other, outcome="diverged")
    assert curves_report.gap(other, usual) == math.inf
    assert curves_report.steps_ratio(other, usual) == math.inf
    assert curves_report.gap(other, other) == 0


def test_nothing_is_said_of_nothing(tmp_path):
    assert report.section(tmp_path) is None
    report.draw(tmp_path, tmp_path)
    assert not (tmp_path / "figures").exists()


def test_page_of_twins(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "METHODS", tuple(METHODS[n] for n in ("KFC", "SGD")))
    monkeypatch.setattr(invariance, "FAST_STEPS", 1)
    invariance.prove(Records(report.NAME, tmp_path), fast=True)
    text = report.section(tmp_path)
    assert f"**Verdict: {report.HOLDS}.**" in text
    assert text == report.section(tmp_path)
    path = tmp_path / report.NAME / "twin-0.json"
    content = json.loads(path.read_text())
    content["methods"]["KFC"]["differences"] = [0.25]
    path.write_text(json.dumps(content))
    changed = report.section(tmp_path)
    assert f"**Verdict: {report.PART}.**" in changed
    assert "| 0.25" in changed
    report.draw(tmp_path, tmp_path)
    assert (tmp_path / "figures" / "invariance-proof.svg").is_file()
