"""Sums over all numbers of each example, and over examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from kfc_numba.kernels.cpu import by_example as cpu
from kfc_numba.kernels.cuda.arguments import alike, checked, output_array
from kfc_numba.kernels.cuda.elementwise import each
from kfc_numba.kernels.cuda.launch import inlined
from kfc_numba.kernels.cuda.sums import column_sums, rounded, row_sums
from kfc_numba.kernels.cuda.twin import twin


@twin(cpu.example_dots)
def example_dots(a: Any, b: Any) -> Any:
    a, b = alike(a=a, b=b)
    return row_sums(_product, a, b, len(a), a.size // len(a))


@twin(cpu.square)
def square(x: Any, *, out: Any = None) -> Any:
    return each(_square, [checked("x", x, None)], out)


@twin(cpu.square_sum)
def square_sum(x: Any, *, out: Any = None) -> Any:
    x = checked("x", x, None)
    out = output_array(out, x.shape[1:], x.dtype, x)
    sums, _ = column_sums(_squares, x, x, x, len(x), x.size // len(x))
    return rounded(sums, 1, out)


@inlined
def _product(a, b):
    return np.float64(a) * np.float64(b)


@inlined
def _square(x, _, number):
    return x * x


@inlined
def _squares(x, _, center):
    return np.float64(x) * np.float64(x), np.float64(0)
