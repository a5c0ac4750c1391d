"""Squares of numbers in registers, multiplied from both sides by a constant matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

from kfc_numba.kernels.cuda.vector import pointer

Matrix = tuple[tuple[float, ...], ...]


@functools.cache
def two_sided(matrix: Matrix, lanes: int) -> Callable:
    """``apply(values, results)``: M X M' for each lane, written out as additions.

    Both are arrays of registers, (lines, columns, lanes) flat; of the matrix, zeros cost nothing
    and ones no multiplication.
    """
    size = len(matrix[0])

    @intrinsic
    def apply(typingctx, values, results):
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = context.get_value_type(values.dtype)
            single = values.dtype == types.float32
            read, kept = (
                pointer(context, builder, register, arg)
                for register, arg in zip((values, results), args, strict=True)
            )

            def place(data: Any, i: int, j: int, across: int, lane: int) -> Any:
                index = (i * across + j) * lanes + lane
                return builder.gep(data, [ir.Constant(ir.IntType(64), index)])

            def combined(line: tuple[float, ...], terms: list) -> Any:
                total = None
                for factor, term in zip(line, terms, strict=True):
                    if factor == 0:
                        continue
                    if total is not None and abs(factor) == 1:
                        add = builder.fadd if factor > 0 else builder.fsub
                        total = add(total, term)
                        continue
                    if factor != 1:
                        constant = float(np.float32(factor)) if single else factor
                        term = builder.fmul(term, ir.Constant(kind, constant))
                    total = term if total is None else builder.fadd(total, term)
                return total

            for lane in range(lanes):
                columns = []
                for j in range(size):
                    terms = [builder.load(place(read, i, j, size, lane)) for i in range(size)]
                    columns.append([combined(line, terms) for line in matrix])
                for i in range(len(matrix)):
                    terms = [column[i] for column in columns]
                    for j, line in enumerate(matrix):
                        to = place(kept, i, j, len(matrix), lane)
                        builder.store(combined(line, terms), to)
            return context.get_dummy_value()

        return types.void(values, results), codegen

    return apply
