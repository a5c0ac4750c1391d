"""The PyTorch side: arrays of ours as tensors in either memory format."""

from __future__ import annotations

import numpy as np

try:
    import torch
except ImportError as error:  # a comparison is nothing without its rival
    raise SystemExit(f'{error}: pip install -e ".[peers]"') from error

FORMATS = {
    "torch": torch.contiguous_format,
    "torch channels_last": torch.channels_last,
}


def images(x: np.ndarray, layout: torch.memory_format) -> torch.Tensor:
    """(examples, height, width, channels) as a tensor of PyTorch's axes in a memory format."""
    return torch.from_numpy(x.copy()).permute(0, 3, 1, 2).contiguous(memory_format=layout)


def weights(weight: np.ndarray, layout: torch.memory_format) -> torch.Tensor:
    """(kernel height, kernel width, inputs, outputs) as a tensor of PyTorch's axes."""
    return torch.from_numpy(weight.copy()).permute(3, 2, 0, 1).contiguous(memory_format=layout)


def back(tensor: torch.Tensor) -> np.ndarray:
    """Images of PyTorch's axes as an array of ours."""
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def quick(layout: torch.memory_format) -> torch.nn.Sequential:
    """The network of `benchmarks.common.quick`."""
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, stride=2, ceil_mode=True),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, stride=2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )
    return net.to(memory_format=layout)
