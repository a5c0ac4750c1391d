"""Pooling: one value out of each window of an image, channel by channel."""

from __future__ import annotations

from typing import Any

import numpy as np

from kfc_numba.arrays import shape_only
from kfc_numba.checks import check_flag
from kfc_numba.kernels.backend import kernels
from kfc_numba.kernels.geometry import PoolWindows, canonical_padding, normalize_pair
from kfc_numba.layers.arguments import image_shape
from kfc_numba.layers.base import Arrays, Context, Layer, Saved, Shape


class _Pool(Layer):
    """Windows of a pooling layer."""

    def __init__(self, kernel: Any, stride: Any, padding: Any, ceil_mode: bool):
        self.kernel = normalize_pair("kernel", kernel)
        self.stride = self.kernel if stride is None else normalize_pair("stride", stride)
        self.padding = canonical_padding(padding)
        self.ceil_mode = check_flag("ceil_mode", ceil_mode)
        if not isinstance(self.padding, str):
            for window, sides in zip(self.kernel, self.padding, strict=True):
                if max(sides) >= window:
                    raise ValueError(
                        f"padding (={padding!r}) must be smaller than kernel (={kernel!r}) on "
                        "every side: no window may lie in the padding alone"
                    )

    @property
    def _geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "ceil_mode": self.ceil_mode}

    def output_shape(self, *shapes: Shape) -> Shape:
        height, width, channels = image_shape(self, shapes[0])
        try:
            windows = PoolWindows.of((height, width), self.kernel, **self._geometry)
        except ValueError as error:
            raise ValueError(f"{self!r} on examples of shape {shapes[0]}: {error}") from None
        return (*windows.output, channels)


class MaxPool2d(_Pool):
    """Largest value of each window.

    Padding is never taken; of equal values the first one (row by row) is; NaN is the largest of
    all.

    Parameters
    ----------
    kernel : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), optional
        Distance between windows; `kernel` if None.
    padding : str, int, (int, int) or ((int, int), (int, int))
        ``"same"``, ``"valid"``, cells on all sides, (vertical, horizontal), or
        ((top, bottom), (left, right)); smaller than `kernel` on every side.
    ceil_mode : bool
        Whether last windows that hang over the edge are kept. They are cut at the edge, as in
        PyTorch's ``ceil_mode`` and in cuda-convnet.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.

    Examples
    --------
    >>> MaxPool2d(3, stride=2, ceil_mode=True).output_shape((32, 32, 16))
    (16, 16, 16)
    """

    kind = "max_pool"

    def __init__(
        self, kernel: Any, *, stride: Any = None, padding: Any = 0, ceil_mode: bool = False
    ):
        super().__init__(kernel, stride, padding, ceil_mode)

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        (x,) = inputs
        k = kernels(x)
        shape = (len(x), *self.output_shape(x.shape[1:]))
        y, index = k.max_pool_forward(
            x,
            self.kernel,
            **self._geometry,
            out=context.empty(shape, x.dtype),
            index=context.empty(shape, k.pool_index_dtype(self.kernel)),
        )
        return y, (index, shape_only(x.shape, x.dtype))

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
        if not need_inputs:
            return (None,), {}
        index, x = saved
        assert x is not None
        dx = kernels(dy).max_pool_backward(
            dy,
            index,
            x.shape,
            self.kernel,
            **self._geometry,
            out=context.empty(x.shape, dy.dtype),
        )
        return (dx,), {}

    def tangent(
        self,
        arrays: Arrays,
        saved: Saved,
        dinputs: tuple[np.ndarray | None, ...],
        dparameters: Arrays,
        context: Context,
    ) -> np.ndarray:
        (dx,) = dinputs
        index, _ = saved
        assert dx is not None
        assert index is not None
        return kernels(dx).max_pool_tangent(
            dx,
            index,
            self.kernel,
            **self._geometry,
            out=context.empty(index.shape, dx.dtype),
        )


class AvgPool2d(_Pool):
    """Mean of each window.

    The sum over the cells of a window that lie in the image is divided by their number. That is
    cuda-convnet's average, whose partial windows are those of ``ceil_mode=True``, and PyTorch's
    where there is no padding. With `count_include_pad` padding counts in the divisor, though what
    hangs over the padded image in `ceil_mode` does not: PyTorch's default.

    Parameters
    ----------
    kernel : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), optional
        Distance between windows; `kernel` if None.
    padding : str, int, (int, int) or ((int, int), (int, int))
        As in `MaxPool2d`.
    ceil_mode : bool
        Whether last windows that hang over the edge are kept.
    count_include_pad : bool
        Whether padding counts in the divisor.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.

    Examples
    --------
    >>> AvgPool2d(3, stride=2).output_shape((32, 32, 16))
    (15, 15, 16)
    """

    kind = "avg_pool"

    def __init__(
        self,
        kernel: Any,
        *,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = False,
    ):
        super().__init__(kernel, stride, padding, ceil_mode)
        self.count_include_pad = check_flag("count_include_pad", count_include_pad)

    @property
    def _divided(self) -> dict[str, Any]:
        return {**self._geometry, "count_include_pad": self.count_include_pad}

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        (x,) = inputs
        return self._mean(x, context), (shape_only(x.shape, x.dtype),)

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
        if not need_inputs:
            return (None,), {}
        (x,) = saved
        assert x is not None
        dx = kernels(dy).avg_pool_backward(
            dy,
            x.shape,
            self.kernel,
            **self._divided,
            out=context.empty(x.shape, dy.dtype),
        )
        return (dx,), {}

    def tangent(
        self,
        arrays: Arrays,
        saved: Saved,
        dinputs: tuple[np.ndarray | None, ...],
        dparameters: Arrays,
        context: Context,
    ) -> np.ndarray:
        (dx,) = dinputs
        assert dx is not None
        return self._mean(dx, context)

    def _mean(self, x: np.ndarray, context: Context) -> np.ndarray:
        return kernels(x).avg_pool_forward(
            x,
            self.kernel,
            **self._divided,
            out=context.empty((len(x), *self.output_shape(x.shape[1:])), x.dtype),
        )


class GlobalAvgPool2d(Layer):
    """Mean of each channel over the image: (height, width, channels) to (channels,)."""

    kind = "global_avg_pool"

    def output_shape(self, *shapes: Shape) -> Shape:
        return image_shape(self, shapes[0])[2:]

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        (x,) = inputs
        return kernels(x).location_mean(x), (shape_only(x.shape, x.dtype),)

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
        if not need_inputs:
            return (None,), {}
        (x,) = saved
        assert x is not None
        out = context.empty(x.shape, dy.dtype)
        return (kernels(dy).location_mean_backward(dy, x.shape, out=out),), {}

    def tangent(
        self,
        arrays: Arrays,
        saved: Saved,
        dinputs: tuple[np.ndarray | None, ...],
        dparameters: Arrays,
        context: Context,
    ) -> np.ndarray:
        (dx,) = dinputs
        assert dx is not None
        return kernels(dx).location_mean(dx)
