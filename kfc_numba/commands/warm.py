"""``kfc-numba warm``: compile the kernels of the usual trainings, so that none has to wait."""

from __future__ import annotations

import argparse
import time

import numpy as np

from kfc_numba import networks
from kfc_numba.commands import options
from kfc_numba.losses import SoftmaxCrossEntropy
from kfc_numba.optim import OPTIMIZERS
from kfc_numba.warming import warm

#: Images that a network is usually trained on; those of CIFAR-10 and SVHN where it is not here.
SHAPES = {"small": (28, 28, 1)}
_USUAL_SHAPE = (32, 32, 3)
_CLASSES = 10
_EVALUATED = 256  # as many as are evaluated at a time


def command(arguments: argparse.Namespace) -> None:
    """Compile what each of some networks needs with each of some optimizers.

    Parameters
    ----------
    arguments : argparse.Namespace
        `networks` and `optimizers` are None for all, `batch_size` for the usual one.
    """
    batch_size = arguments.batch_size or options.BATCH_SIZE
    rng = np.random.default_rng(0)
    for network in arguments.networks or networks.names():
        shape = SHAPES.get(network, _USUAL_SHAPE)
        net = networks.build(network, shape, _CLASSES)
        x = rng.standard_normal((max(batch_size, _EVALUATED), *shape), np.float32)
        y = rng.integers(0, _CLASSES, len(x))
        for optimizer in arguments.optimizers or OPTIMIZERS:
            start = time.perf_counter()
            count = warm(
                net,
                SoftmaxCrossEntropy(),
                options.build(optimizer, {}),
                x,
                y,
                batch_size=batch_size,
            )
            seconds = time.perf_counter() - start
            done = f"{count} kernels compiled in {seconds:.0f} s" if count else "nothing to compile"
            print(f"{network} by {optimizer}: {done}", flush=True)
