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

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from kfc_numba.kernels.cpu.jit import serial

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


def _host_features() -> set[str]:
    """Features of the processor that Numba compiles for."""
    chosen = config.CPU_FEATURES  # type: ignore[attr-defined]  # from the environment
    if chosen is not None:
        return {name[1:] for name in chosen.split(",") if name.startswith("+")}
    return {name for name, on in llvmlite.binding.get_host_cpu_features().items() if on}


#: Features of the processor, by their names in LLVM.
FEATURES = _host_features()
#: Bytes of a vector register: AVX-512, AVX, or SSE2 and NEON.
VECTOR_BYTES = 64 if "avx512f" in FEATURES else 32 if "avx" in FEATURES else 16
_REGISTERS = 32 if "avx512f" in FEATURES or "neon" in FEATURES else 16
_FUSED = "fma" in FEATURES or "neon" in FEATURES
#: Rows of a tile of two vectors: as many as leave registers for B and for the broadcast of A.
TILE_ROWS = 8 if _REGISTERS == 32 else 6

_FULL_2, _PART_2, _FULL_1, _PART_1 = range(4)


class _Emitter:
    """Emits the body of a tile with a given number of rows and vectors."""

    def __init__(self, builder: ir.IRBuilder, dtype: types.Float, arguments: dict[str, Any]):
        self.builder = builder
        self.scalar = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
        self.itemsize = dtype.bitwidth // 8
        self.lanes = VECTOR_BYTES // self.itemsize
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.arguments = arguments
        self.suffix = f"v{self.lanes}f{dtype.bitwidth}"

    def _intrinsic(self, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
        return cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(result, arguments), name
        )

    def _offset(self, pointer: ir.Value, *terms: Any) -> ir.Value:
        return self.builder.gep(pointer, [_sum(self.builder, terms)])

    def _mask(self, count: ir.Value) -> ir.Value:
        index = ir.VectorType(_I64, self.lanes)
        numbers = ir.Constant(index, list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self._splat(count, index))

    def _splat(self, value: ir.Value, vector: ir.VectorType) -> ir.Value:
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(_I32, 0))
        zeros = ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def _load(self, pointer: ir.Value, mask: ir.Value | None) -> ir.Value:
        address = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            value = self.builder.load(address)
            value.align = self.itemsize
            return value
        bits = ir.VectorType(_I1, self.lanes)
        function = self._intrinsic(
            f"llvm.masked.load.{self.suffix}.p0",
            self.vector,
            [self.vector.as_pointer(), _I32, bits, self.vector],
        )
        zero = ir.Constant(self.vector, [0.0] * self.lanes)
        align = ir.Constant(_I32, self.itemsize)
        return self.builder.call(function, [address, align, mask, zero])

    def _store(self, value: ir.Value, pointer: ir.Value, mask: ir.Value | None) -> None:
        address = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            self.builder.store(value, address).align = self.itemsize
            return
        bits = ir.VectorType(_I1, self.lanes)
        function = self._intrinsic(
            f"llvm.masked.store.{self.suffix}.p0",
            ir.VoidType(),
            [self.vector, self.vector.as_pointer(), _I32, bits],
        )
        align = ir.Constant(_I32, self.itemsize)
        self.builder.call(function, [value, address, align, mask])

    def _multiply_add(self, left: ir.Value, right: ir.Value, sum_: ir.Value) -> ir.Value:
        if not _FUSED:
            return self.builder.fadd(self.builder.fmul(left, right), sum_)
        function = self._intrinsic(f"llvm.fma.{self.suffix}", self.vector, [self.vector] * 3)
        return self.builder.call(function, [left, right, sum_])

    def _no_unrolling(self) -> ir.MDValue:
        """Loop metadata, which names itself first: a body is long enough, and compiles faster."""
        module = self.builder.module
        disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
        loop = module.add_metadata([ir.Constant(_I32, len(module.metadata)), disable])
        loop.operands = (loop, disable)
        return loop

    def body(self, rows: int, kind: int, done: ir.Block) -> None:
        """Emit, at the builder's place, a tile of `rows` rows, and branch to `done`."""
        builder, arg = self.builder, self.arguments
        vectors = 2 if kind in (_FULL_2, _PART_2) else 1
        masks: list[ir.Value | None] = [None] * vectors
        if kind in (_PART_2, _PART_1):
            rest = builder.sub(arg["lanes"], ir.Constant(_I64, (vectors - 1) * self.lanes))
            masks[-1] = self._mask(rest)
        block = [(x, f) for x in range(rows) for f in range(vectors)]
        zero = ir.Constant(self.vector, [0.0] * self.lanes)

        a_rows = [builder.mul(ir.Constant(_I64, x), arg["a_x"]) for x in range(rows)]
        entry = builder.block
        outer, inner, latch, end = (
            builder.append_basic_block(name) for name in ("outer", "inner", "latch", "end")
        )
        builder.branch(outer)

        builder.position_at_end(outer)
        i = builder.phi(_I64)
        i.add_incoming(ir.Constant(_I64, 0), entry)
        carried = [builder.phi(self.vector) for _ in block]
        for phi in carried:
            phi.add_incoming(zero, entry)
        a_outer = self._offset(arg["a"], builder.mul(i, arg["a_i"]))
        b_outer = self._offset(arg["b"], builder.mul(i, arg["b_i"]))
        builder.branch(inner)

        builder.position_at_end(inner)
        j = builder.phi(_I64)
        j.add_incoming(ir.Constant(_I64, 0), outer)
        sums = [builder.phi(self.vector) for _ in block]
        for phi, value in zip(sums, carried, strict=True):
            phi.add_incoming(value, outer)
        a_inner = self._offset(a_outer, builder.mul(j, arg["a_j"]))
        b_inner = self._offset(b_outer, builder.mul(j, arg["b_j"]))
        right = [
            self._load(self._offset(b_inner, f * self.lanes), masks[f]) for f in range(vectors)
        ]
        left: list[ir.Value] = []
        results = []
        for (x, f), sum_ in zip(block, sums, strict=True):
            if f == 0:
                left.append(
                    self._splat(builder.load(self._offset(a_inner, a_rows[x])), self.vector)
                )
            results.append(self._multiply_add(left[x], right[f], sum_))
        next_j = builder.add(j, ir.Constant(_I64, 1))
        j.add_incoming(next_j, inner)
        for phi, value in zip(sums, results, strict=True):
            phi.add_incoming(value, inner)
        again = builder.cbranch(builder.icmp_signed("<", next_j, arg["columns"]), inner, latch)
        again.set_metadata("llvm.loop", self._no_unrolling())

        builder.position_at_end(latch)
        next_i = builder.add(i, ir.Constant(_I64, 1))
        i.add_incoming(next_i, latch)
        for phi, value in zip(carried, results, strict=True):
            phi.add_incoming(value, latch)
        again = builder.cbranch(builder.icmp_signed("<", next_i, arg["rows"]), outer, end)
        again.set_metadata("llvm.loop", self._no_unrolling())

        builder.position_at_end(end)
        for (x, f), value in zip(block, results, strict=True):
            place = ir.Constant(_I64, f * self.lanes)
            row = ir.Constant(_I64, x)
            start = self._offset(arg["start"], builder.mul(row, arg["start_x"]), place)
            target = self._offset(arg["c"], builder.mul(row, arg["c_x"]), place)
            total = builder.fadd(value, self._load(start, masks[f]))
            self._store(total, target, masks[f])
        builder.branch(done)


