"""The experiment on the assumptions of KFC: its matrices by loops, its verdicts, its page."""

import copy
import json
import shutil

import matplotlib
import numba
import numpy as np
import pytest

import kfc_numba as kfc
from benchmarks.experiments import assumptions, assumptions_claims
from benchmarks.experiments import assumptions_matrices as matrices
from benchmarks.experiments import assumptions_parts as parts
from benchmarks.experiments.claims import ABSTRACT, OURS
from benchmarks.experiments.tasks import Task
from kfc_numba.curvature import fisher
from kfc_numba.curvature.blockdiagonal import BlockDiagonal

matplotlib.use("Agg")

LOSS = kfc.SoftmaxCrossEntropy()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks are so small that handing work to a second thread only costs."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


def network():
    layers = [
        *(kfc.Conv2d(3, (3, 2), padding=1), kfc.Tanh(), kfc.MaxPool2d(2)),
        *(kfc.Conv2d(2, 2), kfc.Flatten(), kfc.Dense(3)),
    ]
    return kfc.Sequential(layers, input_shape=(5, 6, 2), seed=1, dtype=np.float64)


def images(count):
    return np.random.default_rng(0).standard_normal((count, 5, 6, 2)) + 0.5


def test_exact_matrix_is_that_of_the_library():
    net = network()
    trace = net.forward(images(4))
    root, places = matrices.exact_root(net, trace, LOSS)
    expected = fisher.dense_fisher(net, trace, LOSS)
    # Two orders of the same sums in float64.
    np.testing.assert_allclose(root.T @ root, expected, rtol=0, atol=1e-13)
    for name, block in fisher.layer_blocks(net, trace, LOSS).items():
        np.testing.assert_allclose(expected[places[name], places[name]], block, atol=1e-13)


def white_by_loops(x, kernel, padding):
    """Omega in which products of activations at different locations are those of means."""
    _, height, width, channels = x.shape
    mean = [x[..., j].mean() for j in range(channels)]
    columns = [
        (ky, kx, j) for ky in range(kernel[0]) for kx in range(kernel[1]) for j in range(channels)
    ]
    rows, places = height + 2 * padding - kernel[0] + 1, width + 2 * padding - kernel[1] + 1
    omega = np.zeros((len(columns) + 1, len(columns) + 1))
    for top in range(rows):
        for left in range(places):
            seen = []
            for ky, kx, j in columns:
                y, xx = top + ky - padding, left + kx - padding
                inside = 0 <= y < height and 0 <= xx < width
                seen.append((y, xx, j) if inside else None)
            for a, one in enumerate(seen):
                if one is None:
                    continue
                omega[a, -1] += mean[one[2]]
                omega[-1, a] += mean[one[2]]
                for b, other in enumerate(seen):
                    if other is None:
                        continue
                    if one[:2] == other[:2]:
                        omega[a, b] += np.mean(x[..., one[2]] * x[..., other[2]])
                    else:
                        omega[a, b] += mean[one[2]] * mean[other[2]]
            omega[-1, -1] += 1
    return omega


def test_white_activations_by_loops():
    x = images(3)
    layer = kfc.Conv2d(3, (3, 2), padding=1)
    omega = matrices.white_omega(layer, x, x.shape[1:])
    np.testing.assert_allclose(omega, white_by_loops(x, (3, 2), 1), rtol=1e-12)
    assert np.linalg.eigvalsh(omega).min() > -1e-12 * omega.max()


def test_white_activations_are_what_the_library_has_where_they_are_white():
    x = (
        np.random.default_rng(0).standard_normal((4000, 4, 4, 2)) @ np.array([[1.0, 0.5], [0, 1]])
        + 0.3
    )
    layer = kfc.Conv2d(2, 3)
    net = kfc.Sequential([layer], input_shape=(4, 4, 2), dtype=np.float64)
    state = BlockDiagonal(net).compute(net.forward(x), kfc.SquaredError(), mode="fisher_exact")
    difference = state["omega/conv1"] - matrices.white_omega(layer, x, (4, 4, 2))
    # 4 locations of 4000 examples, numbers of variance up to about 2: five standard errors.
    assert np.abs(difference).max() < 5 * 4 * 2 / np.sqrt(4000 * 4)


