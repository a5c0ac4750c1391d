"""Whole optimizer steps on the network `quick`, and their memory."""

from __future__ import annotations

import kfc_numba as kfc

from .common import quick, random_batch

CYCLE = 20  # steps with two updates of the statistics and one decomposition
RATE = 1e-3


class Steps:
    """Steps on one batch of random images."""

    params = ([128, 512],)
    param_names = ("batch",)

    def setup(self, batch: int) -> None:
        self.x, self.y = random_batch(batch)
        self.sgd = kfc.Trainer(quick(), kfc.SoftmaxCrossEntropy(), kfc.SGD(learning_rate=RATE))
        self.time_sgd_step(batch)

    def time_sgd_step(self, batch: int) -> None:
        self.sgd.step(self.x, self.y)


class KFCCycle:
    """Twenty steps of KFC: divide by twenty for the cost of a step."""

    params = ([128, 512],)
    param_names = ("batch",)
    number, repeat, warmup_time = 1, (1, 3, 30.0), 0

    def setup(self, batch: int) -> None:
        self.x, self.y = random_batch(batch)
        optimizer = kfc.KFC(
            curvature_update_period=10, inverse_update_period=CYCLE, period_growth=0
        )
        self.trainer = kfc.Trainer(quick(), kfc.SoftmaxCrossEntropy(), optimizer)
        self.trainer.step(self.x, self.y)

    def time_20_steps(self, batch: int) -> None:
        for _ in range(CYCLE):
            self.trainer.step(self.x, self.y)


class Memory:
    """Most memory of a process that takes steps, libraries included."""

    params = (["SGD", "KFC"], [128, 512])
    param_names = ("optimizer", "batch")

    def peakmem_steps(self, optimizer: str, batch: int) -> None:
        x, y = random_batch(batch)
        made = kfc.SGD() if optimizer == "SGD" else kfc.KFC(learning_rate=RATE)
        trainer = kfc.Trainer(quick(), kfc.SoftmaxCrossEntropy(), made)
        for _ in range(3):
            trainer.step(x, y)
