"""A network of this library as PyTorch computes it, to compare the time of a step with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kfc_numba import layers
from kfc_numba.graph import Graph
from kfc_numba.kernels.geometry import Windows
from kfc_numba.layers.base import Layer
from kfc_numba.topology import PlacedLayer


def pytorch_twin(net: Graph) -> Any:
    """The same network, with the same parameters.

    Parameters
    ----------
    net : Graph
        Of convolutions, batch normalisation, pools, dense layers, ReLU and sums.

    Returns
    -------
    torch.nn.Module
        Takes images as PyTorch has them, (examples, channels, height, width); on the CPU, in
        training mode.

    Raises
    ------
    ImportError
        PyTorch is not installed.
    ValueError
        Another layer.
    """
    import torch

    class Twin(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(_module(s, net) for s in net.layers)

        def forward(self, x: Any) -> Any:
            values = {-1: x}
            for s, part in zip(net.layers, self.parts, strict=True):
                inputs = [values[parent] for parent in s.parents]
                values[s.index] = part(*inputs) if len(inputs) == 1 else sum(inputs[1:], inputs[0])
            return values[len(net.layers) - 1]

    return Twin()


def _module(placed: PlacedLayer, net: Graph) -> Any:
    """PyTorch's module for a layer."""
    import torch
    from torch import nn

    layer = placed.layer
    for kind, make in _MAKERS.items():
        if type(layer) is kind:
            module = make(nn, layer, placed.input_shapes[0])
            module.to(getattr(torch, net.dtype.name))
            _take_parameters(module, placed, net)
            return module
    raise ValueError(f"layer {placed.name} ({layer!r}) is none that PyTorch is compared on")


def _convolution(nn: Any, layer: Any, shape: tuple[int, ...]) -> Any:
    size = shape[0], shape[1]
    windows = Windows.of(size, layer.kernel, layer.stride, layer.padding, layer.dilation)
    (top, bottom), (left, right) = windows.padding
    even = top == bottom and left == right
    made = nn.Conv2d(
        shape[2],
        layer.filters,
        layer.kernel,
        layer.stride,
        (top, left) if even else 0,
        layer.dilation,
        layer.groups,
        layer.bias,
    )
    return made if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), made)


def _pool(name: str) -> Callable[..., Any]:
    def make(nn: Any, layer: Any, shape: tuple[int, ...]) -> Any:
        if isinstance(layer.padding, str) or any(a != b for a, b in layer.padding):
            raise ValueError(f"{layer!r} has padding that PyTorch's has not")
        padding = tuple(before for before, _ in layer.padding)
        more = {} if name == "MaxPool2d" else {"count_include_pad": layer.count_include_pad}
        make = getattr(nn, name)
        return make(layer.kernel, layer.stride, padding, ceil_mode=layer.ceil_mode, **more)

    return make


def _flatten(nn: Any, layer: Any, shape: tuple[int, ...]) -> Any:
    # In this library's order of an image's numbers: rows, columns, channels.
    import torch

    class Flatten(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.flatten(x.permute(0, 2, 3, 1) if x.ndim == 4 else x, 1)

    return Flatten()


_MAKERS: dict[type[Layer], Callable[..., Any]] = {
    layers.Conv2d: _convolution,
    layers.BatchNorm: lambda nn, layer, shape: nn.BatchNorm2d(
        shape[-1], eps=layer.epsilon, momentum=1 - layer.momentum
    ),
    layers.Dense: lambda nn, layer, shape: nn.Linear(shape[0], layer.units, bias=layer.bias),
    layers.ReLU: lambda nn, layer, shape: nn.ReLU(),
    layers.MaxPool2d: _pool("MaxPool2d"),
    layers.AvgPool2d: _pool("AvgPool2d"),
    layers.GlobalAvgPool2d: lambda nn, layer, shape: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    layers.Flatten: _flatten,
    layers.Add: lambda nn, layer, shape: nn.Identity(),  # `forward` adds
}


def _take_parameters(module: Any, placed: PlacedLayer, net: Graph) -> None:
    import torch

    own = module[-1] if isinstance(module, torch.nn.Sequential) and placed.names else module
    for short in placed.names:
        value = net.params[f"{placed.name}.{short}"]
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif value.ndim == 2:
            value = value.T
        with torch.no_grad():
            getattr(own, short).copy_(torch.from_numpy(np.ascontiguousarray(value)))
