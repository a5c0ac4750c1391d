"""The bits of a result do not depend on the number of threads, nor on the run."""

import hashlib
import os
import subprocess
import sys

import numba
import numpy as np

from kfc_numba.kernels.cpu import conv, dense, moment

THREADS = 4


def digests(dtype):
    """Hash of the result of each kernel, on shapes that all threads get a share of."""
    rng = np.random.default_rng(0)
    results = {}

    def keep(name, array):
        results[name] = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()

    for name, count, window in [
        ("same", 37, {"padding": "same"}),
        ("strided", 37, {"stride": 2, "padding": ((1, 0), (2, 1))}),
        ("few", 2, {"padding": 1}),
        ("grouped", 9, {"padding": 1, "groups": 2}),
        ("dilated", 9, {"padding": 2, "dilation": (1, 2)}),
    ]:
        x = rng.normal(size=(count, 11, 9, 6)).astype(dtype)
        weight = rng.normal(size=(3, 3, 6 // window.get("groups", 1), 38)).astype(dtype)
        bias = rng.normal(size=38).astype(dtype)
        y = conv.conv2d_forward(x, weight, bias, **window)
        keep(f"forward {name}", y)
        keep(f"input gradient {name}", conv.conv2d_grad_input(y, weight, x.shape, **window))
        keep(f"weight gradient {name}", conv.conv2d_grad_weight(x, y, 3, **window))
        keep(f"bias gradient {name}", conv.conv2d_grad_bias(y))
        both = conv.conv2d_grad_parameters(x, y, 3, **window)
        keep(f"bias gradient beside the weights {name}", both[1])
        keep(f"patch moment {name}", moment.patch_second_moment(x, 3, **window))
        groups = window.get("groups", 1)
        keep(f"output moment {name}", moment.output_second_moment(y, groups=groups))
    rows = rng.normal(size=(301, 70)).astype(dtype)
    other = rng.normal(size=(301, 45)).astype(dtype)
    keep("product", dense.matmul(rows, other, transpose_a=True))
    keep("rows moment", moment.output_second_moment(rows))
    return results


def child():
    """Print the digests for several numbers of threads, in a process that has enough of them."""
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
