"""Matrix products: convolutions of images of one pixel."""

from __future__ import annotations

from typing import Any

from numba import cuda

from kfc_numba.kernels.cpu import dense as cpu
from kfc_numba.kernels.cpu.direct import Axis
from kfc_numba.kernels.cuda.arguments import checked, empty, output_array
from kfc_numba.kernels.cuda.gathered import gather
from kfc_numba.kernels.cuda.launch import device_kernel
from kfc_numba.kernels.cuda.pixel_sums import sum_over_pixels
from kfc_numba.kernels.cuda.twin import twin

_SIDE = 16  # threads of a block that transposes, along either axis
_ONE_PIXEL = Axis(1, 0, 1, 0, 1, 1, (0,))


@twin(cpu.matmul)
def matmul(
    a: Any,
    b: Any,
    bias: Any = None,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    accumulate: bool = False,
    out: Any = None,
) -> Any:
    a = checked("a", a, 2)
    b = checked("b", b, 2, a.dtype)
    m, k = a.shape[::-1] if transpose_a else a.shape
    terms, n = b.shape[::-1] if transpose_b else b.shape
    if terms != k:
        raise ValueError(f"b has {terms} rows after transposition, a has {k} columns")
    if accumulate and (out is None or bias is not None):
        raise ValueError("accumulate (=True) needs out, and takes no bias")
    out = output_array(out, (m, n), a.dtype, a)
    if bias is not None:
        bias = checked("bias", bias, 1, a.dtype)
        if bias.shape != (n,):
            raise ValueError(f"bias has shape {bias.shape}, it must be {(n,)}, one a column")
    if transpose_a:
        b = _transposed(b) if transpose_b else b
        sum_over_pixels(a.reshape(k, 1, 1, m), b, out, bias=bias, accumulate=accumulate)
    else:
        axes = (_ONE_PIXEL, _ONE_PIXEL)
        images, weight, target = (
            array.reshape(*shape, array.shape[1])
            for array, shape in ((a, (m, 1, 1)), (b, (1, 1, len(b))), (out, (m, 1, 1)))
        )
        gather(images, weight, bias, target, axes, 1, flip=transpose_b, accumulate=accumulate)
    return out


def _transposed(matrix: Any) -> Any:
    rows, columns = matrix.shape
    out = empty((columns, rows), matrix.dtype, matrix)
    grid = (-(-columns // _SIDE), -(-rows // _SIDE))
    _transpose(grid, (_SIDE, _SIDE), matrix, out, rows, columns)
    return out


@device_kernel
def _transpose(matrix, out, rows, columns):
    row, column = cuda.grid(2)[::-1]
    if row < rows and column < columns:
        out[column * rows + row] = matrix[row * columns + column]
