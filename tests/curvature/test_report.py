"""The report: its figures against dense matrices and loops, and the command that writes it."""

import itertools
import json
import math
import re

import dataset_files
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import networks
from kfc_numba.cli import main
from kfc_numba.curvature import fisher
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.report import check, correlations, costs
from kfc_numba.optim import SGD


def network(seed=0):
    layers = [
        kfc.Conv2d(4, 3, padding=1, groups=2),
        kfc.BatchNorm(),
        kfc.Tanh(),
        kfc.MaxPool2d(2),
        kfc.Conv2d(2, 2),
        kfc.Tanh(),
        kfc.Flatten(),
        kfc.Dense(3),
    ]
    return kfc.Sequential(layers, input_shape=(6, 5, 2), seed=seed, dtype=np.float64)


def images(count, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 6, 5, 2))


@pytest.fixture(scope="module")
def found():
    net, x = network(), images(6)
    return net, x, kfc.check_curvature(net, x, kfc.SoftmaxCrossEntropy(), exact_examples=4)


def by_layer(report):
    return {row["layer"]: row for row in report.rows}


def test_errors_and_cosines_are_those_of_dense_matrices(found):
    net, x, report = found
    loss, rows = kfc.SoftmaxCrossEntropy(), by_layer(report)
    trace = net.forward(x[:4])
    exact = fisher.layer_blocks(net, trace, loss)
    assert list(rows) == list(exact) == ["conv1", "norm1", "conv2", "dense1"]
    for name, structure, approx in (
        ("expand", "kronecker", "expand"),
        ("reduce", "kronecker", "reduce"),
        ("ekfac", "ekfac", "expand"),
        ("diagonal", "diagonal", "expand"),
    ):
        curvature = BlockDiagonal(net, structure, approx)
        dense = curvature.dense(curvature.compute(trace, loss, mode="fisher_exact"))
        for layer, block in exact.items():
            row = rows[layer]
            if layer == "norm1" and name != "diagonal":
                assert row["relative_error"][name] is None
                assert row["cosine"][name] is None
                continue
            a, f = dense[layer], block
            error = np.linalg.norm(f - a) / np.linalg.norm(f)
            cosine = np.sum(f * a) / np.linalg.norm(f) / np.linalg.norm(a)
            np.testing.assert_allclose(row["relative_error"][name], error, rtol=1e-9)
            np.testing.assert_allclose(row["cosine"][name], cosine, rtol=1e-9)
            assert error > 1e-3  # nothing is equal to the exact block by chance
    for layer in ("conv1", "conv2", "dense1"):
        assert rows[layer]["relative_error"]["ekfac"] < rows[layer]["relative_error"]["expand"]


def test_where_theory_says_so_the_error_is_zero():
    # A linear convolution and squared error over locations: "expand" is exact.
    net = kfc.Sequential([kfc.Conv2d(2, 3)], input_shape=(6, 5, 2), dtype=np.float64)
    row = kfc.check_curvature(net, images(4), kfc.SquaredError()).rows[0]
    # The square of the error is a difference of numbers of one size: the root of the rounding.
    assert row["relative_error"]["expand"] < 1e-7
    assert row["cosine"]["expand"] == pytest.approx(1, abs=1e-14)
    assert row["relative_error"]["reduce"] > 0.1
    # The mean over locations instead: "reduce" is.
    layers = [kfc.Conv2d(2, 3), kfc.GlobalAvgPool2d()]
    net = kfc.Sequential(layers, input_shape=(6, 5, 2), dtype=np.float64)
    row = kfc.check_curvature(net, images(4), kfc.SquaredError()).rows[0]
    assert row["relative_error"]["reduce"] < 1e-7
    assert row["relative_error"]["expand"] > 0.1


