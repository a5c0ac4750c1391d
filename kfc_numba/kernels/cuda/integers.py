"""Whole numbers of 32 bits in device code, where Numba would compute with 64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

_WIDE = ir.IntType(64)


def divider(divisor: int) -> tuple[int, int]:
    """Factor and shift by which `divide` divides numbers from 0 to ``2^31 - 1``.

    With ``2^(s - 1) < divisor <= 2^s`` the factor is ``2^(31 + s) / divisor`` rounded up, which
    exceeds the ratio by less than ``divisor / 2^(31 + s)`` of it: too little to reach the next
    whole number. It has 32 bits, and is given as the int32 of the same bits.
    """
    shift = 31 + (divisor - 1).bit_length()
    factor = -(-(1 << shift) // divisor)
    return factor - (1 << 32) if factor >= 1 << 31 else factor, shift


@intrinsic
def divide(typingctx, number, factor, shift):
    """``number // divisor`` by a multiplication: int32, of what `divider` returned."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide, by, places = (builder.zext(arg, _WIDE) for arg in args)
        return builder.trunc(builder.lshr(builder.mul(wide, by), places), ir.IntType(32))

    return types.int32(types.int32, types.int32, types.int32), codegen


def _unsigned(operation: str) -> Callable:
    def typed(typingctx, a, b):
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, operation)(*args)

        return types.int32(types.int32, types.int32), codegen

    return intrinsic(typed)


#: ``a // b`` and ``a % b`` of int32 that are not negative.
div = _unsigned("udiv")
mod = _unsigned("urem")


@intrinsic
def within(typingctx, number, size):
    """``0 <= number < size`` by one comparison of int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.icmp_unsigned("<", *args)

    return types.boolean(types.int32, types.int32), codegen
