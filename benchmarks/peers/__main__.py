"""All comparisons, each in a process of its own, and one table of what was aimed at.

`--publish FILE` writes them as a page; docs/ratios.md is one.

Run: python -m benchmarks.peers [--json FILE] [--publish FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.experiments.results import commit
from benchmarks.peers.timing import Claim, arguments, claims_table, describe

COMPARISONS = ("convolution", "pooling", "moments", "inversion", "steps", "memory", "concurrency")


def page(results: dict[str, Any], claims: list[Claim]) -> str:
    """The comparisons in Markdown."""
    environment = next(r["environment"] for r in results.values() if "environment" in r)
    parts = [
        "# Ratios to other libraries",
        f"Written by `python -m benchmarks.peers --publish docs/ratios.md`: "
        f"{describe(environment | {'commit': commit()})}. Our time, or memory, over that of the "
        "faster rival, measured in turn in one process, medians; "
        "[benchmarks.md](benchmarks.md) says how.",
        claims_table(claims, "github"),
    ]
    for result in results.values():
        for name, rows in result.get("tables", {}).items():
            lines = []
            for row in rows:
                medians = {name: times["median_ms"] for name, times in row["rivals"].items()}
                rival = min(medians, key=medians.__getitem__)
                ours = row["ours"]["median_ms"]
                lines.append((row["case"], ours, medians[rival], rival, row["ratio"]))
            headers = ("case", "ours, ms", "rival, ms", "the rival", "ratio")
            parts.append(f"## {name[0].upper()}{name[1:]}")
            parts.append(tabulate(lines, headers, "github", floatfmt=".2f"))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--publish", type=Path, metavar="FILE", help="write a page")
    parser.set_defaults(rounds=None)
    options = parser.parse_args()
    names = [name for name in COMPARISONS if options.only in name]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", f"benchmarks.peers.{name}", "--json", str(path)]
            for option in ("rounds", "threads"):
                if (value := getattr(options, option)) is not None:
                    command += [f"--{option}", str(value)]
            print(f"== {name}", flush=True)
            subprocess.run(command, check=True)
            results[name] = json.loads(path.read_text())
    claims = []
    for result in results.values():
        for entry in result["claims"]:
            entry = {name: value for name, value in entry.items() if name != "met"}
            claims.append(Claim(**entry))
    print("\n== All: time or memory, ours / the faster format or library")
    print(claims_table(claims))
    if options.publish is not None:
        options.publish.write_text(page(results, claims))
    if options.json is not None:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