def test_layers_that_are_too_large_have_no_errors(found):
    net, x, whole = found
    sizes = {"conv1": 40, "norm1": 8, "conv2": 34, "dense1": 15}
    how = {"exact_examples": 4, "repeats": 1}
    report = kfc.check_curvature(net, x, kfc.SoftmaxCrossEntropy(), largest=33, **how)
    for row, other in zip(report.rows, whole.rows, strict=True):
        assert row.keys() == other.keys() == report.rows[0].keys()
        assert row["parameters"] == sizes[row["layer"]]
        for kind in ("relative_error", "cosine"):
            assert row[kind] == (None if sizes[row["layer"]] > 33 else other[kind])
    exactly = kfc.check_curvature(net, x, kfc.SoftmaxCrossEntropy(), largest=34, **how)
    assert by_layer(exactly)["conv2"]["cosine"] == by_layer(whole)["conv2"]["cosine"]


def test_conditions_and_pi_are_those_of_the_factors(found):
    net, x, report = found
    curvature = BlockDiagonal(net)
    state = curvature.compute(net.forward(x), kfc.SoftmaxCrossEntropy(), mode="fisher_exact")
    for name, row in by_layer(report).items():
        if name == "norm1":
            assert row["pi"] is row["condition_omega"] is row["condition_gamma"] is None
            continue
        omega, gamma = state[f"omega/{name}"], state[f"gamma/{name}"]
        if omega.ndim == 2:
            omega, gamma = omega[None], gamma[None]
        for matrix, kind in ((omega, "omega"), (gamma, "gamma")):
            condition = max(np.linalg.cond(part) for part in matrix)
            if condition < 1e10:
                np.testing.assert_allclose(row[f"condition_{kind}"], condition, rtol=1e-6)
            else:  # of deficient rank: softmax derivatives add up to zero
                assert row[f"condition_{kind}"] > 1e10
        ratios = [
            math.sqrt(np.trace(o) / len(o) / (np.trace(g) / len(g)))
            for o, g in zip(omega, gamma, strict=True)
        ]
        np.testing.assert_allclose(row["pi"], math.prod(ratios) ** (1 / len(ratios)), rtol=1e-12)
        assert row["locations"] == {"conv1": 30, "conv2": 2, "dense1": 1}[name]
        assert row["bytes"]["omega"] == omega.nbytes
        assert row["bytes"]["gamma_vectors"] == gamma.nbytes
    assert by_layer(report)["dense1"]["condition_gamma"] > 1e10


# Correlations.


def naive_autocovariance(images, oy, ox):
    total = count = 0
    examples, height, width, channels = images.shape
    for m, y, x, c in np.ndindex(examples, height, width, channels):
        if 0 <= y + oy < height and 0 <= x + ox < width:
            total += images[m, y, x, c] * images[m, y + oy, x + ox, c]
            count += 1
    return total / count


def test_correlations_are_those_of_loops(found):
    net, x, report = found
    loss = kfc.SoftmaxCrossEntropy()
    row = by_layer(report)["conv1"]
    inputs = x[:4] - x[:4].mean(axis=(0, 1, 2))
    middle = naive_autocovariance(inputs, 0, 0)
    assert row["activation_correlation"].shape == (9, 9)
    for oy, ox in ((0, 0), (1, 0), (-1, 0), (2, -3), (4, 4), (-4, 4)):
        expected = naive_autocovariance(inputs, oy, ox) / middle
        np.testing.assert_allclose(
            row["activation_correlation"][4 + oy, 4 + ox], expected, rtol=1e-10
        )

    trace = net.forward(x[:4])
    derivatives = []
    for column in loss.fisher_columns(trace.outputs):
        net.backward(
            trace,
            column,
            capture=lambda placed, saved, dy: placed.name == "conv1" and derivatives.append(dy),
        )
    dy = np.concatenate(derivatives)  # columns as if they were examples
    middle = naive_autocovariance(dy, 0, 0)
    for oy, ox in ((0, 0), (0, 1), (1, 1), (1, -1), (-3, 2)):
        expected = naive_autocovariance(dy, oy, ox) / middle
        np.testing.assert_allclose(
            row["derivative_correlation"][4 + oy, 4 + ox], expected, rtol=1e-10, atol=1e-14
        )
    squares = np.square(dy).sum(axis=(0, 3))
    np.testing.assert_allclose(row["derivative_spread"], squares.std() / squares.mean())
    rows = by_layer(report)
    assert rows["conv2"]["derivative_correlation"].shape == (3, 1)
    assert rows["conv2"]["derivative_correlation"][1, 0] == 1
    assert rows["dense1"]["derivative_correlation"] is None


