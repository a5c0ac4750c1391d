"""Kernels on NumPy arrays, compiled by Numba."""

from kfc_numba.kernels.cpu import many
from kfc_numba.kernels.cpu.by_example import example_dots, square, square_sum, take_examples
from kfc_numba.kernels.cpu.categorical import (
    softmax,
    softmax_error,
    softmax_fisher_column,
    softmax_fisher_product,
    softmax_loss,
    softmax_sample,
)
from kfc_numba.kernels.cpu.cholesky import cholesky_factor, cholesky_inverse
from kfc_numba.kernels.cpu.component_loss import (
    sigmoid_deviation,
    sigmoid_error,
    sigmoid_fisher_product,
    sigmoid_loss,
    sigmoid_sample,
    single_component,
    squared_error,
    squared_loss,
)
from kfc_numba.kernels.cpu.conv import (
    conv2d_forward,
    conv2d_grad_bias,
    conv2d_grad_input,
    conv2d_grad_parameters,
    conv2d_grad_weight,
)
from kfc_numba.kernels.cpu.dense import matmul
from kfc_numba.kernels.cpu.dropout import dropout_mask
from kfc_numba.kernels.cpu.elementwise import (
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
from kfc_numba.kernels.cpu.locations import location_mean, location_mean_backward, location_sum
from kfc_numba.kernels.cpu.merge import concatenate, split
from kfc_numba.kernels.cpu.moment import output_second_moment, patch_second_moment
from kfc_numba.kernels.cpu.norm import (
    channel_affine,
    channel_combination,
    channel_moments,
    channel_products,
    channel_squares,
)
from kfc_numba.kernels.cpu.norm_vectors import (
    norm_gradients,
    norm_running,
    norm_slopes,
    norm_terms,
)
from kfc_numba.kernels.cpu.patches import extract_patches, patch_means
from kfc_numba.kernels.cpu.pool import (
    avg_pool_backward,
    avg_pool_forward,
    max_pool_backward,
    max_pool_forward,
    max_pool_tangent,
    pool_index_dtype,
)
from kfc_numba.kernels.cpu.response_norm import (
    response_norm_backward,
    response_norm_forward,
    response_norm_tangent,
)
