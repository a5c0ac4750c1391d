"""Optimizers, and schedules of their hyperparameters."""

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

__all__ = [
    "KFC",
    "SGD",
    "Adam",
    "Adaptation",
    "CosineDecay",
    "ExponentialDecay",
    "LinearWarmup",
    "Optimizer",
    "PiecewiseConstant",
]
