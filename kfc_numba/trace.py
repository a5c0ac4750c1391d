"""What a forward pass leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Context, Saved


@dataclass
class Trace:
    """What a forward pass leaves for the backward and tangent passes.

    Attributes
    ----------
    outputs : numpy.ndarray
        Outputs of the network, (examples, ...).
    saved : list
        What each layer kept.
    context : Context
    """

    outputs: np.ndarray
    saved: list[Saved]
    context: Context

    def taken(self, chosen: np.ndarray) -> Trace:
        """The same of some examples, where examples do not act on each other.

        Parameters
        ----------
        chosen : numpy.ndarray
            (n,), int64: their numbers.

        Returns
        -------
        Trace
        """

        def rows(array: np.ndarray) -> np.ndarray:
            if 0 in array.strides:  # its shape alone is kept
                return array[: len(chosen)]
            out = self.context.empty((len(chosen), *array.shape[1:]), array.dtype)
            return kernels(array).take_examples(array, chosen, out=out)

        saved = [tuple(None if a is None else rows(a) for a in kept) for kept in self.saved]
        return Trace(rows(self.outputs), saved, self.context)
