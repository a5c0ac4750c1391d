"""Kernels compiled before they are needed, by several processes at once.

Numba compiles under one lock, so that threads take turns; processes do not. A piece of code is
rehearsed: its launches are noted and not done, what has not been compiled is given to helpers,
heaviest first, and this process loads from the cache what they put there.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import heapq
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import serialize

from kfc_numba.kernels.cpu import jit

#: Helpers beyond this have nothing to do while the heaviest kernel is compiled.
_MOST_HELPERS = 3
_LARGEST = 1e3
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kfc_numba.kernels.cpu import ahead; ahead.help_out()"
)
_remembered: set[str] = set()

Report = Callable[[int, int], Any]


class Ahead:
    """Compilation of what a piece of code launches.

    To be used in a ``with`` statement, at the end of which helpers are gone, whatever happened.

    Parameters
    ----------
    report : callable
        Called with the number of kernels that are compiled, and of those known to be needed.
    helpers : int
        Processes besides this one, at most.

    Attributes
    ----------
    needed, done : int
        Kernels that were neither compiled nor in the cache, and those of them that now are.
    """

    def __init__(self, report: Report, helpers: int):
        self.needed = self.done = 0
        self._report = report
        self._most_helpers = min(helpers, _MOST_HELPERS) if jit.cache_folder() else 0
        self._helpers: list[_Helper] = []
        self._known: set[tuple] = set()
        self._waiting: list[tuple[int, int, Any, tuple]] = []  # a heap
        self._away: list[tuple[Any, tuple]] = []  # what helpers were given
        self._changed = threading.Condition()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *exception: Any) -> None:
        with self._changed:
            self._waiting.clear()
        for helper in self._helpers:
            helper.end()

    def rehearse(self, function: Callable[[], Any]) -> None:
        """Call a function whose launches are noted and not done.

        Arrays that a kernel would have filled hold ordinary numbers instead, which need not make
        sense together: the function may fail, and that is for the caller to bear.

        Parameters
        ----------
        function : callable
            It must not change what is used later.
        """
        with jit.observed(self._launch):
            function()

    def finish(self) -> None:
        """Compile what is left, together with the helpers, and load what they compiled."""
        while task := self.take():
            task[0].compile(task[1])
            self.tell()
        with self._changed:
            while any(helper.busy for helper in self._helpers):
                self._changed.wait(0.1)
        for dispatcher, types in self._away:
            dispatcher.compile(types)

    def take(self, *, away: bool = False) -> tuple[Any, tuple] | None:
        """The heaviest kernel that nobody has taken, or None.

        Parameters
        ----------
        away : bool
            Whether another process compiles it.
        """
        with self._changed:
            if not self._waiting:
                return None
            *_, dispatcher, types = heapq.heappop(self._waiting)
            if away:
                self._away.append((dispatcher, types))
            return dispatcher, types

    def tell(self) -> None:
        """Report that one more kernel is compiled."""
        with self._changed:
            self.done += 1
            self._report(self.done, self.needed)
            self._changed.notify_all()

    def _launch(self, dispatcher: Any, arguments: tuple) -> bool:
        types = tuple(map(dispatcher.typeof_pyval, arguments))
        if (dispatcher, types) not in self._known:
            self._known.add((dispatcher, types))
            if jit.is_cached(dispatcher, types):
                dispatcher.compile(types)
            elif types not in dispatcher.overloads:
                self._add(dispatcher, types)
        for argument in arguments:
            _fill(argument)
        return True  # which is what a kernel says that finds all numbers finite

    def _add(self, dispatcher: Any, types: tuple) -> None:
        with self._changed:
            self.needed += 1
            weight = -_weight(dispatcher)
            heapq.heappush(self._waiting, (weight, self.needed, dispatcher, types))
            self._report(self.done, self.needed)
            self._changed.notify_all()
        # Two helpers for one kernel would be one too many.
        if len(self._helpers) < min(self._most_helpers, self.needed):
            self._helpers.append(_Helper(self))

    def wait_for_more(self) -> None:
        """Return when something may have changed."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(0.1)


