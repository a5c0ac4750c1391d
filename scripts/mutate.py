"""Part of scripts/mutate.sh: run mutmut, and count the mutants that no test noticed.

    python mutate.py run [--share N]
    python mutate.py count [--share N] [--page PAGE]

Works in the copy that mutate.sh made. `mutants.toml` beside this file explains survivors: each
entry gives a `reason` and a `change`, a regular expression that must be found in
``old line -> new line``; `where` is a pattern of mutants' names.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import tomllib
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import mutmut.__main__ as mutmut
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

BEGIN, END = "<!-- written by scripts/mutate.sh -->", "<!-- end -->"
MISSED = ("survived", "no tests")
CAUGHT = ("killed", "timeout", "segfault", "suspicious")  # the last: ended by another signal
SECONDS = 2.0  # of tests for one mutant


def quickest(tests: set[str], seconds: dict[str, float]) -> set[str]:
    """The quickest of some tests that take `SECONDS` together, at least three."""
    chosen: set[str] = set()
    total = 0.0
    for test in sorted(tests, key=lambda test: seconds[test]):
        total += seconds[test]
        if total > SECONDS and len(chosen) >= 3:
            break
        chosen.add(test)
    return chosen


def same_file(tests: set[str], by_file: dict[str, set[str]]) -> set[str]:
    """All tests of the files of some: what a fixture of a file does shows in the first only."""
    return set().union(*(by_file[file] for file in {test.partition("::")[0] for test in tests}))


def in_share(mutant: str, share: int) -> bool:
    return zlib.crc32(mutant.encode()) % share == 0


def run(share: int) -> None:
    """`mutmut run`, in which a mutant gets the quickest of the tests that reach it.

    The others could only catch more: a step of an optimizer is reached by hundreds of tests, and
    each mutant of it that survives would take them all.
    """
    collect_tests, collect_mutants = (
        mutmut.collect_or_load_stats,
        mutmut.collect_source_file_mutation_data,
    )

    def collect_quickest(*arguments: Any, **options: Any) -> None:
        collect_tests(*arguments, **options)
        seconds = state().duration_by_test
        by_file: dict[str, set[str]] = {}
        for test in seconds:
            by_file.setdefault(test.partition("::")[0], set()).add(test)
        reached = state().tests_by_mangled_function_name
        for function, tests in list(reached.items()):
            beside = same_file(tests, by_file) - tests
            reached[function] = quickest(tests, seconds) | quickest(beside, seconds)

    def collect_share(**options: Any) -> Any:
        mutants, files = collect_mutants(**options)
        return [mutant for mutant in mutants if in_share(mutant[1], share)], files

    mutmut.collect_or_load_stats = collect_quickest
    mutmut.collect_source_file_mutation_data = collect_share
    mutmut._run((), max_children=1)


def change_of(mutant: str, path: Path) -> str:
    """``old line -> new line`` of a mutant, without indents."""
    sides: dict[str, list[str]] = {"-": [], "+": []}
    for line in str(get_diff_for_mutant(mutant, path=path)).splitlines():
        if line[:1] in sides and line[:3] not in ("---", "+++"):
            sides[line[:1]].append(line[1:].strip())
    return " -> ".join(" ".join(lines) for lines in sides.values())


def outcomes(share: int) -> dict[str, tuple[Path, str]]:
    """File and status of each mutant of the share."""
    found = {}
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for mutant, code in data.exit_code_by_key.items():
            if not in_share(mutant, share):
                continue
            found[mutant] = path, status_by_exit_code[code]
    return found


def explanation(mutant: str, change: str, explained: list[dict]) -> dict | None:
    for entry in explained:
        if fnmatch.fnmatchcase(mutant, entry.get("where", "*")) and re.search(
            entry["change"], change
        ):
            return entry
    return None


def count(share: int, page_file: Path | None) -> None:
    entries = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text("utf-8"))
    explained: list[dict] = entries["explained"]
    mutants = outcomes(share)
    used: Counter[int] = Counter()
    unexplained: Counter[Path] = Counter()
    for mutant, (path, status) in mutants.items():
        if status not in MISSED:
            continue
        change = change_of(mutant, path)
        entry = explanation(mutant, change, explained)
        if entry is not None:
            used[explained.index(entry)] += 1
            continue
        unexplained[path] += 1
        print(f"{mutant} ({status})\n    {change}")
    for number, entry in enumerate(explained):
        if not used[number]:
            print(f"explains nothing: {entry['change']!r}: {entry['reason']}")

    statuses = Counter(status for _, status in mutants.values())
    unknown = set(statuses) - {*MISSED, *CAUGHT}
    missed, total = sum(unexplained.values()), len(mutants)
    caught = sum(statuses[status] for status in CAUGHT)
    drawn = f" (one in {share}, drawn by a hash of their names)" if share > 1 else ""
    lines = [
        f"{total:,} mutants{drawn}: {caught:,} caught, {used.total():,} not caught and explained, "
        f"**{missed:,} not caught and not explained ({100 * missed / total:.1f}%)**.",
        "",
        "| File | Mutants | Not caught | of these not explained |",
        "| --- | ---: | ---: | ---: |",
    ]
    for path in sorted({path for path, _ in mutants.values()}):
        here = [status for place, status in mutants.values() if place == path]
        quiet = sum(status in MISSED for status in here)
        lines.append(f"| `{path}` | {len(here)} | {quiet} | {unexplained[path]} |")
    lines += ["", "| Not caught | Why |", "| ---: | --- |"]
    lines += [f"| {used[n]} | {entry['reason']} |" for n, entry in enumerate(explained) if used[n]]
    text = "\n".join(lines)
    print(text)
    if unknown:
        raise SystemExit(f"the run did not end: {dict(statuses)}")
    if page_file is not None:
        page = page_file.read_text("utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        page_file.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "count"])
    parser.add_argument("--share", type=int, default=1, help="one mutant in so many (default: 1)")
    parser.add_argument("--page", type=Path, help="file to write the count into")
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.share)
    else:
        count(arguments.share, arguments.page)


if __name__ == "__main__":
    main()