def _sum(builder: ir.IRBuilder, terms: Any) -> ir.Value:
    values = [ir.Constant(_I64, t) if isinstance(t, int) else t for t in terms]
    total = values[0]
    for value in values[1:]:
        total = builder.add(total, value)
    return total


_NAMES = (
    *("a", "a_at", "a_x", "a_i", "a_j"),
    *("b", "b_at", "b_i", "b_j"),
    *("start", "start_at", "start_x"),
    *("c", "c_at", "c_x"),
    *("rows", "columns", "height", "lanes", "case"),
)
_ARRAYS = ("a", "b", "start", "c")


@intrinsic
def _tile_ir(typingctx, *arguments):
    """Bodies for all heights and lane counts behind one switch; see `tile` for the arguments."""
    kinds = dict(zip(_NAMES, arguments, strict=True))
    dtype = kinds["a"].dtype
    signature = types.void(types.StarArgTuple(tuple(kinds.values())))

    def codegen(context, builder, signature, args):
        values = dict(zip(_NAMES, cgutils.unpack_tuple(builder, args[0]), strict=True))
        for name in _ARRAYS:
            array = cgutils.create_struct_proxy(kinds[name])(context, builder, values[name])
            values[name] = builder.gep(array.data, [values[name + "_at"]])
        emitter = _Emitter(builder, dtype, values)
        done = builder.append_basic_block("done")
        switch = builder.switch(values["case"], done)
        for height in range(1, TILE_ROWS + 1):
            for kind in range(4):
                block = builder.append_basic_block(f"tile{height}x{kind}")
                switch.add_case(ir.Constant(_I64, 4 * height + kind), block)
                builder.position_at_end(block)
                emitter.body(height, kind, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


@serial
def _compiled_tile(
    a, a_at, a_x, a_i, a_j,
    b, b_at, b_i, b_j,
    start, start_at, start_x,
    c, c_at, c_x,
    rows, columns, height, lanes,
):  # fmt: skip
    vector = VECTOR_BYTES // a.itemsize
    if lanes == 2 * vector:
        kind = _FULL_2
    elif lanes > vector:
        kind = _PART_2
    elif lanes == vector:
        kind = _FULL_1
    else:
        kind = _PART_1
    _tile_ir(
        a, a_at, a_x, a_i, a_j, b, b_at, b_i, b_j, start, start_at, start_x, c, c_at, c_x,
        rows, columns, height, lanes, 4 * height + kind,
    )  # fmt: skip


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
# `*_j` its strides in elements; rows, columns >= 1; 1 <= height <= TILE_ROWS; 1 <= lanes <= two
# vectors. Lanes beyond `lanes` are neither read nor written. `start` may be `c` itself, to add to
# it, or a zero or bias vector with start_x = 0. A literal number among the arguments makes Numba
# compile a version of its own (two seconds for each kernel that calls it): only `a_x` is one, where
# it is 1, for that gives better addresses.
tile = _plain_tile if config.DISABLE_JIT else _compiled_tile  # type: ignore[attr-defined]
