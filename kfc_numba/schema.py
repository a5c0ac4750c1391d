"""What a document from outside must hold: small checks, put together to a schema.

A check takes the place of a value in its document, such as ``"trainer.position"``, and the value;
it returns the value, or raises a ValueError of one line that says the place, what is required, and
what was found. Nothing is converted.
"""

from __future__ import annotations

import json
import math
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[[str, Any], Any]

#: Levels of nesting where nothing else is required.
DEEPEST = 16
#: Counts above this are not those of a training, and float64 does not hold them exactly.
MOST = 2**53
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlevel = 2
_short.maxlist = _short.maxdict = 3


def short(value: Any) -> str:
    """A value on one line of bounded length, however large or nested it is.

    Parameters
    ----------
    value : object

    Returns
    -------
    str
    """
    return _short.repr(value)


def clipped(message: str, most: int = 800) -> str:
    """A message on one line of bounded length.

    Parameters
    ----------
    message : str
    most : int
        Characters.

    Returns
    -------
    str
    """
    # Of what is far too long, no more is looked at than could be shown.
    line = " ".join(message[: 8 * most].split())
    return line if len(line) <= most else f"{line[: most - 4]} ..."


def parse(text: str | bytes) -> Any:
    """A value from JSON, with every fault of the text as a ValueError.

    Parameters
    ----------
    text : str or bytes

    Returns
    -------
    object

    Raises
    ------
    ValueError
        It is no JSON, or nested too deeply, names something twice in one place, or holds a number
        that is infinite or NaN.
    """
    try:
        return json.loads(
            text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_object
        )
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def wrong(place: str, value: Any, required: str) -> ValueError:
    """The error for a value that is not what is required.

    Parameters
    ----------
    place : str
    value : object
    required : str

    Returns
    -------
    ValueError
    """
    return ValueError(f"{place} must be {required}, it is {short(value)}")


def anything(place: str, value: Any) -> Any:
    """Whatever JSON can hold, unless it is nested deeper than programs that walk through it go."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError(f"{place} is nested more than {DEEPEST} levels deep")


def text(place: str, value: Any) -> Any:
    """A string."""
    if not isinstance(value, str):
        raise wrong(place, value, "a text")
    return value


def flag(place: str, value: Any) -> Any:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(place, value, "true or false")
    return value


def integer(least: int = 0, most: int = MOST) -> Check:
    """An integer from `least` to `most`; true and false are none."""

    def check(place: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            limit = f"from {least} to {most}" if most < MOST else f"of at least {least}"
            raise wrong(place, value, f"an integer {limit}")
        return value

    return check


def number(least: float = -math.inf) -> Check:
    """A finite number of at least `least`."""

    def check(place: str, value: Any) -> Any:
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        # An integer may be beyond the range of float64, which is as good as infinite.
        if not (right and abs(value) <= sys.float_info.max and value >= least):
            limit = "" if least == -math.inf else f" of at least {least:g}"
            raise wrong(place, value, f"a finite number{limit}")
        return value

    return check


def choice(*choices: str) -> Check:
    """One of some strings."""

    def check(place: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise wrong(place, value, f"one of {', '.join(choices)}")
        return value

    return check


def optional(check: Check) -> Check:
    """Null, or what another check requires."""
    return lambda place, value: None if value is None else check(place, value)


def sequence(entry: Check, *, least: int = 0) -> Check:
    """A list of at least some entries, each as a check requires."""

    def check(place: str, value: Any) -> Any:
        if not isinstance(value, list) or len(value) < least:
            raise wrong(place, value, f"a list of at least {least} entries")
        for index, inner in enumerate(value):
            entry(f"{place}[{index}]", inner)
        return value

    return check


def mapping(entry: Check) -> Check:
    """Names with values, each as a check requires."""

    def check(place: str, value: Any) -> Any:
        if not isinstance(value, dict):
            raise wrong(place, value, "a mapping from names")
        for name, inner in value.items():
            entry(f"{place}[{short(name)}]", inner)
        return value

    return check


def record(entries: Mapping[str, Check], *, more: Check | None = None) -> Check:
    """Given names, each with a value as its check requires, and no others.

    Parameters
    ----------
    entries : mapping of str to callable
    more : callable, optional
        What values of other names have to be, where there may be others.

    Returns
    -------
    callable
    """

    def check(place: str, value: Any) -> Any:
        mapping(anything)(place, value)
        for name, inner in entries.items():
            if name not in value:
                raise ValueError(f"{place} lacks {name}")
            inner(f"{place}.{name}", value[name])
        for name in value:
            if name not in entries:
                if more is None:
                    raise ValueError(f"{place} has {short(name)}, which is none of its entries")
                more(f"{place}[{short(name)}]", value[name])
        return value

    return check


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _refuse(constant: str) -> Any:
    raise ValueError(f"JSON with the number {constant}")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"JSON with the number {digits[:20]}, which float64 does not hold")
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("JSON that names something twice")
    return found
