"""How kernels are compiled, cached and launched: the one place that knows Numba's pitfalls."""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any, ClassVar

import numba

from kfc_numba.kernels.cpu.cache import KernelCache, NoCache
from kfc_numba.kernels.cpu.compiler import InlinedCompiler, KernelCompiler
from kfc_numba.variables import load_openmp

load_openmp()


@functools.cache
def sources(path: Path) -> str:
    """Hash of a kernel's file and of all files beside it that it imports, directly or not.

    A kernel that was compiled from any other text of theirs is not served.
    """
    texts: dict[Path, bytes] = {}
    waiting = [path, Path(__file__)]
    while waiting:
        path = waiting.pop()
        if path not in texts and path.exists():
            texts[path], beside = _source(path)
            waiting += beside
    digest = hashlib.sha256()
    for path in sorted(texts):
        digest.update(path.name.encode() + texts[path])
    return digest.hexdigest()


@functools.cache
def _source(path: Path) -> tuple[bytes, list[Path]]:
    """Text of a file, and the files beside it that it may import."""
    text = path.read_bytes()
    # Not by `ast.parse`, which CPython 3.11 cannot do in two threads at once.
    names = _imported(compile(text, str(path), "exec", dont_inherit=True))
    return text, [path.with_name(name.rpartition(".")[2] + ".py") for name in names]


def _imported(code: CodeType) -> Iterator[str]:
    """Modules that a piece of code imports, and what it imports from them."""
    for operation in dis.get_instructions(code):
        if operation.opname in ("IMPORT_NAME", "IMPORT_FROM"):
            yield operation.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _imported(inner)


def _compile(function: Callable, **options: Any) -> Callable:
    more: dict[str, Any] = {"error_model": "numpy", "no_cfunc_wrapper": True, **options}
    dispatcher = numba.njit(pipeline_class=KernelCompiler, **more)(function)
    if hasattr(dispatcher, "_cache"):  # not when JIT is disabled: then it is the function itself
        source = Path(function.__code__.co_filename)
        try:
            dispatcher._cache = KernelCache(
                function, lambda: sources(source), tuple(sorted(options.items()))
            )
        except RuntimeError:  # no folder can be written
            dispatcher._cache = NoCache()
    return dispatcher


def made(function: Callable, *constants: Any) -> Callable:
    """Compile a function made inside another; kernels that call it are cached, it is not.

    The cache could not tell it from others that were made at the same line. Nor could the linker:
    a symbol has the function's name, its types and a number that counts what a process compiled. A
    cached kernel brings such functions with it, whose numbers are those of another process, and
    the linker takes the first of a name for all. So what distinguishes them is part of the name.

    Parameters
    ----------
    function : callable
    *constants : object
        What it was made for.
    """
    digest = hashlib.sha256(repr(constants).encode()).hexdigest()[:16]
    function.__qualname__ += f"_{digest}"
    return inlined(function)


def inlined(function: Callable) -> Callable:
    """Compile a function that kernels call, and Python never: into each of them.

    It has no machine code of its own, and is not cached; their keys hold its sources.
    """
    return numba.njit(error_model="numpy", nogil=True, pipeline_class=InlinedCompiler)(function)


def serial(function: Callable) -> Callable:
    """Compile a function that Python calls, too small for threads; kernels may call it too."""
    return _compile(function, nogil=True)


#: Work that one thread is done with before others would have woken: multiply-adds of the register
#: tile, and numbers that are read and written. On a virtual machine it took 70 µs to wake a thread
#: that slept, as long as four million multiply-adds; these are fewer, since others may be awake.
FEW_PRODUCTS, FEW_NUMBERS = 1 << 19, 1 << 15


