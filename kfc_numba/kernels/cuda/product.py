"""How a block of threads sums products: C[i, j] = sum over terms k of A[k, i] * B[k, j].

Both operands pass through shared memory, `Tile.depth` terms at a time. There is room for two times
that much: the next terms are read into registers before the present ones are multiplied, and
written to shared memory after; or they are copied there meanwhile, where a card can do that and
they lie in memory as they are multiplied. Each thread keeps its results in registers, in chunks of
as many as are moved at once; chunks of neighbouring threads lie side by side, so that what a warp
reads of shared memory is contiguous or the same. Tensor cores take other chunks:
`tensor_cores.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import cuda, int32, types
from numba.cuda.extending import intrinsic
from numba.np import numpy_support

from kfc_numba.kernels.cuda import launch, tensor_cores
from kfc_numba.kernels.cuda.integers import div, mod
from kfc_numba.kernels.cuda.launch import inlined
from kfc_numba.kernels.cuda.tiles import Tile
from kfc_numba.kernels.cuda.vector import (
    copies_arrived,
    guarded_copy,
    guarded_read,
    lanes,
    pointer,
    pointer_into,
    wide_store,
    written_out,
)

_WARP = 32
_ALIGNMENT = 16  # bytes that are moved at once
#: The compute capability from which on cards copy while they compute.
COPYING = (8, 0)


class Reading(NamedTuple):
    """How the threads of a block share out the numbers of an operand for `depth` terms."""

    along_terms: bool  # whether numbers side by side in memory are terms of one row
    chunk: int  # numbers that a thread reads at once
    across: int  # threads side by side
    step: int  # lines from one chunk of a thread to its next
    loads: int  # chunks of a thread
    partial: bool  # whether some threads have nothing to read
    depth: int

    @classmethod
    def of(cls, size: int, tile: Tile, chunk: int, along_terms: bool) -> Reading:
        """For an operand with `size` rows or columns in a block."""
        depth, threads = tile.depth, tile.threads
        if tile.tensor and not along_terms:  # a thread has both terms of a pair
            chunk = min(chunk, size * depth // (2 * threads))
        across = (depth if along_terms else size) // chunk
        chunks = size * depth // chunk
        loads = -(-chunks // threads)
        partial = loads * threads > chunks
        return cls(along_terms, chunk, across, threads // across, loads, partial, depth)


class Operand(NamedTuple):
    """Where the numbers of one operand come from."""

    reading: Reading
    #: Function of device code (where to, state, first term): moves what the thread has to.
    read: Any


def moving(reading: Reading, size: int, dtype: np.dtype, copied: bool) -> tuple[Callable, int]:
    """How a thread moves a chunk of `size` rows or columns, and numbers from one to its next.

    The first has the arguments of `vector.guarded_read`.
    """
    if copied:
        return guarded_copy(reading.chunk), reading.step * _pitch(size, dtype)
    return guarded_read(reading.chunk), reading.chunk


def copies() -> bool:
    """Whether the card copies from its memory to shared memory while it computes."""
    return launch.capability() >= COPYING


def number_type(dtype: np.dtype) -> Any:
    """Numba's type of the numbers of a dtype."""
    return numpy_support.from_dtype(dtype)


def row_chunk(tile: Tile, dtype: np.dtype) -> int:
    """Rows of a thread that lie side by side."""
    return tensor_cores.ROWS if tile.tensor else lanes(dtype)


def thread_places(tile: Tile, dtype: np.dtype) -> tuple[Callable, Callable]:
    """Functions of device code: first row, and first column, of a thread's results in the tile."""
    rows, chunk = row_chunk(tile, dtype), lanes(dtype)
    across = tile.columns // tile.thread_columns
    # A warp is about as wide as high, so that it reads the least of shared memory.
    width = 4 if tile.tensor else min(8, across)
    height, warps, warp = _WARP // width, across // width, _WARP

    @inlined
    def row(thread):
        return int32((div(mod(thread, warp), width) + div(thread, warp * warps) * height) * rows)

    @inlined
    def column(thread):
        return int32((mod(thread, width) + mod(div(thread, warp), warps) * width) * chunk)

    return row, column


