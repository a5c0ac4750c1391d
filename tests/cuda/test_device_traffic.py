"""Conflicts of banks and sectors are counted right, and the products of the package have none."""

import numpy as np
import pytest
from device_traffic import traffic
from host_array import on_device, untouched
from machine_code import recorded
from numba import cuda, float32

from kfc_numba.kernels import cuda as cuda_kernels
from kfc_numba.kernels.cuda.launch import device_kernel
from kfc_numba.precision import tensor_cores

X = np.arange(4096, dtype=np.float32)


def counted(stride, shift=0, width=1):
    """Sites of a kernel whose threads read shared memory with a stride."""

    @device_kernel
    def strided(x, y):
        kept = cuda.shared.array(4096, float32, alignment=16)
        t = cuda.threadIdx.x
        kept[t] = x[t * width]
        cuda.syncthreads()
        y[t] = kept[(t * stride + shift) % 4096]

    return traffic(strided, (1,), (64,), (on_device(X), on_device(X)))


@pytest.mark.parametrize(
    ("stride", "passes"), [(0, 1), (1, 1), (2, 2), (4, 4), (32, 32), (33, 1), (8, 8)]
)
def test_bank_conflicts(stride, passes):
    read = next(s for s in counted(stride) if s.shared and s.kind == "read")
    assert (read.requests, read.passes, read.least) == (2, 2 * passes, 2)
    assert read.factor == passes


@pytest.mark.parametrize(("width", "sectors"), [(1, 4), (2, 8), (8, 32), (64, 32)])
def test_sectors(width, sectors):
    read = next(s for s in counted(1, width=width) if not s.shared and s.kind == "read")
    assert (read.requests, read.passes, read.least) == (2, 2 * sectors, 8)


def _images(*shape):
    return untouched(shape)


PRODUCTS = {
    "conv2d_forward": lambda: cuda_kernels.conv2d_forward(
        _images(8, 16, 16, 64), _images(3, 3, 64, 64), padding=1
    ),
    "conv2d_grad_input": lambda: cuda_kernels.conv2d_grad_input(
        _images(8, 16, 16, 64), _images(3, 3, 64, 64), (8, 16, 16, 64), padding=1
    ),
    "conv2d_grad_weight": lambda: cuda_kernels.conv2d_grad_weight(
        _images(8, 16, 16, 64), _images(8, 16, 16, 64), 3, padding=1
    ),
    "patch_second_moment": lambda: cuda_kernels.patch_second_moment(
        _images(8, 8, 8, 32), 3, padding=1
    ),
    "matmul": lambda: cuda_kernels.matmul(_images(128, 256), _images(256, 64)),
}


@pytest.mark.parametrize("tensor", [False, True], ids=["float32", "TF32"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_have_no_conflicts_of_banks(name, tensor):
    with tensor_cores(tensor):
        kernel, _, grid, block, arguments = recorded(PRODUCTS[name])[0]
    shared = [site for site in traffic(kernel, grid, block, arguments) if site.shared]
    assert {site.kind for site in shared} == {"read", "write"}
    assert all(site.passes == site.least for site in shared)
    assert all(site.bytes == 16 for site in shared if site.kind == "read")


@pytest.mark.parametrize("name", ["relu_forward", "tanh_forward", "scale"])
def test_elementwise_kernels_read_and_write_whole_sectors(name):
    x = _images(4, 16, 16, 32)
    call = (lambda: cuda_kernels.scale(x, 0.5)) if name == "scale" else None
    noted = recorded(call or (lambda: getattr(cuda_kernels, name)(x)))
    kernel, _, grid, block, arguments = noted[0]
    sites = traffic(kernel, grid, block, arguments)
    assert {site.kind for site in sites} == {"read", "write"}
    assert all(site.factor == 1 and site.bytes == 16 for site in sites)
