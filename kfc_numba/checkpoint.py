"""Arrays and a JSON header to one safetensors file and back, whole or not at all.

A file is read in this order: its size; its header, checked by a sum of its own; the layout (names,
shapes, dtypes); then the arrays that are asked for, each checked by a sum of its own. What does not
fit is found out before memory is asked for.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from kfc_numba.description import describe_network, lines
from kfc_numba.graph import Graph
from kfc_numba.schema import anything, clipped, integer, mapping, parse, record

FORMAT = 2  #: raised when a file of an older version would be read wrongly
LONGEST_HEADER = 2**24  #: bytes; some 80,000 rows of a history
_HEADER, _ARRAYS, _CHECKSUM = "kfc_numba", "arrays", "crc32"
_DTYPES = {
    "BOOL": "bool",
    **{
        f"{kind}{bits}": f"{name}{bits}"
        for kind, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
#: Shape and dtype.
Kind = tuple[tuple[int, ...], np.dtype]


def save(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], header: Any) -> None:
    """Write a checkpoint, so that a reader finds the old file or the new one and nothing else.

    The file is written under another name in the same folder (``.tmp`` at its end, left there if
    the process is killed, and used again by the next), brought to the disk, and renamed.

    Parameters
    ----------
    path : path
        An existing file is replaced.
    arrays : mapping of str to numpy.ndarray
    header : object
        What JSON can hold; not a number that is infinite or NaN.

    Raises
    ------
    ValueError
        The header is longer than `load` takes.
    OSError
        The folder does not exist or cannot be written; it names the file.
    """
    path = Path(path)
    # asarray, since ascontiguousarray would give scalars an axis.
    ordered = {name: np.asarray(value, order="C") for name, value in sorted(arrays.items())}
    text = json.dumps({"format": FORMAT} | header, allow_nan=False)
    if len(text) > LONGEST_HEADER:
        raise ValueError(
            f"the header of {path} would have {len(text):,} bytes, at most {LONGEST_HEADER:,} "
            "are read again"
        )
    sums = json.dumps({name: _sum_of_array(name, value) for name, value in ordered.items()})
    metadata = {_HEADER: text, _ARRAYS: sums, _CHECKSUM: str(_sum_of_texts(text, sums))}
    write_bytes(path, safetensors.numpy.save(ordered, metadata), sync=True)


def write_bytes(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file, whole or not at all.

    Parameters
    ----------
    path : pathlib.Path
        An existing file is replaced.
    content : bytes
    sync : bool
        Whether it is brought to the disk before it takes its name.

    Raises
    ------
    OSError
        It cannot be written; the message names the file.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            # A full disk is told without a file, a folder that is not there with the other name.
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        raise
    if sync:
        _sync_folder(path.parent)


class CheckpointError(ValueError):
    """A file is no checkpoint, or not the one that is wanted; the message begins with its name."""


def refusal(path: str, problem: str) -> CheckpointError:
    """The error for a file that is not what it should be.

    Parameters
    ----------
    path : str
    problem : str
        What is said behind it. As it may come from the file, it is brought to one line of bounded
        length.

    Returns
    -------
    CheckpointError
    """
    return CheckpointError(f"{path} {clipped(problem)}")


class CheckpointFile:
    """A checkpoint that is open for reading.

    Parameters
    ----------
    path : str
    file : safetensors.safe_open

    Attributes
    ----------
    path : str
    header : dict
        As it was given to `save`.
    layout : dict of str to (tuple of int, numpy.dtype)
        Shape and dtype of each array.
    """

    def __init__(self, path: str, file: Any):
        self.path = path
        self._file = file
        metadata = file.metadata() or {}
        if _HEADER not in metadata:
            raise self.error("it is a safetensors file of something else")
        text, sums = metadata[_HEADER], metadata.get(_ARRAYS, "")
        if len(text) > LONGEST_HEADER:
            raise self.error(f"its header has {len(text):,} bytes, more than {LONGEST_HEADER:,}")
        whole = metadata.get(_CHECKSUM) == str(_sum_of_texts(text, sums))
        if not whole and _ARRAYS in metadata:
            raise self.error("its checksum does not match its content", whole=True)
        try:
            self.header = record({"format": integer()}, more=anything)("header", parse(text))
            # Until format 1 there was one sum for everything.
            if self.header["format"] == FORMAT or whole:
                self._sums = mapping(integer())("sums", parse(sums))
        except ValueError as error:
            raise self.error(f"its header is not one: {error}") from None
        version = self.header.pop("format")
        if version != FORMAT:
            raise refusal(
                path,
                f"has checkpoint format {version}, this version of kfc_numba reads format {FORMAT}",
            )
        self.layout = {name: self._kind(name) for name in file.keys()}  # noqa: SIM118
        if self.layout.keys() != self._sums.keys():
            raise self.error("its checksum does not match its content", whole=True)

    def error(self, problem: str, *, whole: bool = False) -> CheckpointError:
        """The error for a file that is no checkpoint.

        Parameters
        ----------
        problem : str
            Begins with "it" or "its".
        whole : bool
            Whether it may have been one.

        Returns
        -------
        CheckpointError
        """
        what = "a whole" if whole else "a"
        return refusal(self.path, f"must be {what} kfc_numba checkpoint, {problem}")

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Some of the arrays.

        Parameters
        ----------
        names : iterable of str

        Returns
        -------
        dict of str to numpy.ndarray
            New arrays.

        Raises
        ------
        CheckpointError
            An array is not what was written, or there is no memory for it.
        """
        found = {}
        for name in names:
            try:
                value = self._file.get_tensor(name)
                # A copy: the arrays of a file lie in memory as they do in the file.
                found[name] = value.copy()
            except (safetensors.SafetensorError, MemoryError, OSError) as error:
                raise self.error(f"its array {name} cannot be read ({error})", whole=True) from None
            if _sum_of_array(name, value) != self._sums[name]:
                raise self.error("its checksum does not match its content", whole=True)
        return found

    def _kind(self, name: str) -> Kind:
        part = self._file.get_slice(name)
        if part.get_dtype() not in _DTYPES:
            raise self.error(f"its array {name} has numbers of type {part.get_dtype()}")
        return tuple(part.get_shape()), np.dtype(_DTYPES[part.get_dtype()])


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[CheckpointFile]:
    """A checkpoint, its header and its layout, from which arrays can be read.

    Parameters
    ----------
    path : path

    Yields
    ------
    CheckpointFile

    Raises
    ------
    CheckpointError
        The file is truncated, altered, no checkpoint, of another format, or larger than memory.
    OSError
        There is no such file, or it cannot be read.
    """
    path = os.fspath(path)
    with open(path, "rb") as plain:  # its errors name the file; those of safetensors may not
        size = os.fstat(plain.fileno()).st_size
        longest = int.from_bytes(plain.read(8), "little")
    # Quotes in a header, which are in quotes once more there, count twice.
    if 4 * LONGEST_HEADER < longest < size:
        raise refusal(path, f"must be a kfc_numba checkpoint, its header has {longest:,} bytes")
    memory = _memory()
    if size > memory / 2:
        raise refusal(
            path,
            f"has {size / 1e9:.1f} GB, and this machine a memory of {memory / 1e9:.1f} GB: at "
            "least twice the size of a checkpoint is required",
        )
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, MemoryError, OSError) as error:
        raise refusal(
            path,
            f"must be a whole kfc_numba checkpoint, it is truncated or of another format ({error})",
        ) from None
    yield CheckpointFile(path, file)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read all of a checkpoint.

    Parameters
    ----------
    path : path

    Returns
    -------
    arrays : dict of str to numpy.ndarray
    header : dict

    Raises
    ------
    CheckpointError, OSError
        As `opened` and `CheckpointFile.read`.
    """
    with opened(path) as file:
        return file.read(file.layout), file.header


def describe(net: Graph) -> list[str]:
    """A line for the input and for each layer of a network: all that is not in its arrays.

    Parameters
    ----------
    net : Graph

    Returns
    -------
    list of str
        Such as ``"dense1: Dense(units=10, bias=True) of flatten1, shape (10,)"``.
    """
    return lines(describe_network(net))


def difference(saved: Sequence[str], given: Sequence[str]) -> str | None:
    """Where two descriptions of networks differ first, in words; None if nowhere.

    Parameters
    ----------
    saved, given : sequence of str
        From `describe`.

    Returns
    -------
    str or None
    """
    for old, new in zip(saved, given, strict=False):
        if old != new:
            saved_line, given_line = clipped(old, 300), clipped(new, 300)
            return f"the checkpoint has <{saved_line}>, the network given has <{given_line}>"
    if len(saved) != len(given):
        longer, more = ("checkpoint", saved) if len(saved) > len(given) else ("network", given)
        return f"only the {longer} has <{more[min(len(saved), len(given))]}>"
    return None


def array_difference(
    saved: Mapping[str, Kind], expected: Mapping[str, np.ndarray], prefix: str = ""
) -> str | None:
    """Where two sets of arrays differ first in name, shape or dtype; None if nowhere.

    Parameters
    ----------
    saved : mapping of str to (tuple of int, numpy.dtype)
        Layout of a file.
    expected : mapping of str to numpy.ndarray
    prefix : str
        What names in the file have before those expected; others in it are passed over.

    Returns
    -------
    str or None
    """
    for name, value in expected.items():
        if prefix + name not in saved:
            return f"the checkpoint lacks {name}"
        shape, dtype = saved[prefix + name]
        if (shape, dtype) != (value.shape, value.dtype):
            return (
                f"{name} is {dtype} {shape} in the checkpoint, "
                f"{value.dtype} {value.shape} is required"
            )
    for name in saved:
        if name.startswith(prefix) and name.removeprefix(prefix) not in expected:
            return f"only the checkpoint has {name.removeprefix(prefix)}"
    return None


def _sum_of_texts(*texts: str) -> int:
    result = 0
    for text in texts:
        result = zlib.crc32(text.encode(), result)
    return result


def _sum_of_array(name: str, value: np.ndarray) -> int:
    result = zlib.crc32(f"{name} {value.dtype.str} {value.shape}".encode())
    return zlib.crc32(value.reshape(-1).view(np.uint8), result)


def _memory() -> float:
    """Bytes of this machine's memory, infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _sync_folder(folder: Path) -> None:
    """Bring a renaming to the disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
