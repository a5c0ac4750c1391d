"""Layers: descriptions that hold hyperparameters only."""

from kfc_numba.layers.activation import LeakyReLU, ReLU, Sigmoid, Tanh
from kfc_numba.layers.conv import Conv2d
from kfc_numba.layers.dense import Dense
from kfc_numba.layers.dropout import Dropout
from kfc_numba.layers.merge import Add, Concat
from kfc_numba.layers.norm import BatchNorm, LocalResponseNorm
from kfc_numba.layers.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from kfc_numba.layers.shape import Flatten
