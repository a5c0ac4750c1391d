"""Second moments for the Kronecker factors, without a matrix of patches.

For stride and dilation 1, pairs of taps (d, e) with the same offset o = e - d sum the same products
a[u] a[u + o]^T; only the edges of the window of u differ, by at most K - 1 rows and columns. So
each offset is summed once over each of the few row and column classes into which the window edges
cut the image, and a pair adds up the classes that its window covers. Exact, with several times
fewer multiplications than the product of the patch matrix with itself; only offsets in one
half-plane are summed, the others follow by symmetry. Other strides and dilations sum pairs of
kernel rows directly.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from kfc_numba.checks import check_integer
from kfc_numba.kernels.cpu.arguments import checked
from kfc_numba.kernels.cpu.gram import gram
from kfc_numba.kernels.cpu.jit import parallel
from kfc_numba.kernels.cpu.outer_products import Jobs, sum_leading, sum_outer_products
from kfc_numba.kernels.cpu.records import record
from kfc_numba.kernels.cpu.tile import tile_lanes
from kfc_numba.kernels.geometry import Pair, Windows

# Rows per column up to which a moment is one matrix product, shared out by its elements; taller
# arrays are shared out by rows.
_TALL = 64


def patch_second_moment(
    x: np.ndarray,
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> np.ndarray:
    """Raw sum over examples and output locations of abar abar^T, abar a patch and then a 1.

    The matrix ``[[A]]^T [[A]]`` of Grosse and Martens (2016), section 3: nothing is divided.

    Parameters
    ----------
    x : numpy.ndarray
        Images, (examples, height, width, channels), float32 or float64.
    kernel : int or pair of int
        Height and width of a patch.
    stride, padding, dilation
        Of the convolution, as in `conv2d_forward`.
    groups : int
        Number of groups of channels; each has a matrix of its own.

    Returns
    -------
    numpy.ndarray
        (D + 1, D + 1) with D = kernel height * kernel width * channels, in this order, and the
        bias coordinate last; symmetric. With groups > 1: (groups, D + 1, D + 1) with
        channels / groups in D.

    Raises
    ------
    ValueError, TypeError
        Shapes or dtypes that do not fit, windows larger than the padded image.
    """
    x = checked("x", x, 4)
    windows = Windows.of(x.shape[1:3], kernel, stride, padding, dilation)
    channels = x.shape[3]
    groups = check_integer("groups", groups)
    if channels % groups:
        raise ValueError(f"groups (={groups}) must divide the channels (={channels})")
    per_group = channels // groups
    size = windows.kernel[0] * windows.kernel[1] * per_group
    result = np.empty((groups, size + 1, size + 1), x.dtype)
    if windows.stride == (1, 1) and windows.dilation == (1, 1):
        _shared_offsets(x, windows, groups, result)
    else:
        result[:, :size, :size] = _pairs_of_taps(x, windows, groups)
    means = _window_sums(x, windows).reshape(*windows.kernel, groups, per_group)
    result[:, size, :size] = means.transpose(2, 0, 1, 3).reshape(groups, size)
    result[:, :size, size] = result[:, size, :size]
    result[:, size, size] = len(x) * windows.output[0] * windows.output[1]
    return result if groups > 1 else result[0]


def output_second_moment(ds: np.ndarray, *, groups: int = 1) -> np.ndarray:
    """Raw sum over all axes but the last of ds ds^T.

    Parameters
    ----------
    ds : numpy.ndarray
        Derivatives of a layer's outputs, (..., outputs), float32 or float64.
    groups : int
        Number of groups of outputs; each has a matrix of its own.

    Returns
    -------
    numpy.ndarray
        (outputs, outputs), symmetric; with groups > 1 (groups, outputs / groups,
        outputs / groups).

    Raises
    ------
    ValueError, TypeError
        A dtype or a number of groups that does not fit.
    """
    ds = checked("ds", ds, None)
    if ds.ndim < 2:
        raise ValueError(f"ds has shape {ds.shape}, it must have at least 2 dimensions")
    outputs = ds.shape[-1]
    groups = check_integer("groups", groups)
    if outputs % groups:
        raise ValueError(f"groups (={groups}) must divide the outputs (={outputs})")
    size = outputs // groups
    if groups == 1 and ds.size <= _TALL * outputs**2:
        return gram(ds.reshape(-1, outputs))
    pixels = ds.size // (len(ds) * outputs)
    images = ds.reshape(len(ds), 1, pixels, outputs)
    strides = (pixels * outputs, outputs)
    jobs = Jobs(a_strides=strides, b_strides=strides)
    for group in range(groups):
        jobs.add(
            a=group * size,
            height=size,
            b=group * size,
            lanes=size,
            c=group * size * size,
            c_pitch=size,
            extent=(1, pixels),
        )
    out = np.empty((groups, size, size), ds.dtype)
    sum_outer_products(images, (0, 0), None, jobs, out.reshape(-1))
    return out if groups > 1 else out[0]


def _window_sums(x: np.ndarray, windows: Windows) -> np.ndarray:
    """Sum over examples and windows of the pixel under each tap, (KH, KW, channels), float64."""
    total = sum_leading(x.reshape(len(x), -1)).reshape(x.shape[1:])
    # One axis after the other; not by a product with zeros, which would spread what is not finite.
    rows = np.stack([total[tap].sum(axis=0) for tap in _under_taps(windows, 0)])
    return np.stack([rows[:, tap].sum(axis=1) for tap in _under_taps(windows, 1)], axis=1)


def _under_taps(windows: Windows, i: int) -> list[slice]:
    """Pixels along axis i that are under each tap in some window."""
    found = []
    for tap in range(windows.kernel[i]):
        inside = windows.inside(i, tap)
        first = windows.cell(i, inside.start, tap)
        stop = windows.cell(i, inside.stop - 1, tap) + 1
        found.append(slice(first, stop, windows.stride[i]) if inside else slice(0, 0))
    return found


def _pairs_of_taps(x: np.ndarray, windows: Windows, groups: int) -> np.ndarray:
    """The block for the taps, by pairs of kernel rows (of taps, where rows are not contiguous)."""
    (kh, kw), (sy, sx), dx = windows.kernel, windows.stride, windows.dilation[1]
    channels = x.shape[3]
    per_group = channels // groups
    margins = windows.margins()
    pitch = (margins[0] + windows.size[1] + margins[1]) * channels
    merged = groups == 1 and dx == 1
    depth = kw * channels if merged else per_group
    # Rows of the kernel, or single taps: vertical tap, and place in a row of the image.
    places = [(ky, kx * dx * channels) for ky in range(kh) for kx in range(1 if merged else kw)]
    size = len(places) * depth
    jobs = Jobs(a_strides=(sy * pitch, sx * channels), b_strides=(sy * pitch, sx * channels))
    for (i, first), (j, second) in itertools.combinations_with_replacement(enumerate(places), 2):
        low = max(windows.inside(0, tap).start for tap, _ in (first, second))
        high = min(windows.inside(0, tap).stop for tap, _ in (first, second))
        if high <= low:
            continue
        for group in range(groups):
            a, b = (
                windows.cell(0, low, tap) * pitch + left + group * per_group
                for tap, left in (first, second)
            )
            jobs.add(
                a=a,
                height=depth,
                b=b,
                lanes=depth,
                c=(group * size + i * depth) * size + j * depth,
                c_pitch=size,
                extent=(high - low, windows.output[1]),
            )
    out = np.empty((groups, size, size), x.dtype)
    sum_outer_products(x, margins, None, jobs, out.reshape(-1))
    for i, j in itertools.combinations(range(len(places)), 2):
        upper = out[:, i * depth : (i + 1) * depth, j * depth : (j + 1) * depth]
        out[:, j * depth : (j + 1) * depth, i * depth : (i + 1) * depth] = upper.swapaxes(1, 2)
    return out


def _cuts(windows: Windows, i: int, offset: int) -> tuple[dict[int, Pair], list[int]]:
    """Windows of u for each tap d with a tap d + offset, and all their edges, along axis i."""
    size, before = windows.size[i], windows.padding[i][0]
    low, high = max(0, -offset), min(size, size - offset)

    def clip(value: int) -> int:
        return min(max(value, low), max(low, high))

    taps = {
        d: (clip(d - before), clip(windows.output[i] + d - before))
        for d in range(windows.kernel[i])
        if 0 <= d + offset < windows.kernel[i]
    }
    return taps, sorted({edge for window in taps.values() for edge in window})


#: Two taps of a kernel: where their block of the result begins, and the classes it adds up: the
#: first of its offset, how many of these are in a row, and which of the rows and columns.
PAIR = record("row", "column", "first", "pitch", "top", "bottom", "left", "right")


class Plan(NamedTuple):
    """How a moment is summed by shared offsets."""

    margins: Pair  # of the rows of the image, as they are read
    depth: int  # rows of a block
    classes: int  # for each group
    jobs: Jobs  # a sum for each class and group
    pairs: np.ndarray  # records `PAIR`


@functools.lru_cache(maxsize=256)
def _plan(windows: Windows, channels: int, groups: int, lanes: int) -> Plan:
    """The sums of all classes of all offsets, and what each pair of taps adds up of them."""
    kh, kw = windows.kernel
    margins, depth = (0, 0), channels // groups
    # A kernel row in one vector is multiplied at once: rows are shared then, but not taps.
    whole_rows = groups == 1 and kw * channels <= lanes // 2
    if whole_rows:
        margins, depth, kw = windows.margins(), kw * channels, 1
    pitch = (margins[0] + windows.size[1] + margins[1]) * channels
    jobs = Jobs(a_strides=(pitch, channels), b_strides=(pitch, channels))
    pairs = []
    count = 0
    for oy, ox in itertools.product(range(kh), range(1 - kw, kw)):
        if (oy, ox) < (0, 0):
            continue  # symmetric half
        taps_y, ys = _cuts(windows, 0, oy)
        taps_x, xs = _cuts(windows, 1, ox)
        if whole_rows:
            taps_x, xs = {0: (0, windows.output[1])}, [0, windows.output[1]]
        for (dy, (y0, y1)), (dx, (x0, x1)) in itertools.product(taps_y.items(), taps_x.items()):
            row, column = dy * kw + dx, (dy + oy) * kw + dx + ox
            covered = (ys.index(y0), ys.index(y1), xs.index(x0), xs.index(x1))
            pairs.append((row * depth, column * depth, count, len(xs) - 1, *covered))
        for (y0, y1), (x0, x1) in itertools.product(itertools.pairwise(ys), itertools.pairwise(xs)):
            for group in range(groups):
                first = y0 * pitch + x0 * channels + group * depth
                jobs.add(
                    a=first,
                    height=depth,
                    b=first + oy * pitch + ox * channels,
                    lanes=depth,
                    c=(count * groups + group) * depth * depth,
                    c_pitch=depth,
                    extent=(y1 - y0, x1 - x0),
                )
            count += 1
    return Plan(margins, depth, count, jobs, np.array(pairs, PAIR))


def _shared_offsets(x: np.ndarray, windows: Windows, groups: int, result: np.ndarray) -> None:
    """The block for the taps, each pair of pixels multiplied once."""
    plan = _plan(windows, x.shape[3], groups, tile_lanes(x.dtype))
    classes = np.empty(plan.classes * groups * plan.depth**2, x.dtype)
    sum_outer_products(x, plan.margins, None, plan.jobs, classes)
    sizes = (groups, plan.depth, result.shape[1])
    _add_classes(classes, plan.pairs, result.reshape(-1), sizes)


@parallel
def _add_classes(classes, pairs, out, sizes):
    """The block of each pair of taps, and its transpose, from classes of a common offset."""
    groups, depth, pitch = sizes
    for task in prange(pairs.size * groups):
        pair, group = pairs[np.int64(task) // groups], np.int64(task) % groups
        corner = group * pitch * pitch
        for q in range(depth):
            c = corner + (pair.row + q) * pitch + pair.column
            for f in range(depth):
                out[c + f] = 0
            for y in range(pair.top, pair.bottom):
                for x in range(pair.left, pair.right):
                    number = (pair.first + y * pair.pitch + x) * groups + group
                    for f in range(depth):
                        out[c + f] += classes[(number * depth + q) * depth + f]
            across = corner + pair.column * pitch + pair.row + q
            for f in range(depth):
                out[across + f * pitch] = out[c + f]
