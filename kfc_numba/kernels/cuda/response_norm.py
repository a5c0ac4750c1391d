"""Response normalisation, over windows of channels or over windows of pixels of one channel.

Windows across channels are windows of an image one pixel high, as wide as there are channels, that
has a single channel; so the kernels know windows of pixels alone.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from kfc_numba.checks import check_number
from kfc_numba.kernels.cpu import response_norm as cpu
from kfc_numba.kernels.cpu.response_norm import ACROSS, Reach, slopes, window_places
from kfc_numba.kernels.cuda.arguments import alike, checked, empty, output_array
from kfc_numba.kernels.cuda.grids import THREADS, ceil_div, volume
from kfc_numba.kernels.cuda.integers import mod
from kfc_numba.kernels.cuda.launch import device_kernel, inlined
from kfc_numba.kernels.cuda.twin import twin


@twin(cpu.response_norm_forward)
def response_norm_forward(
    x: Any,
    *,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    region: str = ACROSS,
    out: Any = None,
    denominator: Any = None,
) -> tuple[Any, Any]:
    x = checked("x", x, None)
    count = window_places(x, size, region)
    alpha, beta = check_number("alpha", alpha, "[0, inf)"), check_number("beta", beta, "[0, inf)")
    k = check_number("k", k, "(0, inf)")
    out = output_array(out, x.shape, x.dtype, x)
    denominator = output_array(denominator, x.shape, x.dtype, x)
    real = x.dtype.type
    numbers = real(alpha / count), real(beta), real(k)
    _launch(_forward(real), x, size, region, False, [x, out, denominator], numbers)
    return out, denominator


@twin(cpu.response_norm_backward)
def response_norm_backward(
    dy: Any,
    x: Any,
    denominator: Any,
    *,
    size: int,
    alpha: float,
    beta: float,
    region: str = ACROSS,
    out: Any = None,
) -> Any:
    dy, x, denominator = alike(dy=dy, x=x, denominator=denominator)
    scale, beta = slopes(x, size, alpha, beta, region)
    out = output_array(out, dy.shape, dy.dtype, dy)
    # The sums are over powers, which are not to be taken anew for each window that holds them.
    terms = empty(x.shape, x.dtype, x)
    grid = ceil_div(x.size, THREADS)
    _terms(grid, THREADS, dy, denominator, out, terms, np.int64(x.size), beta)
    _launch(_backward(x.dtype.type), x, size, region, True, [x, terms, out], (scale,))
    return out


@twin(cpu.response_norm_tangent)
def response_norm_tangent(
    dx: Any,
    x: Any,
    denominator: Any,
    *,
    size: int,
    alpha: float,
    beta: float,
    region: str = ACROSS,
    out: Any = None,
) -> Any:
    dx, x, denominator = alike(dx=dx, x=x, denominator=denominator)
    numbers = slopes(x, size, alpha, beta, region)
    out = output_array(out, dx.shape, dx.dtype, dx)
    _launch(_tangent(x.dtype.type), x, size, region, False, [dx, x, denominator, out], numbers)
    return out


class _Image(NamedTuple):
    """Over what windows of pixels lie."""

    examples: int
    height: int
    width: int
    channels: int


def _launch(
    kernel: Any, x: Any, size: int, region: str, mirrored: bool, arrays: list, numbers: tuple
) -> None:
    """Call a kernel with a thread for each number, over windows or those that hold a place."""
    if region == ACROSS:
        image = _Image(x.size // x.shape[-1], 1, x.shape[-1], 1)
    else:
        image = _Image(*x.shape)
    reach = Reach(*(
        min(side, n - 1)
        for n in (image.height, image.width)
        for side in (size // 2, (size - 1) // 2)
    ))  # fmt: skip
    if mirrored:
        reach = Reach(reach.below, reach.above, reach.right, reach.left)
    rows = image.examples * image.height
    kernel(*volume(rows, image.width, image.channels), *arrays, *image[1:], *reach, *numbers)


@inlined
def _power(d, beta):
    """``d^-beta``, through square roots where these do."""
    one = type(d)(1)
    if beta == type(d)(0.75):
        root = math.sqrt(d)
        result = one / (root * math.sqrt(root))
    elif beta == type(d)(0.5):
        result = one / math.sqrt(d)
    else:
        result = math.pow(d, -beta)
    return result


@inlined
def _window_sum(u, v, line, w, c, height, width, channels, above, below, left, right, zero):
    """Sum of products over the window of a pixel, of row `line` of all images, and a channel."""
    h, total = mod(line, height), zero
    row = line - min(above, h)
    last = line + min(below, height - 1 - h)
    while row <= last:
        pixel = max(0, w - left)
        while pixel <= min(width - 1, w + right):
            place = (row * width + pixel) * channels + c
            total += u[place] * v[place]
            pixel += 1
        row += 1
    return total


@functools.cache
def _forward(kind: Any) -> Any:
    zero = kind(0)

    @device_kernel
    def forward(x, y, d, height, width, channels, above, below, left, right, alpha, beta, k):
        line = cuda.blockIdx.x
        w = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        while w < width:
            c = cuda.threadIdx.x
            while c < channels:
                total = _window_sum(
                    x, x, line, w, c, height, width, channels, above, below, left, right, zero
                )
                here = (line * width + w) * channels + c
                bottom = k + alpha * total
                d[here] = bottom
                y[here] = x[here] * _power(bottom, beta)
                c += cuda.blockDim.x
            w += cuda.gridDim.y * cuda.blockDim.y

    return forward


@device_kernel
def _terms(dy, d, through, terms, size, beta):
    """What does not depend on a window, and what those that hold a place sum over besides x."""
    i = cuda.grid(1)
    if i < size:
        share = dy[i] * _power(d[i], beta)
        through[i] = share
        terms[i] = share / d[i]


@functools.cache
def _backward(kind: Any) -> Any:
    zero = kind(0)

    @device_kernel
    def backward(x, terms, dx, height, width, channels, above, below, left, right, scale):
        line = cuda.blockIdx.x
        w = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        while w < width:
            c = cuda.threadIdx.x
            while c < channels:
                total = _window_sum(
                    x, terms, line, w, c, height, width, channels, above, below, left, right, zero
                )
                here = (line * width + w) * channels + c
                dx[here] -= scale * x[here] * total
                c += cuda.blockDim.x
            w += cuda.gridDim.y * cuda.blockDim.y

    return backward


@functools.cache
def _tangent(kind: Any) -> Any:
    zero = kind(0)

    @device_kernel
    def tangent(dx, x, d, dy, height, width, channels, above, below, left, right, scale, beta):
        line = cuda.blockIdx.x
        w = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
        while w < width:
            c = cuda.threadIdx.x
            while c < channels:
                total = _window_sum(
                    x, dx, line, w, c, height, width, channels, above, below, left, right, zero
                )
                here = (line * width + w) * channels + c
                share = scale * x[here] * total / d[here]
                dy[here] = _power(d[here], beta) * (dx[here] - share)
                c += cuda.blockDim.x
            w += cuda.gridDim.y * cuda.blockDim.y

    return tangent
