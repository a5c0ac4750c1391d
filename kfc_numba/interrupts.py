"""Interrupts (Ctrl-C) that are neither lost nor answered with a traceback.

Python raises KeyboardInterrupt wherever the program happens to be. In a finalizer, of LLVM's
objects for example, it is printed and forgotten; while modules are imported nobody catches it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from kfc_numba.importing import STATUS, leave

_IMPATIENT = 1.0  # seconds after which a second one means that the first was of no use


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Raise KeyboardInterrupt again where a finalizer has swallowed it."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _raise_in(sys._getframe(1))
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def guarded(command: Callable[[], int]) -> int:
    """Do what a command line program does, until it ends or is interrupted.

    The first interrupt is a KeyboardInterrupt in `command`, a second one a second later ends the
    process at once, and none counts any more when `command` has returned.

    Parameters
    ----------
    command : callable
        Returns the exit status.

    Returns
    -------
    int
        Exit status; 130 if `command` has left KeyboardInterrupt to its caller.
    """
    before = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or before not in (signal.default_int_handler, leave):
        return command()  # the program around it, or the shell, has said what is to happen
    interrupts = _Interrupts()
    try:
        try:
            with kept():
                signal.signal(signal.SIGINT, interrupts.handle)
                status = command()
        finally:
            interrupts.over = True
    except KeyboardInterrupt:
        status = STATUS
        with contextlib.suppress(OSError):
            print("kfc-numba: interrupted", file=sys.stderr)
    # As a process of its own it has nothing left to do that could be interrupted.
    signal.signal(signal.SIGINT, signal.SIG_IGN if before is leave else before)
    return status


class _Interrupts:
    """Handler of the signal, which knows how many there were."""

    def __init__(self) -> None:
        self.over = False
        self._first: float | None = None

    def handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.over:
            return
        if self._first is None:
            self._first = now
            raise KeyboardInterrupt
        if now - self._first > _IMPATIENT:
            leave()


def _raise_in(frame: FrameType) -> None:
    """Raise KeyboardInterrupt at the next instruction of a frame.

    The one in which an object ended is no longer in its finalizer then. If that is one itself, it
    comes to the frame around it in its turn. This is how debuggers stop a program.
    """

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        sys.settrace(None)
        frame.f_trace = None
        raise KeyboardInterrupt

    frame.f_trace = trace
    frame.f_trace_opcodes = True
    sys.settrace(lambda *event: None)
