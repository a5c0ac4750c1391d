"""Natural-gradient training of convolutional networks by KFC, on NumPy and Numba.

R. Grosse and J. Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers",
ICML 2016.
"""

# isort: off
from kfc_numba import importing  # first: an interrupt may come while the rest is imported
from kfc_numba import variables
# isort: on

if not importing.is_command():  # which tells it in its own way
    variables.check()

# isort: split
from kfc_numba import curvature, datasets, laplace, networks
from kfc_numba.curvature.report import check_curvature
from kfc_numba.evaluation import evaluate
from kfc_numba.foreign_names import absent
from kfc_numba.graph import Graph, Input
from kfc_numba.history import History
from kfc_numba.layers import (
    Add,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    LeakyReLU,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sigmoid,
    Tanh,
)
from kfc_numba.layers.base import Layer
from kfc_numba.losses import Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError
from kfc_numba.model import Model, load, load_model
from kfc_numba.normalization import Normalization
from kfc_numba.optim import KFC, SGD, Adam, Adaptation, Optimizer
from kfc_numba.optim.schedule import (
    CosineDecay,
    ExponentialDecay,
    LinearWarmup,
    PiecewiseConstant,
)
from kfc_numba.sequential import Sequential
from kfc_numba.train import Trainer

__version__ = "0.1.0"

__all__ = [
    "KFC",
    "SGD",
    "Adam",
    "Adaptation",
    "Add",
    "AvgPool2d",
    "BatchNorm",
    "Concat",
    "Conv2d",
    "CosineDecay",
    "Dense",
    "Dropout",
    "ExponentialDecay",
    "Flatten",
    "GlobalAvgPool2d",
    "Graph",
    "History",
    "Input",
    "Layer",
    "LeakyReLU",
    "LinearWarmup",
    "LocalResponseNorm",
    "Loss",
    "MaxPool2d",
    "Model",
    "Normalization",
    "Optimizer",
    "PiecewiseConstant",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "Tanh",
    "Trainer",
    "check_curvature",
    "curvature",
    "datasets",
    "evaluate",
    "laplace",
    "load",
    "load_model",
    "networks",
]


def __getattr__(name: str) -> object:
    raise AttributeError(absent(__name__, name, __all__))
