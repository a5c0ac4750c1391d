"""Interrupts (Ctrl-C) that are neither lost nor answered with a traceback.

Python raises KeyboardInterrupt wherever the program happens to be. In a finalizer, of LLVM's
objects for example, it is printed and forgotten; while modules are imported nobody catches it.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

STATUS = 130
_AGAIN = 0.01  # seconds after which one that was lost is raised again: the finalizer has ended
_IMPATIENT = 1.0  # seconds after which a second one means that the first was of no use


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Raise KeyboardInterrupt again where a finalizer has swallowed it."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Thread(target=_raise_again, daemon=True).start()
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
    if not in_main_thread or before not in (signal.default_int_handler, _leave):
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
    signal.signal(signal.SIGINT, signal.SIG_IGN if before is _leave else before)
    return status


def end_quietly_while_importing() -> None:
    """In the command line program, until `guarded` takes over: end in one line."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


class _Interrupts:
    """Handler of the signal, which knows how many there were."""

    def __init__(self) -> None:
        self.over = False
        self._first: float | None = None

    def handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.over:
            return
        if self._first is None or _pending.is_set():
            self._first = self._first or now
            _pending.clear()
            raise KeyboardInterrupt
        if now - self._first > _IMPATIENT:
            _leave(number, frame)


_pending = threading.Event()  # whether one that was lost is on its way again


def _raise_again() -> None:
    time.sleep(_AGAIN)
    _pending.set()
    _thread.interrupt_main()


def _leave(number: int, frame: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"kfc-numba: interrupted\n")
    os._exit(STATUS)


def _is_command() -> bool:
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    called = list(zip(sys.orig_argv, sys.orig_argv[1:], strict=False))
    return name.startswith("kfc-numba") or (name == "-m" and ("-m", "kfc_numba") in called)


end_quietly_while_importing()
