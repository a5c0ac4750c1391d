"""``python -m tests.fuzz [KIND ...] [--count N] [--first N] [--page FILE]``: cases and counts."""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

from .counts import row, table, write_page
from .oracle import MEMORY, run
from .targets import COUNTS, TARGETS


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*TARGETS, []], metavar="KIND")
    parser.add_argument("--count", type=int, help="cases of each kind (as the tests do)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (0)")
    parser.add_argument("--page", type=Path, help="page with a table to write the counts into")
    given = parser.parse_args()
    warnings.simplefilter("error")
    results = []
    for name in given.kinds or TARGETS:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            target = TARGETS[name](Path(folder))
            results.append(run(target, given.count or COUNTS[name], first=given.first))
        if results[-1].problems:
            print(results[-1])
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    rows = {result.kind: row(result) for result in results}
    print(table(rows))
    print(f"\nA refused file may take {MEMORY / 2**20:.0f} MB beside ten times its own size.")
    if given.page:
        write_page(rows, given.page)
    return any(result.problems for result in results)


if __name__ == "__main__":
    sys.exit(main())