class _Parallel:
    """A kernel over Numba's thread pool that several threads, and forked children, may call."""

    def __init__(self, function: Callable):
        functools.update_wrapper(self, function)
        self._function = function
        self._parallel = _compile(function, parallel=True, nogil=True)

    @functools.cached_property
    def serial(self) -> Callable:
        """The same for one thread: for what is done before other threads would have woken."""
        return _compile(self._function, parallel=False, nogil=True)

    def alone(self, *arguments: Any) -> Any:
        """Launch it for the thread that calls: others, which sleep, are not woken."""
        threads = numba.get_num_threads()
        numba.set_num_threads(1)
        try:
            return self(*arguments)
        finally:
            numba.set_num_threads(threads)

    def for_products(self, count: int) -> Callable[..., Any]:
        """How it is launched for a number of multiply-adds of the register tile."""
        return self if count > FEW_PRODUCTS else self.alone

    def for_numbers(self, count: int) -> Callable[..., Any]:
        """How it is launched for a number of numbers that are read and written."""
        return self if count > FEW_NUMBERS else self.alone

    @property
    def dispatcher(self) -> Any:
        """Numba's object that compiles and launches it."""
        return self._parallel

    def __call__(self, *arguments: Any) -> Any:
        if _Launch.observers:
            observer = _Launch.observers.get(threading.get_ident())
            if observer is not None:
                return observer(self._parallel, arguments)
        if _Launch.forked_from_openmp:
            return self.serial(*arguments)
        if _Launch.layer() in _Launch.SAFE:
            return self._parallel(*arguments)
        with _Launch.lock:
            return self._parallel(*arguments)


def parallel(function: Callable) -> _Parallel:
    """Compile a kernel with `prange`.

    Its result must not depend on the number of threads: work is cut by shape alone and partial
    sums are added in order. kernels/README.md has what else to heed.
    """
    return _Parallel(function)


@contextlib.contextmanager
def observed(observer: Callable[[Any, tuple], Any]) -> Iterator[None]:
    """Call a function in place of every launch of this thread.

    Parameters
    ----------
    observer : callable
        Called with the dispatcher and its arguments; what it returns is the kernel's result.
    """
    thread = threading.get_ident()
    before = _Launch.observers.pop(thread, None)
    _Launch.observers[thread] = observer
    try:
        yield
    finally:
        del _Launch.observers[thread]
        if before is not None:
            _Launch.observers[thread] = before


def is_cached(dispatcher: Any, types: tuple) -> bool:
    """Whether the cache has a kernel for these types, of the present sources."""
    cache = dispatcher._cache
    return isinstance(cache, KernelCache) and cache.has(types, dispatcher.targetctx.codegen())


def cache_folder() -> Path | None:
    """Folder of the compiled kernels of this package, or None if none can be written."""
    path = getattr(getattr(_nothing, "_cache", None), "cache_path", None)
    return None if path is None else Path(path)


def target() -> tuple:
    """What kernels are compiled for: system, processor and its instructions."""
    return numba.core.registry.cpu_target.target_context.codegen().magic_tuple()


def forked() -> bool:
    """Whether this is a child of a process whose threads it does not have."""
    return _Launch.forked_from_openmp


class _Launch:
    """State of the process that decides how a parallel kernel may be launched."""

    #: Layers of which two threads may launch at once. The workqueue layer ends the process then;
    #: which one it is shows after the first launch only.
    SAFE = ("omp", "tbb")
    lock = threading.RLock()  # of one launch at a time, by other layers
    forked_from_openmp = False
    observers: ClassVar[dict[int, Callable[[Any, tuple], Any]]] = {}  # by thread

    @classmethod
    def layer(cls) -> str | None:
        """Numba's threading layer, or None before the first launch."""
        try:
            return numba.threading_layer()
        except ValueError:
            return None

    @classmethod
    def after_fork(cls) -> None:
        cls.lock = threading.RLock()  # a thread that does not exist in the child may have held it
        # GNU OpenMP ends a child that starts threads after its parent did.
        cls.forked_from_openmp = cls.forked_from_openmp or cls.layer() == "omp"


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_Launch.after_fork)


@serial
def _nothing():
    """Stands for all kernels where the cache is asked for."""
