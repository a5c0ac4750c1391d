"""Reader of the IDX format, and of MNIST and Fashion-MNIST, which are stored in it.

An IDX file is two zero bytes, a byte for the element type (8: unsigned byte), a byte for the
number of dimensions, each dimension as a big-endian 32-bit integer, then the elements, last
dimension fastest (Y. LeCun, C. Cortes and C. Burges, "The MNIST database", file formats).
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .base import Dataset, DatasetError
from .locate import is_complete, missing_files, one_of

__all__ = ["MNIST_CLASSES", "MNIST_FILES", "fashion_mnist_classes", "mnist_folder", "read_idx"]

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
# No allocation is larger than this before the file has delivered the bytes for it: a damaged
# header can claim any size.
_PIECE = 1 << 24
