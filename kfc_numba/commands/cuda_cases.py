"""Calls of every kernel, on shapes that have tails and on shapes of real networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kfc_numba.kernels.backend import kernels
from kfc_numba.kernels.geometry import Windows
from kfc_numba.random import generator

Made = tuple[list[Any], dict[str, Any]]
Make = Callable[[], Made]
Normal = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Given:
    """An argument as it is, where others are shapes of random arrays."""

    value: Any


@dataclass(frozen=True)
class Case:
    """One call of a kernel.

    Attributes
    ----------
    kernel : str
        Name among the kernels.
    shape : str
        What it is a call on, in words.
    make : callable
        Gives positional arguments and settings, as NumPy arrays and numbers.
    operations : float
        Multiplications and additions.
    """

    kernel: str
    shape: str
    make: Make
    operations: float = field(default=0.0)


@dataclass(frozen=True)
class Images:
    """A convolution on a batch of images."""

    name: str
    x: tuple[int, int, int, int]
    filters: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: Any = "same"
    dilation: int = 1
    groups: int = 1

    @property
    def windows(self) -> Windows:
        size = self.x[1], self.x[2]
        return Windows.of(size, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def output(self) -> tuple[int, ...]:
        return (self.x[0], *self.windows.output, self.filters)

    @property
    def weight(self) -> tuple[int, ...]:
        return (*self.kernel, self.x[3] // self.groups, self.filters)


#: Shapes with tails in every direction, for results.
SMALL = (
    Images("3x3", (3, 9, 7, 5), 6, (3, 3)),
    Images("stride", (2, 10, 11, 4), 7, (3, 5), stride=2, padding=1),
    Images("dilated", (2, 12, 9, 8), 9, (3, 3), dilation=2, padding=2),
    Images("groups", (2, 8, 8, 12), 18, (3, 3), groups=3),
    Images("1x1", (5, 6, 5, 33), 17, (1, 1), padding=0),
    Images("wide", (4, 16, 16, 64), 130, (3, 3)),
    Images("one pixel", (3, 1, 1, 1), 1, (3, 3)),
    Images("first layer", (4, 32, 32, 3), 32, (5, 5)),
)
#: Layers of `quick` on CIFAR-10 and of ResNet-18, for time.
LARGE = (
    Images("quick 1", (512, 32, 32, 3), 32, (5, 5)),
    Images("quick 2", (512, 16, 16, 32), 32, (5, 5)),
    Images("quick 3", (512, 8, 8, 32), 64, (5, 5)),
    Images("resnet 64", (256, 32, 32, 64), 64, (3, 3)),
    Images("resnet 128", (256, 16, 16, 128), 128, (3, 3)),
    Images("resnet 256", (256, 8, 8, 256), 256, (3, 3)),
    Images("resnet 512", (256, 4, 4, 512), 512, (3, 3)),
    Images("imagenet 64", (32, 56, 56, 64), 64, (3, 3)),
)


def cases(*, large: bool, dtype: type = np.float32) -> Iterator[Case]:
    """Calls of all kernels.

    Parameters
    ----------
    large : bool
        Shapes of real networks, for time; otherwise small ones with tails, for results.
    dtype : type
        numpy.float32 or numpy.float64.

    Yields
    ------
    Case
    """
    rng = generator(0, "cases of kernels")

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(dtype)

    yield from _convolutions(LARGE if large else SMALL, normal)
    yield from _products(large, normal)
    yield from _by_place(large, normal, rng)
    yield from _norms(large, normal)
    yield from _pools(large, normal)
    yield from _losses(large, normal, rng)


def _call(normal: Normal, *parts: Any, **settings: Any) -> Make:
    """Arguments of a call: for a tuple a random array of its shape, and what is `Given`."""

    def made() -> Made:
        found = [part.value if isinstance(part, Given) else normal(*part) for part in parts]
        return found, settings

    return made


def _convolutions(shapes: tuple[Images, ...], normal: Normal) -> Iterator[Case]:
    for s in shapes:
        x, y, w, name = s.x, s.output, s.weight, s.name
        work = 2.0 * math.prod(y) * math.prod(w[:3])
        columns = math.prod(w[:3]) + 1
        kernel, how = Given(s.kernel), s.settings
        yield Case("conv2d_forward", name, _call(normal, x, w, (s.filters,), **how), work)
        yield Case("conv2d_grad_input", name, _call(normal, y, w, Given(x), **how), work)
        for gradient in ("conv2d_grad_weight", "conv2d_grad_parameters"):
            yield Case(gradient, name, _call(normal, x, y, kernel, **how), work)
        if columns < 2500:
            moments = 2.0 * math.prod(y[:3]) * columns**2 * s.groups
            yield Case("patch_second_moment", name, _call(normal, x, kernel, **how), moments)
        yield Case("patch_means", name, _call(normal, x, kernel, **how))
        if math.prod(y[:3]) * columns < 1e8:
            yield Case("extract_patches", name, _call(normal, x, kernel, **how))
        yield Case("output_second_moment", name, _call(normal, y), 2.0 * math.prod(y) * s.filters)
        yield Case("conv2d_grad_bias", name, _call(normal, y))


def _products(large: bool, normal: Normal) -> Iterator[Case]:
    sizes = ((512, 1024, 64), (512, 4096, 1024)) if large else ((5, 7, 3), (130, 33, 65), (1, 1, 1))
    for m, k, n in sizes:
        work, name = 2.0 * m * k * n, f"{m} x {k} x {n}"
        yield Case("matmul", name, _call(normal, (m, k), (k, n), (n,)), work)
        for a, b in ((True, False), (False, True), (True, True)):
            first, second = ((k, m) if a else (m, k)), ((n, k) if b else (k, n))
            call = _call(normal, first, second, transpose_a=a, transpose_b=b)
            yield Case("matmul", f"{name}, transposed {a:d}{b:d}", call, work)
        yield Case("output_second_moment", name, _call(normal, (m, k)), 2.0 * m * k * k)


def _by_place(large: bool, normal: Normal, rng: np.random.Generator) -> Iterator[Case]:
    shape = (512, 32, 32, 32) if large else (3, 5, 7, 11)
    mask = Given(rng.integers(0, 2, shape).astype(np.uint8))
    chosen = Given(rng.integers(0, shape[0], -(-shape[0] // 4)))
    one, two = (shape,), (shape, shape)
    slope = {"negative_slope": 0.1}
    calls: dict[str, tuple[tuple, dict[str, Any]]] = {
        "relu_forward": (one, {}),
        "relu_backward": (two, {}),
        "leaky_relu_forward": (one, slope),
        "leaky_relu_backward": (two, slope),
        "tanh_forward": (one, {}),
        "tanh_backward": (two, {}),
        "sigmoid_forward": (one, {}),
        "sigmoid_backward": (two, {}),
        "add": (two, {}),
        "scale": ((shape, Given(0.3)), {}),
        "scaled_add": ((shape, shape, Given(0.3)), {}),
        "apply_mask": ((shape, mask), {"scale": 1.25}),
        "dot": (two, {}),
        "all_finite": (one, {}),
        "square": (one, {}),
        "square_sum": (one, {}),
        "example_dots": (two, {}),
        "take_examples": ((shape, chosen), {}),
        "location_sum": (one, {}),
        "location_mean": (one, {}),
        "location_mean_backward": (((shape[0], shape[3]), Given(shape)), {}),
        "split": ((shape, Given([shape[3] - 4, 4])), {}),
    }
    name = _times(shape)
    for kernel, (parts, settings) in calls.items():
        yield Case(kernel, name, _call(normal, *parts, **settings))
    both = Given([normal(*shape), normal(*shape)])
    yield Case("concatenate", name, _call(normal, both))


def _norms(large: bool, normal: Normal) -> Iterator[Case]:
    shape = (512, 16, 16, 64) if large else (3, 5, 7, 11)
    vector = Given(normal(shape[3]).astype(np.float64))
    name = _times(shape)
    yield Case("channel_moments", name, _call(normal, shape))
    for kernel in ("channel_products", "channel_squares"):
        yield Case(kernel, name, _call(normal, shape, shape, vector))
    yield Case("channel_affine", name, _call(normal, shape, *[vector] * 3))
    yield Case("channel_combination", name, _call(normal, shape, shape, *[vector] * 4))
    own, positive = Given(normal(shape[3])), Given(np.abs(vector.value))
    vectors = [vector] * 4
    yield Case("norm_terms", name, _call(normal, own, own, vector, positive, epsilon=1e-5))
    yield Case("norm_gradients", name, _call(normal, own, *vectors, Given(9)))
    yield Case("norm_slopes", name, _call(normal, own, own, *vectors, Given(9)))
    running = _call(normal, own, own, vector, positive, momentum=0.9, rows=9)
    yield Case("norm_running", name, running)
    denominator = Given(1 + np.abs(normal(*shape)))
    for region, size in (("across_channels", 5), ("within_channel", 3)):
        how = {"size": size, "alpha": 1e-2, "beta": 0.75, "region": region}
        where = f"{name}, {region}"
        yield Case("response_norm_forward", where, _call(normal, shape, k=1.0, **how))
        for kernel in ("response_norm_backward", "response_norm_tangent"):
            yield Case(kernel, where, _call(normal, shape, shape, denominator, **how))


def _pools(large: bool, normal: Normal) -> Iterator[Case]:
    windows: tuple[tuple[Any, dict[str, Any]], ...] = (
        (3, {"stride": 2, "ceil_mode": True}),
        (2, {"stride": 2}),
        ((3, 2), {"stride": (1, 2), "padding": 1}),
    )
    for shape in [(512, 32, 32, 32)] if large else [(3, 9, 8, 5), (2, 7, 7, 4)]:
        for size, how in windows:
            name, kernel = f"{_times(shape)}, window {size}", Given(size)
            x = normal(*shape)
            y, index = map(Given, kernels(x).max_pool_forward(x, size, **how))
            calls: dict[str, tuple] = {
                "max_pool_forward": (Given(x), kernel),
                "max_pool_backward": (y, index, Given(shape), kernel),
                "max_pool_tangent": (Given(x), index, kernel),
                "avg_pool_forward": (Given(x), kernel),
                "avg_pool_backward": (y, Given(shape), kernel),
            }
            for call, parts in calls.items():
                yield Case(call, name, _call(normal, *parts, **how))


def _losses(large: bool, normal: Normal, rng: np.random.Generator) -> Iterator[Case]:
    for rows, classes in ((512, 10), (512, 1000)) if large else ((7, 10), (3, 1000), (5, 2)):
        both, index = (rows, classes), {"index": 1}
        targets = Given(rng.integers(0, classes, rows))
        uniform, values = Given(rng.random(rows)), Given(rng.random(both))
        probabilities = Given(np.abs(normal(*both)) / 99)
        calls: dict[str, tuple[tuple, dict[str, Any]]] = {
            "softmax": ((both,), {}),
            "softmax_loss": ((both, targets), {}),
            "softmax_sample": ((both, uniform), {}),
            "softmax_fisher_product": ((both, both), {}),
            "softmax_fisher_column": ((probabilities,), index),
            "softmax_error": ((both, targets), {}),
            "squared_loss": ((both, values), {}),
            "squared_error": ((both, values), {}),
            "sigmoid_loss": ((both, values), {}),
            "sigmoid_sample": ((both, values), {}),
            "sigmoid_fisher_product": ((both, both), {}),
            "sigmoid_deviation": ((both,), {}),
            "sigmoid_error": ((both, values), {}),
            "single_component": ((both,), index),
        }
        for kernel, (parts, settings) in calls.items():
            yield Case(kernel, _times(both), _call(normal, *parts, **settings))


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
