"""Numbers that are moved 128 bits at once, and loops over registers that are written out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

from kfc_numba.kernels.cuda.launch import inlined

_BYTES = 16


def lanes(dtype: Any) -> int:
    """How many numbers are moved at once."""
    return _BYTES // np.dtype(dtype).itemsize


def aligned(*arrays: Any) -> bool:
    """Whether the first numbers of all arrays lie where they can be moved at once."""
    for array in arrays:  # noqa: SIM110 - a generator takes as long as all else
        if array.data.ptr % _BYTES:
            return False
    return True


def pointer(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """LLVM's pointer to the numbers of an array in shared or local memory, or of a pointer."""
    return context.make_array(kind)(context, builder, value).data if _is_array(kind) else value


def _is_array(kind: Any) -> bool:
    return isinstance(kind, types.Array)


@intrinsic
def moved(typingctx, array, places):
    """A pointer to what lies some places further on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # In bytes: LLVM would add equal units of this distance and of a later one in every loop.
        size = ir.Constant(ir.IntType(64), array.dtype.bitwidth // 8)
        start = builder.bitcast(args[0], ir.IntType(8).as_pointer())
        place = builder.gep(start, [builder.mul(args[1], size)])
        return builder.bitcast(place, args[0].type)

    return array(array, types.int64), codegen


@functools.cache
def guarded_read(count: int) -> Callable:
    """``read(registers, first, array, place, some)``: `count` numbers of an array, or zeros.

    The place is a multiple of `count`, and looked at only where `some` holds; `first`, in the
    registers, is a constant.
    """

    @intrinsic
    def read(typingctx, registers, first, array, place, some):
        signature = types.void(registers, types.int64, array, types.int64, types.boolean)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            number = context.get_value_type(array.dtype)
            kept = pointer(context, builder, registers, args[0])
            to = [
                builder.gep(kept, [builder.add(args[1], ir.Constant(ir.IntType(64), k))])
                for k in range(count)
            ]
            for place in to:
                builder.store(ir.Constant(number, 0), place)
            with builder.if_then(context.cast(builder, args[4], types.boolean, types.boolean)):
                at = builder.gep(pointer(context, builder, array, args[2]), [args[3]])
                vector = ir.VectorType(number, count)
                loaded = builder.load(builder.bitcast(at, vector.as_pointer()))
                loaded.align = count * array.dtype.bitwidth // 8
                for k, place in enumerate(to):
                    index = ir.Constant(ir.IntType(32), k)
                    builder.store(builder.extract_element(loaded, index), place)
            return context.get_dummy_value()

        return signature, codegen

    return read


@functools.cache
def guarded_copy(count: int) -> Callable:
    """``copy(to, first, array, place, some)``: `guarded_read` to a place in shared memory.

    The 16 bytes arrive while the thread goes on: none has them before `copies_arrived`, and others
    not before a barrier behind it. Needs compute capability 8.0.
    """

    @intrinsic
    def copy(typingctx, to, first, array, place, some):
        signature = types.void(to, types.int64, array, types.int64, types.boolean)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def address(array: Any, place: Any, space: int) -> Any:
                at = builder.gep(array, [place])
                kind = ir.PointerType(at.type.pointee, space)
                return builder.ptrtoint(builder.addrspacecast(at, kind), ir.IntType(64))

            word, size = ir.IntType(32), count * array.dtype.bitwidth // 8
            some = context.cast(builder, args[4], types.boolean, types.boolean)
            copied = builder.select(some, ir.Constant(word, size), ir.Constant(word, 0))
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64), ir.IntType(64), word])
            text = f"cp.async.ca.shared.global [$0], [$1], {size}, $2;"
            places = address(args[0], args[1], 3), address(args[2], args[3], 1)
            builder.asm(kind, text, "l,l,r", [*places, copied], side_effect=True)
            return context.get_dummy_value()

        return signature, codegen

    return copy


@intrinsic
def copies_arrived(typingctx):
    """Wait for all copies that the thread began."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.asm(kind, "cp.async.wait_all;", "~{memory}", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def pointer_into(typingctx, array, place):
    """A pointer to one of the numbers of an array in shared memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(pointer(context, builder, array, args[0]), [args[1]])

    return types.CPointer(array.dtype)(array, types.int64), codegen


@functools.cache
def wide_store(count: int) -> Callable:
    """``store(array, place, registers, first)``: `count` numbers of an array of registers.

    The place is a multiple of `count`; `first`, in the registers, a constant.
    """

    @intrinsic
    def store(typingctx, array, place, registers, first):
        signature = types.void(array, types.int64, registers, types.int64)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            number = context.get_value_type(array.dtype)
            at = builder.gep(pointer(context, builder, array, args[0]), [args[1]])
            kept = pointer(context, builder, registers, args[2])
            vector = ir.VectorType(number, count)
            values = ir.Constant(vector, ir.Undefined)
            for k in range(count):
                index = builder.add(args[3], ir.Constant(ir.IntType(64), k))
                value = builder.load(builder.gep(kept, [index]))
                values = builder.insert_element(values, value, ir.Constant(ir.IntType(32), k))
            stored = builder.store(values, builder.bitcast(at, vector.as_pointer()))
            stored.align = count * array.dtype.bitwidth // 8
            return context.get_dummy_value()

        return signature, codegen

    return store


@functools.cache
def clearing(count: int) -> Callable:
    """``clear(registers)``: makes `count` numbers zero."""

    @intrinsic
    def clear(typingctx, registers):
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kept = pointer(context, builder, registers, args[0])
            zero = ir.Constant(context.get_value_type(registers.dtype), 0)
            for k in range(count):
                builder.store(zero, builder.gep(kept, [ir.Constant(ir.IntType(64), k)]))
            return context.get_dummy_value()

        return types.void(registers), codegen

    return clear


def written_out(count: int) -> Callable[[Callable], Callable]:
    """Decorator: ``f(*arguments)`` calls the function with 0, 1, ... count - 1 before them.

    An array of registers must be indexed by constants, or it becomes memory. Whether a compiler
    unrolls a loop is its own affair, so the loops over registers are written out here.
    """

    def decorate(function: Callable) -> Callable:
        body = inlined(function)

        def repeated(typingctx, *arguments):
            index = types.int64
            kind = typingctx.resolve_value_type(body)
            called = kind.get_call_type(typingctx, (index, *arguments), {})

            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                call = context.get_function(kind, called)
                for i in range(count):
                    call(builder, [context.get_constant(index, i), *args])
                return context.get_dummy_value()

            return types.void(*arguments), codegen

        # Numba looks up how many arguments there are.
        (_, *named) = inspect.signature(function).parameters.values()
        context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        repeated.__signature__ = inspect.Signature([context, *named])  # type: ignore[attr-defined]
        return intrinsic(repeated)

    return decorate
