"""Strict reader of numeric arrays from MATLAB files of version 5 (what SVHN comes in).

`scipy.io.loadmat` is not used: a damaged byte in such a file can make it read outside its
tables and end the process, where a loader owes its user an error; and it inflates whatever is
compressed. This reader takes plain real numeric arrays only. It inflates a variable as far as its
name, and no further unless it is wanted, of a size that its file can be believed to hold
(`base.implausible`), and exactly as long as its shape says.

Source: "MAT-File Format" (The MathWorks), level 5. A file is a header of 128 bytes and then
elements: type and length, 4 bytes each, and a payload. An element of type 15 is a zlib stream
that holds one other element. One of type 14 is an array: elements for flags, dimensions, name
and numbers, each padded to 8 bytes; up to 4 bytes of payload fit into the tag itself.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .base import PIECE, implausible, received, unreadable, unsuitable

__all__ = ["read_mat"]

_MATRIX, _COMPRESSED = 14, 15
_INT8, _INT32, _UINT32 = 1, 5, 6
_COMPLEX = 0x08
# How numbers are stored, by element type; and what they stand for, by array class. They
# differ because MATLAB stores whole numbers in the smallest type that holds them.
_STORED = dict(zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), "bBhHiIfdqQ", strict=True))
_CLASSES = dict(zip(range(6, 16), "dfbBhHiIqQ", strict=True))
_MOST_DIMENSIONS = 32
_LONGEST_NAME = 4096
_REQUIRED = "a MATLAB file of version 5"


class _Malformed(Exception):
    """What is wrong with the content; becomes a `DatasetError` that names the file."""


def read_mat(
    path: str | os.PathLike[str], names: Collection[str]
) -> dict[str, NDArray[np.generic]]:
    """Read numeric arrays from a MATLAB file of version 5.

    Parameters
    ----------
    path : path
        The file.
    names : collection of str
        Variables to read; others are passed over.

    Returns
    -------
    dict of str to numpy.ndarray
        The variables that the file has, Fortran-ordered as stored, in the machine's byte order.

    Raises
    ------
    DatasetNotFoundError
        If there is no such file.
    DatasetError
        If it cannot be read, is not of version 5, is damaged, or if one of the variables is
        not an array of real numbers.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _read(file, names)
    except _Malformed as error:
        raise unsuitable(path, str(error), _REQUIRED) from error
    except OSError as error:
        raise unreadable(path, error, _REQUIRED) from error


def _read(file: BinaryIO, names: Collection[str]) -> dict[str, NDArray[np.generic]]:
    header = file.read(128)
    order = {b"IM": "<", b"MI": ">"}.get(header[126:])
    if order is None or header[124:126] != struct.pack(f"{order}H", 0x0100):
        raise _Malformed("no header of version 5")
    size = os.fstat(file.fileno()).st_size
    found: dict[str, NDArray[np.generic]] = {}
    while tag := file.read(8):
        if len(tag) < 8:
            raise _Malformed("ends inside a tag")
        kind, length = struct.unpack(f"{order}2I", tag)
        end = file.tell() + length
        if end > size:
            raise _Malformed(f"ends inside an element of {length:,} bytes")
        source: _Plain
        if kind == _COMPRESSED:
            source = _Inflated(file, length)
            kind, inside = struct.unpack(f"{order}2I", source.take(8))
            source.left = inside
        else:
            source = _Plain(file, length)
        if kind != _MATRIX:
            raise _Malformed(f"element of type {kind} where an array belongs")
        name, array = _array(source, order, names)
        if array is not None:
            source.finish()
            if name in found:
                raise _Malformed(f"two variables {name!r}")
            found[name] = array
        file.seek(end)
    return found


class _Plain:
    """The payload of an element, taken piece by piece."""

    def __init__(self, file: BinaryIO, length: int):
        self._file = file
        self.stored = length  # bytes in the file
        self.left = length  # bytes that are still to come

    def fill(self, buffer: memoryview) -> int:
        """Read into a buffer as much as there is."""
        return self._file.readinto(buffer)  # type: ignore[attr-defined]

    def take(self, length: int) -> bytes:
        """The next bytes, of which there are few."""
        buffer = bytearray(length)
        self.take_into(memoryview(buffer))
        return bytes(buffer)

    def take_into(self, buffer: memoryview) -> None:
        """Fill a buffer with the next bytes."""
        if len(buffer) > self.left:
            raise _Malformed(f"an array ends inside an element of {len(buffer):,} bytes")
        self.left -= len(buffer)
        while len(buffer):
            count = self.fill(buffer)
            if not count:
                raise _Malformed("ends inside an element")
            buffer = buffer[count:]

    def finish(self) -> None:
        """Look whether this is the end."""


