"""Convolution forward and backward."""

from __future__ import annotations

import numpy as np

from kfc_numba.kernels import cpu

from .common import normal

# Image size, channels, filters, kernel.
SHAPES = {
    "quick 1": (32, 3, 32, 5),
    "quick 2": (16, 32, 32, 5),
    "quick 3": (8, 32, 64, 5),
    "64x64 3x3": (16, 64, 64, 3),
}


class Convolution:
    """Layers of `quick`, and 64 channels to 64 on 16x16 images; stride 1, "same" padding."""

    params = (list(SHAPES), [128, 512])
    param_names = ("shape", "batch")

    def setup(self, shape: str, batch: int) -> None:
        size, channels, filters, self.kernel = SHAPES[shape]
        self.padding = self.kernel // 2
        self.x = normal(batch, size, size, channels)
        self.weight = normal(self.kernel, self.kernel, channels, filters)
        self.bias = normal(filters)
        self.dy = normal(batch, size, size, filters, seed=1)
        self.y, self.dx = np.empty_like(self.dy), np.empty_like(self.x)
        for method in (self.time_forward, self.time_grad_input, self.time_grad_weight):
            method(shape, batch)

    def time_forward(self, shape: str, batch: int) -> None:
        cpu.conv2d_forward(self.x, self.weight, self.bias, padding=self.padding, out=self.y)

    def time_grad_input(self, shape: str, batch: int) -> None:
        cpu.conv2d_grad_input(self.dy, self.weight, self.x.shape, padding=self.padding, out=self.dx)

    def time_grad_weight(self, shape: str, batch: int) -> None:
        cpu.conv2d_grad_weight(self.x, self.dy, self.kernel, padding=self.padding)
        cpu.conv2d_grad_bias(self.dy)


class Stride:
    """Strides, dilation and groups, which take other ways through the kernels."""

    params = (["stride 2", "dilation 2", "groups 4"],)
    param_names = ("variant",)

    def setup(self, variant: str) -> None:
        name, value = variant.split()
        self.windows = {"padding": 1, name: int(value)}
        groups = int(value) if name == "groups" else 1
        self.x = normal(64, 32, 32, 32)
        self.weight = normal(3, 3, 32 // groups, 32)
        self.dy = normal(*cpu.conv2d_forward(self.x, self.weight, **self.windows).shape, seed=1)
        self.time_backward(variant)

    def time_forward(self, variant: str) -> None:
        cpu.conv2d_forward(self.x, self.weight, **self.windows)

    def time_backward(self, variant: str) -> None:
        cpu.conv2d_grad_input(self.dy, self.weight, self.x.shape, **self.windows)
        cpu.conv2d_grad_weight(self.x, self.dy, 3, **self.windows)
