"""What the paper claims, beside what was found: a row each on docs/results.md."""

from __future__ import annotations

from dataclasses import dataclass

HOLDS, PART, NOT = "holds", "holds in part", "does not hold here"
#: Whose claims are: of the paper, or questions that this project asks.
PAPER, OURS = "the paper", "this page"

#: Claims of the paper's abstract, by a word of ours.
ABSTRACT: dict[str, str] = {
    "seconds": "Several times faster than carefully tuned SGD in wall-clock time",
    "iterations": "10 to 20 times fewer iterations than SGD",
    "cost": "A tractable approximation that is cheap to compute and to invert",
    "curvature": "Captures important curvature information",
    "invariance": "Invariant to commonly used reparameterisations of a network",
    "batches": "Larger batches and hence many machines bring more than they do to SGD",
}


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and how it fares here.

    Attributes
    ----------
    text : str
        The claim: of the abstract a value of `ABSTRACT`, else a sentence.
    ours : str
        What was found, with numbers.
    verdict : str
        `HOLDS`, `PART` or `NOT`.
    figure : str or None
        Name of the figure that shows it.
    source : str
        Whose claim it is, in words: `PAPER`, `OURS`, or authors and a year.
    """

    text: str
    ours: str
    verdict: str
    figure: str | None = None
    source: str = PAPER

    def __post_init__(self) -> None:
        if self.verdict not in (HOLDS, PART, NOT):
            raise ValueError(
                f"verdict is {self.verdict!r}; required: one of {HOLDS!r}, {PART!r}, {NOT!r}"
            )


def verdict(value: float, *, holds: float, part: float) -> str:
    """The verdict on a number that is the better, the lower.

    Parameters
    ----------
    value : float
    holds, part : float
        The most at which the claim holds, and at which it holds in part.

    Returns
    -------
    str
    """
    if value <= holds:
        return HOLDS
    return PART if value <= part else NOT