def summation(
    tile: Tile, dtype: np.dtype, left: Operand, right: Operand, copied: bool = False
) -> Callable:
    """Function of device code (sums, left state, right state, first term, end of the terms).

    It adds to the array of registers `sums`, of a thread's rows and columns. Terms are read up to
    the next multiple of `Tile.step` and beyond: operands give zeros for those that do not exist.
    """
    number = number_type(dtype)
    depth, step = tile.depth, tile.step
    if tile.tensor:
        row_of, column_of = tensor_cores.fragment_places(tile)
        multiply = tensor_cores.multiplication(tile)
        left_size, right_size = (tensor_cores.room(n, tile) for n in (tile.rows, tile.columns))
        keep_left = tensor_cores.keeping(left.reading, tile.rows, tile, True)
        keep_right = tensor_cores.keeping(right.reading, tile.columns, tile, False)
    else:
        row_of, column_of = thread_places(tile, dtype)
        multiply = _multiply(tile, dtype)
        left_size, right_size = (depth * _pitch(n, dtype) for n in (tile.rows, tile.columns))
        keep_left = _keep(left.reading, tile.rows, dtype)
        keep_right = _keep(right.reading, tile.columns, dtype)
    left_room, right_room = 2 * left_size, 2 * right_size
    left_count, right_count = (o.reading.loads * o.reading.chunk for o in (left, right))
    if copied:
        left_count = right_count = 1  # nothing passes through registers
    begin_left, end_left = _passing(left, keep_left, tile.rows, dtype, copied)
    begin_right, end_right = _passing(right, keep_right, tile.columns, dtype, copied)

    @inlined
    def sum_products(sums, left_state, right_state, first, end):
        left_tile = cuda.shared.array(left_room, number, _ALIGNMENT)
        right_tile = cuda.shared.array(right_room, number, _ALIGNMENT)
        left_registers = cuda.local.array(left_count, number)
        right_registers = cuda.local.array(right_count, number)
        thread = int32(cuda.threadIdx.x)
        row, column = row_of(thread), column_of(thread)
        begin_left(left_registers, left_tile, int32(0), thread, left_state, first)
        begin_right(right_registers, right_tile, int32(0), thread, right_state, first)
        end_left(left_registers, left_tile, int32(0), thread)
        end_right(right_registers, right_tile, int32(0), thread)
        if copied:
            copies_arrived()
        cuda.syncthreads()
        for term in range(first, end, int32(step)):
            then, half, place = int32(term + depth), int32(left_size), int32(right_size)
            begin_left(left_registers, left_tile, half, thread, left_state, then)
            begin_right(right_registers, right_tile, place, thread, right_state, then)
            multiply(sums, left_tile, row, right_tile, column)
            end_left(left_registers, left_tile, half, thread)
            end_right(right_registers, right_tile, place, thread)
            if copied:
                copies_arrived()
            cuda.syncthreads()
            then = int32(term + 2 * depth)
            begin_left(left_registers, left_tile, int32(0), thread, left_state, then)
            begin_right(right_registers, right_tile, int32(0), thread, right_state, then)
            multiply(sums, left_tile, left_size + row, right_tile, right_size + column)
            end_left(left_registers, left_tile, int32(0), thread)
            end_right(right_registers, right_tile, int32(0), thread)
            if copied:
                copies_arrived()
            cuda.syncthreads()

    return sum_products


