"""Make the picture and the table of the README: KFC and SGD on the bundled data.

    python scripts/make_readme_picture.py

Runs ``kfc-numba compare`` (a few minutes), copies its plot to docs/curves.png and its figures to
docs/comparison.json, and puts its table into README.md. Needs the extra ``plot``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kfc_numba.cli import main as kfc_numba
from kfc_numba.commands.compare import table

ROOT = Path(__file__).resolve().parent.parent
RUNS = (
    "kfc",
    "kfc l2_reg=0.001",
    *(f"sgd learning_rate={rate}" for rate in (0.003, 0.01, 0.03)),
    "sgd learning_rate=0.01 l2_reg=0.001",
)
LOSSES = ("0.5", "0.3", "0.2", "0.1")
EVERY = "5"  # steps from one evaluation to the next: 0.5 is reached within the first twenty
BEGIN, END = "<!-- comparison: written by scripts/make_readme_picture.py -->", "<!-- end -->"


def with_table(readme: str, comparison: dict) -> str:
    """The README with the table of a comparison between its two marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(comparison, 'github')}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", default="10", help="passes over the data (10)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "comparison"
        runs = [word for run in RUNS for word in ("--run", run)]
        words = [
            *runs,
            "--losses",
            *LOSSES,
            "--evaluate-every",
            EVERY,
            "--epochs",
            given.epochs,
            "--output",
            str(output),
        ]
        status = kfc_numba(["compare", *words])
        if status:
            return status
        shutil.copyfile(output / "curves.png", ROOT / "docs" / "curves.png")
        shutil.copyfile(output / "comparison.json", ROOT / "docs" / "comparison.json")
    comparison = json.loads((ROOT / "docs" / "comparison.json").read_text())
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(), comparison))
    return 0


if __name__ == "__main__":
    sys.exit(main())
