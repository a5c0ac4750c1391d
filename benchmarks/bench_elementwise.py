"""Pooling, ReLU, normalisation and the softmax loss."""

from __future__ import annotations

from typing import Any

import numpy as np

import kfc_numba as kfc
from kfc_numba.kernels import cpu

from .common import normal

WINDOW: dict[str, Any] = {"kernel": 3, "stride": 2, "ceil_mode": True}


class Pooling:
    """Windows of 3 at a stride of 2 on (batch, 32, 32, 32), partial ones kept."""

    params = ([128, 512],)
    param_names = ("batch",)

    def setup(self, batch: int) -> None:
        self.x = normal(batch, 32, 32, 32)
        self.y, self.index = cpu.max_pool_forward(self.x, **WINDOW)
        self.dy, self.dx = normal(*self.y.shape, seed=1), np.empty_like(self.x)
        self.time_max_backward(batch)
        self.time_average_forward(batch)
        self.time_average_backward(batch)

    def time_max_forward(self, batch: int) -> None:
        cpu.max_pool_forward(self.x, **WINDOW, out=self.y, index=self.index)

    def time_max_backward(self, batch: int) -> None:
        cpu.max_pool_backward(self.dy, self.index, self.x.shape, **WINDOW, out=self.dx)

    def time_average_forward(self, batch: int) -> None:
        cpu.avg_pool_forward(self.x, **WINDOW, out=self.y)

    def time_average_backward(self, batch: int) -> None:
        cpu.avg_pool_backward(self.dy, self.x.shape, **WINDOW, out=self.dx)


class ReLU:
    """On (batch, 16, 16, 32)."""

    params = ([128, 512],)
    param_names = ("batch",)

    def setup(self, batch: int) -> None:
        self.x, self.dy = normal(batch, 16, 16, 32), normal(batch, 16, 16, 32, seed=1)
        self.y, self.dx = np.empty_like(self.x), np.empty_like(self.x)
        self.time_forward(batch)
        self.time_backward(batch)

    def time_forward(self, batch: int) -> None:
        cpu.relu_forward(self.x, out=self.y)

    def time_backward(self, batch: int) -> None:
        cpu.relu_backward(self.dy, self.y, out=self.dx)


class Layers:
    """Layers that are more than one kernel: value and gradient on (64, 16, 16, 32)."""

    params = (["batch norm", "response norm", "response norm within maps", "dropout"],)
    param_names = ("layer",)

    def setup(self, layer: str) -> None:
        layers = {
            "batch norm": kfc.BatchNorm,
            "response norm": lambda: kfc.LocalResponseNorm(5),
            "response norm within maps": lambda: kfc.LocalResponseNorm(3, region="within_channel"),
            "dropout": lambda: kfc.Dropout(0.5),
        }
        # What has parameters in front makes the layer hand on a derivative.
        self.net = kfc.Sequential(
            [kfc.Conv2d(32, 1), layers[layer](), kfc.GlobalAvgPool2d()], input_shape=(16, 16, 8)
        )
        self.x, self.y = normal(64, 16, 16, 8), normal(64, 32)
        self.time_value_and_grad(layer)

    def time_value_and_grad(self, layer: str) -> None:
        self.net.value_and_grad(self.x, self.y, kfc.SquaredError())


class SoftmaxLoss:
    """Value and derivative of a batch of 512."""

    params = ([10, 1000],)
    param_names = ("classes",)

    def setup(self, classes: int) -> None:
        self.loss = kfc.SoftmaxCrossEntropy()
        self.outputs = normal(512, classes)
        self.targets = np.random.default_rng(0).integers(0, classes, 512)
        self.time_value_and_derivative(classes)

    def time_value_and_derivative(self, classes: int) -> None:
        self.loss.value_and_derivative(self.outputs, self.targets)
