"""Which part of a matrix product a block of threads computes, by the shape."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

#: Multiprocessors of the card that the choice has in mind: a constant, so that tiles, and parts of
#: sums of columns, are the same whatever the card.
PROCESSORS = 132


class Tile(NamedTuple):
    """Results of a block of threads, and of a thread."""

    rows: int
    columns: int
    thread_rows: int
    thread_columns: int
    tensor: bool = False  # whether tensor cores multiply

    @property
    def threads(self) -> int:
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)

    @property
    def depth(self) -> int:
        """Terms of the sums that are in shared memory at once.

        Tensor cores are done with 8 before the next ones have come.
        """
        return 16 if self.tensor else 8

    @property
    def step(self) -> int:
        """Terms are padded with zeros to a multiple of this.

        Both halves of the room, written out, so that their places are constants.
        """
        return 2 * self.depth

    @property
    def registers(self) -> int:
        """That a thread may use: those of a multiprocessor are for two large blocks, or more."""
        return 128 if self.threads > 128 else 168

    @property
    def cost(self) -> float:
        """Time for a result, relative to the multiplications alone.

        For each term a thread reads its rows and its columns and multiplies each by each; to read
        a number takes about as long as two multiplications. Where tensor cores multiply, the way
        from the cache on the chip to a block, which moves its rows and columns, counts as well.
        """
        work = self.thread_rows * self.thread_columns
        if self.tensor:  # by rates of an H100
            read = 2 * self.thread_rows + self.thread_columns
            moved = (self.rows + self.columns) / (self.rows * self.columns)
            return 1 + 2.5 * read / work + 50 * moved
        return (work + 2 * (self.thread_rows + self.thread_columns)) / work

    def blocks(self, rows: int, columns: int) -> int:
        """Number of tiles that cover a matrix."""
        return -(-rows // self.rows) * -(-columns // self.columns)


#: In order of preference where they cost the same.
_TILES = {
    "f": (
        Tile(128, 128, 8, 8),
        Tile(128, 64, 8, 8),
        Tile(64, 64, 8, 4),
        Tile(128, 32, 8, 4),
        Tile(64, 32, 4, 4),
        Tile(32, 32, 4, 4),
        Tile(64, 16, 4, 4),
    ),
    "d": (Tile(64, 64, 4, 4), Tile(32, 32, 4, 2), Tile(64, 16, 4, 2)),
}
#: Those whose products are computed by tensor cores, of float32.
TENSOR_TILES = (
    Tile(128, 128, 8, 8, True),
    Tile(128, 64, 4, 8, True),
    Tile(64, 64, 4, 8, True),
    Tile(128, 32, 4, 8, True),
)


@functools.cache
def tiles(dtype: np.dtype, square: bool = False) -> tuple[Tile, ...]:
    """All tiles that are made for a dtype, or those as high as wide."""
    return tuple(t for t in _TILES[dtype.char] if t.rows == t.columns or not square)


@functools.lru_cache(maxsize=1024)
def choose(candidates: tuple[Tile, ...], rows: int, columns: int, batch: int = 1) -> Tile:
    """The tile that should take the least time for `batch` products with a result of a size.

    Time is the number of results that are computed, those beyond the edges too, times the `cost`
    of one; with fewer blocks than multiprocessors, it is the time of one block.
    """

    def time(tile: Tile) -> float:
        blocks = tile.blocks(rows, columns) * batch
        return max(blocks, PROCESSORS) * tile.rows * tile.columns * tile.cost

    return min(candidates, key=time)
