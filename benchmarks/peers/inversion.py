"""Damped factors by Cholesky, beside LAPACK on one thread and on all, and PyTorch's.

One thread of LAPACK is what `KFC` would take otherwise: several spin after a call, on cores that
the kernels which follow want. Here each has its pause.

Run: python -m benchmarks.peers.inversion [--only TEXT] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.linalg.lapack import spotrf, spotri
from threadpoolctl import threadpool_limits

from benchmarks.peers.pytorch import torch
from benchmarks.peers.timing import arguments, compared, same, use_threads
from kfc_numba.kernels import cpu

Functions = dict[str, Callable[[], Any]]
SIZES = (577, 801, 1025, 1569, 2305)  # wide factors: 5x5 and 3x3 patches, dense layers


def rivals(size: int, *, inverse: bool) -> Functions:
    """Factor, or inverse, of a damped second moment of `size` rows."""
    rows = np.random.default_rng(0).standard_normal((2 * size, size), np.float32)
    matrix = rows.T @ rows / len(rows) + 0.01 * np.eye(size, dtype=np.float32)
    tensor = torch.from_numpy(matrix)

    def ours() -> np.ndarray:
        found = matrix.copy()
        (cpu.cholesky_inverse if inverse else cpu.cholesky_factor)(found)
        return found

    def lapack() -> np.ndarray:
        # Symmetric: what is LAPACK's lower triangle may be ours.
        found = spotrf(matrix.T, lower=1)[0]
        return spotri(found, lower=1, overwrite_c=1)[0] if inverse else found

    def one_thread() -> np.ndarray:
        with threadpool_limits(1, "blas"):
            return lapack()

    def with_torch() -> torch.Tensor:
        found = torch.linalg.cholesky(tensor)
        return torch.cholesky_inverse(found) if inverse else found

    expected = np.tril(lapack())
    same(np.tril(ours()), expected)
    same(np.tril(with_torch().numpy()), expected)
    return {"ours": ours, "LAPACK, one thread": one_thread, "LAPACK": lapack, "torch": with_torch}


def _cases() -> Iterator[tuple[str, str, Callable[[], Functions]]]:
    for table, inverse in (("Cholesky factor", False), ("inverse by Cholesky", True)):
        for size in SIZES:
            yield table, f"{size} rows", lambda s=size, i=inverse: rivals(s, inverse=i)


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=5)
    options = parser.parse_args()
    use_threads(options.threads)
    torch.set_grad_enabled(False)
    report = compared("Damped inverses", _cases(), options)
    report.claim_mean("inverse by Cholesky", "inverse of a wide factor", 1.0)
    report.finish(options.json)


if __name__ == "__main__":
    main()
