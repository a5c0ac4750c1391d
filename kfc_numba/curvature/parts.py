"""Dense layers of very many inputs, as several layers of fewer inputs whose outputs are added up.

The moment of D inputs has D^2 entries and takes D^3 operations to invert: where two pools make
8,192 inputs of images of 64x64 an inversion takes seconds, and the moment of larger images alone
fills a memory. In parts of w inputs these are a D / w-th of the entries, and the square of that of
the operations; what is lost is how inputs of different parts go together. Inputs that follow each
other stay together, which behind a convolution are those of neighbouring places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import contiguous, zeros
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Arrays, Layer, Saved
from kfc_numba.layers.dense import Dense

#: Inputs of a part, at most, without the one of the bias. On 28x28 images (1,568 inputs) training
#: took as many steps with two parts as with one, hardly more with four; on CIFAR-10 (1,024) there
#: was no difference with four.
WIDEST = 1024


def parts_of(layer: Layer, inputs: int) -> int:
    """Into how many parts the inputs of a layer are divided.

    Parameters
    ----------
    layer : Layer
    inputs : int
        D, with the one of the bias.

    Returns
    -------
    int
        1 of a layer that is not dense.
    """
    return math.ceil((inputs - layer.bias) / WIDEST) if isinstance(layer, Dense) else 1


@dataclass(frozen=True)
class LayerInParts:
    """A dense layer whose matrix (I, D) has a leading axis of parts, (parts, I, w).

    The last part has zeros behind the inputs where they do not come out even. All parts have one
    moment of the outputs, each a copy of its own, as if they were groups of a convolution.

    Attributes
    ----------
    layer : Dense
    parts, inputs : int
        Their number, and D.
    """

    layer: Dense
    parts: int
    inputs: int

    def locations(self, saved: Saved, dy: np.ndarray) -> int:
        return self.layer.locations(saved, dy)

    def homogeneous(self, saved: Saved) -> np.ndarray:
        return self.layer.homogeneous(saved)

    def output_rows(self, dy: np.ndarray) -> np.ndarray:
        return self.layer.output_rows(dy)

    def cut(self, rows: np.ndarray) -> np.ndarray:
        """Rows of all inputs, (R, D), by part: (parts, R, w)."""
        width = math.ceil(self.inputs / self.parts)
        if missing := self.parts * width - self.inputs:
            none = zeros((len(rows), missing), rows.dtype, rows)
            rows = array_namespace(rows).concat([rows, none], axis=1)
        parts = rows.reshape(len(rows), self.parts, width)
        return contiguous(array_namespace(rows).permute_dims(parts, (1, 0, 2)))

    def to_matrix(self, arrays: Arrays) -> np.ndarray:
        return self.cut(self.layer.to_matrix(arrays))

    def from_matrix(self, matrix: np.ndarray, like: Arrays) -> dict[str, np.ndarray]:
        rows = array_namespace(matrix).permute_dims(matrix, (1, 0, 2))
        whole = rows.reshape(rows.shape[0], -1)[:, : self.inputs]
        return self.layer.from_matrix(contiguous(whole), like)

    def input_moment(self, saved: Saved, approx: str) -> np.ndarray:
        rows = self.layer.input_rows(saved, approx)
        k, parts = kernels(rows), self.cut(rows.reshape(-1, rows.shape[-1]))
        moments = [k.output_second_moment(parts[i, :, None]) for i in range(self.parts)]
        return array_namespace(rows).stack(moments)

    def output_moment(self, dy: np.ndarray, approx: str) -> np.ndarray:
        moment = self.layer.output_moment(dy, approx)
        return array_namespace(moment).stack([moment] * self.parts)
