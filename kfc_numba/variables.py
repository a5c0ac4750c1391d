"""Environment variables of Numba and OpenMP, looked at before these read them.

What they do with a value that is none is a traceback from their imports, pages of warnings, or the
end of the process.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping

#: More threads than any processor has. Tens of thousands exhaust what a process may have.
MOST_THREADS = 1024
LAYERS = ("workqueue", "omp", "tbb", "safe", "threadsafe", "forksafe", "default")
_PRIORITIES = {"tbb", "omp", "workqueue"}


#: Rounds that an idle thread of GNU OpenMP spins for its next work before it sleeps: some
#: microseconds, where its own 300,000 are milliseconds in which no other process has the core.
SPINS = 1000


class VariableError(ValueError):
    """An environment variable has a value that cannot be used."""


def check(variables: Mapping[str, str] = os.environ) -> None:
    """Refuse values with which nothing could be computed, and warn of one that has no effect.

    Only where it is set is anything else imported.

    Parameters
    ----------
    variables : mapping of str to str

    Raises
    ------
    VariableError
        It names the variable, its value, and what is required.
    """
    for name, required in _REQUIRED.items():
        value = variables.get(name)
        if value is not None:
            try:
                required(value)
            except ValueError as error:
                raise VariableError(f"{name} (={value!r}) must be {error}, or unset") from None
    threads = variables.get("OMP_NUM_THREADS")
    if threads is not None and not openmp_takes(threads):
        warnings.warn(
            f"OMP_NUM_THREADS (={threads!r}) is ignored: it must be an integer of at least 1, or "
            "unset",
            RuntimeWarning,
            stacklevel=2,
        )


def openmp_takes(threads: str) -> bool:
    """Whether OpenMP understands a value of ``OMP_NUM_THREADS``: a number for each level.

    Parameters
    ----------
    threads : str
    """
    try:
        return all(int(count) >= 1 for count in threads.split(","))
    except ValueError:
        return False


def load_openmp() -> None:
    """Load Numba's OpenMP layer, whose threads are not to spin for long.

    The library reads its environment when it is loaded, and never again. Settings of the user's
    own stay, but for a number of threads that it would complain of and ignore; and nothing happens
    where another package has loaded it before.
    """
    changed: dict[str, str | None] = {}
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        changed["GOMP_SPINCOUNT"] = str(SPINS)
    if not openmp_takes(os.environ.get("OMP_NUM_THREADS", "1")):
        changed["OMP_NUM_THREADS"] = None
    if not changed:
        return
    before = {name: os.environ.get(name) for name in changed}
    _set_environment(changed)
    try:
        # Where there is no OpenMP Numba takes another layer.
        with contextlib.suppress(ImportError):
            importlib.import_module("numba.np.ufunc.omppool")
    finally:
        _set_environment(before)


def _set_environment(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _threads(value: str) -> None:
    most = max(MOST_THREADS, os.cpu_count() or 1)
    try:
        fine = 1 <= int(value) <= most
    except ValueError:
        fine = False
    if not fine:
        raise ValueError(f"an integer from 1 to {most}")


def _layer(value: str) -> None:
    layer = value.lower()
    if layer not in LAYERS:
        raise ValueError(f"one of {', '.join(LAYERS)}")
    if layer in ("tbb", "safe"):
        try:
            importlib.import_module("numba.np.ufunc.tbbpool")
        except ImportError:
            raise ValueError("a layer that is there, such as 'workqueue'") from None


def _priority(value: str) -> None:
    if sorted(value.split()) != sorted(_PRIORITIES):
        raise ValueError("tbb, omp and workqueue, in any order and with spaces between them")


def _processor(value: str) -> None:
    if _complaint(cpu=value):
        raise ValueError("a processor that LLVM knows, such as 'generic'")


def _features(value: str) -> None:
    names = value.split(",") if value else []
    signed = all(feature[:1] in ("+", "-") for feature in names)  # or LLVM ends the process
    if not signed or _complaint(features=value):
        raise ValueError("features that LLVM knows, such as '+avx2,-avx512f'")


_REQUIRED: dict[str, Callable[[str], None]] = {
    "NUMBA_NUM_THREADS": _threads,
    "NUMBA_THREADING_LAYER": _layer,
    "NUMBA_THREADING_LAYER_PRIORITY": _priority,
    "NUMBA_CPU_NAME": _processor,
    "NUMBA_CPU_FEATURES": _features,
}


def _complaint(**target: str) -> str:
    """What LLVM has to say against a processor: it tells nobody but standard error."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    with _standard_error() as said:
        llvm.Target.from_default_triple().create_target_machine(**target)
    return said[0]


@contextlib.contextmanager
def _standard_error() -> Iterator[list[str]]:
    """Catch what libraries write there themselves; nothing where it is closed or a disk is full."""
    said = [""]
    with contextlib.ExitStack() as stack:
        try:
            before = os.dup(2)
            stack.callback(os.close, before)
            file = stack.enter_context(tempfile.TemporaryFile())
        except OSError:
            yield said
            return
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(before, 2)
        file.seek(0)
        said[0] = file.read().decode(errors="replace")
