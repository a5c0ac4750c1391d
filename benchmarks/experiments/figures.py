"""How figures of experiments look, and how they are kept: readable in print and without colour."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfc_numba import plot
from kfc_numba.checkpoint import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Folder of the figures, in the folder of the pages.
FOLDER = "figures"
#: Of lines, in order: told apart by colour, by grey (they get lighter), by dashes and by marker.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#101010", "linestyle": "-", "marker": "o"},
    {"color": "#b2182b", "linestyle": "--", "marker": "s"},
    {"color": "#2166ac", "linestyle": "-.", "marker": "^"},
    {"color": "#e08214", "linestyle": ":", "marker": "D"},
    {"color": "#5aae61", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#9970ab", "linestyle": (0, (8, 2)), "marker": "P"},
)


def new(rows: int = 1, columns: int = 1, *, width: float = 4.2, height: float = 3.2) -> Any:
    """A figure and its panels, (rows, columns), each of a size in inches."""
    # Not pyplot: it keeps figures, and chooses a display, for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def logarithmic(axes: Any, which: str = "xy") -> None:
    """Make axes logarithmic, with plain numbers; the wider the range, the fewer."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for name in which:
        axes.set(**{f"{name}scale": "log"})
        axis = getattr(axes, f"{name}axis")
        low, high = axis.get_view_interval()
        few = range(1, 10) if high < 3 * low else (1, 2, 5)
        axis.set_major_locator(LogLocator(subs=few if high < 200 * low else (1,)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, output: Path, name: str) -> None:
    """Keep a figure as ``figures/NAME.png`` and ``.svg`` in the folder of the pages."""
    import matplotlib

    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / f"{name}.png", plot.png(figure, dpi=150))
    buffer = io.BytesIO()
    # The same bytes for the same figure: no date, no random names.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    write_bytes(folder / f"{name}.svg", buffer.getvalue())


def link(name: str, caption: str) -> str:
    """Markdown that shows a figure, with its caption below."""
    return f"![{caption}]({FOLDER}/{name}.png)\n\n*{caption}* ([SVG]({FOLDER}/{name}.svg))"
