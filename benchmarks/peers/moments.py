"""Second moments for the Kronecker factors beside products of explicit patches.

The rivals write out the patches and multiply them: NumPy's windows with BLAS `syrk` from SciPy,
and PyTorch's `unfold` with a matrix product. Neither adds the bias coordinate, ours does.

Run: python -m benchmarks.peers.moments [--only TEXT] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.linalg.blas import ssyrk

from benchmarks.peers.pytorch import torch
from benchmarks.peers.timing import arguments, compared, same, use_threads
from kfc_numba.kernels import cpu

Functions = dict[str, Callable[[], Any]]


def patches(batch: int, size: int, channels: int, kernel: int) -> Functions:
    """Patch second moment of a convolution of stride 1 with "same" padding."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, size, size, channels), np.float32)
    margin, depth = kernel // 2, kernel**2 * channels
    tensor = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()

    def ours() -> np.ndarray:
        return cpu.patch_second_moment(x, kernel, padding=margin)

    def with_numpy() -> np.ndarray:
        padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (1, 2))
        matrix = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, depth)
        return ssyrk(1.0, matrix.T, lower=1)

    def with_torch() -> torch.Tensor:
        columns = torch.nn.functional.unfold(tensor, kernel, padding=margin)
        matrix = columns.permute(1, 0, 2).reshape(depth, -1)
        return matrix @ matrix.T

    result = ours()[:depth, :depth]
    same(np.tril(result), np.tril(with_numpy()))
    split = (channels, kernel, kernel)  # PyTorch's order of a patch
    theirs = with_torch().numpy().reshape(*split, *split).transpose(1, 2, 0, 4, 5, 3)
    same(result, theirs.reshape(depth, depth))
    return {"ours": ours, "patches + syrk": with_numpy, "unfold + matmul": with_torch}


def outputs(batch: int, size: int, channels: int) -> Functions:
    """Second moment of output derivatives; of a dense layer's inputs too."""
    rng = np.random.default_rng(0)
    ds = rng.standard_normal((batch, size, size, channels), np.float32)
    matrix = ds.reshape(-1, channels)
    tensor = torch.from_numpy(matrix)

    def ours() -> np.ndarray:
        return cpu.output_second_moment(ds)

    def with_scipy() -> np.ndarray:
        return ssyrk(1.0, matrix.T, lower=1)

    def with_torch() -> torch.Tensor:
        return tensor.T @ tensor

    same(np.tril(ours()), np.tril(with_scipy()))
    same(ours(), with_torch().numpy())
    return {"ours": ours, "syrk": with_scipy, "torch matmul": with_torch}


def _cases() -> Iterator[tuple[str, str, Callable[[], Functions]]]:
    for batch in (512, 128):
        for size, channels in ((32, 3), (16, 32), (8, 32)):
            title = f"{batch} x {size}x{size}x{channels}, 5x5"
            shape = (batch, size, channels, 5)
            yield "patch second moment", title, lambda s=shape: patches(*s)
    yield "other shapes", "128 x 16x16x64, 3x3", lambda: patches(128, 16, 64, 3)
    yield "other shapes", "128 x 32x32x16, 3x3", lambda: patches(128, 32, 16, 3)
    for size, channels in ((32, 32), (16, 32), (8, 64)):
        title = f"512 x {size}x{size}x{channels}"
        yield "output second moment", title, lambda s=(512, size, channels): outputs(*s)
    for inputs in (785, 1569):
        yield "dense second moment", f"128 x {inputs}", lambda n=inputs: outputs(128, 1, n)


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=5)
    options = parser.parse_args()
    use_threads(options.threads)
    torch.set_grad_enabled(False)
    report = compared("Second moments", _cases(), options)
    report.claim_mean("patch second moment", "patch second moment of quick's layers", 0.15)
    report.finish(options.json)


if __name__ == "__main__":
    main()