# Costs.


def test_periods_follow_their_rule():
    times = {"gradient_seconds": 1.0, "statistics_seconds": 0.55, "decomposition_seconds": 3.0}
    found = costs.suggested_periods(times, 0.1)
    assert (found["curvature_update_period"], found["inverse_update_period"]) == (6, 30)
    times["decomposition_seconds"] = 0.01  # no decomposition of factors that have not changed
    found = costs.suggested_periods(times, 0.1)
    assert (found["curvature_update_period"], found["inverse_update_period"]) == (6, 6)
    found = costs.suggested_periods(times, 10.0)
    assert (found["curvature_update_period"], found["inverse_update_period"]) == (1, 1)


def test_a_time_is_the_least_of_several_after_the_first(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    calls = []
    assert costs.least_seconds(lambda: calls.append(1), 3) == 2.0
    assert len(calls) == 4


def test_costs_are_measured_for_each_factor(found):
    _, _, report = found
    for row in report.rows:
        if row["layer"] == "norm1":
            assert row["seconds"] is None
            continue
        kinds = {"omega", "gamma", "omega_eigenvectors", "gamma_eigenvectors"}
        assert set(row["seconds"]) == kinds
        assert all(value > 0 for value in row["seconds"].values())
    total = sum(
        row["seconds"]["omega_eigenvectors"] + row["seconds"]["gamma_eigenvectors"]
        for row in report.rows
        if row["seconds"]
    )
    assert report.costs["decomposition_seconds"] == pytest.approx(total)
    periods = costs.suggested_periods(report.costs, 0.1)
    assert periods.items() <= report.costs.items()


# What is written.


def test_the_report_as_text_json_and_picture(found):
    _, _, report = found
    text = str(report)
    for row in report.rows:
        assert row["layer"] in text
    assert f"{by_layer(report)['conv1']['relative_error']['expand']:.3g}" in text
    assert f"curvature_update_period={report.costs['curvature_update_period']}" in text
    content = json.loads(report.to_json())
    assert report.to_json().startswith('{\n  "examples"')
    assert report.to_json(indent=None) == json.dumps(content)
    layers = {row["layer"]: row for row in content["layers"]}
    np.testing.assert_array_equal(
        layers["conv1"]["derivative_correlation"],
        by_layer(report)["conv1"]["derivative_correlation"],
    )
    assert layers["norm1"]["pi"] is None
    assert content["costs"] == report.costs
    assert (content["examples"], content["exact_examples"]) == (6, 4)
    assert content["largest"] == report.largest == 16384
    figure = report.figure()
    shown = [panel.images[0].get_array() for panel in figure.axes[:6]]
    titles = [panel.get_title() for panel in figure.axes[:6]]
    kinds = [f"{kind}s" for kind in correlations.KINDS] + ["derivatives of maps"]
    assert titles == [f"{layer}: {kind}" for layer in ("conv1", "conv2") for kind in kinds]
    np.testing.assert_array_equal(shown[0], by_layer(report)["conv1"]["derivative_correlation"])
    np.testing.assert_array_equal(shown[2], by_layer(report)["conv1"]["map_correlation"])
    np.testing.assert_array_equal(shown[4], by_layer(report)["conv2"]["activation_correlation"])


def tables(text):
    """By heading and layer what stands in the two tables, which no other line looks like."""
    found = {}
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if not re.fullmatch(r"(-+ *)+", line):
            continue
        spans = [rule.span() for rule in re.finditer("-+", line)]
        above = itertools.takewhile(str.strip, reversed(lines[:number]))
        heads = [[head[a:b].strip() for a, b in spans] for head in above]
        headings = [" ".join(filter(None, reversed(parts))) for parts in zip(*heads, strict=True)]
        for row in itertools.takewhile(str.strip, lines[number + 1 :]):
            cells = [row[a:b].strip() for a, b in spans]
            found.setdefault(cells[0], {}).update(zip(headings, cells, strict=True))
    return found


HEADINGS = [
    *("layer", "parameters", *check.COMPARED, "cosine", "condition Omega", "condition Gamma"),
    *("pi", "correlation derivatives", "correlation inputs", "kB", "moments (ms)", "eigen (ms)"),
]


def test_the_tables_have_the_figures_below_their_headings(found):
    _, _, report = found
    cells = tables(str(report))
    assert list(cells) == [row["layer"] for row in report.rows]
    for row in report.rows:
        line = cells[row["layer"]]
        assert list(line) == HEADINGS
        assert int(line["parameters"]) == row["parameters"]
        for name in check.COMPARED:
            value = row["relative_error"].get(name)
            assert line[name] == ("-" if value is None else f"{value:.3g}")
        for heading, key in (("condition Omega", "condition_omega"), ("pi", "pi")):
            assert line[heading] == ("-" if row[key] is None else f"{row[key]:.3g}")


def test_the_report_fits_a_terminal_and_explains_its_headings(found):
    _, _, report = found
    text = str(report)
    assert max(map(len, text.split("\n"))) <= 100
    for heading in HEADINGS[2:]:
        word = heading.split()[0]
        assert word in check.COMPARED or re.search(rf"^{word} +\w+ \w+", text, re.MULTILINE), word


def row_of_figures():
    """A row in which every figure is another."""
    return {
        "layer": "conv1",
        "parameters": 40,
        "relative_error": {"expand": 0.11, "reduce": 0.22, "ekfac": 0.33, "diagonal": 0.44},
        "cosine": {"expand": 0.91, "reduce": 0.92, "ekfac": 0.93, "diagonal": 0.94},
        "condition_omega": 51.5,
        "condition_gamma": 62.5,
        "pi": 0.71,
        "derivative_correlation": np.array([[0.0, 0, 0], [0, 1, 0.25], [0, 0.15, 0]]),
        "activation_correlation": np.array([[0.0, 0, 0], [0, 1, 0.5], [0, 0.7, 0]]),
        "bytes": {"omega": 1500, "gamma": 750},
        "seconds": {
            "omega": 0.002,
            "gamma": 0.005,
            "omega_eigenvectors": 0.03,
            "gamma_eigenvectors": 0.0125,
        },
    }


def test_text_of_given_figures():
    row = row_of_figures()
    nothing = dict.fromkeys(row) | {"layer": "norm1", "parameters": 8, "bytes": {"diagonal": 32}}
    spent = {
        "gradient_seconds": 0.0123,
        "statistics_seconds": 0.0456,
        "decomposition_seconds": 0.789,
        "overhead": 0.25,
        "curvature_update_period": 15,
        "inverse_update_period": 257,
    }
    text = str(check.Report([row, nothing], spent, 128, 32, 500))
    cells = tables(text)
    # Milliseconds; the mean of both neighbours; thousands of bytes.
    figures = "conv1 40 0.11 0.22 0.33 0.44 0.91 51.5 62.5 0.71 0.2 0.6 2.25 7 42.5"
    assert " ".join(cells["conv1"][heading] for heading in HEADINGS) == figures
    empty = ["norm1", "8", *["-"] * 10, "0.032", "-", "-"]
    assert [cells["norm1"][heading] for heading in HEADINGS] == empty
    head = " ".join(text.split("\n")[:2])
    assert "on 32 examples" in head
    assert "-: above 500 parameters" in head
    assert text.split("\n")[-2:] == [
        "on 128 examples: gradient 12.3 ms, statistics 45.6 ms, decomposition 789 ms",
        "suggested for at most 25% of a gradient each: curvature_update_period=15, "
        "inverse_update_period=257",
    ]


class KnownTargets(kfc.SquaredError):
    """Draws targets that lie `noise` below the outputs."""

    def __init__(self, noise):
        self.noise = noise

    def sample(self, outputs, rng):
        return outputs - self.noise


def test_what_is_timed(monkeypatch):
    """Each call that is timed computes what it is named for."""
    results = []
    noise = np.random.default_rng(1).normal(size=(4, 2, 2, 2))

    def timed(call, repeats, device):
        assert (repeats, device) == (3, "cpu")
        results.append(call())
        return float(len(results))

    monkeypatch.setattr(check, "least_seconds", timed)
    net = kfc.Sequential([kfc.Conv2d(2, 2)], input_shape=(3, 3, 1), dtype=np.float64)
    x = np.random.default_rng(0).normal(size=(4, 3, 3, 1))
    report = kfc.check_curvature(net, x, KnownTargets(noise))
    assert (report.examples, report.exact_examples) == (4, 4)
    _, _, omega, gamma, (omega_values, _), (gamma_values, _) = results
    patches = np.ones((16, 5))
    for row, (m, i, j) in enumerate(np.ndindex(4, 2, 2)):
        patches[row, :4] = x[m, i : i + 2, j : j + 2, 0].ravel()
    moment = patches.T @ patches
    np.testing.assert_allclose(np.linalg.eigvalsh(omega), np.linalg.eigvalsh(moment), atol=1e-12)
    np.testing.assert_allclose(omega_values, np.linalg.eigvalsh(moment) / 4, atol=1e-12)
    derivatives = noise.reshape(16, 2)
    np.testing.assert_allclose(gamma, derivatives.T @ derivatives, atol=1e-12)
    np.testing.assert_allclose(gamma_values, np.linalg.eigvalsh(gamma) / 16, atol=1e-12)
    seconds = {"omega": 3, "gamma": 4, "omega_eigenvectors": 5, "gamma_eigenvectors": 6}
    assert report.rows[0]["seconds"] == seconds
    assert report.costs["gradient_seconds"] == 1
    assert report.costs["statistics_seconds"] == 2
    assert report.costs["decomposition_seconds"] == 11


def test_dead_layers_are_reported_and_not_divided_by():
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float64)
    report = kfc.check_curvature(net, np.zeros((2, 3)), kfc.SquaredError())
    row = report.rows[0]
    assert row["condition_omega"] == math.inf
    assert row["condition_gamma"] == pytest.approx(1)
    assert row["relative_error"]["expand"] < 1e-7
    assert json.loads(report.to_json())["layers"][0]["condition_omega"] is None
    assert "inf" in str(report)
    with pytest.raises(ValueError, match="no layer has images"):
        report.figure()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"net": "net"}, TypeError, "net must be a Graph"),
        ({"loss": None}, TypeError, "loss must be a Loss"),
        ({"x": np.zeros((2, 3))}, ValueError, "x has shape"),
        ({"largest": -1}, ValueError, r"largest \(=-1\)"),
        ({"exact_examples": 0}, ValueError, r"exact_examples \(=0\)"),
        ({"offsets": 1.5}, TypeError, r"offsets \(=1.5\)"),
        ({"overhead": 0}, ValueError, r"overhead \(=0\)"),
        ({"overhead": math.inf}, ValueError, r"overhead \(=inf\) must be a number above 0"),
        ({"overhead": True}, ValueError, r"overhead \(=True\)"),
        ({"repeats": 0}, ValueError, r"repeats \(=0\)"),
        ({"seed": -1}, ValueError, r"^seed \(=-1\)"),
    ],
)
def test_wrong_arguments(change, error, message):
    given = {"net": network(), "x": images(2), "loss": kfc.SoftmaxCrossEntropy()} | change
    with pytest.raises(error, match=message):
        kfc.check_curvature(**given)