def test_white_derivatives_are_the_mean_of_the_diagonal():
    gamma = np.array([[3.0, 1], [1, 5]])
    np.testing.assert_array_equal(matrices.white_gamma(gamma), [[4, 0], [0, 4]])


def test_a_block_and_a_step_against_the_exact_ones():
    exact = np.diag([3.0, 4.0])
    assert matrices.compare(exact, exact) == pytest.approx({"error": 0, "cosine": 1})
    found = matrices.compare(exact, np.diag([3.0, 0.0]))
    assert found == pytest.approx({"error": 4 / 5, "cosine": 3 / 5})
    # The least of g d + d F d / 2 is -(1 / 3 + 1 / 4) / 2, along the first axis -(1 / 3) / 2.
    gradient = np.array([1.0, 1.0])
    best = 1 / 3 + 1 / 4
    assert matrices.gain(exact, gradient, gradient / exact.diagonal(), best) == pytest.approx(1)
    assert matrices.gain(exact, gradient, np.array([-7.0, 0]), best) == pytest.approx(4 / 7)


def test_mean_correlations():
    correlation = np.array([[0.1, 0.2, 0.3], [-0.4, 1, -0.4], [0.3, 0.2, 0.1]])
    assert parts.mean_of_neighbours(correlation) == pytest.approx(0.3)
    assert parts.mean_between_maps(np.array([[1, -0.5, 0], [-0.5, 1, 0.1], [0, 0.1, 1]])) == (
        pytest.approx(0.2)
    )


def test_images_of_half_the_size():
    x = np.arange(32.0, dtype=np.float32).reshape(1, 4, 4, 2)
    half = parts.halved(x)
    assert half.dtype == np.float64
    assert half.shape == (1, 2, 2, 2)
    assert half[0, 1, 0, 1] == np.mean([x[0, i, j, 1] for i in (2, 3) for j in (0, 1)])


# From end to end, on images of 8x8 pixels.


def tiny_task():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 8, 8, 1)).astype(np.float32)
    y = rng.integers(10, size=40)
    pairs = (x[:32], y[:32]), (x[32:], y[32:])
    return Task("tiny", lambda seed: None, LOSS, *pairs, 1.0, data="noise")


def smaller_with(pool, shape, seed):
    """As `small_with`, with blocks of a few dozen parameters."""
    pools = [parts.POOLS[pool](3, stride=2, ceil_mode=True) for _ in range(2)]
    layers = [
        *(kfc.Conv2d(3, 3, padding=1), kfc.ReLU(), pools[0]),
        *(kfc.Conv2d(2, 3, padding=1), kfc.ReLU(), pools[1]),
        *(kfc.Flatten(), kfc.Dense(10)),
    ]
    return kfc.Sequential(layers, input_shape=shape, seed=seed, dtype=np.float64)


