"""The experiments by name, and when each last ran."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

from benchmarks.experiments.results import RESULTS, Plan

#: Those of docs/results.md, in its order.
SECTIONS = ("optimisation", "assumptions", "invariance", "batch_size", "svhn", "beyond")
#: Those that write a page of their own.
PAGES = ("defaults", "race", "ways", "long_runs")
_PACKAGE = __name__.rpartition(".")[0]


def names() -> tuple[str, ...]:
    """Names of all experiments that there are, in order."""
    return tuple(
        name for name in (*SECTIONS, *PAGES) if importlib.util.find_spec(f"{_PACKAGE}.{name}")
    )


def load(name: str) -> ModuleType:
    """The module of an experiment.

    It has ``SHOWS`` and ``TAKES``, sentences, and ``main(words)``. Those of `SECTIONS` have
    ``section(results)`` and ``draw(results, output)`` too and perhaps ``claims(results)``, all of
    the folder `results`; those of `PAGES` have ``is_own(plan)``, whether a run is theirs.
    """
    return importlib.import_module(f"{_PACKAGE}.{name}")


def last_run(name: str, results: Path = RESULTS) -> str | None:
    """When the newest result of an experiment came about, and of which commit."""
    if name in SECTIONS:
        found = [json.loads(path.read_text()) for path in (results / name).glob("*.json")]
    else:
        every = [json.loads(path.read_text()) for path in results.glob("*.json")]
        is_own = load(name).is_own
        found = [content for content in every if is_own(Plan(**content["plan"]))]
    if not found:
        return None
    newest = max((content["environment"] for content in found), key=lambda e: e["finished"])
    day, _, clock = newest["finished"].partition("T")
    return f"{day} {clock[:5]}, commit {newest.get('commit') or 'unknown'}"