def row_writing(tile: Tile, dtype: np.dtype, wide: bool, accumulate: bool) -> Callable:
    """Function of device code that writes what a thread has of one row.

    Its arguments are (sums, the first one of the row, target, place of the row in the target, first
    column, channel of column 0, columns that exist). If not `wide`, numbers are written one by one.
    """
    chunk = lanes(dtype)
    store = wide_store(chunk)
    column_step = tile.columns * chunk // tile.thread_columns

    @written_out(chunk)
    def add(e, sums, k, target, place, some):
        if e < some:
            sums[k + e] += target[place + e]

    @written_out(chunk)
    def put(e, sums, k, target, place, some):
        if e < some:
            target[place + e] = sums[k + e]

    @written_out(tile.thread_columns // chunk)
    def write_row(j, sums, k, target, place, column, channel, columns):
        k += j * chunk
        column += j * column_step
        some = columns - column
        if some > 0:
            place += channel + column
            if accumulate:
                add(sums, k, target, place, some)
            if wide:
                store(target, place, sums, k)
            else:
                put(sums, k, target, place, some)

    return write_row


def _pitch(size: int, dtype: np.dtype) -> int:
    """Numbers from a term to the next in shared memory.

    Padded by one chunk: terms that are written from registers fall into different banks.
    """
    return size + lanes(dtype)


def _passing(
    operand: Operand, keep: Callable, size: int, dtype: np.dtype, copied: bool
) -> tuple[Callable, Callable]:
    """Functions of device code that begin to bring an operand's terms, and that end it.

    Between them is time to compute. Arguments are (registers, shared memory, its first place,
    thread), and of the first (state, first term) besides.
    """
    read, reading, pitch = operand.read, operand.reading, _pitch(size, dtype)
    across, chunk, partial, depth = reading.across, reading.chunk, reading.partial, reading.depth

    @inlined
    def read_terms(registers, shared, place, thread, state, term):
        read(registers, state, term)

    @inlined
    def copy_terms(registers, shared, place, thread, state, term):
        line = div(thread, across)
        if not partial or line < depth:
            place += line * pitch + mod(thread, across) * chunk
            read(pointer_into(shared, place), state, term)

    @inlined
    def nothing(registers, shared, place, thread):
        pass

    return (copy_terms, nothing) if copied else (read_terms, keep)


def _keep(reading: Reading, size: int, dtype: np.dtype) -> Callable:
    """Function of device code (registers, shared memory, its first place, thread)."""
    _, chunk, across, step, loads, partial, depth = reading
    pitch = _pitch(size, dtype)
    limit = size if reading.along_terms else depth
    # An index of Numba's may be negative, which takes instructions; these places are not.
    store, store_one = wide_store(chunk), wide_store(1)

    @written_out(loads)
    def keep_rows(i, registers, shared, place, beside, line):
        store(shared, place + (line + i * step) * pitch + beside * chunk, registers, i * chunk)

    @written_out(loads * chunk)
    def keep_columns(k, registers, shared, place, beside, line):
        i, j = k // chunk, k % chunk
        store_one(shared, place + (beside * chunk + j) * pitch + line + i * step, registers, k)

    keep_chunks = keep_columns if reading.along_terms else keep_rows

    @inlined
    def keep(registers, shared, place, thread):
        line = div(thread, across)
        if not partial or line < limit:
            keep_chunks(registers, shared, place, mod(thread, across), line)

    return keep


def _multiply(tile: Tile, dtype: np.dtype) -> Callable:
    """``sums[i, j] += a[k, i] * b[k, j]`` for `tile.depth` terms k, written out."""
    chunk = lanes(dtype)
    number = number_type(dtype)
    row_step = tile.rows * chunk // tile.thread_rows
    column_step = tile.columns * chunk // tile.thread_columns

    @intrinsic
    def multiply(typingctx, sums, a, a_place, b, b_place):
        signature = types.void(sums, a, types.int64, b, types.int64)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(context.get_value_type(number), chunk).as_pointer()

            def index(k: int) -> Any:
                return ir.Constant(ir.IntType(64), k)

            def read(data: Any, first: Any, places: list[int]) -> list:
                values: list[Any] = []
                for place in places:
                    at = builder.gep(data, [builder.add(first, index(place))])
                    loaded = builder.load(builder.bitcast(at, vector))
                    loaded.align = chunk * number.bitwidth // 8
                    values += [builder.extract_element(loaded, index(j)) for j in range(chunk)]
                return values

            kinds = signature.args
            data, left, right = (pointer(context, builder, kinds[i], args[i]) for i in (0, 1, 3))
            count = tile.thread_rows * tile.thread_columns
            kept = [builder.gep(data, [index(i)]) for i in range(count)]
            totals = [builder.load(place) for place in kept]
            for k in range(tile.depth):
                line = k * _pitch(tile.rows, dtype)
                rows = range(0, tile.rows, row_step)
                a_values = read(left, args[2], [line + i for i in rows])
                line = k * _pitch(tile.columns, dtype)
                columns = range(0, tile.columns, column_step)
                b_values = read(right, args[4], [line + j for j in columns])
                products = (builder.fmul(x, y) for x in a_values for y in b_values)
                totals = [builder.fadd(*pair) for pair in zip(totals, products, strict=True)]
            for total, place in zip(totals, kept, strict=True):
                builder.store(total, place)
            return context.get_dummy_value()

        return signature, codegen

    return multiply
