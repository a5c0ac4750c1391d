"""Optimizers, and schedules of their hyperparameters.

An optimizer that is imported here has its name, in small letters, on the command line, with the
arguments of its constructor as options.
"""

from kfc_numba.optim.adam import Adam
from kfc_numba.optim.adaptation import Adaptation
from kfc_numba.optim.base import Optimizer
from kfc_numba.optim.kfc import KFC
from kfc_numba.optim.schedule import (
    CosineDecay,
    ExponentialDecay,
    LinearWarmup,
    PiecewiseConstant,
)
from kfc_numba.optim.sgd import SGD

#: Optimizers by the names that the command line has for them.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): kind
    for name, kind in list(globals().items())
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
}

__all__ = [
    "KFC",
    "OPTIMIZERS",
    "SGD",
    "Adam",
    "Adaptation",
    "CosineDecay",
    "ExponentialDecay",
    "LinearWarmup",
    "Optimizer",
    "PiecewiseConstant",
]
