"""Plots of training curves, by matplotlib (extra ``plot``), which is imported when one is made."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kfc_numba.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEGEND_COLUMNS = 3  # of a comparison


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
            losses = history.column("training_loss")
            panel.plot(history.column(name), losses, ".-", markersize=3, label=label)
    _label(axes[0], "step", "training loss (nats)")
    _label(axes[1], "seconds of training", "")
    # Curves of many runs leave no room inside.
    rows = math.ceil(len(histories) / _LEGEND_COLUMNS)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=_LEGEND_COLUMNS)
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


def ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: some four to eight, however little of it is shown.

    Parameters
    ----------
    low, high : float
        Ends of the axis, above 0.

    Returns
    -------
    list of float
        In ascending order, none outside the ends.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first) / 8)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 7)):
        found = [
            digit * 10.0**exponent
            for exponent in range(first, last + 1, every if digits == (1,) else 1)
            for digit in digits
        ]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 4:
            return found
    # Less than half a decade: equal steps, as on a linear axis.
    size = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(size))
    step = max(unit * digit for digit in (1, 2, 5) if unit * digit <= size)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _label(panel: Axes, x: str, y: str) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.grid(alpha=0.3)
    if not any((np.asarray(line.get_ydata(), float) > 0).any() for line in panel.get_lines()):
        return  # nothing that a logarithmic axis could show
    panel.set_yscale("log")
    # Matplotlib labels powers of ten: of them an axis of losses often shows one, or none.
    values = ticks(*sorted(panel.get_ylim()))
    panel.yaxis.set_major_locator(FixedLocator(values))
    panel.yaxis.set_major_formatter(FixedFormatter([f"{value:.6g}" for value in values]))
    panel.yaxis.set_minor_locator(NullLocator())
