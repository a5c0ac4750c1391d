"""Convolutions beside PyTorch's: forward, both gradients, and the first layer.

The rival is called as its own training calls it: operands already in the memory format, no
graph recorded, results in new memory. Ours are called as a network calls them: results in
buffers that are used again from step to step. Weight gradients of the first layer come without an
input gradient, which training does not need there.

Run: python -m benchmarks.peers.convolution [--only TEXT] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.peers import pytorch
from benchmarks.peers.pytorch import torch
from benchmarks.peers.timing import Report, Row, Timing, arguments, in_turn, same, use_threads
from kfc_numba.kernels import cpu
from kfc_numba.kernels.geometry import output_size


@dataclass(frozen=True)
class Shape:
    """A convolution of square images with square kernels and equal padding on all sides."""

    batch: int
    size: int
    channels: int
    filters: int
    kernel: int
    stride: int = 1

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def output(self) -> int:
        return output_size(self.size, self.kernel, self.stride, 1, self.padding, self.padding)

    @property
    def flop(self) -> float:
        """Of the forward pass, or of either gradient."""
        depth = self.kernel**2 * self.channels
        return 2.0 * self.batch * self.output**2 * depth * self.filters

    @property
    def numbers(self) -> int:
        """Numbers in the input and the output."""
        return self.batch * (self.size**2 * self.channels + self.output**2 * self.filters)

    def __str__(self) -> str:
        text = f"{self.batch} x {self.size}x{self.size}, {self.channels} to {self.filters}"
        text += f", {self.kernel}x{self.kernel}"
        return text + (f", stride {self.stride}" if self.stride > 1 else "")


FIRST = [Shape(batch, 32, 3, 32, 5) for batch in (128, 512)]
INNER = [
    *(Shape(batch, 16, 32, 32, 5) for batch in (128, 512)),
    *(Shape(batch, 8, 32, 64, 5) for batch in (128, 512)),
    *(Shape(batch, size, 64, 64, 3) for size in (32, 16) for batch in (128, 512)),
    *(Shape(128, size, 64, 64, 5) for size in (32, 16)),
]


class Convolution:
    """Operands of one shape on both sides, checked to give the same results."""

    def __init__(self, shape: Shape, *, rounds: int, turn: float = 0.02):
        self.shape, self.rounds, self.turn = shape, rounds, turn
        rng = np.random.default_rng(0)
        s = shape
        self.x = rng.standard_normal((s.batch, s.size, s.size, s.channels), np.float32)
        self.weight = rng.standard_normal((s.kernel, s.kernel, s.channels, s.filters), np.float32)
        self.bias = rng.standard_normal(s.filters, np.float32)
        self.dy = rng.standard_normal((s.batch, s.output, s.output, s.filters), np.float32)
        self.y = np.empty_like(self.dy)
        self.dx = np.empty_like(self.x)
        self.windows: dict[str, Any] = {"stride": s.stride, "padding": s.padding}

    def forward(self) -> dict[str, Timing]:
        def ours() -> np.ndarray:
            return cpu.conv2d_forward(self.x, self.weight, self.bias, **self.windows, out=self.y)

        def rival(layout: torch.memory_format) -> Any:
            x = pytorch.images(self.x, layout)
            weight = pytorch.weights(self.weight, layout)
            bias = torch.from_numpy(self.bias)
            stride, padding = self.windows["stride"], self.windows["padding"]
            return lambda: torch.nn.functional.conv2d(x, weight, bias, stride, padding)

        rivals = {name: rival(layout) for name, layout in pytorch.FORMATS.items()}
        for function in rivals.values():
            same(ours(), pytorch.back(function()))
        return in_turn({"ours": ours, **rivals}, rounds=self.rounds, turn=self.turn)

    def backward(self, *, inputs: bool = True) -> dict[str, Timing]:
        """Weight gradient and, with `inputs`, input gradient; the bias apart, on both sides."""

        def ours() -> tuple[np.ndarray | None, np.ndarray]:
            dx = None
            if inputs:
                dx = cpu.conv2d_grad_input(
                    self.dy, self.weight, self.x.shape, **self.windows, out=self.dx
                )
            kernel = self.shape.kernel
            return dx, cpu.conv2d_grad_weight(self.x, self.dy, kernel, **self.windows)

        def rival(layout: torch.memory_format) -> Any:
            dy, x = pytorch.images(self.dy, layout), pytorch.images(self.x, layout)
            weight = pytorch.weights(self.weight, layout)
            stride, padding = [self.shape.stride] * 2, [self.shape.padding] * 2
            mask = [inputs, True, False]
            return lambda: torch.ops.aten.convolution_backward(
                dy, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, mask
            )

        rivals = {name: rival(layout) for name, layout in pytorch.FORMATS.items()}
        dx, dweight = ours()
        for function in rivals.values():
            other_dx, other_dweight, _ = function()
            same(dweight, other_dweight.permute(2, 3, 1, 0).numpy())
            if dx is not None:
                same(dx, pytorch.back(other_dx))
        return in_turn({"ours": ours, **rivals}, rounds=self.rounds, turn=self.turn)


def _rows(options: Any) -> Iterator[tuple[str, Row]]:
    for table, shapes in (("forward", INNER), ("backward", INNER), ("first layer", FIRST)):
        for shape in shapes:
            if options.only not in f"{table}: {shape}":
                continue
            case = Convolution(shape, rounds=options.rounds)
            if table == "forward":
                yield table, Row.of(str(shape), case.forward(), shape.flop)
            elif table == "backward":
                yield table, Row.of(str(shape), case.backward(), 2 * shape.flop)
            else:
                yield table, Row.of(f"{shape}, forward", case.forward(), shape.flop)
                results = case.backward(inputs=False)
                yield table, Row.of(f"{shape}, weight gradient", results, shape.flop)


def main() -> None:
    options = arguments(__doc__).parse_args()
    use_threads(options.threads)
    torch.set_grad_enabled(False)
    report = Report("Convolution")
    for table, row in _rows(options):
        report.add(table, row)
    report.claim_mean("forward", "convolution forward", 0.9, 0.8, worst=1.15)
    report.claim_mean("backward", "convolution backward", 1.0, 0.85, worst=1.2)
    report.claim_mean("first layer", "first layer, forward and weight gradient", 0.6)
    report.finish(options.json)


if __name__ == "__main__":
    main()
