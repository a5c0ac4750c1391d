"""The bits of a result do not depend on the number of threads, nor on the run."""

import hashlib
import os
import subprocess
import sys

import numba
import numpy as np

from kfc_numba.kernels.cpu import cholesky, conv, dense, jit, moment, pool, winograd
from kfc_numba.kernels.cpu.direct import forward_axis, gradient_axes
from kfc_numba.kernels.geometry import Windows

THREADS = 4


def digests(dtype):
    """Hash of the result of each kernel, on shapes that all threads get a share of."""
    rng = np.random.default_rng(0)
    results = {}

    def keep(name, array):
        results[name] = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()

    for name, count, kernel, window in [
        ("same", 37, 3, {"padding": "same"}),
        ("strided", 37, 3, {"stride": 2, "padding": ((1, 0), (2, 1))}),
        ("few", 2, 3, {"padding": 1}),
        ("grouped", 9, 3, {"padding": 1, "groups": 2}),
        ("dilated", 9, 3, {"padding": 2, "dilation": (1, 2)}),
        ("filtered", 37, 5, {"padding": 2}),  # with fewer multiplications, in all passes
    ]:
        x = rng.normal(size=(count, 11, 9, 6)).astype(dtype)
        weight = rng.normal(size=(kernel, kernel, 6 // window.get("groups", 1), 38)).astype(dtype)
        bias = rng.normal(size=38).astype(dtype)
        y = conv.conv2d_forward(x, weight, bias, **window)
        keep(f"forward {name}", y)
        keep(f"input gradient {name}", conv.conv2d_grad_input(y, weight, x.shape, **window))
        keep(f"weight gradient {name}", conv.conv2d_grad_weight(x, y, kernel, **window))
        keep(f"bias gradient {name}", conv.conv2d_grad_bias(y))
        both = conv.conv2d_grad_parameters(x, y, kernel, **window)
        keep(f"bias gradient beside the weights {name}", both[1])
        keep(f"patch moment {name}", moment.patch_second_moment(x, kernel, **window))
        groups = window.get("groups", 1)
        keep(f"output moment {name}", moment.output_second_moment(y, groups=groups))
        pooled, index = pool.max_pool_forward(y, 3, stride=2, padding=1)
        keep(f"maximum {name}", pooled)
        keep(f"cells {name}", index)
        keep(f"mean {name}", pool.avg_pool_forward(y, 3, stride=2, padding=1))
    rows = rng.normal(size=(301, 70)).astype(dtype)
    other = rng.normal(size=(301, 45)).astype(dtype)
    keep("product", dense.matmul(rows, other, transpose_a=True))
    keep("rows moment", moment.output_second_moment(rows))
    for name, routine in [
        ("factor", cholesky.cholesky_factor),
        ("inverse", cholesky.cholesky_inverse),
    ]:
        matrix = (rows @ rows.T + np.eye(len(rows))).astype(dtype)  # of three diagonal blocks
        assert routine(matrix)
        keep(name, np.tril(matrix))
    return results


def test_minimal_filtering_is_among_them():
    windows = Windows.of((11, 9), 5, 1, 2, 1)
    forward = [forward_axis(windows, i) for i in range(2)]
    assert winograd.pays(*forward, (37, 11, 9, 6), 6, 38)
    backward = [gradient_axes(windows, i)[0] for i in range(2)]
    assert winograd.pays(*backward, (37, 11, 9, 38), 38, 6)


def child():
    """Print the digests for several numbers of threads, in a process that has enough of them."""
    jit.FEW_PRODUCTS = jit.FEW_NUMBERS = 0  # small work is shared out as well
    for threads in (1, 2, 3, THREADS, 1):
        numba.set_num_threads(threads)
        for dtype in (np.float32, np.float64):
            for name, digest in digests(dtype).items():
                print(threads, np.dtype(dtype).name, name.replace(" ", "_"), digest)
        assert numba.get_num_threads() == threads


def test_bits_do_not_depend_on_threads_or_on_the_run():
    here = {
        (np.dtype(dtype).name, name.replace(" ", "_")): digest
        for dtype in (np.float32, np.float64)
        for name, digest in digests(dtype).items()
    }
    run = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "NUMBA_NUM_THREADS": str(THREADS)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    seen = set()
    for line in run.stdout.splitlines():
        threads, dtype, name, digest = line.split()
        assert digest == here[dtype, name], f"{name} in {dtype} with {threads} threads"
        seen.add((threads, dtype, name))
    assert len(seen) == THREADS * len(here)


if __name__ == "__main__":
    child()
