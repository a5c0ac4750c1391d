"""Convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import contiguous
from kfc_numba.checks import check_flag, check_integer
from kfc_numba.kernels.backend import device_kernels, kernels
from kfc_numba.kernels.geometry import Windows, canonical_padding, normalize_pair
from kfc_numba.layers.arguments import image_shape
from kfc_numba.layers.base import Arrays, Context, KroneckerLayer, Saved, Shape


class Conv2d(KroneckerLayer):
    """Two-dimensional convolution of NHWC images.

    ``s[t, i] = bias[i] + sum_{d, j} weight[d, j, i] * a[t * stride + d * dilation - padding, j]``.

    Parameters ``weight`` (kernel height, kernel width, channels / groups, filters), initialised
    with He's normal of variance 2 / fan-in, and ``bias`` (filters,), zero.

    Parameters
    ----------
    filters : int
        Number of output channels.
    kernel : int or pair of int
        Height and width of the kernel.
    stride, dilation : int or pair of int
        Vertical and horizontal.
    padding : "same", "valid", int, pair of int or pair of pairs of int
        Zeros around the image: ``"same"`` makes the output ceil(size / stride) wide, with the odd
        cell at the bottom or right; or on all sides, (vertical, horizontal), or
        ((top, bottom), (left, right)).
    groups : int
        Groups of channels and of filters; a filter sees the channels of its group alone.
    bias : bool
        Whether there is a bias.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    kind = "conv"

    def __init__(
        self,
        filters: int,
        kernel: Any,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        self.filters = check_integer("filters", filters)
        self.groups = check_integer("groups", groups)
        if self.filters % self.groups:
            raise ValueError(f"groups (={groups}) must divide filters (={filters})")
        self.kernel = normalize_pair("kernel", kernel)
        self.stride = normalize_pair("stride", stride)
        self.padding = canonical_padding(padding)
        self.dilation = normalize_pair("dilation", dilation)
        self.bias = check_flag("bias", bias)

    @property
    def _geometry(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def output_shape(self, *shapes: Shape) -> Shape:
        height, width, channels = image_shape(self, shapes[0])
        if channels % self.groups:
            raise ValueError(f"groups (={self.groups}) must divide the channels (={channels})")
        size = (height, width)
        windows = Windows.of(size, self.kernel, self.stride, self.padding, self.dilation)
        return (*windows.output, self.filters)

    def parameters(self, rng: np.random.Generator, *shapes: Shape) -> dict[str, np.ndarray]:
        channels = shapes[0][2] // self.groups
        scale = np.sqrt(2 / (self.kernel[0] * self.kernel[1] * channels))
        found = {"weight": rng.normal(scale=scale, size=(*self.kernel, channels, self.filters))}
        if self.bias:
            found["bias"] = np.zeros(self.filters)
        return found

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        (x,) = inputs
        shape = (len(x), *self.output_shape(x.shape[1:]))
        y = kernels(x).conv2d_forward(
            x,
            arrays["weight"],
            arrays.get("bias"),
            **self._geometry,
            out=context.empty(shape, x.dtype),
        )
        return y, (x,)

    def backward(
        self,
        arrays: Arrays,
        saved: Saved,
        dy: np.ndarray,
        context: Context,
        *,
        need_inputs: bool = True,
        need_parameters: bool = True,
    ) -> tuple[tuple[np.ndarray | None, ...], dict[str, np.ndarray]]:
        (x,) = saved
        assert x is not None
        k = kernels(x)
        gradients = {}
        if need_parameters and self.bias:
            weight, bias = k.conv2d_grad_parameters(x, dy, self.kernel, **self._geometry)
            gradients = {"weight": weight, "bias": bias}
        elif need_parameters:
            gradients = {"weight": k.conv2d_grad_weight(x, dy, self.kernel, **self._geometry)}
        dx = None
        if need_inputs:
            out = context.empty(x.shape, x.dtype)
            dx = k.conv2d_grad_input(dy, arrays["weight"], x.shape, **self._geometry, out=out)
        return (dx,), gradients

    def tangent(
        self,
        arrays: Arrays,
        saved: Saved,
        dinputs: tuple[np.ndarray | None, ...],
        dparameters: Arrays,
        context: Context,
    ) -> np.ndarray:
        (x,), (dx,) = saved, dinputs
        assert x is not None
        k = kernels(x)
        shape = (len(x), *self.output_shape(x.shape[1:]))
        dy = k.conv2d_forward(
            x,
            dparameters["weight"],
            dparameters.get("bias"),
            **self._geometry,
            out=context.empty(shape, x.dtype),
        )
        if dx is not None:
            out = context.empty(shape, x.dtype)
            along = k.conv2d_forward(dx, arrays["weight"], None, **self._geometry, out=out)
            k.add(dy, along, out=dy)
        return dy

    def room(self, examples: int, shape: Shape, dtype: np.dtype, approx: str | None) -> int:
        room = device_kernels().room
        x, ds = (examples, *shape), (examples, *self.output_shape(shape))
        found = room.convolution(x, self.kernel, self.filters, dtype, **self._geometry)
        if approx is None:
            return found
        if approx == "expand":
            moment = room.patch_moment(x, self.kernel, dtype, **self._geometry)
        else:
            moment = room.patch_means(x, self.kernel)
        return max(found, moment, room.moment(ds, dtype, self.groups))

    # Kronecker factors.

    def locations(self, saved: Saved, dy: np.ndarray) -> int:
        return dy.shape[1] * dy.shape[2]

    def input_moment(self, saved: Saved, approx: str) -> np.ndarray:
        (x,) = saved
        assert x is not None
        k = kernels(x)
        if approx == "expand":
            moment = k.patch_second_moment(x, self.kernel, **self._geometry)
            return moment if self.bias else contiguous(moment[..., :-1, :-1])
        means = k.patch_means(x, self.kernel, **self._geometry, bias=self.bias)
        if self.groups == 1:
            return k.output_second_moment(means)
        moments = [k.output_second_moment(group) for group in means]
        return array_namespace(*moments).stack(moments)

    def output_moment(self, dy: np.ndarray, approx: str) -> np.ndarray:
        k = kernels(dy)
        ds = dy if approx == "expand" else k.location_sum(dy)
        return k.output_second_moment(ds, groups=self.groups)

    def to_matrix(self, arrays: Arrays) -> np.ndarray:
        weight = arrays["weight"]
        xp = array_namespace(weight)
        rows = xp.reshape(weight, (-1, self.groups, self.filters // self.groups))
        rows = xp.permute_dims(rows, (1, 2, 0))
        if self.bias:
            bias = xp.reshape(arrays["bias"], (self.groups, -1, 1))
            rows = xp.concat([rows, bias], axis=2)
        return contiguous(rows if self.groups > 1 else rows[0, ...])

    def from_matrix(self, matrix: np.ndarray, like: Arrays) -> dict[str, np.ndarray]:
        xp = array_namespace(matrix)
        matrix = xp.reshape(matrix, (self.groups, self.filters // self.groups, -1))
        columns = matrix[..., :-1] if self.bias else matrix
        weight = xp.reshape(xp.permute_dims(columns, (2, 0, 1)), like["weight"].shape)
        found = {"weight": contiguous(weight)}
        if self.bias:
            found["bias"] = xp.reshape(xp.asarray(matrix[..., -1], copy=True), (-1,))
        return found

    def homogeneous(self, saved: Saved) -> np.ndarray:
        (x,) = saved
        assert x is not None
        return kernels(x).extract_patches(x, self.kernel, **self._geometry, bias=self.bias)

    def output_rows(self, dy: np.ndarray) -> np.ndarray:
        rows = dy.reshape(len(dy), -1, self.groups, self.filters // self.groups)
        return rows.transpose(2, 0, 1, 3) if self.groups > 1 else rows[:, :, 0]