class _Inflated(_Plain):
    """The same of a compressed element, inflated no faster than it is taken."""

    def __init__(self, file: BinaryIO, length: int):
        super().__init__(file, length)
        self._compressed = length  # bytes that are still in the file
        self._stream = zlib.decompressobj()
        self.left = 8  # the tag, which says how many there are

    def fill(self, buffer: memoryview) -> int:
        while not self._stream.eof:
            waiting = self._stream.unconsumed_tail
            if not waiting:
                waiting = self._file.read(min(PIECE, self._compressed))
                self._compressed -= len(waiting)
            try:
                content = self._stream.decompress(waiting, min(PIECE, len(buffer)))
            except zlib.error as error:
                raise _Malformed(f"damaged compressed element ({error})") from error
            if content or not (waiting or self._compressed):
                buffer[: len(content)] = content
                return len(content)
        return 0

    def finish(self) -> None:
        # Only at its end does the stream compare its checksum.
        if self.fill(memoryview(bytearray(1))):
            raise _Malformed("surplus of bytes in a compressed element")
        if not self._stream.eof or self._stream.unused_data or self._compressed:
            raise _Malformed("compressed element of a wrong length")


def _tag(source: _Plain, order: str) -> tuple[int, int, bytes | None]:
    """Type and length of the next element, and its payload if that is in the tag."""
    tag = source.take(8)
    kind, length = struct.unpack(f"{order}2I", tag)
    if not kind >> 16:
        return kind, length, None
    length, kind = kind >> 16, kind & 0xFFFF
    if length > 4:
        raise _Malformed(f"a short element of {length} bytes")
    return kind, length, tag[4 : 4 + length]


def _element(source: _Plain, order: str, longest: int) -> tuple[int, bytes]:
    """Type and payload of the next element, which is a short one."""
    kind, length, payload = _tag(source, order)
    if payload is None:
        if length > longest:
            raise _Malformed(f"an element of {length:,} bytes where at most {longest} belong")
        payload = source.take(-(-length // 8) * 8)[:length]
    return kind, payload


def _array(source: _Plain, order: str, names: Collection[str]) -> tuple[str, NDArray[Any] | None]:
    """Name of the variable, and its numbers if it is one of `names`."""
    kind, flags = _element(source, order, 8)
    if kind != _UINT32 or len(flags) != 8:
        raise _Malformed("an array without flags")
    (bits,) = struct.unpack_from(f"{order}I", flags)
    kind, dimensions = _element(source, order, 4 * _MOST_DIMENSIONS)
    if kind != _INT32 or len(dimensions) < 8 or len(dimensions) % 4:
        raise _Malformed("an array without dimensions")
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    kind, letters = _element(source, order, _LONGEST_NAME)
    if kind != _INT8:
        raise _Malformed("an array without a name")
    name = letters.decode("latin-1")
    if name not in names:
        return name, None
    array_class = bits & 0xFF
    if array_class not in _CLASSES or bits >> 8 & _COMPLEX:
        raise _Malformed(f"variable {name!r} is not an array of real numbers")
    kind, length, payload = _tag(source, order)
    stands_for = np.dtype(_CLASSES[array_class])
    stored = np.dtype(order + _STORED[kind]) if kind in _STORED else None
    if stored is None or not np.can_cast(stored, stands_for):
        raise _Malformed(f"variable {name!r} of {stands_for} stored as type {kind}")
    wrong = _Malformed(f"variable {name!r} of shape {shape} and type {stored} in {length:,} bytes")
    padding = 0 if payload is not None else -length % 8
    if min(shape) < 0 or math.prod(shape) * stored.itemsize != length:
        raise wrong
    if payload is None and source.left != length + padding:
        raise wrong
    if payload is not None and source.left:
        raise wrong
    if problem := implausible(length, source.stored):
        raise _Malformed(f"variable {name!r} of {problem}")
    if payload is None:

        def take_into(buffer: memoryview) -> int:
            source.take_into(buffer)
            return len(buffer)

        numbers = received(length, take_into).view(stored)
        source.take(padding)
    else:
        numbers = np.frombuffer(bytearray(payload), stored)
    return name, _shaped(numbers, shape).astype(stands_for, copy=False)


def _shaped(numbers: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        return numbers.reshape(shape, order="F")
    except ValueError as error:  # without elements, and yet too large
        raise _Malformed(f"a variable of shape {shape}: {error}") from error
