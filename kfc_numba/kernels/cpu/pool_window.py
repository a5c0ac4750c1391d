"""The largest number, or the sum, of the cells of a window, for all channels at once.

The results of a vector of channels stay in registers while the cells pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config

from kfc_numba.kernels.cpu.jit import inlined
from kfc_numba.kernels.cpu.vector import I8, I32, Vectors, sum_of, vector_code

_SUM_NAMES = (
    *("x", "x_at", "x_p", "x_q", "p_start", "p_stop", "q_start", "q_stop"),
    *("y", "y_at", "lanes", "divisor"),
)
_LARGEST_NAMES = (*_SUM_NAMES[:-1], "index", "kernel_w")


class _Emitter(Vectors):
    """Emits the loops over channels and over the cells of a window."""

    def cells(self, v: ir.Value, mask: ir.Value | None, emit: Any) -> None:
        """Emit ``emit(p, q, value)`` for each cell in the image, row by row."""
        builder, arg = self.builder, self.arguments
        with self.loop(arg["p_stop"], start=arg["p_start"]) as p:
            row = builder.mul(p, arg["x_p"])
            with self.loop(arg["q_stop"], start=arg["q_start"]) as q:
                place = self.offset(arg["x"], row, builder.mul(q, arg["x_q"]), v)
                emit(p, q, self.load(place, mask))

    def sums(self) -> None:
        """The sum of the cells over `divisor`."""
        divisor = self.splat(self.arguments["divisor"])

        def emit(v: ir.Value, mask: ir.Value | None) -> None:
            builder = self.builder
            total = cgutils.alloca_once(builder, self.vector)
            builder.store(self.zero, total)
            self.cells(
                v, mask,
                lambda p, q, value: builder.store(builder.fadd(builder.load(total), value), total),
            )  # fmt: skip
            mean = builder.fdiv(builder.load(total), divisor)
            self.store(mean, self.offset(self.arguments["y"], v), mask)

        self.each(self.arguments["lanes"], emit)

    def largest(self, index_type: ir.IntType) -> None:
        """The largest number and the cell that it came from."""
        arg = self.arguments
        numbers = ir.VectorType(I32, self.lanes)

        def emit(v: ir.Value, mask: ir.Value | None) -> None:
            builder = self.builder
            least = ir.Constant(self.vector, [float("-inf")] * self.lanes)
            first = self.splat(self._cell(arg["p_start"], arg["q_start"]), numbers)
            largest = cgutils.alloca_once(builder, self.vector)
            cell = cgutils.alloca_once(builder, numbers)
            builder.store(least, largest)
            builder.store(first, cell)  # where every number is -inf, too

            def compare(p: ir.Value, q: ir.Value, value: ir.Value) -> None:
                # A NaN is the largest of all.
                take = builder.or_(
                    builder.fcmp_ordered(">", value, builder.load(largest)),
                    builder.fcmp_unordered("uno", value, value),
                )
                builder.store(builder.select(take, value, builder.load(largest)), largest)
                here = self.splat(self._cell(p, q), numbers)
                builder.store(builder.select(take, here, builder.load(cell)), cell)

            self.cells(v, mask, compare)
            self.store(builder.load(largest), self.offset(arg["y"], v), mask)
            result = builder.load(cell)
            if index_type != I32:
                result = builder.trunc(result, ir.VectorType(index_type, self.lanes))
            self.store(result, self.offset(arg["index"], v), mask)

        self.each(self.arguments["lanes"], emit)

    def _cell(self, p: ir.Value, q: ir.Value) -> ir.Value:
        number = sum_of(self.builder, self.builder.mul(p, self.arguments["kernel_w"]), q)
        return self.builder.trunc(number, I32)


def _emit_largest(emitter: _Emitter, kinds: Mapping[str, Any]) -> None:
    emitter.largest(I8 if kinds["index"].dtype == types.uint8 else I32)


_window_mean_ir = vector_code(
    _Emitter, _SUM_NAMES, {"x": "x_at", "y": "y_at"}, lambda emitter, kinds: emitter.sums()
)
_window_largest_ir = vector_code(
    _Emitter, _LARGEST_NAMES, {"x": "x_at", "y": "y_at", "index": "y_at"}, _emit_largest
)


@inlined
def _compiled_mean(
    x, x_at, x_p, x_q, p_start, p_stop, q_start, q_stop, y, y_at, lanes, divisor
):  # fmt: skip
    _window_mean_ir(
        x, x_at, x_p, x_q, p_start, p_stop, q_start, q_stop, y, y_at, lanes, divisor
    )  # fmt: skip


@inlined
def _compiled_largest(
    x, x_at, x_p, x_q, p_start, p_stop, q_start, q_stop, y, y_at, lanes, index, kernel_w
):  # fmt: skip
    _window_largest_ir(
        x, x_at, x_p, x_q, p_start, p_stop, q_start, q_stop, y, y_at, lanes, index, kernel_w
    )  # fmt: skip


def _plain_mean(
    x, x_at, x_p, x_q, p_start, p_stop, q_start, q_stop, y, y_at, lanes, divisor
):  # fmt: skip
    total = 0
    for p in range(p_start, p_stop):
        for q in range(q_start, q_stop):
            place = x_at + p * x_p + q * x_q
            total = total + x[place : place + lanes]
    y[y_at : y_at + lanes] = total / divisor


def _plain_largest(
    x, x_at, x_p, x_q, p_start, p_stop, q_start, q_stop, y, y_at, lanes, index, kernel_w
):  # fmt: skip
    place = x_at + p_start * x_p + q_start * x_q
    largest = x[place : place + lanes].copy()
    index[y_at : y_at + lanes] = p_start * kernel_w + q_start
    for p in range(p_start, p_stop):
        for q in range(q_start, q_stop):
            place = x_at + p * x_p + q * x_q
            value = x[place : place + lanes]
            take = (value > largest) | (value != value)
            largest[take] = value[take]
            index[y_at : y_at + lanes][take] = p * kernel_w + q
    y[y_at : y_at + lanes] = largest


# Arrays flat and contiguous; `x_at` the place of the first cell of the whole window, padding
# included, which is not read; `x_p` and `x_q` the distances between cells; the cells in the image
# are p_start <= p < p_stop, q_start <= q < q_stop. Results for `lanes` channels go to `y_at`.
window_mean = _plain_mean if config.DISABLE_JIT else _compiled_mean  # type: ignore[attr-defined]
window_largest = _plain_largest if config.DISABLE_JIT else _compiled_largest  # type: ignore[attr-defined]
