"""Weights as tiles read them: for each block of lanes one run of memory, tap after tap.

The order is (groups, blocks of lanes, taps, taps, depth, lanes), with zeros in unused lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kfc_numba.kernels.cpu.image_rows import copy_run
from kfc_numba.kernels.cpu.jit import serial
from kfc_numba.kernels.cpu.tile import tile_lanes


class Panels(NamedTuple):
    """Sizes of the panels of a weight array (kernel height, kernel width, channels, filters).

    `flip` is whether sums run over filters, for the gradient by the input, and not over channels.
    """

    kernel_width: int
    channels: int  # of a group
    filters: int
    groups: int
    flip: bool
    blocks: int
    depth: int
    lanes: int

    @classmethod
    def of(cls, weight: tuple[int, ...], groups: int, flip: bool, dtype: np.dtype) -> Panels:
        """For the shape and dtype of a weight array."""
        _, kernel_width, channels, filters = weight
        depth, width = channels, filters // groups
        if flip:
            depth, width = width, depth
        lanes = tile_lanes(dtype)
        if width <= lanes // 2:
            lanes //= 2
        return cls(kernel_width, channels, filters, groups, flip, -(-width // lanes), depth, lanes)

    def tasks(self, taps: Sequence[int], taps_x: Sequence[int]) -> int:
        """Number of tasks that pack some taps."""
        return self.groups * self.blocks * len(taps) * len(taps_x)

    def size(self, taps: Sequence[int], taps_x: Sequence[int]) -> int:
        """Numbers in the panels of some taps."""
        return self.tasks(taps, taps_x) * self.depth * self.lanes

    def bias(self, bias: np.ndarray | None, dtype: np.dtype) -> np.ndarray:
        """Bias, or zeros, in the lanes of the panels: (groups, blocks, lanes), flat."""
        start = np.zeros((self.groups, self.blocks * self.lanes), dtype)
        if bias is not None:
            start[:, : len(bias) // self.groups] = bias.reshape(self.groups, -1)
        return start.reshape(-1)


def progression(taps: Sequence[int]) -> tuple[int, int, int]:
    """First of some evenly spaced taps, their distance and their number."""
    return taps[0], taps[1] - taps[0] if len(taps) > 1 else 1, len(taps)


@serial
def pack_panel(weight, packed, place, panels, taps, taps_x, task):
    """Pack one tap of one block of lanes; `panels` as in `Panels`, taps as from `progression`.

    Arrays are flat; the panels begin at `place`.
    """
    kernel_width, channels, filters, groups, flip, blocks, depth, lanes = panels
    first_y, step_y, count_y = taps
    first_x, step_x, count_x = taps_x
    x = task % count_x
    y = task // count_x % count_y
    block = task // (count_x * count_y) % blocks
    group = task // (count_x * count_y * blocks)
    tap = (first_y + y * step_y) * kernel_width + first_x + x * step_x
    out_group = filters // groups
    source = tap * channels * filters + group * out_group
    target = place + task * depth * lanes
    width = (channels if flip else out_group) - block * lanes
    used = min(lanes, width)
    if flip:
        source += block * lanes * filters
        for f in range(depth):
            for v in range(used):
                packed[target + f * lanes + v] = weight[source + v * filters + f]
    else:
        source += block * lanes
        for c in range(depth):
            copy_run(packed, target + c * lanes, weight, source + c * filters, used)
    for d in range(depth if used < lanes else 0):
        for v in range(used, lanes):
            packed[target + d * lanes + v] = 0
