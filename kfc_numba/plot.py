"""Plots of training curves, by matplotlib (extra ``plot``), which is imported when one is made."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kfc_numba.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def history_figure(history: History, title: str = "") -> Figure:
    """Losses and error of one run against its steps.

    Parameters
    ----------
    history : History
    title : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    figure, (left, right) = _panels()
    steps = history.column("step")
    for name in ("training_loss", "validation_loss"):
        left.plot(steps, history.column(name), ".-", label=name.replace("_", " "))
    _label(left, "step", "loss (nats)")
    left.legend()
    right.plot(steps, 100 * history.column("validation_error"), ".-", color="C2")
    _label(right, "step", "validation error (%)")
    figure.suptitle(title)
    return figure


def comparison_figure(histories: Mapping[str, History], title: str = "") -> Figure:
    """Training losses of several runs against their steps and against their seconds.

    Parameters
    ----------
    histories : mapping of str to History
        By label.
    title : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    figure, axes = _panels(sharey=True)
    for panel, name in zip(axes, ("step", "seconds"), strict=True):
        for label, history in histories.items():
            panel.plot(history.column(name), history.column("training_loss"), ".-", label=label)
    _label(axes[0], "step", "training loss (nats)")
    _label(axes[1], "seconds of training", "")
    axes[1].legend()
    figure.suptitle(title)
    return figure


def png(figure: Figure, *, dpi: int = 100) -> bytes:
    """A figure as the content of a PNG file.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    dpi : int
        Pixels per inch.

    Returns
    -------
    bytes
        The same for the same figure and version of matplotlib.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _panels(**options: Any) -> tuple[Figure, Any]:
    # Not pyplot: it keeps figures, and chooses a display, for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    return figure, figure.subplots(1, 2, **options)


def _label(panel: Axes, x: str, y: str) -> None:
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.grid(alpha=0.3, which="both")
    if not any((np.asarray(line.get_ydata(), float) > 0).any() for line in panel.get_lines()):
        return  # nothing that a logarithmic axis could show
    panel.set_yscale("log")
    # Plain numbers; where less than a decade is shown, minor ticks are all there is.
    low, high = sorted(panel.get_ylim())
    panel.yaxis.set_major_formatter(ScalarFormatter())
    panel.yaxis.set_minor_formatter(ScalarFormatter() if high < 10 * low else NullFormatter())
