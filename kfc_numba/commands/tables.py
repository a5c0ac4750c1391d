"""Tables of text that fit a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tabulate import tabulate

from kfc_numba.progress import WIDTH

_LABEL = 32  #: columns of the first column, beyond which it is wrapped
_GAP = 2  #: columns between two columns


def fitted(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A table, cut between columns into several, one below the other, where it is too wide.

    Parameters
    ----------
    rows : sequence of sequences of str
        The first cell of each is its name, which every part repeats.
    headers : sequence of str
        One for each column.

    Returns
    -------
    str
        No line is longer than `kfc_numba.progress.WIDTH`, unless one cell is.
    """
    names = [textwrap.fill(row[0], _LABEL, break_on_hyphens=False) for row in rows]
    columns = [list(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    first = _width([headers[0], *names])
    parts: list[list[int]] = []
    used = WIDTH + 1
    for index, column in enumerate(columns):
        width = _GAP + _width([headers[index + 1], *column])
        if used + width > WIDTH:
            parts.append([])
            used = first
        parts[-1].append(index)
        used += width
    return "\n\n".join(
        tabulate(
            [
                [name, *(columns[index][number] for index in part)]
                for number, name in enumerate(names)
            ],
            [headers[0], *(headers[index + 1] for index in part)],
            "simple",
            disable_numparse=True,
        )
        for part in parts
    )


def _width(cells: Sequence[str]) -> int:
    return max(len(line) for cell in cells for line in cell.split("\n"))
