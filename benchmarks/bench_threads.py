"""What a second thread gains, part by part."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

import kfc_numba as kfc
from kfc_numba.kernels import cpu

from .common import normal, quick, random_batch


def _convolution() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operands of `quick`'s second convolution."""
    return normal(512, 16, 16, 32), normal(5, 5, 32, 32), normal(512, 16, 16, 32, seed=1)


def _forward() -> Callable[[], object]:
    x, weight, y = _convolution()
    return lambda: cpu.conv2d_forward(x, weight, padding=2, out=y)


def _grad_weight() -> Callable[[], object]:
    x, _, dy = _convolution()
    return lambda: cpu.conv2d_grad_weight(x, dy, 5, padding=2)


def _patch_moment() -> Callable[[], object]:
    x, _, _ = _convolution()
    return lambda: cpu.patch_second_moment(x, 5, padding=2)


def _max_pool() -> Callable[[], object]:
    x = normal(512, 32, 32, 32)
    y, index = cpu.max_pool_forward(x, 3, stride=2, ceil_mode=True)
    return lambda: cpu.max_pool_forward(x, 3, stride=2, ceil_mode=True, out=y, index=index)


def _sgd_step() -> Callable[[], object]:
    x, y = random_batch(512)
    trainer = kfc.Trainer(quick(), kfc.SoftmaxCrossEntropy(), kfc.SGD(learning_rate=1e-3))
    return lambda: trainer.step(x, y)


WORK = {
    "convolution forward": _forward,
    "convolution weight gradient": _grad_weight,
    "patch moment": _patch_moment,
    "max pool": _max_pool,
    "SGD step": _sgd_step,
}


class Threads:
    """Batches of 512."""

    params = (list(WORK), [1, 2])
    param_names = ("work", "threads")

    def setup(self, work: str, threads: int) -> None:
        self.before = numba.get_num_threads()
        if threads > numba.config.NUMBA_NUM_THREADS:
            raise NotImplementedError  # asv's way to leave a combination out
        numba.set_num_threads(threads)
        self.run = WORK[work]()
        self.run()

    def teardown(self, work: str, threads: int) -> None:
        numba.set_num_threads(self.before)

    def time_work(self, work: str, threads: int) -> None:
        self.run()
