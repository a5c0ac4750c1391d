"""Weights as tiles read them: for each block of lanes one run of memory, tap after tap.

The order is (groups, blocks of lanes, taps, taps, depth, lanes), with zeros in unused lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kfc_numba.kernels.cpu.image_rows import copy_run
from kfc_numba.kernels.cpu.jit import inlined
from kfc_numba.kernels.cpu.records import record
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


#: The same, as kernels read it.
PANELS = record(*Panels._fields)
#: Evenly spaced taps: the first, their distance and their number.
TAPS = record("first", "distance", "count")


def progression(taps: Sequence[int]) -> dict[str, int]:
    """`TAPS` of some evenly spaced taps."""
    distance = taps[1] - taps[0] if len(taps) > 1 else 1
    return {"first": taps[0], "distance": distance, "count": len(taps)}


@inlined
def pack_panel(weight, packed, place, panels, rows, columns, task):
    """Pack one tap of one block of lanes.

    Arrays are flat, the panels begin at `place`; `panels` is a record `PANELS`, `rows` and
    `columns` are `TAPS`, and `task` numbers groups, blocks and taps.
    """
    x = task % columns.count
    y = task // columns.count % rows.count
    group_block = task // (columns.count * rows.count)
    group, block = group_block // panels.blocks, group_block % panels.blocks
    tap = (rows.first + y * rows.distance) * panels.kernel_width
    tap += columns.first + x * columns.distance
    out_group = panels.filters // panels.groups
    source = tap * panels.channels * panels.filters + group * out_group
    target = place + task * panels.depth * panels.lanes
    if panels.flip:
        used = min(panels.lanes, panels.channels - block * panels.lanes)
        source += block * panels.lanes * panels.filters
        for f in range(panels.depth):
            for v in range(used):
                packed[target + f * panels.lanes + v] = weight[source + v * panels.filters + f]
    else:
        used = min(panels.lanes, out_group - block * panels.lanes)
        source += block * panels.lanes
        for c in range(panels.depth):
            copy_run(packed, target + c * panels.lanes, weight, source + c * panels.filters, used)
    for d in range(panels.depth if used < panels.lanes else 0):
        for v in range(used, panels.lanes):
            packed[target + d * panels.lanes + v] = 0
