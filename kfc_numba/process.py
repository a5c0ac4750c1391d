"""The streams of the command line program, which may be closed or full, and its warnings."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm


@contextlib.contextmanager
def prepared(program: str) -> Iterator[None]:
    """Standard streams that can be written to, and warnings of one line.

    What cannot be written to standard error is left out: training does not end because nobody can
    see how far it is.

    Parameters
    ----------
    program : str
        What warnings begin with.
    """
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = _Output(sys.stdout or open(1, "w", closefd=False))  # noqa: SIM115
    sys.stderr = errors = _Forgiving(sys.stderr or open(2, "w", closefd=False))  # noqa: SIM115
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *more, **named: tqdm.write(
                f"{program}: warning: {_one_line(str(message))}", file=sys.stderr
            )
            yield
    finally:
        errors.end()
        sys.stdout, sys.stderr = before


def _one_line(message: str) -> str:
    # Of a variable that it cannot read Numba says so, and then quotes a whole traceback.
    return " ".join(message.partition("\nThe parse failed with exception:")[0].split())


def _open_closed_descriptors() -> None:
    """Otherwise the next file that is opened would take what is printed to standard error."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


class _Stream:
    """Another stream, with its failures looked after."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        # Names of files need not be text.
        self._attempt(
            self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding)
        )
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, operation: Callable, *arguments: Any) -> None:
        raise NotImplementedError

    def _discard(self) -> None:
        """Let the end of the process find nothing that it would try to write again."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class _Output(_Stream):
    """Its failures name it."""

    def _attempt(self, operation: Callable, *arguments: Any) -> None:
        try:
            operation(*arguments)
        except OSError as error:
            self._discard()
            raise type(error)(error.errno, error.strerror, "standard output") from None


class _Forgiving(_Stream):
    """Its failures are of no consequence."""

    def _attempt(self, operation: Callable, *arguments: Any) -> None:
        with contextlib.suppress(OSError):
            operation(*arguments)

    def end(self) -> None:
        """What is left in its buffer is written, or discarded: the exit status would tell of it."""
        try:
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: somebody has closed it
            self._discard()
