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
from array_api_compat import array_namespace, device

from kfc_numba.arrays import contiguous
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Arrays, Layer, Saved, Shape
from kfc_numba.layers.dense import Dense

#: Inputs of a part, at most, without the one of the bias. On 28x28 images (1,568 inputs) training
#: with two parts had losses up to 5% higher after as many steps, but for batches of 2,048, which
#: took about a tenth more of them; four were hardly worse. On CIFAR-10 (1,024) there was no
#: difference with four.
WIDEST = 1024
#: What a subclass of a dense layer must have left as it is.
_OWN = {
    name: getattr(Dense, name)
    for name in ("to_matrix", "from_matrix", "input_moment", "input_rows", "output_moment")
}


def parts_of(layer: Layer, matrix_shape: Shape) -> int:
    """Into how many parts the inputs of a layer are divided.

    Parameters
    ----------
    layer : Layer
    matrix_shape : tuple of int
        (I, D), D with the one of the bias.

    Returns
    -------
    int
        1 where a part would have fewer inputs than the layer has outputs, whose moment each part
        repeats; and of layers that are not dense, or have a matrix or moments of their own.
    """
    if not isinstance(layer, Dense):
        return 1
    if any(getattr(type(layer), name) is not method for name, method in _OWN.items()):
        return 1
    outputs, inputs = matrix_shape
    parts = math.ceil((inputs - layer.bias) / WIDEST)
    return parts if outputs <= math.ceil(inputs / parts) else 1


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

    @property
    def width(self) -> int:
        """Inputs of a part: w."""
        return math.ceil(self.inputs / self.parts)

    @property
    def missing(self) -> int:
        """Zeros behind the inputs of the last part."""
        return self.parts * self.width - self.inputs

    def part(self, rows: np.ndarray, index: int) -> np.ndarray:
        """Rows of the inputs of one part, (R, w), of rows of all, (R, D)."""
        xp, start = array_namespace(rows), index * self.width
        part = rows[:, start : min(start + self.width, self.inputs)]
        if missing := self.width - part.shape[1]:
            none = xp.zeros((part.shape[0], missing), dtype=rows.dtype, device=device(rows))
            part = xp.concat([part, none], axis=1)
        return contiguous(part)

    def to_matrix(self, arrays: Arrays) -> np.ndarray:
        matrix = self.layer.to_matrix(arrays)
        parts = [self.part(matrix, index) for index in range(self.parts)]
        return array_namespace(matrix).stack(parts)

    def from_matrix(self, matrix: np.ndarray, like: Arrays) -> dict[str, np.ndarray]:
        parts = [matrix[index, ...] for index in range(self.parts)]
        whole = array_namespace(matrix).concat(parts, axis=1)[:, : self.inputs]
        return self.layer.from_matrix(contiguous(whole), like)

    def input_moment(self, saved: Saved, approx: str) -> np.ndarray:
        rows = self.layer.input_rows(saved, approx)
        xp, k = array_namespace(rows), kernels(rows)
        flat = xp.reshape(rows, (-1, rows.shape[-1]))
        parts = (self.part(flat, index) for index in range(self.parts))
        return xp.stack([k.output_second_moment(part[:, None]) for part in parts])

    def output_moment(self, dy: np.ndarray, approx: str) -> np.ndarray:
        moment = self.layer.output_moment(dy, approx)
        return array_namespace(moment).stack([moment] * self.parts)