def never(task, size, seed):
    raise AssertionError("computed again")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Results and pages of an experiment that ran with `--fast`, and what it printed."""
    folder = tmp_path_factory.mktemp("assumptions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assumptions, "available", lambda names, data: [tiny_task()])
        patch.setattr(parts, "small_with", smaller_with)
        where = ["--results", str(folder / "results"), "--output", str(folder / "docs")]
        assert assumptions.main(["--fast", *where]) == 0
        # What was computed is not computed again.
        for module, name in (
            (matrices, "errors_of"),
            (parts, "correlations_of"),
            (parts, "report_of"),
        ):
            patch.setattr(module, name, never)
        assert assumptions.main(["--fast", *where]) == 0
    return folder


def test_all_parts_figures_and_claims_are_there(kept):
    names = {path.stem for path in (kept / "results" / "assumptions").glob("*.json")}
    assert names == {f"{kind}-{pool}-0" for kind in ("small", "quick") for pool in parts.POOLS} | {
        "quick-0"
    }
    figures = {path.name for path in (kept / "docs" / "figures").iterdir()}
    drawn = ("offsets", "maps", "small-max", "small-average", "training")
    assert figures == {f"assumptions-{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    page = assumptions.section(kept / "results")
    assert page.startswith("## Assumptions\n\n")
    for name in drawn:
        assert f"](figures/assumptions-{name}.png)" in page
    assert page.count("*Verdict: ") == 11
    assert "nan" not in page
    assert page == assumptions.section(kept / "results")


def test_steps_by_the_exact_matrix_are_the_best(kept):
    for pool in parts.POOLS:
        path = kept / "results" / "assumptions" / f"small-{pool}-0.json"
        for moment in json.loads(path.read_text())["moments"]:
            gains = moment["whole"]
            assert gains.keys() == {
                *matrices.APPROXIMATIONS,
                matrices.EXACT,
                matrices.FACTORED,
                matrices.GRADIENT,
            }
            for row in moment["layers"].values():
                assert all(0 < numbers["gain"] <= 1 for numbers in row.values())
                # George et al. (2018): the nearest of all matrices with these eigenvectors.
                assert row["EKFAC"]["error"] <= row["KFC"]["error"]
            dense = moment["layers"]["dense1"]
            assert dense["reduce"] == dense[matrices.WHITE_ACTIVATIONS] == dense["KFC"]


def test_nothing_without_results(tmp_path):
    assert assumptions.section(tmp_path) is None
    assumptions.draw(tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_some_of_the_data(kept, tmp_path):
    folder = tmp_path / "assumptions"
    folder.mkdir()
    for pool in parts.POOLS:
        name = f"small-{pool}-0.json"
        (folder / name).write_bytes((kept / "results" / "assumptions" / name).read_bytes())
    page = assumptions.section(tmp_path)
    assert "### Against the exact Fisher matrix" in page
    assert "### Correlations" not in page
    assert "### Where it is used" not in page


# Verdicts.


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        ([True, True], "holds"),
        ([True, False], "holds in part"),
        ([True, False, False], "does not hold here"),
        ([False], "does not hold here"),
    ],
)
def test_verdicts(cases, words):
    assert assumptions_claims.verdict(cases) == words


def test_claims_are_those_of_the_section(kept):
    rows = assumptions.claims(kept / "results")
    assert len(rows) == 11
    assert rows[0].text == "Max pooling leaves derivatives nearly uncorrelated over space (SUD)"
    page = assumptions.section(kept / "results")
    for row in rows:
        text, ours = row.text, row.ours
        if text == ABSTRACT["curvature"]:
            text, _, ours = ours.partition(": ")
        count, _, numbers = ours.partition(". ")
        assert f"**{text}.** *Verdict: {row.verdict} ({count}).* {numbers}." in page
        assert f"](figures/{row.figure}.png)" in page
    assert sum(row.text == ABSTRACT["curvature"] for row in rows) == 2
    sources = {row.text: row.source for row in rows}
    assert sources["EKFAC is closer to the exact block than KFC is"] == "George and others (2018)"
    assert sources["White derivatives besides make it poorer still"] == OURS


def test_reduce_is_compared_with_and_is_no_claim(kept, tmp_path):
    def set_to(high, low):
        def change(row):
            row["KFC"]["cosine"], row["reduce"]["cosine"] = high, low

        return change

    page = changed(kept, tmp_path, "small-max", set_to(0.9, 0.8))
    assert "with max pooling its cosine is greater in 6 of 6 cases" in page
    page = changed(kept, tmp_path, "small-max", set_to(0.8, 0.8))
    assert "with max pooling its cosine is greater in 0 of 6 cases" in page
    assert not any("reduce is" in row.text for row in assumptions.claims(tmp_path))


def test_correlations_between_maps_are_compared_by_layer_and_moment(kept, tmp_path):
    claim = "Average pooling strengthens correlations between maps"
    changed(kept, tmp_path, "quick-max", lambda row: row.update(between_maps=0.02))
    for value, words in ((0.04, "holds"), (0.0399, "does not hold here")):
        for path in (tmp_path / "assumptions").glob("quick-average-*"):
            content = json.loads(path.read_text())
            for moment in content["moments"]:
                for row in moment["layers"].values():
                    row["between_maps"] = value
            path.write_text(json.dumps(content))
        assert found(assumptions.section(tmp_path), claim).startswith(f"{words} (")


def changed(kept, tmp_path, kind, change):
    """The section of results in which rows of layers were changed."""
    folder = tmp_path / "assumptions"
    folder.mkdir(exist_ok=True)
    for path in (kept / "results" / "assumptions").iterdir():
        content = copy.deepcopy(json.loads(path.read_text()))
        if path.name.startswith(kind):
            for moment in content["moments"]:
                for row in moment["layers"].values():
                    change(row)
        (folder / path.name).write_text(json.dumps(content))
    return assumptions.section(tmp_path)


def found(page, claim):
    return page.partition(f"**{claim}")[2].partition("*Verdict: ")[2].partition("*")[0]


@pytest.mark.parametrize(
    ("kind", "claim", "entry", "true", "false"),
    [
        ("quick-max", "Max pooling leaves derivatives nearly", "derivatives", 0.1, 0.101),
        ("quick-average", "Average pooling violates", "derivatives", 0.3, 0.299),
        ("quick-", "Activations are", "activations", 0.3, 0.299),
        ("quick-max", "Max pooling leaves derivatives of different", "between_maps", 0.1, 0.101),
    ],
)
def test_verdicts_follow_correlations(kept, tmp_path, kind, claim, entry, true, false):
    page = changed(kept, tmp_path, kind, lambda row: row.update({entry: true}))
    assert found(page, claim).startswith("holds (")
    page = changed(kept, tmp_path, kind, lambda row: row.update({entry: false}))
    assert found(page, claim).startswith("does not hold here (0 of ")


@pytest.mark.parametrize(
    ("claim", "better", "worse", "entries"),
    [
        ("White activations", "KFC", matrices.WHITE_ACTIVATIONS, ("cosine", "gain")),
        ("White derivatives", matrices.WHITE_ACTIVATIONS, matrices.WHITE, ("gain",)),
        ("EKFAC is closer", "EKFAC", "KFC", ("cosine",)),
        ("KFC is closer to the exact block than diagonal", "KFC", "diagonal", ("cosine",)),
    ],
)
def test_verdicts_follow_matrices(kept, tmp_path, claim, better, worse, entries):
    def set_to(high, low):
        def change(row):
            for entry in entries:
                row[better][entry], row[worse][entry] = high, low

        return change

    page = changed(kept, tmp_path, "small-", set_to(0.9, 0.8))
    assert found(page, claim).startswith("holds (")
    page = changed(kept, tmp_path, "small-", set_to(0.8, 0.8))
    assert found(page, claim).startswith("does not hold here (0 of ")


@pytest.mark.parametrize("worse", ["gradient", "diagonal"])
def test_steps_are_beside_both_of_the_gradient_and_the_diagonal(kept, tmp_path, worse):
    folder = tmp_path / "assumptions"
    for low, words in ((0.4, "holds"), (0.5, "does not hold here")):
        shutil.copytree(kept / "results" / "assumptions", folder, dirs_exist_ok=True)
        for path in folder.glob("small-*"):
            content = json.loads(path.read_text())
            for moment in content["moments"]:
                moment["whole"].update(KFC=0.5, gradient=0.4, diagonal=0.4)
                moment["whole"][worse] = low
            path.write_text(json.dumps(content))
        assert found(assumptions.section(tmp_path), "KFC's steps are").startswith(f"{words} (")


def test_verdict_follows_the_report(kept, tmp_path):
    claim = "KFC's blocks point"
    page = changed(kept, tmp_path, "quick-0", lambda row: row["cosine"].update(diagonal=0.0))
    assert found(page, claim).startswith("holds (")
    page = changed(kept, tmp_path, "quick-0", lambda row: row["cosine"].update(diagonal=1.0))
    assert found(page, claim).startswith("does not hold here (0 of ")
