"""An interrupt (Ctrl-C) while the command line program is being imported: one line, no traceback.

This is imported before all else, and imports nothing that takes time. `kfc_numba.interrupts` takes
over when the command begins.
"""

import _signal  # type: ignore[import-not-found]  # what signal is made of
import os
import sys

STATUS = 130


def leave(number: object = None, frame: object = None) -> None:
    """End the process at once, as a handler of the signal."""
    try:
        os.write(2, b"kfc-numba: interrupted\n")
    finally:
        os._exit(STATUS)


def is_command() -> bool:
    """Whether this process is ``kfc-numba`` or ``python -m kfc_numba``."""
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    called = zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return name.startswith("kfc-numba") or (name == "-m" and ("-m", "kfc_numba") in called)


# Who ignores the signal, or handles it in another way, has a reason.
if is_command() and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    try:  # noqa: SIM105
        _signal.signal(_signal.SIGINT, leave)
    except ValueError:
        pass  # not in the main thread; contextlib would take its time
