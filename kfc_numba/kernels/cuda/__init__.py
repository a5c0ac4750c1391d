"""Kernels on CuPy arrays, compiled by numba-cuda: the names and signatures of `kernels.cpu`."""

from kfc_numba.kernels.cuda.conv import (
    conv2d_forward,
    conv2d_grad_bias,
    conv2d_grad_input,
    conv2d_grad_parameters,
    conv2d_grad_weight,
)
from kfc_numba.kernels.cuda.dense import matmul
from kfc_numba.kernels.cuda.elementwise import relu_backward, relu_forward
from kfc_numba.kernels.cuda.moment import output_second_moment, patch_second_moment
