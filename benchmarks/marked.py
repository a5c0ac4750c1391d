"""Parts of pages that programs write, between marks."""

from __future__ import annotations

END = "<!-- end -->"


def replaced(page: str, begin: str, text: str) -> str:
    """The page with another text behind a mark, up to the next end.

    Raises
    ------
    ValueError
        The page has no such mark.
    """
    before, mark, rest = page.partition(begin)
    if not mark:
        raise ValueError(f"the page has no line {begin!r}")
    return f"{before}{begin}\n{text}\n{END}{rest.partition(END)[2]}"
