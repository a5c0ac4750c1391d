"""Rows of an image with zeros beside them, copied where kernels need them contiguous."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from kfc_numba.kernels.cpu.jit import inlined


@intrinsic
def _copy_ir(typingctx, target, target_at, source, source_at, count):
    def codegen(context, builder, signature, args):
        target, target_at, source, source_at, count = args
        kinds = signature.args
        to = cgutils.create_struct_proxy(kinds[0])(context, builder, target).data
        of = cgutils.create_struct_proxy(kinds[2])(context, builder, source).data
        to, of = builder.gep(to, [target_at]), builder.gep(of, [source_at])
        cgutils.raw_memcpy(builder, to, of, count, kinds[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), codegen


@inlined
def _compiled_copy(target, target_at, source, source_at, count):
    _copy_ir(target, target_at, source, source_at, count)  # type: ignore[call-arg]


def _plain_copy(target, target_at, source, source_at, count):
    target[target_at : target_at + count] = source[source_at : source_at + count]


# Elements of one flat array to another: Numba's loops and slices do not become a memcpy.
copy_run = _plain_copy if config.DISABLE_JIT else _compiled_copy  # type: ignore[attr-defined]


@inlined
def read_rows(images, shape, n, margins, top, bottom):
    """Rows `top` to `bottom` of image `n` with margins of zeros, and the place of the first pixel.

    `images` is flat, of `shape` (examples, height, width, channels); `margins` are pixels on the
    left and on the right. Without them the result is `images` itself, and nothing is copied.
    """
    _, height, width, channels = shape
    row = width * channels
    left, right = margins
    left, right = left * channels, right * channels
    if left + right == 0:
        return images, (n * height + top) * row
    pitch = left + row + right
    copy = np.empty((bottom - top) * pitch, images.dtype)
    for y in range(top, bottom):
        target = (y - top) * pitch
        copy[target : target + left] = 0
        copy_run(copy, target + left, images, (n * height + y) * row, row)
        copy[target + left + row : target + pitch] = 0
    return copy, 0
