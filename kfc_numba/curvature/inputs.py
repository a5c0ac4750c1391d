"""Which examples of a batch moments of inputs are taken over, where not all are needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kfc_numba.graph import Trace
from kfc_numba.layers.base import Saved

#: Inputs for each row of the moment, of a layer that shares weights between locations. On CIFAR-10
#: the third convolution of `quick` trained as fast with a third of that.
FOR_EACH_ROW = 8
#: Examples at least: locations of one example are alike. With 32 nothing was trained faster.
FEWEST = 16


@dataclass(frozen=True)
class Inputs:
    """Inputs of layers in a forward pass, of as many examples as serve.

    A layer that sees an example once is given `most` of them. A convolution sees each at many
    locations, hundreds of inputs alike, and its moments would take the larger part of the time that
    curvature does.

    Attributes
    ----------
    trace : Trace
        Of the forward pass on the batch.
    most : int
        How many examples at most.
    """

    trace: Trace
    most: int

    def of(self, layer: int, rows: int, locations: int) -> Saved:
        """What a layer kept of examples that are evenly over the batch.

        Parameters
        ----------
        layer : int
            Its number.
        rows : int
            Of the moment.
        locations : int
            That count one by one, of an example.

        Returns
        -------
        Saved
        """
        count, size = len(self.trace.outputs), self.most
        if locations > 1:
            size = min(size, max(FEWEST, -(-FOR_EACH_ROW * rows // locations)))
        if size >= count:
            return self.trace.saved[layer]
        return self.trace.taken(np.arange(size) * count // size).saved[layer]
