"""A call of every exported kernel for shapes of real networks, on arrays that need no memory.

What is chosen by shape (tiles, ways to split a sum, versions for wide loads) is seen from here:
`test_machine_code.py` compiles whatever these calls launch.
"""

import itertools
from functools import partial

import numpy as np
from host_array import untouched

from kfc_numba.kernels import cuda
from kfc_numba.kernels.cpu.direct import Axis
from kfc_numba.kernels.cuda import winograd
from kfc_numba.random import generator


class Calls(dict):
    """Functions by name of the kernel, each a list of (label, call)."""

    def add(self, name, label, *arguments, **named):
        package = cuda.many if name.startswith("many.") else cuda
        function = getattr(package, name.rpartition(".")[2], None)
        if function is not None:
            self.setdefault(name, []).append((label, lambda: function(*arguments, **named)))


def calls(dtype=np.float32):
    """All of them, for a dtype of the activations."""
    found = Calls()

    def x(*shape):
        return untouched(shape, dtype)

    def wide(*shape):
        return untouched(shape, np.float64)

    def index(*shape, kind=np.uint8):
        return untouched(shape, kind)

    _of_convolution(found, x)
    if dtype == np.float32:
        _of_filtering(found, x)
    _of_matrices(found, x)
    _of_numbers(found, x, index)
    _of_windows(found, x, index)
    _of_channels(found, x, wide)
    _of_losses(found, x, index)
    _of_many(found, x)
    return found


#: (examples, size, channels, filters, kernel, stride)
CONVOLUTIONS = {
    "first": (512, 32, 3, 32, 5, 1),
    "middle": (512, 16, 32, 32, 5, 1),
    "wide": (128, 28, 128, 128, 3, 1),
    "stride": (128, 56, 64, 128, 3, 2),
    "point": (128, 56, 64, 128, 1, 2),
    "odd": (7, 9, 5, 6, 3, 1),
    "large images": (64, 224, 3, 64, 7, 2),
}


