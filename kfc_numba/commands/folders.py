"""Output folders: new ones, locked ones, and what is written to them."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from kfc_numba import plot
from kfc_numba.checkpoint import write_bytes
from kfc_numba.commands import CommandError
from kfc_numba.commands.lock import locked

#: Files by which a folder is seen to hold something, and what that is.
HOLDS = {
    "checkpoint.safetensors": "a run",
    "history.json": "a run",
    "comparison.json": "a comparison",
    "curvature.json": "a report",
}

_NAMED = 3  # other folders that a message has


@contextlib.contextmanager
def new_folder(given: str | None, usual: str, worth: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder for new results, which nobody else writes to meanwhile.

    If what is done in it fails, and it does not hold anything worth keeping, it is taken away.

    Parameters
    ----------
    given : str or None
        The folder that the user named; it may exist but must hold no results.
    usual : str
        Where nothing was given: the name of the folder in ``runs``, to which a number is added if
        there is one of this name.
    worth : callable
        Whether a folder has something worth keeping.

    Yields
    ------
    pathlib.Path

    Raises
    ------
    CommandError
        The folder holds results, is in use, or cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            path, made = _numbered(usual) if given is None else _made(Path(given))
            stack.callback(_remove_empty, made)
            stack.enter_context(locked(path))
        except OSError as error:
            raise CommandError(f"--output: {reason(error)}") from None
        for name, what in HOLDS.items():
            if (path / name).exists():
                advice = "give another folder"
                if what != "a report":
                    advice = f"continue it with --resume or {advice}"
                raise CommandError(
                    f"--output: {path} already holds {what}, which is not overwritten; {advice}"
                )
        try:
            yield path
        except BaseException:
            if not worth(path):
                for name in HOLDS:
                    (path / name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def old_folder(given: str, what: str, name: str) -> Iterator[Path]:
    """A folder that is to be gone on with, which nobody else writes to meanwhile.

    Parameters
    ----------
    given : str
    what : str
        What it has to hold, as in `HOLDS`.
    name : str
        The file without which it does not, for the message.

    Yields
    ------
    pathlib.Path

    Raises
    ------
    CommandError
        It does not hold that, or is in use.
    """
    path = Path(given)
    names = [key for key, value in HOLDS.items() if value == what]
    if not any((path / key).exists() for key in names):
        why = f"{name} is missing"
        if not path.is_dir():
            why = "it is a file" if path.exists() else "there is no such folder"
        hint = _elsewhere(path, names)
        raise CommandError(f"{path} holds {what.replace('a ', 'no ')} to resume: {why}{hint}")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
        except OSError as error:
            raise CommandError(f"--output: {reason(error)}") from None
        yield path


def _elsewhere(path: Path, names: Collection[str]) -> str:
    """What may have been meant by a folder that does not hold something."""
    for name, other in HOLDS.items():
        if (path / name).exists():
            command = {"a run": "train --resume", "a comparison": "compare --resume"}.get(other)
            return f"; it holds {other}" + (f": kfc-numba {command}" if command else "")
    with contextlib.suppress(OSError, ValueError):  # of a name that none can have, for example
        for folder in (path, path.parent):
            found = {str(inner.parent) for name in names for inner in folder.glob(f"*/{name}")}
            if found:
                verb = "have" if len(found) > 1 else "has"
                return f"; {' and '.join(sorted(found)[:_NAMED])} {verb} one"
    return ""


def write_plot(path: Path, draw: Callable[[], Any]) -> str | None:
    """Write a plot, if matplotlib is there.

    Parameters
    ----------
    path : pathlib.Path
    draw : callable
        Returns the figure.

    Returns
    -------
    str or None
        Why there is none.
    """
    try:
        content = plot.png(draw())
    except ImportError:
        return f'{path.name} needs matplotlib: pip install "kfc_numba[plot]"'
    write_bytes(path, content)
    return None


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a file, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def reason(error: OSError) -> str:
    """An error of the operating system in a few words, with its file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _numbered(name: str) -> tuple[Path, list[Path]]:
    """Make ``runs/<name>``, or that with the first free number behind it."""
    parent, made = _made(Path("runs"))
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()  # fails if another process was faster
        except FileExistsError:
            continue
        return path, [path, *made]
    raise AssertionError


def _made(path: Path) -> tuple[Path, list[Path]]:
    """Make a folder with its parents; and those of them that were not there, innermost first."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return path, missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return  # it holds something
