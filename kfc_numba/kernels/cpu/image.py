"""Images with zeros around them, copied one band at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kfc_numba.kernels.cpu.jit import serial
from kfc_numba.kernels.geometry import Pair


class PaddedImage(NamedTuple):
    """Size of an image and of the margins of zeros around it: (vertical, horizontal)."""

    size: Pair
    before: Pair = (0, 0)
    after: Pair = (0, 0)

    @property
    def width(self) -> int:
        """Pixels in a row, margins included."""
        return self.before[1] + self.size[1] + self.after[1]

    @property
    def height(self) -> int:
        """Rows, margins included."""
        return self.before[0] + self.size[0] + self.after[0]


@serial
def read_rows(images, shape, n, before, after, top, bottom):
    """Rows `top` to `bottom` of padded image `n`, as a flat array and the place of the first pixel.

    Without margins that is `images` itself, and nothing is copied. `images` is flat, of `shape`
    (examples, height, width, channels); rows count from the upper margin.
    """
    _, height, width, channels = shape
    row = width * channels
    if before[0] + before[1] + after[0] + after[1] == 0:
        return images, (n * height + top) * row
    left = before[1] * channels
    pitch = left + row + after[1] * channels
    copy = np.empty((bottom - top) * pitch, images.dtype)
    for y in range(top, bottom):
        target = (y - top) * pitch
        inside = before[0] <= y < before[0] + height
        source = (n * height + y - before[0]) * row
        for k in range(left if inside else pitch):
            copy[target + k] = 0
        if inside:
            for k in range(row):
                copy[target + left + k] = images[source + k]
            for k in range(left + row, pitch):
                copy[target + k] = 0
    return copy, 0
