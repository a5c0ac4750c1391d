"""Downloads from the official addresses, each file checked against its published MD5 sum.

pooch (extra ``data``) does the transfer; it is imported only when something is downloaded or
when the folder of earlier downloads is asked for.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import DatasetError, unsuitable

__all__ = ["Remote", "cache_folder", "fetch"]


@dataclass(frozen=True)
class Remote:
    """Where the files of a data set can be had.

    Parameters
    ----------
    addresses : tuple of str
        URLs of the folder of the files, each ending in a slash, the official one first. All
        serve the same bytes; the next is tried when one fails.
    md5 : mapping of str to str
        Published MD5 sum (hexadecimal) of each file.
    members : tuple of str, optional
        If the files are tar archives: the paths in them that are wanted. They are stored
        under their last component; nothing else of an archive is touched.
    """

    addresses: tuple[str, ...]
    md5: Mapping[str, str]
    members: tuple[str, ...] = ()


def cache_folder() -> Path | None:
    """Folder of downloads, ``pooch.os_cache("kfc_numba")``; None where pooch is missing."""
    try:
        import pooch
    except ImportError:
        return None
    return Path(os.path.expanduser(pooch.os_cache("kfc_numba")))


def fetch(name: str, remote: Remote, subfolder: str) -> Path:
    """Download the files of a data set into a subfolder of `cache_folder`.

    A file appears there only when it is whole and its checksum right; files that are there
    already are not downloaded again.

    Parameters
    ----------
    name : str
        Name of the data set, for messages.
    remote : Remote
        What to download.
    subfolder : str
        Name of the folder to put it in, made if needed.

    Returns
    -------
    pathlib.Path
        That folder.

    Raises
    ------
    ImportError
        If pooch is not installed.
    DatasetError
        If no address delivers a file with the right checksum, the folder cannot be written,
        or an archive lacks a member.
    """
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"downloading data set {name!r} needs pooch, which the extra data brings: "
            'pip install "kfc_numba[data]"'
        ) from error
    folder = (cache_folder() or Path()) / subfolder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not remote.members:
            for file in remote.md5:
                _retrieve(pooch, name, remote, file, folder)
            return folder
        # Archive and unpacked files lie in a folder of their own until all of it is done: on
        # the same disk, so that the last step is a rename.
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
            for file in remote.md5:
                _retrieve(pooch, name, remote, file, Path(scratch))
            for file in remote.md5:
                _unpack(Path(scratch) / file, remote.members, Path(scratch))
            for member in remote.members:
                target = _last(member)
                os.replace(Path(scratch) / target, folder / target)
            return folder
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(f"data set {name!r} cannot be stored in {folder}: {reason}") from error


def _retrieve(pooch: Any, name: str, remote: Remote, file: str, folder: Path) -> None:
    failures = []
    for address in remote.addresses:
        try:
            pooch.retrieve(
                address + file, known_hash=f"md5:{remote.md5[file]}", fname=file, path=folder
            )
        # pooch passes on whatever its transport raises (requests, urllib3, ssl, ...).
        except Exception as error:
            failures.append((f"{address}{file}: {error}", error))
        else:
            return
    raise DatasetError(
        f"data set {name!r}: {file} could not be downloaded ("
        + "; ".join(message for message, _ in failures)
        + ")"
    ) from failures[-1][1]


def _unpack(archive: Path, members: tuple[str, ...], folder: Path) -> None:
    wanted = set(members)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for entry in tar:
                # Exact names of plain files only, stored under names of our own: no path or
                # link in an archive can lead out of the folder.
                source = tar.extractfile(entry) if entry.isreg() and entry.name in wanted else None
                if source is None:
                    continue
                with source, open(folder / _last(entry.name), "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                wanted.discard(entry.name)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise unsuitable(archive.name, f"damaged ({error})", "a gzipped tar archive") from error
    if wanted:
        raise unsuitable(
            archive.name, f"lacks {', '.join(sorted(wanted))}", "an archive that holds it"
        )


def _last(member: str) -> str:
    return member.rpartition("/")[2]
