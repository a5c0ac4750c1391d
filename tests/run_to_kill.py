"""A training run in a process of its own, which kills itself where it is told to.

Arguments: the optimizer's name, the checkpoint, the file for the final parameters, and where to
die: ``step N`` (in the middle of that step), ``write N`` (when the N-th checkpoint of this process
has been written but not yet renamed), or ``never``.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from kfc_numba import optim
from kfc_numba.layers.activation import ReLU
from kfc_numba.layers.conv import Conv2d
from kfc_numba.layers.dense import Dense
from kfc_numba.layers.dropout import Dropout
from kfc_numba.layers.norm import BatchNorm
from kfc_numba.layers.pool import MaxPool2d
from kfc_numba.layers.shape import Flatten
from kfc_numba.losses import SoftmaxCrossEntropy
from kfc_numba.sequential import Sequential
from kfc_numba.train import Trainer

STEPS = 11


def optimizer(name):
    if name == "SGD":
        return optim.SGD(learning_rate=0.05, averaging=4)
    return optim.KFC(
        learning_rate=0.05,
        damping=1e-2,
        averaging=4,
        num_burnin_steps=2,
        curvature_update_period=2,
        inverse_update_period=3,
    )


def network():
    layers = [
        Conv2d(6, 3, padding="same"),
        BatchNorm(),
        MaxPool2d(2),
        ReLU(),
        Flatten(),
        Dropout(0.3),
        Dense(4),
    ]
    return Sequential(layers, input_shape=(8, 8, 2))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def main(name, checkpoint, result, place, number=0):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 8, 8, 2)).astype(np.float32)
    y = rng.integers(4, size=50)
    method, loss = optimizer(name), SoftmaxCrossEntropy()
    if Path(checkpoint).exists():
        trainer = Trainer.load(checkpoint, network(), loss, method)
    else:
        trainer = Trainer(network(), loss, method, seed=5)

    if place == "step":
        usual = method.delta

        def delta(*arguments):
            found = usual(*arguments)
            if trainer.steps == int(number):
                die()
            return found

        method.delta = delta
    elif place == "write":
        replace, writes = os.replace, []

        def last(*arguments):
            writes.append(arguments)
            if len(writes) == int(number):
                die()
            replace(*arguments)

        os.replace = last
    trainer.fit(
        x,
        y,
        batch_size=16,
        total_steps=STEPS,
        validation=(x[:20], y[:20]),
        evaluate_every=2,
        progress=False,
        checkpoint=checkpoint,
    )
    rows = [[row[k] for k in row if k != "seconds"] for row in trainer.history.rows]
    arrays = {f"params/{k}": v for k, v in trainer.net.params.items()} | trainer.net.buffers
    np.savez(result, rows=np.array(rows), **arrays, **trainer.optimizer_state)


if __name__ == "__main__":
    main(*sys.argv[1:])
