"""Where a data set lies: argument, environment, usual folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from .base import DatasetError, DatasetNotFoundError

__all__ = ["ENVIRONMENT_VARIABLE", "Layout", "find_folder", "given_folder", "require_file"]

ENVIRONMENT_VARIABLE = "KFC_NUMBA_DATA"


@dataclass(frozen=True)
class Layout:
    """Files of a data set and the folders it is usually found in.

    Parameters
    ----------
    files : tuple of tuple of str
        For each file the names it goes by, the official one first.
    folders : tuple of str
        Usual names of its folder inside a folder of data sets. The first is the one that
        downloads are put in.
    system : tuple of str, optional
        Absolute folders in which operating systems install it.
    hint : str, optional
        What to tell a user whose folder holds only some of the files.
    """

    files: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...]
    system: tuple[str, ...] = ()
    hint: str = ""

    def missing(self, folder: Path) -> list[str]:
        """Official names of the files that are not in `folder` under any of their names."""
        return [names[0] for names in self.files if find_file(folder, names) is None]


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """First of `names` that is a file in `folder`, or None."""
    for name in names:
        # os.path, not pathlib: it answers False where a folder may not be searched.
        if os.path.isfile(folder / name):
            return folder / name
    return None


def require_file(folder: str | os.PathLike[str], names: Sequence[str]) -> Path:
    """First of `names` that is a file in `folder`; else an error that names them all."""
    path = find_file(Path(folder), names)
    if path is None:
        raise DatasetNotFoundError(
            f"{Path(folder) / names[0]}: no such file; expected {' or '.join(names)} in this folder"
        )
    return path


def given_folder(folder: str | os.PathLike[str] | None) -> Path | None:
    """Folder that the user named by argument or else by ``KFC_NUMBA_DATA``, or None.

    Raises
    ------
    DatasetNotFoundError
        If it does not exist.
    DatasetError
        If it is not a folder.
    """
    if folder is not None:
        return _existing(folder, "folder")
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    return _existing(from_environment, ENVIRONMENT_VARIABLE) if from_environment else None


def find_folder(
    name: str,
    layout: Layout,
    root: Path | None,
    elsewhere: Iterable[Path] = (),
) -> Path:
    """Folder that holds every file of a data set.

    Parameters
    ----------
    name : str
        Name of the data set, for messages.
    layout : Layout
        Its files and usual folders.
    root : pathlib.Path, optional
        A folder that holds it under a usual name, or is itself the folder of the data set.
    elsewhere : iterable of pathlib.Path
        Folders to try next. Taken one by one, and only if the data is not in `root`.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    DatasetNotFoundError
        If no place holds the whole set. The message names what is missing and where.
    """
    searched: list[Path] = []
    incomplete = None
    for place in chain(_below(root, layout), elsewhere):
        searched.append(place)
        missing = layout.missing(place)
        if not missing:
            return place
        if incomplete is None and len(missing) < len(layout.files):
            incomplete = place, missing
    if incomplete is not None:
        place, missing = incomplete
        hint = f" ({layout.hint})" if layout.hint else ""
        raise DatasetNotFoundError(
            f"data set {name!r} is incomplete: {place} lacks {', '.join(missing)}{hint}"
        )
    raise DatasetNotFoundError(
        f"data set {name!r} not found: {', '.join(names[0] for names in layout.files)} expected "
        f"in one folder (searched: {', '.join(map(str, searched)) or 'none'}). Give its folder, "
        f"set {ENVIRONMENT_VARIABLE}, or allow the download (download=True)"
    )


def _below(root: Path | None, layout: Layout) -> list[Path]:
    return [] if root is None else [*(root / name for name in layout.folders), root]


def _existing(folder: str | os.PathLike[str], origin: str) -> Path:
    # Not pathlib's: it raises where "~name" is the home of nobody.
    root = Path(os.path.expanduser(folder))
    if not os.path.exists(root):
        raise DatasetNotFoundError(f"{origin} is {str(root)!r}, which does not exist")
    if not os.path.isdir(root):
        raise DatasetError(f"{origin} is {str(root)!r}, which is not a folder")
    return root
