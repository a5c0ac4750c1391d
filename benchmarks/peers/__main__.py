"""All comparisons, each in a process of its own, and one table of what was aimed at.

Run: python -m benchmarks.peers [--json FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.timing import Claim, arguments, claims_table

COMPARISONS = ("convolution", "pooling", "moments", "steps", "memory")


def main() -> None:
    parser = arguments(__doc__)
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
    if options.json is not None:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
