"""Second moments for the Kronecker factors, without a matrix of patches."""

from __future__ import annotations

from typing import Any

from kfc_numba.checks import check_integer
from kfc_numba.kernels.cpu import moment as cpu
from kfc_numba.kernels.cuda import launch, shared_offsets
from kfc_numba.kernels.cuda.arguments import checked, empty
from kfc_numba.kernels.cuda.pixel_sums import Patches, sum_over_pixels
from kfc_numba.kernels.cuda.twin import twin
from kfc_numba.kernels.geometry import Windows


@twin(cpu.patch_second_moment)
def patch_second_moment(
    x: Any,
    kernel: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    x = checked("x", x, 4)
    windows = Windows.of(x.shape[1:3], kernel, stride, padding, dilation)
    channels = x.shape[3]
    groups = check_integer("groups", groups)
    if channels % groups:
        raise ValueError(f"groups (={groups}) must divide the channels (={channels})")
    taps = windows.kernel[0] * windows.kernel[1]
    size = taps * channels // groups + 1
    out = empty((groups, size, size), x.dtype, x)
    if shared_offsets.pays(x.shape, x.dtype, windows, groups, launch.rates()):
        shared_offsets.patch_moment(x, windows, groups, out)
    else:
        patches = Patches.of(windows)
        sum_over_pixels(x, None, out, groups, patches=patches, ones=True, by_group=True)
    return out if groups > 1 else out.reshape(size, size)


@twin(cpu.output_second_moment)
def output_second_moment(ds: Any, *, groups: int = 1) -> Any:
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
