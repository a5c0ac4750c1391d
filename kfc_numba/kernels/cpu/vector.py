"""Vector instructions of the processor, written as LLVM IR: what the primitives are built from.

LLVM does not keep blocks of accumulators in registers, nor vectorise loops over many rows whose
distances it does not know, when they are written as Numba loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

I1, I8, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))


def _host_features() -> set[str]:
    """Features of the processor that Numba compiles for."""
    chosen = config.CPU_FEATURES  # type: ignore[attr-defined]  # from the environment
    if chosen is not None:
        return {name[1:] for name in chosen.split(",") if name.startswith("+")}
    return {name for name, on in llvmlite.binding.get_host_cpu_features().items() if on}


class Processor(NamedTuple):
    """What the code for a processor depends on."""

    vector_bytes: int
    registers: int
    #: Whether it multiplies and adds with one rounding.
    fused: bool


def processor_with(features: Set[str]) -> Processor:
    """The processor with these features, by their names in LLVM."""
    vector_bytes = 16  # SSE2 and NEON
    if "avx512f" in features:
        vector_bytes = 64
    elif "avx" in features:
        vector_bytes = 32
    many = bool(features & {"avx512f", "neon"})
    return Processor(vector_bytes, 32 if many else 16, bool(features & {"fma", "neon"}))


#: Features of the processor that code is run on, by their names in LLVM.
FEATURES = _host_features()
HOST = processor_with(FEATURES)
#: Bytes of its vector registers.
VECTOR_BYTES = HOST.vector_bytes


def sum_of(builder: ir.IRBuilder, *terms: Any) -> ir.Value:
    """Sum of 64-bit integers, each a value or a Python number."""
    values = [ir.Constant(I64, t) if isinstance(t, int) else t for t in terms]
    total = values[0]
    for value in values[1:]:
        total = builder.add(total, value)
    return total


class Vectors:
    """Emits operations on vectors of one dtype, for one processor, at the place of a builder.

    `arguments` are values by name, arrays as the addresses of their first elements.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        dtype: types.Float,
        arguments: dict[str, Any],
        processor: Processor = HOST,
    ):
        self.builder = builder
        self.arguments = arguments
        self.processor = processor
        self.scalar = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
        self.itemsize = dtype.bitwidth // 8
        self.lanes = processor.vector_bytes // self.itemsize
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self._suffix = f"v{self.lanes}f{dtype.bitwidth}"

    def _intrinsic(self, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
        return cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(result, arguments), name
        )

    def offset(self, pointer: ir.Value, *terms: Any) -> ir.Value:
        return self.builder.gep(pointer, [sum_of(self.builder, *terms)])

    def mask(self, count: ir.Value) -> ir.Value:
        """The first `count` lanes."""
        # Numbers as wide as the lanes, and their signs, which SSE2 has for all widths: another mask
        # is made anew where it is used, and takes registers from the accumulators.
        width = ir.IntType(8 * self.itemsize)
        index = ir.VectorType(width, self.lanes)
        numbers = ir.Constant(index, list(range(self.lanes)))
        if width != I64:
            count = self.builder.trunc(count, width)
        less = self.builder.sub(numbers, self.splat(count, index))
        return self.builder.icmp_signed("<", less, ir.Constant(index, [0] * self.lanes))

    def splat(self, value: ir.Value, vector: ir.VectorType | None = None) -> ir.Value:
        """A vector with the value in every lane."""
        undefined = ir.Constant(vector or self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def load(self, pointer: ir.Value, mask: ir.Value | None) -> ir.Value:
        """The vector at a place that need not be aligned; zeros in lanes outside a mask."""
        address = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            value = self.builder.load(address)
            value.align = self.itemsize
            return value
        bits = ir.VectorType(I1, self.lanes)
        function = self._intrinsic(
            f"llvm.masked.load.{self._suffix}.p0",
            self.vector,
            [self.vector.as_pointer(), I32, bits, self.vector],
        )
        align = ir.Constant(I32, self.itemsize)
        return self.builder.call(function, [address, align, mask, self.zero])

    def store(self, value: ir.Value, pointer: ir.Value, mask: ir.Value | None) -> None:
        """Store a vector, of numbers or of integers, or its lanes inside a mask."""
        kind, scalar = value.type, value.type.element
        address = self.builder.bitcast(pointer, kind.as_pointer())
        size = scalar.width // 8 if isinstance(scalar, ir.IntType) else self.itemsize
        if mask is None:
            self.builder.store(value, address).align = size
            return
        letter = "i" if isinstance(scalar, ir.IntType) else "f"
        function = self._intrinsic(
            f"llvm.masked.store.v{self.lanes}{letter}{8 * size}.p0",
            ir.VoidType(),
            [kind, kind.as_pointer(), I32, ir.VectorType(I1, self.lanes)],
        )
        self.builder.call(function, [value, address, ir.Constant(I32, size), mask])

    def multiply_add(self, left: ir.Value, right: ir.Value, sum_: ir.Value) -> ir.Value:
        """``left * right + sum_``, rounded once where the processor can."""
        if not self.processor.fused:
            return self.builder.fadd(self.builder.fmul(left, right), sum_)
        function = self._intrinsic(f"llvm.fma.{self._suffix}", self.vector, [self.vector] * 3)
        return self.builder.call(function, [left, right, sum_])

    def no_unrolling(self) -> ir.MDValue:
        """Loop metadata, which names itself first: a body is long enough, and compiles faster."""
        module = self.builder.module
        disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
        loop = module.add_metadata([ir.Constant(I32, len(module.metadata)), disable])
        loop.operands = (loop, disable)
        return loop

    def loop(self, stop: ir.Value, step: int = 1, start: ir.Value | None = None) -> Any:
        """A counted loop for a `with` statement that emits its body and is given its index."""
        return _Loop(self, ir.Constant(I64, 0) if start is None else start, stop, step)

    def each(self, count: ir.Value, emit: Callable[[ir.Value, ir.Value | None], None]) -> None:
        """Emit ``emit(v, mask)`` for the full vectors of `count` numbers, and for the last few."""
        full = self.builder.and_(count, ir.Constant(I64, -self.lanes))
        rest = self.builder.sub(count, full)
        with self.loop(full, self.lanes) as v:
            emit(v, None)
        with self.builder.if_then(self.builder.icmp_signed(">", rest, ir.Constant(I64, 0))):
            emit(full, self.mask(rest))

    def switch(self, case: ir.Value, bodies: Mapping[int, Callable[[], None]]) -> None:
        """Emit bodies of which the one with the number `case` is run."""
        done = self.builder.append_basic_block("done")
        switch = self.builder.switch(case, done)
        for number, emit in bodies.items():
            block = self.builder.append_basic_block(f"case{number}")
            switch.add_case(ir.Constant(I64, number), block)
            self.builder.position_at_end(block)
            emit()
            self.builder.branch(done)
        self.builder.position_at_end(done)


def vector_code(
    emitter: type[Vectors],
    names: Sequence[str],
    places: Mapping[str, str],
    emit: Callable[[Any, Mapping[str, types.Type]], None],
) -> Callable:
    """An intrinsic of arguments called `names`, whose code ``emit(emitter, types)`` writes.

    `places` names the arrays, flat and contiguous, each with the argument that is the index of its
    first element; the first array has the dtype of the vectors.
    """

    @intrinsic
    def function(typingctx, *arguments):
        kinds = dict(zip(names, arguments, strict=True))

        def codegen(context, builder, signature, args):
            values = dict(zip(names, cgutils.unpack_tuple(builder, args[0]), strict=True))
            for name, place in places.items():
                array = cgutils.create_struct_proxy(kinds[name])(context, builder, values[name])
                values[name] = builder.gep(array.data, [values[place]])
            emit(emitter(builder, kinds[next(iter(places))].dtype, values), kinds)
            return context.get_dummy_value()

        return types.void(types.StarArgTuple(tuple(kinds.values()))), codegen

    return function


class _Loop:
    def __init__(self, emitter: Vectors, start: ir.Value, stop: ir.Value, step: int):
        self.emitter, self.start, self.stop, self.step = emitter, start, stop, step

    def __enter__(self) -> ir.Value:
        builder = self.emitter.builder
        before = builder.block
        self.head, self.body, self.end = (
            builder.append_basic_block(name) for name in ("head", "body", "end")
        )
        builder.branch(self.head)
        builder.position_at_end(self.head)
        self.index = builder.phi(I64)
        self.index.add_incoming(self.start, before)
        builder.cbranch(builder.icmp_signed("<", self.index, self.stop), self.body, self.end)
        builder.position_at_end(self.body)
        return self.index

    def __exit__(self, *exception: object) -> None:
        builder = self.emitter.builder
        following = sum_of(builder, self.index, self.step)
        self.index.add_incoming(following, builder.block)
        builder.branch(self.head).set_metadata("llvm.loop", self.emitter.no_unrolling())
        builder.position_at_end(self.end)
