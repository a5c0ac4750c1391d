"""What an experiment found that is not a training run: a folder of JSON files, one for each part.

A program that was stopped goes on with the parts that are missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.results import RESULTS, commit
from benchmarks.peers.timing import environment
from kfc_numba.checkpoint import write_bytes

DIGITS = 6  # of numbers that are kept


class Records:
    """The parts of an experiment, by name.

    Parameters
    ----------
    experiment : str
        Name of the experiment, and of its folder.
    folder : path
        Where results of all experiments are.
    read_only : bool
        Whether nothing is computed.
    """

    def __init__(self, experiment: str, folder: Path = RESULTS, *, read_only: bool = False):
        self.folder, self.read_only = folder / experiment, read_only

    def get(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """A part, computed if it is not there; None if it is not there and nothing is computed.

        ``environment`` is added to what was computed: machine, versions, commit, and when.
        """
        path = self.folder / f"{name}.json"
        if not path.is_file():
            if self.read_only:
                return None
            about = environment() | {"commit": commit()}
            found = compute()
            about["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, (_to_json({**found, "environment": about}) + "\n").encode())
        return json.loads(path.read_text())

    def names(self) -> list[str]:
        """Names of the parts that there are, in alphabetical order."""
        return sorted(path.stem for path in self.folder.glob("*.json"))


def _to_json(content: dict[str, Any]) -> str:
    lines = (
        f"{json.dumps(k)}: {json.dumps(_plain(v), allow_nan=False)}" for k, v in content.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}"


def _plain(value: Any) -> Any:
    """Arrays as lists, numbers with `DIGITS` digits, those that are not finite as text."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else str(float(value))
    return value.item() if isinstance(value, np.generic) else value
