"""The parts of a KFC step: second moments, decomposition, rotation, the exact Fisher."""

from __future__ import annotations

import numpy as np

import kfc_numba as kfc
from kfc_numba.curvature.eigen import decompose, rotate
from kfc_numba.curvature.fisher import quadratic_forms
from kfc_numba.curvature.inversion import between_inverses, damped_inverse
from kfc_numba.kernels import cpu

from .common import normal, quick, random_batch

# Image size, channels, kernel, stride.
SHAPES = {
    "quick 1": (32, 3, 5, 1),
    "quick 2": (16, 32, 5, 1),
    "quick 3": (8, 32, 5, 1),
    "stride 2": (16, 32, 3, 2),
}


class PatchMoment:
    """Raw second moment of patches, batch 512, "same" padding."""

    params = (list(SHAPES),)
    param_names = ("shape",)

    def setup(self, shape: str) -> None:
        size, channels, self.kernel, self.stride = SHAPES[shape]
        self.x = normal(512, size, size, channels)
        self.time_patches(shape)

    def time_patches(self, shape: str) -> None:
        padding = self.kernel // 2
        cpu.patch_second_moment(self.x, self.kernel, stride=self.stride, padding=padding)


class OutputMoment:
    """Raw second moment of output derivatives, batch 512."""

    params = (["32x32x32", "8x8x64", "1x1x1024"],)
    param_names = ("shape",)

    def setup(self, shape: str) -> None:
        self.ds = normal(512, *map(int, shape.split("x")))
        self.time_outputs(shape)

    def time_outputs(self, shape: str) -> None:
        cpu.output_second_moment(self.ds)


class Decomposition:
    """Eigenvectors of a factor, a gradient's way there and back, and a damped inverse."""

    params = ([76, 801, 1025],)  # quick's inputs, with the bias
    param_names = ("size",)

    def setup(self, size: int) -> None:
        matrix = normal(2 * size, size)
        self.matrix = matrix.T @ matrix
        self.damping = np.array(1e-2)
        self.gradient = normal(64, size)
        self.left = np.linalg.qr(normal(64, 64))[0]
        self.right = np.linalg.qr(normal(size, size))[0]
        self.time_decompose(size)
        self.time_inverse(size)
        self.factor = damped_inverse(self.matrix, self.damping, "omega", factor=True)
        self.eye = np.eye(len(self.gradient), dtype=np.float32)
        self.time_rotate_there_and_back(size)

    def time_decompose(self, size: int) -> None:
        decompose(self.matrix, "omega")

    def time_inverse(self, size: int) -> None:
        damped_inverse(self.matrix, self.damping, "omega")

    def time_cholesky_factor(self, size: int) -> None:
        damped_inverse(self.matrix, self.damping, "omega", factor=True)

    def time_solve_with_cholesky_factor(self, size: int) -> None:
        between_inverses(self.gradient, self.eye, self.factor, (False, True))

    def time_rotate_there_and_back(self, size: int) -> None:
        rotated = rotate(self.gradient, self.left, self.right)
        rotate(rotated, self.left, self.right, back=True)


class ExactFisher:
    """v^T F v on `quick`, given the forward pass: the exact step bound."""

    params = ([32, 128],)
    param_names = ("examples",)

    def setup(self, examples: int) -> None:
        self.net, self.loss = quick(), kfc.SoftmaxCrossEntropy()
        x, _ = random_batch(examples)
        self.trace = self.net.forward(x, training=True)
        self.direction = {name: np.ones_like(value) for name, value in self.net.params.items()}
        self.time_quadratic_form(examples)

    def time_quadratic_form(self, examples: int) -> None:
        quadratic_forms(self.net, self.trace, self.loss, [self.direction])
