"""The list of experiments, and one command for each of them.

Run: python -m benchmarks.experiments [NAME [OPTION...]]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiments import page, registry
from benchmarks.experiments.results import RESULTS

USAGE = (
    "python -m benchmarks.experiments NAME [OPTION...]   runs one; --fast only sees that it runs\n"
    "python -m benchmarks.experiments all --fast         runs all\n"
    "python -m benchmarks.experiments page               writes docs/results.md and its figures"
)


def listing(results: Path = RESULTS) -> str:
    """What each experiment shows, how long it takes, and when it last ran."""
    parts = []
    for name in registry.names():
        module = registry.load(name)
        ran = registry.last_run(name, results)
        when = f"last run {ran}" if ran else "not run here"
        parts.append(f"{name}\n    {module.SHOWS}\n    {module.TAKES}; {when}")
    return "\n".join([*parts, "", USAGE])


def run_all(words: Sequence[str]) -> int:
    """All experiments with the same options, one after the other; those that failed by name."""
    failed = []
    for name in registry.names():
        print(f"\n== {name}", flush=True)
        if registry.load(name).main(words):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else list(words)
    if not words or words[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, *options = words
    if name in ("page", "results"):
        return page.main(options)
    if name == "all":
        return run_all(options)
    if name not in registry.names():
        there = ", ".join((*registry.names(), "page", "all"))
        print(f"no experiment is named {name!r}; there are: {there}", file=sys.stderr)
        return 2
    return registry.load(name).main(options)


if __name__ == "__main__":
    sys.exit(main())
