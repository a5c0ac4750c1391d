"""Pooling, ReLU and the softmax loss beside PyTorch's, forward and backward.

Shapes are those of the network `quick`. PyTorch's functions are called as its training calls them
(max pooling with indices), without recording a graph; the loss, whose value and derivative share
work, is timed as a whole.

Run: python -m benchmarks.peers.pooling [--only TEXT] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import kfc_numba as kfc
from benchmarks.peers import pytorch
from benchmarks.peers.pytorch import torch
from benchmarks.peers.timing import Report, Row, arguments, in_turn, same, use_threads
from kfc_numba.kernels import cpu

aten = torch.ops.aten
WINDOW: dict[str, Any] = {"kernel": 3, "stride": 2, "ceil_mode": True}
ALIKE = ([3, 3], [2, 2], [0, 0])  # the same for PyTorch

Functions = dict[str, Callable[[], Any]]


def _by_format(make: Callable[[Any], Callable[[], Any]]) -> Functions:
    return {name: make(layout) for name, layout in pytorch.FORMATS.items()}


def _check(functions: Functions) -> Functions:
    """Both sides give the same result."""
    ours = functions["ours"]()
    for name in pytorch.FORMATS:
        theirs = functions[name]()
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        same(ours[0] if isinstance(ours, tuple) else ours, pytorch.back(theirs))
    return functions


def max_pool(x: np.ndarray) -> Iterator[tuple[str, Functions]]:
    """Forward and backward, windows of 3 at a stride of 2, partial ones kept."""
    y, index = cpu.max_pool_forward(x, **WINDOW)
    dy, dx = np.random.default_rng(1).standard_normal(y.shape, np.float32), np.empty_like(x)

    def forward(layout: Any) -> Callable[[], Any]:
        tensor = pytorch.images(x, layout)
        return lambda: aten.max_pool2d_with_indices(tensor, *ALIKE, [1, 1], True)

    def backward(layout: Any) -> Callable[[], Any]:
        tensor, derivative = pytorch.images(x, layout), pytorch.images(dy, layout)
        _, indices = aten.max_pool2d_with_indices(tensor, *ALIKE, [1, 1], True)
        return lambda: aten.max_pool2d_with_indices_backward(
            derivative, tensor, *ALIKE, [1, 1], True, indices
        )

    ours = {
        "forward": lambda: cpu.max_pool_forward(x, **WINDOW, out=y, index=index),
        "backward": lambda: cpu.max_pool_backward(dy, index, x.shape, **WINDOW, out=dx),
    }
    yield "forward", _check({"ours": ours["forward"], **_by_format(forward)})
    yield "backward", _check({"ours": ours["backward"], **_by_format(backward)})


def avg_pool(x: np.ndarray) -> Iterator[tuple[str, Functions]]:
    """Forward and backward, windows as for `max_pool`."""
    y = cpu.avg_pool_forward(x, **WINDOW)
    dy, dx = np.random.default_rng(1).standard_normal(y.shape, np.float32), np.empty_like(x)

    def forward(layout: Any) -> Callable[[], Any]:
        tensor = pytorch.images(x, layout)
        return lambda: aten.avg_pool2d(tensor, *ALIKE, True)

    def backward(layout: Any) -> Callable[[], Any]:
        tensor, derivative = pytorch.images(x, layout), pytorch.images(dy, layout)
        return lambda: aten.avg_pool2d_backward(derivative, tensor, *ALIKE, True, True, None)

    ours = {
        "forward": lambda: cpu.avg_pool_forward(x, **WINDOW, out=y),
        "backward": lambda: cpu.avg_pool_backward(dy, x.shape, **WINDOW, out=dx),
    }
    yield "forward", _check({"ours": ours["forward"], **_by_format(forward)})
    yield "backward", _check({"ours": ours["backward"], **_by_format(backward)})


def relu(x: np.ndarray) -> Iterator[tuple[str, Functions]]:
    """Forward and backward."""
    y = cpu.relu_forward(x)
    dy, dx = np.random.default_rng(1).standard_normal(y.shape, np.float32), np.empty_like(x)

    def forward(layout: Any) -> Callable[[], Any]:
        tensor = pytorch.images(x, layout)
        return lambda: torch.relu(tensor)

    def backward(layout: Any) -> Callable[[], Any]:
        result, derivative = pytorch.images(y, layout), pytorch.images(dy, layout)
        return lambda: aten.threshold_backward(derivative, result, 0)

    ours = {
        "forward": lambda: cpu.relu_forward(x, out=y),
        "backward": lambda: cpu.relu_backward(dy, y, out=dx),
    }
    yield "forward", _check({"ours": ours["forward"], **_by_format(forward)})
    yield "backward", _check({"ours": ours["backward"], **_by_format(backward)})


def softmax_loss(examples: int, classes: int) -> Iterator[tuple[str, Functions]]:
    """Mean loss of a batch and its derivative by the outputs."""
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((examples, classes), np.float32)
    targets = rng.integers(0, classes, examples)
    loss = kfc.SoftmaxCrossEntropy()
    leaf = torch.from_numpy(outputs.copy()).requires_grad_()
    labels = torch.from_numpy(targets)

    def ours() -> tuple[float, np.ndarray]:
        value, derivative = loss.value_and_derivative(outputs, targets)
        derivative /= examples
        return value, derivative

    def theirs() -> tuple[float, torch.Tensor]:
        with torch.enable_grad():
            value = torch.nn.functional.cross_entropy(leaf, labels)
        return value.item(), torch.autograd.grad(value, leaf)[0]

    same(ours()[1], theirs()[1].numpy())
    yield "value and derivative", {"ours": ours, "torch": theirs}


def _cases() -> Iterator[tuple[str, Callable[[], Iterator[tuple[str, Functions]]]]]:
    def images(batch: int, size: int, channels: int) -> np.ndarray:
        shape = (batch, size, size, channels)
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    for batch in (128, 512):
        for name, make, shapes in (
            ("max pool", max_pool, [(32, 32)]),
            ("average pool", avg_pool, [(16, 32), (8, 64)]),
            ("ReLU", relu, [(16, 32), (8, 64)]),
        ):
            for size, channels in shapes:
                title = f"{name}, {batch} x {size}x{size}x{channels}"
                yield title, lambda m=make, s=(batch, size, channels): m(images(*s))
        yield f"softmax loss, {batch} x 10", lambda b=batch: softmax_loss(b, 10)
    yield "softmax loss, 512 x 1000", lambda: softmax_loss(512, 1000)


def main() -> None:
    options = arguments(__doc__).parse_args()
    use_threads(options.threads)
    torch.set_grad_enabled(False)
    report = Report("Pooling, ReLU and loss")
    table = "pooling, ReLU, softmax loss"
    for title, make in _cases():
        if options.only in title:
            for what, functions in make():
                results = in_turn(functions, rounds=options.rounds)
                report.add(table, Row.of(f"{title}, {what}", results))
    report.claim_mean(table, table, 0.8)
    report.finish(options.json)


if __name__ == "__main__":
    main()