def _of_convolution(found, x):
    for label, (n, size, channels, filters, kernel, stride) in CONVOLUTIONS.items():
        how = {"stride": stride, "padding": kernel // 2}
        out = (size + 2 * (kernel // 2) - kernel) // stride + 1
        image, dy = x(n, size, size, channels), x(n, out, out, filters)
        weight = x(kernel, kernel, channels, filters)
        found.add("conv2d_forward", label, image, weight, x(filters), **how)
        found.add("conv2d_grad_input", label, dy, weight, image.shape, **how)
        found.add("conv2d_grad_weight", label, image, dy, kernel, **how)
        found.add("conv2d_grad_parameters", label, image, dy, kernel, **how)
        found.add("patch_second_moment", label, image, kernel, **how)
        found.add("output_second_moment", label, dy)
        found.add("patch_means", label, image, kernel, bias=True, **how)
        found.add("extract_patches", label, image, kernel, bias=True, **how)
        found.add("conv2d_grad_bias", label, dy)
    groups = {"groups": 4, "padding": 1}
    image, dy, weight = x(64, 14, 14, 64), x(64, 14, 14, 64), x(3, 3, 16, 64)
    found.add("conv2d_forward", "groups", image, weight, **groups)
    found.add("conv2d_grad_input", "groups", dy, weight, image.shape, **groups)
    found.add("conv2d_grad_weight", "groups", image, dy, 3, **groups)
    found.add("patch_second_moment", "groups", image, 3, **groups)
    found.add("output_second_moment", "groups", dy, groups=4)


def _of_filtering(found, x):
    """Minimal filtering of each size, whether it pays or not."""
    axis, flipped = Axis(14, 0, 1, -1, 1, 1, (0, 1, 2)), Axis(14, 0, 1, -1, 1, 1, (2, 1, 0))
    for size, channels in itertools.product(winograd.POINTS, (128, 5)):
        label = f"{channels} channels, squares of {size}"
        image, weight = x(64, 14, 14, channels), x(3, 3, channels, channels)
        given = image, weight, x(channels), image, (axis, axis), size
        found["conv2d_forward"].append((label, partial(winograd.convolve, *given)))
        given = image, weight, None, image, (flipped, flipped), size
        call = partial(winograd.convolve, *given, flip=True)
        found["conv2d_grad_input"].append((label, call))
        call = partial(winograd.sum_products, image, image, weight, (axis, axis), size)
        found["conv2d_grad_weight"].append((label, call))


def _of_matrices(found, x):
    for label, (rows, depth, columns) in {
        "dense": (512, 1024, 10),
        "wide": (512, 512, 1000),
        "odd": (7, 13, 5),
    }.items():
        a, b, dy = x(rows, depth), x(depth, columns), x(rows, columns)
        found.add("matmul", label, a, b, x(columns))
        found.add("matmul", label + ", input", dy, b, transpose_b=True)
        found.add("matmul", label + ", weight", a, dy, transpose_a=True)
        found.add("matmul", label + ", sum", a, b, accumulate=True, out=dy)


def _of_numbers(found, x, index):
    a, b = x(512, 16, 16, 32), x(512, 16, 16, 32)
    odd, other = x(7, 5, 5, 3), x(7, 5, 5, 3)
    for label, p, q in (("even", a, b), ("odd", odd, other)):
        for name in ("relu", "tanh", "sigmoid"):
            found.add(f"{name}_forward", label, p)
            found.add(f"{name}_backward", label, p, q)
        found.add("leaky_relu_forward", label, p, negative_slope=0.1)
        found.add("leaky_relu_backward", label, p, q, negative_slope=0.1)
        found.add("sigmoid_deviation", label, p)
        found.add("add", label, p, q)
        found.add("scale", label, p, 0.5)
        found.add("scaled_add", label, p, q, 0.5)
        found.add("apply_mask", label, p, index(*p.shape), scale=2.0)
        found.add("all_finite", label, p)
        found.add("take_examples", label, p, index(4, kind=np.int64))
        found.add("dot", label, p, q)
        found.add("square", label, p)
        found.add("square_sum", label, p)
        found.add("example_dots", label, p, q)
        found.add("location_mean", label, p)
        found.add("location_sum", label, p)
        found.add("location_mean_backward", label, x(len(p), p.shape[-1]), p.shape)
        found.add("concatenate", label, [p, q])
        found.add("split", label, p, [1, p.shape[-1] - 1])
    for label, shape in (("even", (512, 1024)), ("odd", (7, 13))):
        mask = index(*shape)
        found.add("dropout_mask", label, shape, rate=0.5, rng=generator(0, "masks"), out=mask)


def _of_windows(found, x, index):
    for label, (n, size, channels, kernel, how) in {
        "overlapping": (512, 32, 32, 3, {"stride": 2, "padding": 1}),
        "tiles": (512, 32, 64, 2, {"stride": 2}),
        "odd": (7, 9, 5, 3, {"stride": 2}),
    }.items():
        padding = how.get("padding", 0)
        out = (size + 2 * padding - kernel) // how["stride"] + 1
        image, dy = x(n, size, size, channels), x(n, out, out, channels)
        chosen = index(n, out, out, channels)
        found.add("max_pool_forward", label, image, kernel, **how)
        found.add("max_pool_backward", label, dy, chosen, image.shape, kernel, **how)
        found.add("max_pool_tangent", label, image, chosen, kernel, **how)
        found.add("avg_pool_forward", label, image, kernel, **how)
        found.add("avg_pool_backward", label, dy, image.shape, kernel, **how)
    for region in ("across_channels", "within_channel"):
        image, other, third = x(64, 16, 16, 32), x(64, 16, 16, 32), x(64, 16, 16, 32)
        how = {"size": 5, "alpha": 1e-4, "beta": 0.75, "region": region}
        found.add("response_norm_forward", region, image, k=1.0, **how)
        found.add("response_norm_backward", region, image, other, third, **how)
        found.add("response_norm_tangent", region, image, other, third, **how)


def _of_channels(found, x, wide):
    for label, shape in {"images": (128, 28, 28, 128), "rows": (512, 100)}.items():
        channels = shape[-1]
        u, v = x(*shape), x(*shape)
        four = [wide(channels) for _ in range(4)]
        found.add("channel_moments", label, u)
        found.add("channel_affine", label, u, *four[:3])
        found.add("channel_combination", label, u, v, *four)
        found.add("channel_products", label, u, v, four[0])
        found.add("channel_squares", label, u, v, four[0])
        w, b = x(channels), x(channels)
        found.add("norm_terms", label, w, b, *four[:2], epsilon=1e-5)
        found.add("norm_gradients", label, w, *four, len(u))
        found.add("norm_slopes", label, w, b, *four, len(u))
        found.add("norm_running", label, w, b, *four[:2], momentum=0.9, rows=len(u))


def _of_losses(found, x, index):
    for label, shape in {"ten": (512, 10), "thousand": (128, 1000)}.items():
        a, b = x(*shape), x(*shape)
        classes = index(shape[0], kind=np.int64)
        found.add("softmax", label, a)
        found.add("softmax_loss", label, a, classes)
        found.add("softmax_error", label, a, classes)
        found.add("softmax_fisher_product", label, a, b)
        found.add("softmax_fisher_column", label, a, index=3)
        found.add("softmax_sample", label, a, untouched(shape[:1], np.float64))
        for kind in ("sigmoid", "squared"):
            found.add(f"{kind}_loss", label, a, b)
            found.add(f"{kind}_error", label, a, b)
        found.add("sigmoid_fisher_product", label, a, b)
        found.add("sigmoid_sample", label, a, untouched(shape, np.float64))
        found.add("single_component", label, a, index=3)


def _of_many(found, x):
    """What is done to all parameters alike; ``many.`` stands before the names."""
    shapes = (3, 3, 64, 128), (128,), (512, 10)
    one, other = [x(*shape) for shape in shapes], [x(*shape) for shape in shapes]
    found.add("many.combined", "parameters", [0.9, 1.0, 0.8], one, 0.1, other)
    found.add("many.scaled", "parameters", one, [0.5, 1.0, 2.0])
    found.add("many.averaged", "parameters", one, other, 3.0, [False, False, True])
    found.add("many.copy", "parameters", one, other)
    found.add("many.finite", "parameters", one)
    found.add("many.inners", "parameters", one, other)
