"""What stands in CuPy's place: arrays in host memory, on which device code is run.

A context in which ``device="cuda"`` works without a card.
"""

import contextlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
from host_array import namespace, on_device


class _Event:
    def synchronize(self):
        pass


class _Stream:
    def __init__(self, non_blocking=False):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        pass

    def record(self):
        return _Event()

    def wait_event(self, event):
        pass

    def synchronize(self):
        pass


def _module(free):
    """A module with as much of CuPy as is used above the kernels."""
    found = ModuleType("cupy")
    found.__spec__ = ModuleSpec("cupy", None)
    found.ndarray = type("ndarray", (), {})  # of which ours are none: they have a namespace
    found.empty = lambda shape, dtype: namespace.empty(shape, dtype=dtype)
    found.asarray = lambda values: on_device(np.asarray(values))
    pool = SimpleNamespace(free_bytes=lambda: 0, get_limit=lambda: 0, free_all_blocks=lambda: None)
    found.get_default_memory_pool = lambda: pool
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 1, memGetInfo=lambda: (free, free), CUDARuntimeError=OSError
    )
    found.cuda = SimpleNamespace(
        runtime=runtime,
        memory=SimpleNamespace(OutOfMemoryError=MemoryError),
        Device=contextlib.nullcontext,
        Stream=_Stream,
        get_current_stream=_Stream,
    )
    return found


def _pinned():
    found = ModuleType("cupyx")
    found.empty_pinned = np.empty
    return found


@contextlib.contextmanager
def in_cupys_place(monkeypatch, free=1 << 30):
    """Within the context `cupy` is the module above, with so many bytes free."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", _module(free))
        patch.setitem(sys.modules, "cupyx", _pinned())
        yield
