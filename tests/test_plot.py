"""Plots: what is drawn is what was measured."""

import struct
import sys
import zlib

import numpy as np
import pytest

from kfc_numba import plot
from kfc_numba.history import History


def history(losses, seconds=1.0):
    return History(
        [
            {
                "step": 5 * n,
                "epoch": n / 2,
                "seconds": seconds * n,
                "training_loss": loss,
                "validation_loss": None if loss is None else 2 * loss,
                "validation_error": None if loss is None else loss / 10,
            }
            for n, loss in enumerate(losses)
        ]
    )


def curves(panel):
    return {line.get_label(): line.get_xydata() for line in panel.get_lines()}


def test_curves_of_a_run():
    figure = plot.history_figure(history([3.0, 1.0, 0.5]), "A run")
    left, right = figure.axes
    assert figure.get_suptitle() == "A run"
    drawn = curves(left)
    np.testing.assert_array_equal(drawn["training loss"], [[0, 3], [5, 1], [10, 0.5]])
    np.testing.assert_array_equal(drawn["validation loss"], [[0, 6], [5, 2], [10, 1]])
    (error,) = right.get_lines()
    np.testing.assert_allclose(error.get_xydata(), [[0, 30], [5, 10], [10, 5]])
    assert {text.get_text() for text in left.get_legend().get_texts()} == set(drawn)
    assert left.get_yscale() == right.get_yscale() == "log"
    assert (left.get_xlabel(), right.get_ylabel()) == ("step", "validation error (%)")


def test_curves_of_a_comparison():
    runs = {"kfc": history([3.0, 0.2], 2.0), "sgd": history([3.0, 1.0, 0.9])}
    figure = plot.comparison_figure(runs)
    by_step, by_second = figure.axes
    np.testing.assert_array_equal(curves(by_step)["kfc"], [[0, 3], [5, 0.2]])
    np.testing.assert_array_equal(curves(by_second)["kfc"], [[0, 3], [2, 0.2]])
    np.testing.assert_array_equal(curves(by_second)["sgd"], [[0, 3], [1, 1], [2, 0.9]])
    assert by_step.get_ylim() == by_second.get_ylim()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kfc", "sgd"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 20, [0.01, 0.1, 1, 10]),
        (0.04, 2.5, [0.05, 0.1, 0.2, 0.5, 1, 2]),
        (0.2, 2.3, [0.2, 0.5, 1, 2]),
        (0.3, 1, [0.3, 0.4, 0.5, 0.7, 1]),
        (11.8, 14.1, [12, 12.5, 13, 13.5, 14]),
        (2.2, 2.31, [2.2, 2.22, 2.24, 2.26, 2.28, 2.3]),
        (1e-12, 1e12, [1e-12, 1e-9, 1e-6, 1e-3, 1, 1e3, 1e6, 1e9, 1e12]),
    ],
)
def test_round_numbers_on_a_logarithmic_axis(low, high, expected):
    np.testing.assert_allclose(plot.ticks(low, high), expected, rtol=1e-12)


def test_there_are_several_ticks_on_any_axis():
    rng = np.random.default_rng(0)
    for low, factor in zip(
        10 ** rng.uniform(-6, 6, 500), 10 ** rng.uniform(0.01, 9, 500), strict=True
    ):
        found = plot.ticks(low, low * factor)
        assert 3 <= len(found) <= 11, (low, low * factor)
        assert (np.diff(found) > 0).all()
        assert low <= found[0]
        assert found[-1] <= low * factor * (1 + 1e-12)


@pytest.mark.parametrize("losses", [[2.3, 0.6, 0.4], [0.5, 0.48, 0.47], [2.3, 1e-3], [0.7]])
def test_the_axes_of_losses_have_several_labels(losses):
    left, right = plot.history_figure(history(losses)).axes
    for panel in (left, right, *plot.comparison_figure({"a": history(losses)}).axes[:1]):
        panel.figure.draw_without_rendering()
        low, high = panel.get_ylim()
        shown = [
            text.get_text()
            for text in panel.yaxis.get_ticklabels(which="both")
            if text.get_text() and low <= text.get_position()[1] <= high
        ]
        assert len(shown) >= 3
        assert len(set(shown)) == len(shown)
        assert [float(text) for text in shown] == sorted(float(text) for text in shown)


@pytest.mark.parametrize("losses", [[2.3], [2.3, None], [0.0, 0.0], [2.3, float("nan")]])
def test_runs_that_hardly_began_or_diverged_can_be_drawn(losses):
    for figure in (
        plot.history_figure(history(losses)),
        plot.comparison_figure({"a": history(losses)}),
    ):
        assert plot.png(figure).startswith(b"\x89PNG\r\n\x1a\n")


def test_files_are_png_and_repeatable():
    content = plot.png(plot.history_figure(history([3.0, 1.0])), dpi=50)
    assert content == plot.png(plot.history_figure(history([3.0, 1.0])), dpi=50)
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (450, 180)
    kinds, place, pixels = [], 8, b""
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kinds.append(content[place + 4 : place + 8])
        if kinds[-1] == b"IDAT":
            pixels += content[place + 8 : place + 8 + length]
        place += length + 12
    assert kinds[-1] == b"IEND"
    rows = np.frombuffer(zlib.decompress(pixels), np.uint8).reshape(height, -1)
    assert len(np.unique(rows)) > 10  # something is drawn


def test_no_display_and_no_global_figures():
    before = "matplotlib.pyplot" in sys.modules
    plot.png(plot.history_figure(history([1.0, 0.5])))
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_matplotlib_is_asked_for_only_when_a_plot_is_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        plot.history_figure(history([1.0]))
