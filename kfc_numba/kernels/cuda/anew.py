"""Numbers of a thread and of its block, asked for anew: no register keeps them through a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

_INT = ir.IntType(32)


def _anew(register: str) -> Callable:
    @intrinsic
    def read(typingctx):
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(_INT, [])
            # Volatile: else the compiler would take the number that it has from before.
            return builder.asm(kind, f"mov.u32 $0, %{register};", "=r", [], side_effect=True)

        return types.int32(), codegen

    return read


thread = _anew("tid.x")
block_x, block_y, block_z = (_anew(f"ctaid.{axis}") for axis in "xyz")
