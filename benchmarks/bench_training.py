"""How far training comes: quality beside speed, on the data set that ships with the package."""

from __future__ import annotations

import kfc_numba as kfc
from kfc_numba import datasets

from .common import small

LOSS = 0.6
SETTINGS = {
    "KFC": (128, lambda: kfc.KFC()),
    "SGD": (128, lambda: kfc.SGD(learning_rate=0.03, momentum=0.9)),
}


class StepsToLoss:
    """Steps to a training loss of 0.6 (1,000 examples) on the bundled part of Fashion-MNIST."""

    params = (list(SETTINGS),)
    param_names = ("optimizer",)
    timeout = 600
    unit = "steps"

    def setup(self, optimizer: str) -> None:
        data = datasets.load("fashion-mnist-10k")
        self.x, _ = data.normalized()
        self.y = data.y_train

    def track_steps_to_loss(self, optimizer: str) -> float:
        batch, make = SETTINGS[optimizer]
        trainer = kfc.Trainer(small(), kfc.SoftmaxCrossEntropy(), make(), seed=0)
        history = trainer.fit(
            self.x,
            self.y,
            batch_size=batch,
            max_steps=300,
            evaluate_every=4,
            progress=False,
            stop=lambda row: row["training_loss"] <= LOSS,
            training_sample=1000,
        )
        reached = history.rows[-1]["training_loss"] <= LOSS
        return float(history.rows[-1]["step"]) if reached else float("nan")
