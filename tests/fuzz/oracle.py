"""What has to be true of every case: accepted and sound, or refused in one line that says where."""

import gc
import re
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass, field

#: Bytes that a refused file may cost, beside some times its own size; none has as many itself.
MEMORY = 32 * 2**20
#: Characters of a message, which may quote what was given, but not all of it.
LONGEST = 1000


class Problem(AssertionError):
    """A case in which the code did what it must not do."""


def require(condition, message):
    if not condition:
        raise Problem(message)


def check_line(text, names, longest=LONGEST):
    """That a message is one line that has one of some names."""
    require("\n" not in text and "\r" not in text, f"a message of several lines: {text[:300]!r}")
    require(text.strip(), "an empty message")
    require(len(text) <= longest, f"a message of {len(text):,} characters: {text[:200]!r}...")
    require(
        any(name and name in text for name in names),
        f"a message that names none of {', '.join(map(repr, names))[:200]}: {text[:300]!r}",
    )


def check_error(error, kinds, names, longest=LONGEST):
    """That an exception is of a documented type, with one line that has one of some names."""
    require(isinstance(error, kinds), f"{type(error).__name__}: {str(error)[:300]}")
    check_line(str(error), names, longest)


@dataclass
class Peak:
    """Most bytes that were allocated while something was measured."""

    bytes: int = 0

    def require(self, allowed, what):
        """That it was no more than `MEMORY` and what the case itself is worth."""
        most = MEMORY + allowed
        require(
            self.bytes <= most,
            f"{self.bytes / 2**20:.0f} MB for {what}, at most {most / 2**20:.0f} MB are allowed",
        )


@contextmanager
def measured():
    """The peak of allocations by Python and NumPy, of what runs inside."""
    peak = Peak()
    tracemalloc.start()
    try:
        yield peak
    finally:
        peak.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


@dataclass
class Result:
    """What came out of the cases of one kind."""

    kind: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    peak: int = 0
    problems: list = field(default_factory=list)

    def __str__(self):
        found = [f"{len(self.problems)} of {self.cases} cases of {self.kind}"]
        counts = {}
        for problem in self.problems:
            counts.setdefault(problem.signature, []).append(problem)
        for first, *more in sorted(counts.values(), key=len, reverse=True)[:20]:
            found.append(f"  {1 + len(more)} like case {first.case}: {first.what}: {first.text}")
        return "\n".join(found)


@dataclass
class Failure:
    case: int
    what: str
    text: str

    @property
    def signature(self):
        """Alike for cases that differ in numbers and in what is quoted only."""
        letters = "".join("0" if c.isdigit() else c for c in self.text)
        what = re.split(r"[:('\"]", self.what)[0]
        return what, letters[:30], letters.split(": ")[-1].split("'")[0][:40]


def run(target, count, *, first=0):
    """Do `count` cases of a target.

    A target has a `name`, and a method ``case(number)`` that returns ``(description, accepted,
    peak)`` or raises `Problem` with an attribute `description`.
    """
    result = Result(target.name)
    for number in range(first, first + count):
        result.cases += 1
        try:
            accepted, peak = target.case(number)
        except Exception as error:
            text = str(error) if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
            text = text.replace("\n", "\\n")[:400]
            result.problems.append(Failure(number, target.description, text))
            continue
        result.accepted += accepted
        result.refused += not accepted
        result.peak = max(result.peak, peak)
        if not number % 1000:
            gc.collect()
    return result
