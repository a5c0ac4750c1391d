"""What kernels take of a card's memory for a moment, besides arguments and results, by shape.

Of those kernels for which that is more than a few hundred thousand bytes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kfc_numba.kernels.cpu.direct import forward_axis
from kfc_numba.kernels.cuda import launch, pixel_sums, shared_offsets, winograd
from kfc_numba.kernels.cuda.conv import filtering, filtering_of_sums, input_axes
from kfc_numba.kernels.cuda.pixel_sums import Patches
from kfc_numba.kernels.geometry import Windows

_SUM = 8  # bytes of a number in a sum of many

Shape = tuple[int, ...]


def convolution(
    x: Shape, kernel: Any, filters: int, dtype: np.dtype, *, groups: int = 1, **geometry: Any
) -> int:
    """The most that `conv2d_forward`, `conv2d_grad_input` and `conv2d_grad_parameters` take.

    Parameters
    ----------
    x : tuple of int
        Shape of the images, (examples, height, width, channels).
    kernel : pair of int
    filters : int
    dtype : numpy.dtype
    groups : int
    **geometry
        ``stride``, ``padding`` and ``dilation``.

    Returns
    -------
    int
        Bytes.
    """
    windows = _windows(x, kernel, **geometry)
    y: Shape = (x[0], *windows.output, filters)
    forward = forward_axis(windows, 0), forward_axis(windows, 1)
    found = [0]
    directions = [(forward, x, y)]
    directions += [(axes, y, x) for axes in input_axes(windows)]
    for axes, source, target in directions:
        size = filtering(axes, source, target, groups, dtype)
        found.append(winograd.room(axes, source, target, size, dtype) if size else 0)
    size = filtering_of_sums(forward, x, y, groups, dtype)
    if size:
        found.append(winograd.room(forward, x, y, size, dtype, sums=True))
    else:
        found.append(pixel_sums.room(x, y, dtype, groups, patches=Patches.of(windows)))
    return max(found)


def product(rows: int, inputs: int, outputs: int, dtype: np.dtype) -> int:
    """What `matmul` takes for a product over rows, ``x.T @ dy``.

    Parameters
    ----------
    rows : int
    inputs, outputs : int
        Columns of either operand.
    dtype : numpy.dtype

    Returns
    -------
    int
        Bytes.
    """
    return pixel_sums.room((rows, 1, 1, inputs), (rows, outputs), dtype)


def patch_moment(
    x: Shape, kernel: Any, dtype: np.dtype, *, groups: int = 1, **geometry: Any
) -> int:
    """What `patch_second_moment` takes; arguments as in `convolution`.

    Returns
    -------
    int
        Bytes.
    """
    windows = _windows(x, kernel, **geometry)
    if shared_offsets.pays(x, dtype, windows, groups, launch.rates()):
        return shared_offsets.room(x, dtype, windows, groups)
    return pixel_sums.room(x, None, dtype, groups, patches=Patches.of(windows), ones=True)


def patch_means(x: Shape, kernel: Any) -> int:
    """What `patch_means` takes: sums of each row of pixels for each tap beside another.

    Returns
    -------
    int
        Bytes.
    """
    examples, height, _, channels = x
    return _SUM * examples * height * kernel[1] * channels


def moment(ds: Shape, dtype: np.dtype, groups: int = 1) -> int:
    """What `output_second_moment` takes for derivatives of a shape.

    Returns
    -------
    int
        Bytes.
    """
    rows = math.prod(ds[:-1])
    return pixel_sums.room((rows, 1, 1, ds[-1]), None, dtype, groups)


def _windows(x: Shape, kernel: Any, *, stride: Any, padding: Any, dilation: Any) -> Windows:
    return Windows.of((x[1], x[2]), kernel, stride, padding, dilation)
