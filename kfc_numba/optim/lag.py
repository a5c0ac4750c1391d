"""Decompositions of KFC that are used some steps after they were begun, and computed in between.

A decomposition takes as long as many steps, on one core of the host or, on a card, where steps wait
for it. With a lag of L steps the one that begins at step t is used from step t + L on, or from the
step on at which the next one begins, if that comes first. The first, at step 0, is used at once.

What it is computed from, the factors at step t, is a part of the state until it is used:
``omega_begun/<layer>`` and so on, and ``begun_step``, t (-1: nothing is under way). What it gives
is a function of these alone, and the host computes it, wherever the network does. So it makes no
difference whether a thread has computed it ahead, which is the rule, or whether it is begun again:
after a checkpoint was loaded, after a step that failed, in the child of a fork.

While a thread computes one, BLAS in this process is on one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from kfc_numba.arrays import zeros_like
from kfc_numba.checks import check_integer
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.devices import downloading, to_device
from kfc_numba.layers.base import Arrays

STEP = "begun_step"


def check_lag(lag: Any, structure: Any) -> int:
    """A lag, if the structure can have it.

    Parameters
    ----------
    lag : int
    structure : str or mapping of str to str

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        It is no integer from 0 on, or the structure decomposes in every step what damping changes.
    """
    lag = check_integer("decomposition_lag", lag, least=0)
    if lag and structure == "tridiagonal":
        raise ValueError(
            f"decomposition_lag (={lag}) must be 0 with structure 'tridiagonal', which decomposes "
            "at every step"
        )
    return lag


def initial_lag(curvature: BlockDiagonal, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """State before anything is under way.

    Parameters
    ----------
    curvature : BlockDiagonal
    state : mapping of str to numpy.ndarray
        Its initial state.

    Returns
    -------
    dict of str to numpy.ndarray
    """
    factors = {_begun(name): zeros_like(state[name]) for name in _names(curvature)}
    return {STEP: np.array(-1, np.int64), **factors}


def _names(curvature: BlockDiagonal) -> list[str]:
    """Of what a decomposition is computed from."""
    return [name for block in curvature.blocks for name in block.decomposed()]


def _begun(name: str) -> str:
    kind, _, layer = name.partition("/")
    return f"{kind}_begun/{layer}"


@dataclass(frozen=True)
class _Task:
    process: int
    factors: Arrays
    bases: Future


class Lagged:
    """Whose thread computes decompositions ahead: no result depends on what is kept here."""

    def __init__(self) -> None:
        self._task: _Task | None = None

    def refresh(
        self,
        curvature: BlockDiagonal,
        state: Mapping[str, np.ndarray],
        step: int,
        due: bool,
        lag: int,
    ) -> tuple[dict[str, np.ndarray], bool]:
        """What a step does about decompositions.

        Parameters
        ----------
        curvature : BlockDiagonal
        state : mapping of str to numpy.ndarray
            With the factors of the step.
        step : int
        due : bool
            Whether one begins.
        lag : int

        Returns
        -------
        changes : dict of str to numpy.ndarray
            New entries of the state; `state` is left as it is.
        renewed : bool
            Whether there are new bases among them.

        Raises
        ------
        FloatingPointError, numpy.linalg.LinAlgError
            As `BlockDiagonal.decompose`.
        """
        if lag == 0 or step == 0:
            return (curvature.decompose(state) if due else {}), due
        changes: dict[str, np.ndarray] = {}
        begun = int(state[STEP])
        if begun >= 0:
            factors = {name: state[_begun(name)] for name in _names(curvature)}
            task = self._under_way(curvature, factors)
            if due or step >= begun + lag:
                device = curvature.net.device
                bases = {n: to_device(v, device) for n, v in task.bases.result().items()}
                changes = {STEP: np.array(-1, np.int64), **bases}
                for block in curvature.blocks:
                    changes |= block.turned(state, bases)
                self._task = None
        renewed = bool(changes)
        if due:
            factors = {name: state[name] for name in _names(curvature)}
            self._under_way(curvature, factors)
            changes |= {_begun(name): value for name, value in factors.items()}
            changes[STEP] = np.array(step, np.int64)
        return changes, renewed

    def _under_way(self, curvature: BlockDiagonal, factors: Arrays) -> _Task:
        """The computation of these very arrays, begun now if there is none."""
        task = self._task
        if (
            task is None
            or task.process != os.getpid()
            or any(task.factors[name] is not value for name, value in factors.items())
        ):
            # A thread for each: none is left behind when training ends.
            executor = ThreadPoolExecutor(1, "kfc_numba decomposition")
            future = executor.submit(_bases, curvature, downloading(factors))
            executor.shutdown(wait=False)
            task = self._task = _Task(os.getpid(), factors, future)
        return task

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a thread is not part of an optimizer that is copied or sent to another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


def _bases(
    curvature: BlockDiagonal, download: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    return curvature.bases(download())