# The command.


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KFC_NUMBA_DATA", raising=False)
    dataset_files.write_mnist(tmp_path / "mnist", dataset_files.mnist_arrays(0, 20, 4))
    return ["curvature", "--dataset", "mnist", "--data", str(tmp_path)]


def test_the_command_writes_the_report_of_a_checkpoint(data, tmp_path, capsys):
    net = networks.build("small", (28, 28, 1), 10, seed=3)
    trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), SGD())
    trainer.save(tmp_path / "run.safetensors")
    more = ["--batch-size", "8", "--exact-examples", "2", "--largest", "500"]
    assert main([*data, *more, "--checkpoint", "run.safetensors", "--output", "report"]) == 0
    text = capsys.readouterr().out
    content = json.loads((tmp_path / "report" / "curvature.json").read_text())
    assert content["config"]["batch_size"] == 8
    assert content["environment"]["numpy"] == np.__version__
    layers = {row["layer"]: row for row in content["layers"]}
    assert layers["conv1"]["relative_error"]["ekfac"] < layers["conv1"]["relative_error"]["expand"]
    assert layers["conv2"]["relative_error"] is None
    assert f"{layers['conv1']['relative_error']['expand']:.3g}" in text
    assert (tmp_path / "report" / "curvature.png").read_bytes()[:4] == b"\x89PNG"

    # The parameters are those of the file: those of seed 3, not of the seed given.
    assert main([*data, *more, "--seed", "0", "--output", "other"]) == 0
    other = json.loads((tmp_path / "other" / "curvature.json").read_text())
    assert other["layers"][0]["pi"] != content["layers"][0]["pi"]

    capsys.readouterr()
    for words, message in (
        (["--output", "report"], "already holds a report"),
        (["--checkpoint", "absent"], "absent"),
        (["--checkpoint", "run.safetensors", "--network", "quick"], "does not fit --network"),
        (["--batch-size", "0"], "at least 1"),
    ):
        assert main([*data, *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert message in err


@pytest.mark.parametrize(
    ("exact", "approximate", "expected"),
    [
        ([3.0, 4.0], [3.0, 4.0], (0, 1)),
        ([3.0, 4.0], [6.0, 8.0], (1, 1)),
        ([3.0, 4.0], [-4.0, 3.0], (math.sqrt(2), 0)),
        ([3.0, 4.0], [0.0, 0.0], (1, 0)),
        ([0.6, 0.8], [0.3, 0.4], (0.5, 1)),  # of norm one
        ([0.0, 0.0], [0.0, 0.0], (0, 1)),
        ([0.0, 0.0], [0.6, 0.8], (math.inf, 0)),
        ([0.0, 0.0], [1.0, 0.0], (math.inf, 0)),
    ],
)
def test_errors_and_cosines_of_vectors(exact, approximate, expected):
    numbers = np.dot(exact, exact), np.dot(exact, approximate), np.dot(approximate, approximate)
    found = check._error_and_cosine(*map(float, numbers))
    assert found == pytest.approx(expected, abs=1e-15)


def test_squares_of_large_numbers_of_float32_do_not_overflow():
    net = kfc.Sequential([kfc.Dense(2)], input_shape=(3,), dtype=np.float32)
    x = 1e10 * np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    (row,) = kfc.check_curvature(net, x, kfc.SquaredError(), repeats=1).rows
    assert row["cosine"]["expand"] == pytest.approx(1, abs=1e-3)
