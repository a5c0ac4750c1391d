"""Environment variables of Numba and OpenMP, looked at before these read them.

What they do with a value that is none is a traceback from their imports, pages of warnings, or the
end of the process.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping

#: More threads than any processor has. Tens of thousands exhaust what a process may have.
MOST_THREADS = 1024
LAYERS = ("workqueue", "omp", "tbb", "safe", "threadsafe", "forksafe", "default")
_PRIORITIES = {"tbb", "omp", "workqueue"}


#: Rounds that an idle thread of GNU OpenMP spins for its next work before it sleeps. Its own
#: 300,000 are milliseconds in which no other process has the core. With 1,000 most are asleep at
#: the next launch. On a virtual machine they took longer to wake than small kernels to compute: a
#: step of `small` at batch 128 took 8% longer than with 5,000, steps of small networks twice as
#: long. Two trainings at once took the time of one after the other with either, with 12,000 up to
#: two fifths more.
SPINS = 5000


class VariableError(ValueError):
    """An environment variable has a value that cannot be used."""


def check(variables: Mapping[str, str] = os.environ) -> None:
    """Refuse values with which nothing could be computed, and warn of those that help nobody.

    What Numba's file of settings has counts where the variable is not set. Only where something is
    set is anything else imported.

    Parameters
    ----------
    variables : mapping of str to str

    Raises
    ------
    VariableError
        It names the variable, or the file, its value, and what is required.
    """
    from_file = _settings_file()
    settings = {**from_file, **variables}
    for name, required in _REQUIRED.items():
        value = settings.get(name)
        if value is not None:
            try:
                required(str(value))
            except ValueError as error:
                where = "" if name in variables else f"{_path()}: "
                message = f"{where}{name} (={value!r}) must be {error}, or unset"
                raise VariableError(message) from None
    if _is_switched_on(settings.get("NUMBA_DISABLE_JIT")):
        warnings.warn(
            f"NUMBA_DISABLE_JIT (={settings['NUMBA_DISABLE_JIT']!r}): kernels are not compiled, "
            "and thousands of times slower",
            RuntimeWarning,
            stacklevel=2,
        )
    threads = variables.get("OMP_NUM_THREADS")
    if threads is not None and not openmp_takes(threads):
        warnings.warn(
            f"OMP_NUM_THREADS (={threads!r}) is ignored: it must be an integer of at least 1, or "
            "unset",
            RuntimeWarning,
            stacklevel=2,
        )


def _settings_file() -> dict[str, object]:
    """What Numba will read from its file, by the names of variables; VariableError if it cannot."""
    path = _path()
    if not os.path.isfile(path):
        return {}
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        return {}  # Numba does not read it either, and says so
    try:
        with open(path) as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise VariableError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise VariableError(f"{path}: must be YAML: {problem}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise VariableError(f"{path}: must have lines such as 'num_threads: 2'")
    return {f"NUMBA_{name.upper()}": value for name, value in content.items()}


def _path() -> str:
    return os.path.abspath(".numba_config.yaml")


def _is_switched_on(value: object) -> bool:
    try:
        return int(value) != 0  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return False


def openmp_takes(threads: str) -> bool:
    """Whether OpenMP understands a value of ``OMP_NUM_THREADS``: a number for each level.

    Parameters
    ----------
    threads : str
    """
    counts = [re.fullmatch(r"\s*\+?([0-9]{1,9})\s*", count) for count in threads.split(",")]
    return all(count is not None and int(count[1]) >= 1 for count in counts)


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
