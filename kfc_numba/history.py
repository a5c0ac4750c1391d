"""What was measured during training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from kfc_numba.progress import described
from kfc_numba.schema import Check, integer, number, optional, record, sequence, wrong

Row = dict[str, Any]


@dataclass(repr=False)
class History:
    """Rows of measurements.

    Attributes
    ----------
    rows : list of dict
        One for each evaluation: ``step``; ``epoch``, passes over the data, with a fraction;
        ``seconds`` of training alone, without evaluations and the compilation before it;
        ``training_loss``, ``validation_loss`` and ``validation_error``, the last two None where
        there are no validation data.
    """

    rows: list[Row] = field(default_factory=list)

    def __repr__(self) -> str:
        """The last row in words: all of them would fill a screen."""
        last: Row = dict.fromkeys(("step", "training_loss", "validation_loss", "validation_error"))
        last |= self.rows[-1] if self.rows else {}
        if last["training_loss"] is None:
            return f"<History of {len(self.rows)} evaluations>"
        count = f"{len(self.rows)} evaluation{'s' * (len(self.rows) > 1)}"
        return f"<History of {count}; step {last['step']}: {described(last)}>"

    def column(self, name: str) -> np.ndarray:
        """One entry of all rows: (rows,), float64, NaN for None."""
        values = (row[name] for row in self.rows)
        return np.array([math.nan if value is None else value for value in values], np.float64)

    def to_json(self, *, indent: int | None = 2) -> str:
        """The rows as JSON; a number that is not finite becomes null."""
        rows = [{k: None if _special(v) else v for k, v in row.items()} for row in self.rows]
        return json.dumps(rows, indent=indent, allow_nan=False)

    def to_header(self) -> list[Row]:
        """The rows with what JSON lacks, infinity and NaN, as text."""
        return [{k: repr(v) if _special(v) else v for k, v in row.items()} for row in self.rows]

    @classmethod
    def from_header(cls, rows: Iterable[Mapping[str, Any]]) -> History:
        """Inverse of `to_header`."""
        return cls(
            [{k: float(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
        )


def _measured(place: str, value: Any) -> Any:
    """A number, or what JSON lacks, as text."""
    return value if value in ("inf", "-inf", "nan") else number()(place, value)


def _rows(loss: Check) -> Check:
    """Schema of rows, given that of a loss."""
    entries = {
        "step": integer(),
        "epoch": number(0),
        "seconds": number(0),
        "training_loss": loss,
        "validation_loss": optional(loss),
        "validation_error": optional(loss),
    }
    rows = sequence(record(entries, more=optional(_measured)))

    def check(place: str, value: Any) -> Any:
        rows(place, value)
        for row, after in pairwise(value):
            if row["step"] > after["step"]:
                least = f"at least {row['step']}, the one before"
                raise wrong(f"{place}, step", after["step"], least)
        return value

    return check


#: Schemas of the rows that `History.to_header` and `History.to_json` write.
HEADER_ROWS: Check = _rows(_measured)
JSON_ROWS: Check = _rows(optional(number()))


def _special(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
