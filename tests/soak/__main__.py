"""``python -m tests.soak --hours 2 --folder F [--page docs/testing.md]``.

With ``--hours 0`` the page is written from a record that is there.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from .record import write_page
from .soak import Soak


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--hours", type=float, help="time that processors work on the trainings")
    length.add_argument("--minutes", type=float)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="page to write the outcome into")
    given = parser.parse_args()
    minutes = given.minutes if given.hours is None else 60 * given.hours

    if minutes:
        soak = Soak(given.folder, seed=given.seed)
        # Ends it when the segment that it is at has been done; the record says how long it was.
        signal.signal(signal.SIGTERM, lambda *_: soak.end())
        soak.run(60 * minutes)
    record = json.loads((given.folder / "record.json").read_text("utf-8"))
    if given.page:
        write_page(record, given.page)
    return bool(record["problems"])


if __name__ == "__main__":
    sys.exit(main())
