"""The register tile: the one primitive under convolution, moments and matrix products.

A tile is a block of a matrix that lives in vector registers while a sum runs over it,

    C[x, v] = start[x, v] + sum_{i < rows, j < columns} A[x, i, j] * B[i, j, v],

with x over at most `TILE_ROWS` rows and v over at most two vectors of contiguous lanes. A and B are
addressed by strides, so that a padded image serves as the matrix of its patches and nothing is
copied: in NHWC storage one kernel row of a patch is a contiguous run of KW*C numbers. The sum
starts from zero and `start` is added last, which keeps the rounding error of a long sum, done in
pieces, near that of its longest piece.

LLVM does not keep a two-dimensional block of accumulators in registers when it is written as Numba
loops; here it is written as LLVM vector IR. Every number of rows has a body of its own, so a tail
costs no more than its share.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import config

from kfc_numba.kernels.cpu.jit import inlined
from kfc_numba.kernels.cpu.vector import HOST, I64, VECTOR_BYTES, Processor, Vectors, vector_code


def tile_rows(processor: Processor) -> int:
    """Rows of a tile of two vectors: as many as leave registers for B and the broadcast of A."""
    return 8 if processor.registers == 32 else 6


#: Rows of the tiles that are run.
TILE_ROWS = tile_rows(HOST)

#: Kinds of a tile: two vectors or one, the last of them whole or a part.
FULL_2, PART_2, FULL_1, PART_1 = range(4)


class TileEmitter(Vectors):
    """Emits the body of a tile with a given number of rows and vectors."""

    def cases(self) -> None:
        """Bodies for all heights and lane counts behind one switch."""
        sizes = itertools.product(range(1, tile_rows(self.processor) + 1), range(4))
        bodies = {4 * rows + kind: functools.partial(self.body, rows, kind) for rows, kind in sizes}
        self.switch(self.arguments["case"], bodies)

    def body(self, rows: int, kind: int) -> None:
        """A tile of `rows` rows."""
        builder, arg = self.builder, self.arguments
        vectors = 2 if kind in (FULL_2, PART_2) else 1
        masks: list[ir.Value | None] = [None] * vectors
        if kind in (PART_2, PART_1):
            rest = builder.sub(arg["lanes"], ir.Constant(I64, (vectors - 1) * self.lanes))
            masks[-1] = self.mask(rest)
        block = [(x, f) for x in range(rows) for f in range(vectors)]

        a_rows = [builder.mul(ir.Constant(I64, x), arg["a_x"]) for x in range(rows)]
        entry = builder.block
        outer, inner, latch, end = (
            builder.append_basic_block(name) for name in ("outer", "inner", "latch", "end")
        )
        builder.branch(outer)

        builder.position_at_end(outer)
        i = builder.phi(I64)
        i.add_incoming(ir.Constant(I64, 0), entry)
        carried = [builder.phi(self.vector) for _ in block]
        for phi in carried:
            phi.add_incoming(self.zero, entry)
        a_outer = self.offset(arg["a"], builder.mul(i, arg["a_i"]))
        b_outer = self.offset(arg["b"], builder.mul(i, arg["b_i"]))
        builder.branch(inner)

        builder.position_at_end(inner)
        j = builder.phi(I64)
        j.add_incoming(ir.Constant(I64, 0), outer)
        sums = [builder.phi(self.vector) for _ in block]
        for phi, value in zip(sums, carried, strict=True):
            phi.add_incoming(value, outer)
        a_inner = self.offset(a_outer, builder.mul(j, arg["a_j"]))
        b_inner = self.offset(b_outer, builder.mul(j, arg["b_j"]))
        right = [self.load(self.offset(b_inner, f * self.lanes), masks[f]) for f in range(vectors)]
        left: list[ir.Value] = []
        results = []
        for (x, f), sum_ in zip(block, sums, strict=True):
            if f == 0:
                left.append(self.splat(builder.load(self.offset(a_inner, a_rows[x])), self.vector))
            results.append(self.multiply_add(left[x], right[f], sum_))
        next_j = builder.add(j, ir.Constant(I64, 1))
        j.add_incoming(next_j, inner)
        for phi, value in zip(sums, results, strict=True):
            phi.add_incoming(value, inner)
        again = builder.cbranch(builder.icmp_signed("<", next_j, arg["columns"]), inner, latch)
        again.set_metadata("llvm.loop", self.no_unrolling())

        builder.position_at_end(latch)
        next_i = builder.add(i, ir.Constant(I64, 1))
        i.add_incoming(next_i, latch)
        for phi, value in zip(carried, results, strict=True):
            phi.add_incoming(value, latch)
        again = builder.cbranch(builder.icmp_signed("<", next_i, arg["rows"]), outer, end)
        again.set_metadata("llvm.loop", self.no_unrolling())

        builder.position_at_end(end)
        for (x, f), value in zip(block, results, strict=True):
            place = ir.Constant(I64, f * self.lanes)
            row = ir.Constant(I64, x)
            start = self.offset(arg["start"], builder.mul(row, arg["start_x"]), place)
            target = self.offset(arg["c"], builder.mul(row, arg["c_x"]), place)
            total = builder.fadd(value, self.load(start, masks[f]))
            self.store(total, target, masks[f])


_NAMES = (
    *("a", "a_at", "a_x", "a_i", "a_j"),
    *("b", "b_at", "b_i", "b_j"),
    *("start", "start_at", "start_x"),
    *("c", "c_at", "c_x"),
    *("rows", "columns", "height", "lanes", "case"),
)
_PLACES = {name: f"{name}_at" for name in ("a", "b", "start", "c")}
_tile_ir = vector_code(TileEmitter, _NAMES, _PLACES, lambda emitter, kinds: emitter.cases())


@inlined
def _compiled_tile(
    a, a_at, a_x, a_i, a_j,
    b, b_at, b_i, b_j,
    start, start_at, start_x,
    c, c_at, c_x,
    rows, columns, height, lanes,
):  # fmt: skip
    vector = VECTOR_BYTES // a.itemsize
    if lanes == 2 * vector:
        kind = FULL_2
    elif lanes > vector:
        kind = PART_2
    elif lanes == vector:
        kind = FULL_1
    else:
        kind = PART_1
    # Tiles of about equal height: nine rows are five and four, not eight and one.
    tiles = -(-height // TILE_ROWS)
    least = height // tiles
    taller = height - tiles * least
    for t in range(tiles):
        tall = least + 1 if t < taller else least
        _tile_ir(
            a, a_at, a_x, a_i, a_j, b, b_at, b_i, b_j, start, start_at, start_x, c, c_at, c_x,
            rows, columns, tall, lanes, 4 * tall + kind,
        )  # fmt: skip
        a_at += tall * a_x
        start_at += tall * start_x
        c_at += tall * c_x


def _plain_tile(
    a, a_at, a_x, a_i, a_j,
    b, b_at, b_i, b_j,
    start, start_at, start_x,
    c, c_at, c_x,
    rows, columns, height, lanes,
):  # fmt: skip
    for x in range(height):
        total = np.zeros(lanes, a.dtype)
        for i in range(rows):
            for j in range(columns):
                b_place = b_at + i * b_i + j * b_j
                total += a[a_at + x * a_x + i * a_i + j * a_j] * b[b_place : b_place + lanes]
        first = start_at + x * start_x
        c[c_at + x * c_x : c_at + x * c_x + lanes] = start[first : first + lanes] + total


def tile_lanes(dtype: Any) -> int:
    """Largest number of lanes of a tile: two vectors of `dtype`."""
    return 2 * VECTOR_BYTES // np.dtype(dtype).itemsize


# One tile: every array flat and contiguous, `*_at` the index of its first element, `*_x`, `*_i`,
# `*_j` its strides in elements; rows, columns, height >= 1, cut into tiles; 1 <= lanes <= two
# vectors. Lanes beyond `lanes` are neither read nor written. `start` may be `c` itself, to add to
# it, or a zero or bias vector with start_x = 0. A literal number among the arguments makes Numba
# compile a version of its own (two seconds for each kernel that calls it): only `a_x` is one, where
# it is 1, for that gives better addresses.
tile = _plain_tile if config.DISABLE_JIT else _compiled_tile  # type: ignore[attr-defined]