class _Helper:
    """A process that compiles into the cache, and the thread that hands out work to it."""

    def __init__(self, ahead: Ahead):
        self.busy = False
        self._ahead = ahead
        self._ending = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End the process, even in the middle of something."""
        self._ending = True
        if self._process is not None:
            self._process.kill()
        self._thread.join()

    def _work(self) -> None:
        try:
            # A session of its own: an interrupt from the keyboard is for the parent alone.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            return
        try:
            with self._process as process:
                try:
                    while not self._ending and self._one(process):
                        pass
                finally:
                    self.busy = False
                    process.kill()
        except OSError:
            pass  # it has ended; closing its input writes what it did not take, and fails again

    def _one(self, process: subprocess.Popen[bytes]) -> bool:
        """Hand out one kernel; whether the helper is of any use."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._ahead.wait_for_more()
        self.busy = True
        task = self._ahead.take(away=True)
        if task is None:
            self.busy = False
            return True
        dispatcher, types = task
        function = dispatcher.py_func
        message = serialize.dumps((function.__module__, function.__qualname__, types))
        process.stdin.write(base64.b64encode(message) + b"\n")
        process.stdin.flush()
        answered = bool(process.stdout.readline())
        self.busy = False
        self._ahead.tell()
        return answered and jit.is_cached(dispatcher, types)


def help_out() -> None:
    """What a helper does: compile what its standard input names, until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        try:
            module, name, types = serialize.loads(base64.b64decode(line))
            kernel = getattr(importlib.import_module(module), name)
            kernel.dispatcher.compile(types)
        except Exception as error:  # then the parent compiles it, or fails in its turn
            print(error, file=sys.stderr)
        answers.write(b"\n")
        answers.flush()


def possible() -> bool:
    """Whether kernels are compiled at all, and launched in this process."""
    return not numba.config.DISABLE_JIT and not jit.forked()  # type: ignore[attr-defined]


def is_remembered(description: str) -> bool:
    """Whether `remember` was called for this, by this process or with this cache.

    Parameters
    ----------
    description : str
        Of what was rehearsed.
    """
    if description in _remembered:
        return True
    path = _note(description)
    try:
        return path is not None and path.read_text(encoding="ascii") == _state()
    except (OSError, ValueError):
        return False


def remember(description: str) -> None:
    """Note, beside the compiled kernels, that all that is launched by something is compiled.

    Parameters
    ----------
    description : str
    """
    _remembered.add(description)
    path = _note(description)
    if path is not None:
        try:
            path.write_text(_state(), encoding="ascii")
        except OSError:
            path.unlink(missing_ok=True)


def _note(description: str) -> Path | None:
    folder = jit.cache_folder()
    digest = hashlib.sha256(description.encode()).hexdigest()[:16]
    return None if folder is None else folder / f"rehearsed-{digest}.nbi"


@functools.cache
def _state() -> str:
    """Hash of all kernels' sources, Numba and the processor."""
    digest = hashlib.sha256(numba.__version__.encode() + repr(jit.target()).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _fill(argument: Any) -> None:
    """Give an array that a kernel would have filled numbers that others can go on with.

    Nothing is known of which arguments are results. Arrays of whole numbers are left alone: they
    may be plans that are kept from launch to launch. Constants are never that large.
    """
    if not isinstance(argument, np.ndarray) or not argument.size or not argument.flags.writeable:
        return
    if argument.dtype == np.bool_:
        argument.fill(True)
    elif argument.dtype.kind == "f" and not 0 < np.abs(argument).max() < _LARGEST:
        argument.fill(0.5)


def _weight(dispatcher: Any) -> int:
    """Bytecode of a kernel and of all kernels it calls: the more, the longer it compiles."""
    found: dict[Any, int] = {}
    waiting = [dispatcher.py_func]
    while waiting:
        function = waiting.pop()
        if function in found:
            continue
        found[function] = len(function.__code__.co_code)
        for name in function.__code__.co_names:
            called = getattr(function.__globals__.get(name), "py_func", None)
            if called is not None:
                waiting.append(called)
    return sum(found.values())
