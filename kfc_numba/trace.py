"""What a forward pass leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kfc_numba.devices import like
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Context, Saved


@dataclass
class Trace:
    """What a forward pass leaves for the backward and tangent passes.

    Attributes
    ----------
    outputs : numpy.ndarray
        Outputs of the network, (examples, ...).
    saved : sequence
        What each layer kept.
    context : Context
    outer : dict of str to tuple
        Of layers whose gradients are wanted as products too: what the layer kept, and the
        derivatives by its outputs that its gradients came from.
    """

    outputs: np.ndarray
    saved: Sequence[Saved]
    context: Context
    outer: dict[str, tuple[Saved, np.ndarray]] = field(default_factory=dict)

    def again(self, examples: int) -> Context:
        """What a pass on the same examples, which takes over the random numbers, starts from.

        Parameters
        ----------
        examples : int
            How many it has.

        Returns
        -------
        Context

        Raises
        ------
        ValueError
            It has another number of examples.
        """
        if examples != len(self.outputs):
            raise ValueError(
                f"x must have the {len(self.outputs)} examples of the pass like, got {examples}"
            )
        return replace(self.context, earlier=self.saved)

    def taken(self, chosen: np.ndarray) -> Trace:
        """The same of some examples, where examples do not act on each other.

        What a layer kept is copied when a pass comes to it, and not held any longer.

        Parameters
        ----------
        chosen : numpy.ndarray
            (n,), int64: their numbers.

        Returns
        -------
        Trace
        """

        def rows(array: np.ndarray) -> np.ndarray:
            if array.strides[0] == 0:  # all alike: its shape alone is kept
                return array[: len(chosen)]
            out = self.context.empty((len(chosen), *array.shape[1:]), array.dtype)
            return kernels(array).take_examples(array, chosen, out=out)

        outputs = rows(self.outputs)  # numbers out of range are refused
        chosen = like(chosen, outputs)  # from here on: to a card once, and not for each array
        return Trace(outputs, _Taken(self.saved, rows), self.context)


class _Taken(Sequence[Saved]):
    """What each layer kept, of some examples."""

    def __init__(self, saved: Sequence[Saved], rows: Callable[[np.ndarray], np.ndarray]):
        self.whole, self.rows = saved, rows

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: Any) -> Any:  # a layer's number
        return tuple(None if a is None else self.rows(a) for a in self.whole[index])
