"""Kernels of a training, compiled before its clock starts."""

from __future__ import annotations

import contextlib
import copy
import os
import sys

import numpy as np
from tqdm import tqdm

from kfc_numba.evaluation import evaluate
from kfc_numba.graph import Graph
from kfc_numba.kernels.backend import compilation
from kfc_numba.losses import Loss
from kfc_numba.optim.base import Optimizer
from kfc_numba.workspace import Workspace

_EVALUATED = 256  # examples that are evaluated at a time


def warm(
    net: Graph,
    loss: Loss,
    optimizer: Optimizer,
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int,
    progress: bool = True,
) -> int:
    """Compile the kernels that training launches, on all processors.

    Evaluation, preparation and two steps are rehearsed: their launches are noted and not done.
    Nothing given is changed. What was compiled once is noted beside the cache of kernels, and not
    rehearsed again; what a rehearsal did not find is compiled when it is needed.

    Parameters
    ----------
    net : Graph
    loss : Loss
    optimizer : Optimizer
    x, y : numpy.ndarray
        Data, of which a batch is looked at.
    batch_size : int
    progress : bool
        Whether a bar is shown, where standard error is a terminal.

    Returns
    -------
    int
        Number of kernels that had to be compiled.
    """
    if net.device != "cpu":
        return 0  # kernels for cards are compiled in a moment, and kept on disk
    ahead = compilation(x)
    description = _describe(net, loss, optimizer, x, y, batch_size)
    if not ahead.possible() or ahead.is_remembered(description):
        return 0
    bar = _Bar(progress)
    with contextlib.closing(bar), ahead.Ahead(bar.show, _processors() - 1) as work:
        # Numbers that make no sense may lead anywhere; what was launched until then is known.
        with contextlib.suppress(Exception), np.errstate(all="ignore"):
            work.rehearse(lambda: _rehearse(net, loss, optimizer, x, y, batch_size))
        work.finish()
    ahead.remember(description)
    return work.needed


def _rehearse(
    net: Graph, loss: Loss, optimizer: Optimizer, x: np.ndarray, y: np.ndarray, batch_size: int
) -> None:
    copied = copy.copy(net)
    copied.params = {name: value.copy() for name, value in net.params.items()}
    copied.buffers = {name: value.copy() for name, value in net.buffers.items()}
    copied.workspace = Workspace()
    loss, optimizer = copy.copy(loss), copy.copy(optimizer)
    state = optimizer.init(copied)
    evaluate(copied, loss, x[:_EVALUATED].copy(), y[:_EVALUATED].copy())
    x, y = x[:batch_size].copy(), y[:batch_size].copy()
    optimizer.prepare(copied, loss, [(x, y)], state)
    for _ in range(2):
        optimizer.step(copied, loss, x, y, state)


def _describe(
    net: Graph, loss: Loss, optimizer: Optimizer, x: np.ndarray, y: np.ndarray, batch_size: int
) -> str:
    """All that decides which kernels are launched, and for which types."""
    layers = [
        (repr(placed.layer), placed.parents, placed.shape, placed.layer.__class__.__module__)
        for placed in net.layers
    ]
    # How large a number is does not matter, but whether there is one.
    settings = {
        name: value if isinstance(value, (bool, int, str)) else type(value).__name__
        for name, value in optimizer.config().items()
    }
    data = [(a.dtype.str, a.shape[1:]) for a in (x, y)]
    return repr((str(net.dtype), layers, repr(loss), settings, data, batch_size))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Bar:
    """Kernels compiled of kernels needed, while any are needed: a bar on a terminal, or a line."""

    def __init__(self, progress: bool):
        self._progress = progress
        self._bar: tqdm | None = None

    def show(self, done: int, needed: int) -> None:
        """Show how far it has come."""
        if self._bar is None and self._progress:
            self._progress = False
            # Who reads it may be gone: that is no reason not to train.
            with contextlib.suppress(OSError, ValueError):
                self._begin(needed)
        if self._bar is not None:
            self._bar.total = needed
            self._bar.update(done - self._bar.n)
            self._bar.refresh()

    def _begin(self, needed: int) -> None:
        if sys.stderr is None:
            return
        if sys.stderr.isatty():
            self._bar = tqdm(desc="compiling kernels", unit="kernel", leave=False, total=needed)
        else:
            print(
                "compiling kernels for this network, which may take a minute; they are kept for "
                "the next time",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
