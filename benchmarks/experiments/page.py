"""docs/results.md: the paper's claims beside what was found, and the sections of the experiments.

All of it is made from the JSON files of the experiments.

Run: python -m benchmarks.experiments page [--results FOLDER] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.experiments import registry
from benchmarks.experiments.claims import ABSTRACT, OURS, Claim
from benchmarks.experiments.figures import FOLDER
from benchmarks.experiments.results import RESULTS, ROOT
from kfc_numba.checkpoint import write_bytes

NAME = "results.md"
HEAD = """\
# The paper's claims, tried

Written by `python -m benchmarks.experiments page` from the results of the experiments, which \
[experiments.md](experiments.md) describes: change nothing here by hand. The paper is Grosse and \
Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", 2016. Numbers \
are of the machines that the sections name; every verdict follows from its numbers by a rule that \
is in the section's code."""


def claims(results: Path) -> list[Claim]:
    """Claims of all experiments, in their order."""
    found: list[Claim] = []
    for name in _there():
        found += getattr(registry.load(name), "claims", lambda results: [])(results)
    return found


def tables(found: Sequence[Claim]) -> list[str]:
    """The abstract's claims, in its order, also those that nothing is known about; the others."""
    abstract: list[tuple[str, ...]] = []
    for text in ABSTRACT.values():
        abstract += [_line(claim) for claim in found if claim.text == text] or [
            (text, "", "not run")
        ]
    others = [claim for claim in found if claim.text not in ABSTRACT.values()]
    parts = ["## The claims of the abstract", _table(("claim", "here", "verdict"), abstract)]
    if others:
        sources = [
            (text, claim.source, *more) for claim in others for text, *more in [_line(claim)]
        ]
        parts += [
            f"Other claims, of the paper's body and of other work; those of {OURS} are questions "
            "of its own:",
            _table(("claim", "of", "here", "verdict"), sources),
        ]
    return parts


def _line(claim: Claim) -> tuple[str, ...]:
    figure = f" ([figure]({FOLDER}/{claim.figure}.png))" if claim.figure else ""
    return claim.text, claim.ours + figure, claim.verdict


def _table(headers: Sequence[str], lines: Sequence[tuple[str, ...]]) -> str:
    return tabulate(lines, headers, "github", disable_numparse=True)


def text(results: Path = RESULTS) -> str:
    """The page in Markdown, from the results in a folder."""
    parts, missing = [HEAD, *tables(claims(results))], []
    for name in _there():
        module = registry.load(name)
        section = module.section(results)
        if section is None:
            missing.append(f"- `python -m benchmarks.experiments {name}`: {module.SHOWS}")
        else:
            parts.append(section.strip())
    if missing:
        parts += ["## Not run", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def draw(results: Path, output: Path) -> None:
    """All figures of the page."""
    for name in _there():
        registry.load(name).draw(results, output)


def _there() -> list[str]:
    return [name for name in registry.names() if name in registry.SECTIONS]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", metavar="FOLDER")
    options = parser.parse_args(words)
    options.output.mkdir(parents=True, exist_ok=True)
    draw(options.results, options.output)
    write_bytes(options.output / NAME, text(options.results).encode())
    print(f"written to {options.output / NAME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
