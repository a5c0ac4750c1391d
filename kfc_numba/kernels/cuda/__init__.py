"""Kernels on CuPy arrays, compiled by numba-cuda: the names and signatures of `kernels.cpu`."""

from kfc_numba.kernels.cuda.elementwise import (
    add,
    all_finite,
    apply_mask,
    dot,
    leaky_relu_backward,
    leaky_relu_forward,
    relu_backward,
    relu_forward,
    scale,
    scaled_add,
    sigmoid_backward,
    sigmoid_forward,
    tanh_backward,
    tanh_forward,
)
