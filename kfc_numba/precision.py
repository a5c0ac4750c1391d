"""Whether a card may round what it multiplies: the one place that knows, off unless asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from kfc_numba.checks import check_flag

_enabled: ContextVar[bool] = ContextVar("tensor_cores", default=False)


@contextlib.contextmanager
def tensor_cores(enabled: bool = True) -> Iterator[None]:
    """In a context, let products of float32 on a card round factors, and use its tensor cores.

    Convolutions, dense products and their gradients then round each factor to TF32, which has 10
    bits behind the leading one, and sum in float32. A factor changes by at most ``2^-11`` of
    itself, so that a sum of products is off by at most ``2^-10`` (0.1%) of the sum of their
    magnitudes, besides what float32 itself is off by; as errors mostly cancel, by about
    ``5e-4 / sqrt(K)`` of it for K terms. Results are the same bits in every run.

    What curvature is decomposed from is summed in float32, and decompositions are used in float32.
    So is everything computed on the CPU, on cards of a compute capability below 8.0, and where a
    product has fewer than 32 rows or columns. Nothing changes in float64.

    Parameters
    ----------
    enabled : bool
        False for float32 inside of a context that allows TF32.

    Notes
    -----
    It holds for the thread, and the context of `contextvars`, that enters it::

        with tensor_cores():
            trainer.fit(x, y, batch_size=512, epochs=5)
    """
    token = _enabled.set(check_flag("enabled", enabled))
    try:
        yield
    finally:
        _enabled.reset(token)


def uses_tensor_cores() -> bool:
    """Whether products are inside of `tensor_cores`.

    Returns
    -------
    bool
    """
    return _enabled.get()
