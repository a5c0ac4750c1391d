"""Times, and the update periods that they can afford."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from kfc_numba import devices


def least_seconds(call: Callable[[], Any], repeats: int, device: str = "cpu") -> float:
    """Least wall-clock time of several calls, after one that compiles.

    Parameters
    ----------
    call : callable
        Without arguments.
    repeats : int
    device : {"cpu", "cuda"}
        Where it computes: a card is waited for.

    Returns
    -------
    float
    """
    call()
    times = []
    for _ in range(repeats):
        devices.synchronize(device)
        start = time.perf_counter()
        call()
        devices.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def suggested_periods(costs: Mapping[str, float], overhead: float) -> dict[str, Any]:
    """Periods by the rule of `kfc_numba.check_curvature`.

    Parameters
    ----------
    costs : mapping of str to float
        ``gradient_seconds``, ``statistics_seconds`` and ``decomposition_seconds``.
    overhead : float

    Returns
    -------
    dict
        ``overhead``, ``curvature_update_period``, ``inverse_update_period``.
    """
    budget = overhead * costs["gradient_seconds"]
    update = max(1, math.ceil(costs["statistics_seconds"] / budget))
    inverse = max(update, math.ceil(costs["decomposition_seconds"] / budget))
    return {
        "overhead": overhead,
        "curvature_update_period": update,
        "inverse_update_period": inverse,
    }
