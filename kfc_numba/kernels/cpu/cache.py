"""The cache of compiled kernels on disk, which is help and never a condition.

Numba keeps an index for each kernel beside numbered files. Two processes that compile at once can
lose each other's entries, or store one version under the number of another; a file that was cut
short, or a full disk, ends the program. Here each compiled version is a file of its own, named
after its types and checked as a whole before anything of it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import serialize
from numba.core.caching import FunctionCache, NullCache

_SUM = 32  # bytes of a SHA-256 sum
_HINT = "NUMBA_CACHE_DIR names another folder for them"
_told: set[str] = set()


def _warn_once(kind: str, message: str) -> None:
    """Say something about the cache, one time in a process for each kind of trouble."""
    if kind not in _told:
        _told.add(kind)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


class NoCache(NullCache):
    """In place of a cache where no folder can be written."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        """Nothing; the first time with a warning."""
        _warn_once("written", f"no folder can keep compiled kernels; {_HINT}")


class KernelCache(FunctionCache):
    """Compiled versions of one kernel on disk.

    Parameters
    ----------
    function : callable
        The Python function.
    sources : callable
        Returns a hash of the texts that the kernel is made of. Numba keys a kernel by its own
        bytecode alone, and so would go on serving one that was compiled with an older register
        tile.
    options : tuple
        What it is compiled with.

    Raises
    ------
    RuntimeError
        No folder can be written.
    """

    def __init__(self, function: Callable, sources: Callable[[], str], options: tuple):
        super().__init__(function)
        self._sources = sources
        self._options = options
        self._stamp = self._impl.locator.get_source_stamp()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """A version from disk, or None if there is none or it cannot be used."""
        target_context.refresh()
        codegen = target_context.codegen()
        path = self.path(sig, codegen)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _warn_once("read", f"compiled kernel {path} is not used: {error.strerror}")
            return None
        key, digest, payload = content[:_SUM], content[_SUM : 2 * _SUM], content[2 * _SUM :]
        if len(key) == _SUM and key != self._key(sig, codegen):
            return None  # of older sources; what is compiled now replaces it
        try:
            if _sum(payload) != digest:
                raise ValueError("its checksum is wrong")
            return self._impl.rebuild(target_context, serialize.loads(payload))
        except Exception as error:
            with contextlib.suppress(OSError):
                path.unlink()
            _warn_once("damaged", f"compiled kernel {path} is compiled anew: {error}")
            return None

    def has(self, sig: Any, codegen: Any) -> bool:
        """Whether there is a version of these sources; whether it is whole is not looked at."""
        try:
            with open(self.path(sig, codegen), "rb") as file:
                return file.read(_SUM) == self._key(sig, codegen)
        except OSError:
            return False

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a version that was compiled; where that cannot be, go on without."""
        if not self._impl.check_cachable(data):
            return
        payload = serialize.dumps(self._impl.reduce(data))
        content = self._key(sig, data.codegen) + _sum(payload) + payload
        path = self.path(sig, data.codegen)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
        except OSError as error:
            _warn_once(
                "written",
                f"compiled kernels cannot be kept in {path.parent} ({error.strerror or error}); "
                f"{_HINT}",
            )

    def flush(self) -> None:
        """Remove all versions of this kernel."""
        for path in Path(self._cache_path).glob(f"{self._impl.filename_base}.*.nbc"):
            path.unlink(missing_ok=True)

    def path(self, sig: Any, codegen: Any) -> Path:
        """File of a version.

        Its name follows from what one machine needs beside each other: types, processor and
        options. What makes a file old is inside, so that the next one takes its place.
        """
        text = repr((sig, codegen.magic_tuple(), self._options))
        digest = _sum(text.encode()).hex()[:16]
        return Path(self._cache_path) / f"{self._impl.filename_base}.{digest}.nbc"

    def _key(self, sig: Any, codegen: Any) -> bytes:
        """Sum over all that decides what is compiled."""
        parts = (numba.__version__, self._stamp, self._sources(), self._options)
        return _sum(repr((self._index_key(sig, codegen), parts)).encode())


def _sum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
