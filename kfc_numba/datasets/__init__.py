"""Real data sets: one that ships with the package, and readers of official formats."""

from .base import Dataset, DatasetError, DatasetNotFoundError
from .bundled import fashion_mnist_10k
from .catalog import load, names
from .cifar10 import cifar10_batches, read_cifar10_batch
from .idx import mnist_folder, read_idx
from .svhn import read_svhn_mat, svhn_folder

__all__ = [
    "Dataset",
    "DatasetError",
    "DatasetNotFoundError",
    "cifar10_batches",
    "fashion_mnist_10k",
    "load",
    "mnist_folder",
    "names",
    "read_cifar10_batch",
    "read_idx",
    "read_svhn_mat",
    "svhn_folder",
]
