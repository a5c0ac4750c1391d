"""Part of scripts/mutate.sh: run mutmut, and count the mutants that no test noticed.

    python mutate.py run [--share N [--part K]] [--missed]
    python mutate.py count [--share N [--part K]] [--page PAGE]

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
from typing import Any, NamedTuple

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
MORE_SECONDS = 10.0  # for one that was not caught by these


class Sample(NamedTuple):
    """One mutant in `share`, drawn by a hash of its name: `part` says which, from 0."""

    share: int
    part: int

    def __contains__(self, mutant: object) -> bool:
        return zlib.crc32(str(mutant).encode()) % self.share == self.part


def quickest(tests: set[str], seconds: dict[str, float], limit: float) -> set[str]:
    """The quickest of some tests that take `limit` together, at least three."""
    chosen: set[str] = set()
    total = 0.0
    for test in sorted(tests, key=lambda test: seconds[test]):
        total += seconds[test]
        if total > limit and len(chosen) >= 3:
            break
        chosen.add(test)
    return chosen


def same_file(tests: set[str], by_file: dict[str, set[str]]) -> set[str]:
    """All tests of the files of some: what a fixture of a file does shows in the first only."""
    return set().union(*(by_file[file] for file in {test.partition("::")[0] for test in tests}))


def run(sample: Sample, missed: bool) -> None:
    """`mutmut run`, in which a mutant gets the quickest of the tests that reach it.

    The others could only catch more: a step of an optimizer is reached by hundreds of tests, and
    each mutant of it that survives would take them all. Mutants that have a result keep it; or,
    `missed`, those that were neither caught nor explained are tried again with more tests.
    """
    limit = MORE_SECONDS if missed else SECONDS
    explained = explanations()
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
            # The quickest of all, of those that are named after the module, and of those beside.
            module = function.rpartition(".")[0].rpartition(".")[2]
            own = {test for test in tests if f"test_{module}" in test.partition("::")[0]}
            beside = same_file(tests, by_file) - tests
            groups = (tests, own, beside)
            reached[function] = set().union(*(quickest(g, seconds, limit) for g in groups))

    def is_due(mutant: str, path: Path, code: int | None) -> bool:
        if not missed:
            return code is None
        lost = code is not None and status_by_exit_code[code] in MISSED
        return lost and explanation(mutant, change_of(mutant, path), explained) is None

    needed: set[str] = set()

    def collect_sample(**options: Any) -> Any:
        mutants, files = collect_mutants(**options)
        due = [
            (data, mutant, None)
            for data, mutant, code in mutants
            if mutant in sample and is_due(mutant, data.path, code)
        ]
        for _, mutant, _ in due:
            needed.update(tests_of([mutant]))
        if not due:
            print("no mutant is due")
            raise SystemExit(0)
        return due, files

    tests_of = mutmut.tests_for_mutant_names
    mutmut.collect_or_load_stats = collect_quickest
    mutmut.collect_source_file_mutation_data = collect_sample
    mutmut.tests_for_mutant_names = lambda names: needed
    mutmut._run((), max_children=1)


def change_of(mutant: str, path: Path) -> str:
    """``old line -> new line`` of a mutant, without indents."""
    sides: dict[str, list[str]] = {"-": [], "+": []}
    for line in str(get_diff_for_mutant(mutant, path=path)).splitlines():
        if line[:1] in sides and line[:3] not in ("---", "+++"):
            sides[line[:1]].append(line[1:].strip())
    return " -> ".join(" ".join(lines) for lines in sides.values())


def outcomes(sample: Sample) -> dict[str, tuple[Path, str]]:
    """File and status of each mutant of the sample."""
    found = {}
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for mutant, code in data.exit_code_by_key.items():
            if mutant not in sample:
                continue
            found[mutant] = path, status_by_exit_code[code]
    return found


def explanations() -> list[dict]:
    return tomllib.loads(Path(__file__).with_name("mutants.toml").read_text("utf-8"))["explained"]


def explanation(mutant: str, change: str, explained: list[dict]) -> dict | None:
    for entry in explained:
        if fnmatch.fnmatchcase(mutant, entry.get("where", "*")) and re.search(
            entry["change"], change
        ):
            return entry
    return None


def count(sample: Sample, page_file: Path | None) -> None:
    explained = explanations()
    mutants = outcomes(sample)
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
        if not used[number] and sample.share == 1:
            print(f"explains nothing: {entry['change']!r}: {entry['reason']}")

    statuses = Counter(status for _, status in mutants.values())
    unknown = set(statuses) - {*MISSED, *CAUGHT}
    missed, total = sum(unexplained.values()), len(mutants)
    caught = sum(statuses[status] for status in CAUGHT)
    drawn = ""
    if sample.share > 1:
        drawn = f" (one in {sample.share}, drawn by a hash of their names: part {sample.part})"
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
    parser.add_argument("--part", type=int, default=0, help="which of these (default: 0)")
    parser.add_argument("--missed", action="store_true", help="those that were not caught, again")
    parser.add_argument("--page", type=Path, help="file to write the count into")
    arguments = parser.parse_args()
    if not 0 <= arguments.part < arguments.share:
        parser.error(f"--part (={arguments.part}) must be from 0 to {arguments.share - 1}")
    sample = Sample(arguments.share, arguments.part)
    if arguments.what == "run":
        run(sample, arguments.missed)
    else:
        count(sample, arguments.page)


if __name__ == "__main__":
    main()
