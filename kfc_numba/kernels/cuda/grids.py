"""How threads are laid over arrays: sizes of blocks and grids, from shapes alone."""

from __future__ import annotations

THREADS = 256  # of a block, at most
_MOST = 65535  # blocks along the second and third axis of a grid
Grid = tuple[int, int]


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def cover(size: int, most: int = THREADS) -> int:
    """The least power of two that is at least `size`, but no more than `most`."""
    return min(1 << (size - 1).bit_length(), most)


def volume(outer: int, middle: int, inner: int) -> tuple[Grid, Grid]:
    """Grid and block over three axes, of which the last is contiguous in memory.

    A block lies at one place of the outer axis, its number along x. Along x its threads lie side by
    side on the inner axis, along y on the middle one; what threads do not reach they come to in
    steps: of the block's width on the inner axis, of the grid's height on the middle one.
    """
    width = cover(inner)
    height = cover(middle, THREADS // width)
    return (outer, min(ceil_div(middle, height), _MOST)), (width, height)
