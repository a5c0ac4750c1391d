"""Kernels that treat every number alike, against NumPy and the kernels of the CPU."""

import numpy as np
import pytest
from host_array import on_device

from kfc_numba.kernels import cpu, cuda


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (7, 3), (5, 4, 3, 17), (257,)])
def test_relu(shape, dtype):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    x.flat[0] = np.nan
    y = cuda.relu_forward(on_device(x)).get()
    np.testing.assert_array_equal(y, cpu.relu_forward(x))
    dx = cuda.relu_backward(on_device(dy), on_device(y)).get()
    np.testing.assert_array_equal(dx, cpu.relu_backward(dy, y))
