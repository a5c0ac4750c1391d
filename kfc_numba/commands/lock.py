"""One process at a time in an output folder.

The lock is the system's, on a file in the folder: it ends with the process that holds it, however
that ends, so that one left by a dead process blocks nobody. It takes a few lines on each system; a
library for it (filelock) makes the same calls and would be one more package for everybody.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from kfc_numba.commands import CommandError

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Parameters
    ----------
    folder : pathlib.Path
        An existing one.

    Raises
    ------
    CommandError
        Another process holds it.
    """
    path = folder / NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _take(descriptor):
                # Byte 0 is what is locked, and on Windows it cannot be read.
                holder = os.pread(descriptor, 20, 1) if hasattr(os, "pread") else b""
                who = f" (process {holder.decode()})" if holder.isdigit() else ""
                raise CommandError(f"--output: {folder} is being written to by another run{who}")
            if _same(descriptor, path):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has just ended and removed it
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f" {os.getpid()}".encode())
        yield
    finally:
        if os.name != "nt":
            path.unlink(missing_ok=True)  # while it is held: nobody can have taken it
        os.close(descriptor)
        if os.name == "nt":
            with contextlib.suppress(OSError):
                path.unlink()


def _same(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _take(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a file system without locks
        return True
