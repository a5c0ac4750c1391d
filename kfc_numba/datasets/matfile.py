"""Strict reader of numeric arrays from MATLAB files of version 5 (what SVHN comes in).

`scipy.io.loadmat` is not used: a damaged byte in such a file can make it read outside its
tables and end the process, where a loader owes its user an error. This reader takes plain real
numeric arrays only, and looks at nothing before its length and its checksum are right.

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

from .base import unreadable, unsuitable

__all__ = ["read_mat"]

_MATRIX, _COMPRESSED = 14, 15
_INT8, _INT32, _UINT32 = 1, 5, 6
_COMPLEX = 0x08
# How numbers are stored, by element type; and what they stand for, by array class. They
# differ because MATLAB stores whole numbers in the smallest type that holds them.
_STORED = dict(zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), "bBhHiIfdqQ", strict=True))
_CLASSES = dict(zip(range(6, 16), "dfbBhHiIqQ", strict=True))
_PIECE = 1 << 24
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
        if length > size - file.tell():
            raise _Malformed(f"ends inside an element of {length:,} bytes")
        content: memoryview
        if kind == _COMPRESSED:
            kind, content, rest = _element(memoryview(_decompressed(file, length)), order)
            if rest:
                raise _Malformed(f"surplus of {len(rest)} bytes in a compressed element")
        else:
            content = memoryview(file.read(length))
        if kind != _MATRIX:
            raise _Malformed(f"element of type {kind} where an array belongs")
        name, array = _array(content, order, names)
        if array is None:
            continue
        if name in found:
            raise _Malformed(f"two variables {name!r}")
        found[name] = array
    return found


def _decompressed(file: BinaryIO, length: int) -> bytearray:
    stream = zlib.decompressobj()
    content = bytearray()
    try:
        while length:
            piece = file.read(min(_PIECE, length))
            if not piece:
                raise _Malformed("ends inside a compressed element")
            length -= len(piece)
            content += stream.decompress(piece)
    except zlib.error as error:
        raise _Malformed(f"damaged compressed element ({error})") from error
    # Only at its end does the stream compare its checksum.
    if not stream.eof or stream.unused_data:
        raise _Malformed("compressed element of a wrong length")
    return content


def _element(buffer: memoryview, order: str) -> tuple[int, memoryview, memoryview]:
    """Type and payload of the element that `buffer` begins with, and the bytes after it."""
    if len(buffer) < 8:
        raise _Malformed("an array ends inside a tag")
    kind, length = struct.unpack_from(f"{order}2I", buffer)
    if kind >> 16:
        length, kind = kind >> 16, kind & 0xFFFF
        if length > 4:
            raise _Malformed(f"a short element of {length} bytes")
        return kind, buffer[4 : 4 + length], buffer[8:]
    end = 8 + length
    padded = end if kind == _MATRIX else 8 + -(-length // 8) * 8
    if padded > len(buffer):
        raise _Malformed(f"an array ends inside an element of {length:,} bytes")
    return kind, buffer[8:end], buffer[padded:]


def _array(
    content: memoryview, order: str, names: Collection[str]
) -> tuple[str, NDArray[Any] | None]:
    """Name of the variable, and its numbers if it is one of `names`."""
    kind, flags, rest = _element(content, order)
    if kind != _UINT32 or len(flags) != 8:
        raise _Malformed("an array without flags")
    (bits,) = struct.unpack_from(f"{order}I", flags)
    kind, dimensions, rest = _element(rest, order)
    if kind != _INT32 or len(dimensions) < 8 or len(dimensions) % 4:
        raise _Malformed("an array without dimensions")
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    kind, letters, rest = _element(rest, order)
    if kind != _INT8:
        raise _Malformed("an array without a name")
    name = bytes(letters).decode("latin-1")
    if name not in names:
        return name, None
    array_class = bits & 0xFF
    if array_class not in _CLASSES or bits >> 8 & _COMPLEX:
        raise _Malformed(f"variable {name!r} is not an array of real numbers")
    kind, numbers, rest = _element(rest, order)
    stands_for = np.dtype(_CLASSES[array_class])
    stored = np.dtype(order + _STORED[kind]) if kind in _STORED else None
    if stored is None or not np.can_cast(stored, stands_for):
        raise _Malformed(f"variable {name!r} of {stands_for} stored as type {kind}")
    if min(shape) < 0 or math.prod(shape) * stored.itemsize != len(numbers) or rest:
        raise _Malformed(
            f"variable {name!r} of shape {shape} and type {stored} in {len(numbers):,} bytes"
        )
    array = np.frombuffer(numbers, dtype=stored).reshape(shape, order="F")
    return name, array.astype(stands_for, copy=False)
