"""Linear combinations of rows with the coefficients of a small constant matrix.

    target[k, x, v] = sum_q matrix[k, q] * source[q, x, v]      (+ start[v])

over rows `q` and `k`, positions x < height and contiguous lanes v < lanes. The matrix is part of
the code: zeros cost nothing, and a row that was loaded serves all results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from llvmlite import ir
from numba.core import config

from kfc_numba.kernels.cpu.jit import made
from kfc_numba.kernels.cpu.vector import I1, I64, Vectors, vector_code

Matrix = Sequence[Sequence[float]]

_NAMES = (
    *("source", "source_at", "source_q", "source_x", "first", "stop"),
    *("start", "start_at"),
    *("target", "target_at", "target_k", "target_x", "count"),
    *("height", "lanes", "case"),
)
_PLACES = {name: f"{name}_at" for name in ("source", "start", "target")}


class _Emitter(Vectors):
    """Emits the loops over positions and lanes for one matrix."""

    def body(self, matrix: Matrix, add_start: bool) -> None:
        """The combinations by `matrix`."""
        builder, arg = self.builder, self.arguments
        # Rows outside the image, or not wanted, have the address of a neighbour: its value is
        # replaced by zeros, or written over by the neighbour's, which is stored after.
        last_source = builder.sub(arg["stop"], ir.Constant(I64, 1))
        last_target = builder.sub(arg["count"], ir.Constant(I64, 1))
        bits = ir.VectorType(I1, self.lanes)
        sources, inside = [], []
        for q in range(len(matrix[0])):
            number = ir.Constant(I64, q)
            place = self._least(self._most(number, arg["first"]), last_source)
            sources.append(builder.mul(place, arg["source_q"]))
            inside.append(self.splat(builder.icmp_signed("==", place, number), bits))
        targets = [
            builder.mul(self._least(ir.Constant(I64, k), last_target), arg["target_k"])
            for k in range(len(matrix))
        ]

        def at(v: ir.Value, mask: ir.Value | None) -> None:
            start = self.load(self.offset(arg["start"], v), mask) if add_start else None
            rows = [
                builder.select(within, self.load(self.offset(arg["source"], x_in, q, v), mask),
                               self.zero)
                for q, within in zip(sources, inside, strict=True)
            ]  # fmt: skip
            results = [self._combination(line, rows, start) for line in matrix]
            for target, value in reversed([*zip(targets, results, strict=True)]):
                self.store(value, self.offset(arg["target"], x_out, target, v), mask)

        with self.loop(arg["height"]) as x:
            x_in, x_out = (builder.mul(x, arg[name]) for name in ("source_x", "target_x"))
            self.each(arg["lanes"], at)

    def _combination(
        self, line: Sequence[float], rows: list[ir.Value], start: ir.Value | None
    ) -> ir.Value:
        total = None
        for coefficient, row in zip(line, rows, strict=True):
            if coefficient == 0:
                continue
            if total is None and coefficient == 1:
                total = row
            elif total is None:
                total = self.builder.fmul(self._constant(coefficient), row)
            elif abs(coefficient) == 1:
                operation = self.builder.fadd if coefficient > 0 else self.builder.fsub
                total = operation(total, row)
            else:
                total = self.multiply_add(self._constant(coefficient), row, total)
        return total if start is None else self.builder.fadd(total, start)

    def _constant(self, value: float) -> ir.Constant:
        return ir.Constant(self.vector, [float(value)] * self.lanes)

    def _least(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def _most(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.select(self.builder.icmp_signed("<", a, b), b, a)


def combination(matrices: Sequence[Matrix], *, start: bool = False) -> Callable:
    """A compiled function, for kernels, that combines rows by one of some matrices.

    Its arguments are::

        (source, source_at, source_q, source_x, first, stop, start, start_at,
         target, target_at, target_k, target_x, count, height, lanes, case)

    with flat contiguous arrays, `*_at` the index of the first element, `*_q`, `*_k` and `*_x`
    strides in elements. Rows of the source outside first <= q < stop are taken as zeros and not
    read; rows k >= count of the result are not written (at least one row is in either range).
    `case` is the number of the matrix.

    Parameters
    ----------
    matrices : sequence of matrices
    start : bool
        Whether the `lanes` numbers at ``start[start_at]`` are added to each result.

    Returns
    -------
    callable
    """

    def emit(emitter: _Emitter, kinds: object) -> None:
        bodies = {
            case: functools.partial(emitter.body, matrix, start)
            for case, matrix in enumerate(matrices)
        }
        emitter.switch(emitter.arguments["case"], bodies)

    combine_ir = vector_code(_Emitter, _NAMES, _PLACES, emit)

    def compiled(
        source, source_at, source_q, source_x, first, stop, start, start_at,
        target, target_at, target_k, target_x, count, height, lanes, case,
    ):  # fmt: skip
        combine_ir(
            source, source_at, source_q, source_x, first, stop, start, start_at,
            target, target_at, target_k, target_x, count, height, lanes, case,
        )  # fmt: skip

    def plain(
        source, source_at, source_q, source_x, first, stop, start_, start_at,
        target, target_at, target_k, target_x, count, height, lanes, case,
    ):  # fmt: skip
        for x in range(height):
            for k in range(count):
                total = start_[start_at : start_at + lanes].copy() if start else 0
                for q in range(first, stop):
                    place = source_at + q * source_q + x * source_x
                    coefficient = target.dtype.type(matrices[case][k][q])
                    total = total + coefficient * source[place : place + lanes]
                place = target_at + k * target_k + x * target_x
                target[place : place + lanes] = total

    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return plain
    return made(compiled, matrices, start)
