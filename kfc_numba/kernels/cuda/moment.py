"""Second moments for the Kronecker factors, without a matrix of patches."""

from __future__ import annotations

from typing import Any

from kfc_numba.checks import check_integer
from kfc_numba.kernels.cuda import shared_offsets
from kfc_numba.kernels.cuda.arguments import checked, empty
from kfc_numba.kernels.cuda.pixel_sums import Patches, sum_over_pixels
from kfc_numba.kernels.geometry import Windows


def patch_second_moment(
    x: Any,
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Raw sum over examples and output locations of abar abar^T, abar a patch and then a 1.

    The matrix ``[[A]]^T [[A]]`` of Grosse and Martens (2016), section 3: nothing is divided.

    Parameters
    ----------
    x : cupy.ndarray
        Images, (examples, height, width, channels), float32 or float64.
    kernel : int or pair of int
        Height and width of a patch.
    stride, padding, dilation
        Of the convolution, as in `conv2d_forward`.
    groups : int
        Number of groups of channels; each has a matrix of its own.

    Returns
    -------
    cupy.ndarray
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
    taps = windows.kernel[0] * windows.kernel[1]
    size = taps * channels // groups + 1
    out = empty((groups, size, size), x.dtype, x)
    if shared_offsets.pays(x.shape, x.dtype, windows, groups):
        shared_offsets.patch_moment(x, windows, groups, out)
    else:
        patches = Patches.of(windows)
        sum_over_pixels(x, None, out, groups, patches=patches, ones=True, by_group=True)
    return out if groups > 1 else out.reshape(size, size)


def output_second_moment(ds: Any, *, groups: int = 1) -> Any:
    """Raw sum over all axes but the last of ds ds^T.

    Parameters
    ----------
    ds : cupy.ndarray
        Derivatives of a layer's outputs, (..., outputs), float32 or float64.
    groups : int
        Number of groups of outputs; each has a matrix of its own.

    Returns
    -------
    cupy.ndarray
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
    out = empty((groups, size, size), ds.dtype, ds)
    sum_over_pixels(ds.reshape(-1, 1, 1, outputs), None, out, groups, by_group=True)
    return out if groups > 1 else out.reshape(size, size)
