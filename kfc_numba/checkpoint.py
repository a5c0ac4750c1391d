"""Arrays and a JSON header to one safetensors file and back, whole or not at all."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from kfc_numba.graph import Graph

FORMAT = 1  #: raised when a file of an older version would be read wrongly
_HEADER, _CHECKSUM = "kfc_numba", "crc32"


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
    OSError
        The folder does not exist or cannot be written.
    """
    path = Path(path)
    # asarray, since ascontiguousarray would give scalars an axis.
    ordered = {name: np.asarray(value, order="C") for name, value in sorted(arrays.items())}
    text = json.dumps({"format": FORMAT} | header, allow_nan=False)
    metadata = {_HEADER: text, _CHECKSUM: str(_checksum(text, ordered))}
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(safetensors.numpy.save(ordered, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a checkpoint.

    Parameters
    ----------
    path : path

    Returns
    -------
    arrays : dict of str to numpy.ndarray
    header : dict

    Raises
    ------
    ValueError
        The file is truncated, altered, no checkpoint, or of a newer format.
    OSError
        There is no such file, or it cannot be read.
    """
    with open(path, "rb"):  # its errors name the file; those of safetensors may not
        pass
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{os.fspath(path)} must be a whole kfc_numba checkpoint, it is truncated or of "
            f"another format ({error})"
        ) from None
    if _HEADER not in metadata:
        raise ValueError(
            f"{os.fspath(path)} must be a kfc_numba checkpoint, it is a safetensors file of "
            "something else"
        )
    text = metadata[_HEADER]
    if metadata.get(_CHECKSUM) != str(_checksum(text, arrays)):
        raise ValueError(
            f"{os.fspath(path)} must be a whole kfc_numba checkpoint, its checksum does not match "
            "its content"
        )
    header = json.loads(text)
    if header["format"] != FORMAT:
        raise ValueError(
            f"{os.fspath(path)} has checkpoint format {header['format']}, this version of "
            f"kfc_numba reads format {FORMAT}"
        )
    return arrays, header


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
    lines = [f"input: {net.dtype}, shape {net.input_shape}"]
    for placed in net.layers:
        parents = ", ".join("input" if p < 0 else net.layers[p].name for p in placed.parents)
        lines.append(f"{placed.name}: {placed.layer!r} of {parents}, shape {placed.shape}")
    return lines


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
            return f"the checkpoint has <{old}>, the network given has <{new}>"
    if len(saved) != len(given):
        longer, more = ("checkpoint", saved) if len(saved) > len(given) else ("network", given)
        return f"only the {longer} has <{more[min(len(saved), len(given))]}>"
    return None


def array_difference(
    saved: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> str | None:
    """Where two sets of arrays differ first in name, shape or dtype; None if nowhere.

    Parameters
    ----------
    saved, expected : mapping of str to numpy.ndarray

    Returns
    -------
    str or None
    """
    for name, value in expected.items():
        if name not in saved:
            return f"the checkpoint lacks {name}"
        found = saved[name]
        if (found.shape, found.dtype) != (value.shape, value.dtype):
            return (
                f"{name} is {found.dtype} {found.shape} in the checkpoint, "
                f"{value.dtype} {value.shape} is required"
            )
    for name in saved:
        if name not in expected:
            return f"only the checkpoint has {name}"
    return None


def _checksum(text: str, arrays: Mapping[str, np.ndarray]) -> int:
    result = zlib.crc32(text.encode())
    for name in sorted(arrays):
        value = arrays[name]
        result = zlib.crc32(f"{name} {value.dtype.str} {value.shape}".encode(), result)
        result = zlib.crc32(value.reshape(-1).view(np.uint8), result)
    return result


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
