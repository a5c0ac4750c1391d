"""Products of a warp on tensor cores: float32 factors rounded to TF32, sums in float32.

An instruction adds the product of 16 x 8 and 8 x 8 numbers to 16 x 8 sums, which lie over the 32
threads of a warp: with ``thread = 4 g + q``, a thread gives the numbers of rows g and g + 8, of
column g, and of terms q and q + 4, and keeps columns 2 q and 2 q + 1 of both rows. Which row,
column or term of a tile each of these is, is free. Here rows g and g + 8 are neighbours, column g
of two instructions as well, and so are terms q and q + 4 in shared memory:

- left operand: for a pair of terms, rows 2 i and 2 i + 1 of the first and then of the second term;
- right operand: for a pair of terms, first and second term of column 2 i, and then of 2 i + 1.

So a read of 128 bits is what one instruction takes of the left, and two of the right operand, in
the order of the registers. Those with an even i lie before those with an odd one: who has read 4
rows or columns of two terms stores 128 bits at either place, beside its neighbours. A thread's sums
are 4 columns side by side, in pairs of rows, at the places that `product.thread_places` names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int32, types
from numba.cuda.extending import intrinsic

from kfc_numba.kernels.cuda import launch
from kfc_numba.kernels.cuda.integers import div, mod
from kfc_numba.kernels.cuda.launch import inlined
from kfc_numba.kernels.cuda.tiles import Tile
from kfc_numba.kernels.cuda.vector import pointer, written_out
from kfc_numba.precision import uses_tensor_cores

#: Rows of a thread side by side, and columns.
ROWS, COLUMNS = 2, 4
_FIRST = (8, 0)  # the compute capability from which on cards have TF32
_FEWEST = 32  # rows and columns that a product has at least: fewer would be mostly padding
# Numbers between those with an even and an odd i, and between pairs of terms: eight threads that
# read, two of these for each of four pairs, find them in all 32 banks, and so do those that store.
_BETWEEN, _BEHIND = 16, 20
_HALF = 0x1000  # of the last bit of TF32, in the bits of float32
_BITS, _FLOAT, _INDEX = ir.IntType(32), ir.FloatType(), ir.IntType(64)
_MULTIPLY = (
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
    "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
)


def usable(dtype: np.dtype, rows: int, columns: int) -> bool:
    """Whether a product of this size is to be computed on tensor cores."""
    return enabled(dtype) and fits(rows, columns)


def enabled(dtype: np.dtype) -> bool:
    """Whether products are, where they are large enough."""
    return uses_tensor_cores() and dtype == np.float32 and launch.capability() >= _FIRST


def fits(rows: int, columns: int) -> bool:
    """Whether a product is large enough."""
    return min(rows, columns) >= _FEWEST


def room(size: int, tile: Tile) -> int:
    """Numbers that an operand takes in shared memory, with `size` rows or columns."""
    return tile.depth // 2 * _pitch(size)


def _pitch(size: int) -> int:
    """Numbers from a pair of terms to the next in shared memory."""
    return 2 * size + _BETWEEN + _BEHIND


def _distances(size: int, is_left: bool) -> tuple[int, int, int]:
    """To the second of a pair of terms, to the second of a pair of lines, and to the next pair.

    A line is a row or a column; the pair after the next lies four numbers further on.
    """
    return (2, 1, size + _BETWEEN) if is_left else (1, 2, size + _BETWEEN)


@inlined
def _line(pair):
    """Where a pair of terms lies: 8 of them, by bits ``b a c`` in place of ``a b c``.

    Numbers of one row that neighbouring threads keep, four terms each, fall into different banks.
    """
    return int32(
        div(pair, int32(4)) * 2 + mod(div(pair, int32(2)), int32(2)) * 4 + mod(pair, int32(2))
    )


def keeping(reading: Any, size: int, tile: Tile, is_left: bool) -> Callable:
    """Function of device code (registers, shared memory, its first place, thread).

    It rounds what the thread read, and puts it where `multiplication` reads it. A pair of terms are
    those half of the depth apart.
    """
    chunk, across, step, loads = reading.chunk, reading.across, reading.step, reading.loads
    pitch, half, depth = _pitch(size), loads // 2, reading.depth
    second, one, two = _distances(size, is_left)
    store_pairs = _pair_store(chunk, half * chunk, size, is_left)
    store_one = _pair_store(1, 0, size, is_left)

    @inlined
    def place_of(line):
        ones, twos = mod(line, int32(2)), mod(div(line, int32(2)), int32(2))
        return int32(ones * one + twos * two + div(line, int32(4)) * 4)

    # Steps and chunks are powers of two, and what is counted by them lies below: bits do not meet.

    @written_out(half)
    def keep_rows(i, registers, shared, place, beside, line):
        at = int32(_line(line) + _line(int32(i * step)))
        place += at * pitch + place_of(int32(beside * chunk))
        store_pairs(shared, place, registers, i * chunk)

    @written_out(loads * chunk)
    def keep_columns(k, registers, shared, place, beside, line):
        i, j = k // chunk, k % chunk
        term = int32(beside * chunk)
        at = int32(_line(mod(term, int32(depth // 2))) + _line(int32(j)))
        place += at * pitch + place_of(int32(line)) + place_of(int32(i * step))
        store_one(shared, place + div(term, int32(depth // 2)) * second, registers, k)

    keep_chunks = keep_columns if reading.along_terms else keep_rows

    @inlined
    def keep(registers, shared, place, thread):
        line = div(thread, int32(across))
        keep_chunks(registers, shared, place, mod(thread, int32(across)), line)

    return keep


def _pair_store(count: int, apart: int, size: int, is_left: bool) -> Callable:
    """``store(shared, place, registers, first)``: rounds numbers of one term, and of its pair.

    Those are `apart` further on in the registers; of the first term alone if that is 0. As many as
    lie side by side are stored at once.
    """
    second, one, two = _distances(size, is_left)
    numbers = sorted(
        (line % 2 * one + line // 2 * two + term * second, line + term * apart)
        for line in range(count)
        for term in range(2 if apart else 1)
    )
    runs: list[tuple[int, list[int]]] = []
    for place, register in numbers:
        if runs and place == runs[-1][0] + len(runs[-1][1]) and len(runs[-1][1]) < 4:
            runs[-1][1].append(register)
        else:
            runs.append((place, [register]))

    @intrinsic
    def store(typingctx, shared, place, registers, first):
        signature = types.void(shared, types.int64, registers, types.int64)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            target = pointer(context, builder, shared, args[0])
            kept = pointer(context, builder, registers, args[2])
            for distance, several in runs:
                vector = ir.VectorType(_FLOAT, len(several))
                values = ir.Constant(vector, ir.Undefined)
                for k, register in enumerate(several):
                    value = builder.load(
                        builder.gep(kept, [builder.add(args[3], _INDEX(register))])
                    )
                    values = builder.insert_element(values, _rounded(builder, value), _BITS(k))
                at = builder.gep(target, [builder.add(args[1], _INDEX(distance))])
                stored = builder.store(values, builder.bitcast(at, vector.as_pointer()))
                stored.align = 4 * len(several)
            return context.get_dummy_value()

        return signature, codegen

    return store


def _rounded(builder: Any, value: Any) -> Any:
    """LLVM's float32, of which a tensor core ignores the last 13 bits, rounded by those.

    Halves away from zero. What is added may make infinity of a finite number, as rounding does; of
    NaN it would make zero.
    """
    bits = builder.bitcast(value, _BITS)
    is_number = builder.fcmp_ordered("ord", value, value)
    bits = builder.select(is_number, builder.add(bits, _BITS(_HALF)), bits)
    return builder.bitcast(bits, _FLOAT)


def fragment_places(tile: Tile) -> tuple[Callable, Callable]:
    """Functions of device code: where a thread begins to read the left and the right operand."""
    warps = tile.columns // (COLUMNS * tile.thread_columns)  # beside each other
    rows, columns, between = tile.rows, tile.columns, _BETWEEN
    left_pitch, right_pitch = _pitch(rows), _pitch(columns)

    @inlined
    def begin(thread, warp, size, pitch):
        group = div(mod(thread, int32(32)), int32(4))
        place = div(group, int32(2)) * 4 + mod(group, int32(2)) * (size + between)
        return int32(mod(thread, int32(4)) * pitch + warp * 16 + place)

    @inlined
    def left(thread):
        warp = div(div(thread, int32(32)), int32(warps))
        return begin(thread, warp, rows, left_pitch)

    @inlined
    def right(thread):
        warp = mod(div(thread, int32(32)), int32(warps))
        return begin(thread, warp, columns, right_pitch)

    return left, right


def multiplication(tile: Tile) -> Callable:
    """``sums[i, j] += a[k, i] * b[k, j]`` for the terms in shared memory, by the whole warp."""
    left_steps = range(0, tile.rows, ROWS * tile.rows // tile.thread_rows)
    right_steps = range(0, tile.columns, COLUMNS * tile.columns // tile.thread_columns)

    @intrinsic
    def multiply(typingctx, sums, a, a_place, b, b_place):
        signature = types.void(sums, a, types.int64, b, types.int64)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            data, left, right = (pointer(context, builder, kinds[i], args[i]) for i in (0, 1, 3))
            count = tile.thread_rows * tile.thread_columns
            kept = [builder.gep(data, [_INDEX(i)]) for i in range(count)]
            totals = [builder.load(place) for place in kept]
            for pair in range(0, tile.depth // 2, 4):
                line = pair * _pitch(tile.rows)
                rows = [_four(builder, left, args[2], line + step) for step in left_steps]
                line = pair * _pitch(tile.columns)
                several = [_four(builder, right, args[4], line + step) for step in right_steps]
                columns = [four[k : k + 2] for four in several for k in (0, 2)]
                for i, j in np.ndindex(len(rows), len(columns)):
                    first = 2 * i * tile.thread_columns + j // 2 * COLUMNS + j % 2
                    places = [first + y * tile.thread_columns + x for y in (0, 1) for x in (0, 2)]
                    added = _add(builder, [totals[k] for k in places], rows[i] + columns[j])
                    for k, value in zip(places, added, strict=True):
                        totals[k] = value
            for total, place in zip(totals, kept, strict=True):
                builder.store(total, place)
            return context.get_dummy_value()

        return signature, codegen

    return multiply


def _four(builder: Any, data: Any, place: Any, distance: int) -> list:
    """Bits of four numbers side by side."""
    at = builder.gep(data, [builder.add(place, _INDEX(distance))])
    loaded = builder.load(builder.bitcast(at, ir.VectorType(_BITS, 4).as_pointer()))
    loaded.align = 16
    return [builder.extract_element(loaded, _BITS(k)) for k in range(4)]


def _add(builder: Any, totals: list, factors: list) -> list:
    """Four sums of a thread after an instruction."""
    kind = ir.FunctionType(ir.LiteralStructType([_FLOAT] * 4), [_BITS] * 6 + [_FLOAT] * 4)
    names = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)
    made = builder.asm(kind, _MULTIPLY, names, [*factors, *totals], side_effect=True)
    return [builder.extract_value(made, k) for k in range(4)]
