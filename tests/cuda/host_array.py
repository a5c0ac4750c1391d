"""Arrays in host memory that behave as CuPy's: NumPy's inside, and strangers to NumPy outside."""

from types import SimpleNamespace

import numpy as np


class HostArray:
    """A device array as far as the kernels can tell; `get` copies it to NumPy."""

    __array_ufunc__ = None  # NumPy's operators leave the work to ours, which refuse

    def __init__(self, values):
        self._values = values

    @property
    def data(self):
        return SimpleNamespace(ptr=self._values.ctypes.data)

    def get(self):
        return self._values.copy()

    def __array__(self, *arguments, **named):
        raise TypeError("no implicit conversion of a device array to NumPy")

    def __array_namespace__(self, *, api_version=None):
        return namespace

    def reshape(self, *shape):
        return HostArray(self._values.reshape(*shape))

    def __getitem__(self, key):
        return HostArray(self._values[key])

    def __len__(self):
        return len(self._values)


for name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "flags", "strides"):
    setattr(HostArray, name, property(lambda self, name=name: getattr(self._values, name)))


def on_device(values):
    """A copy of an array of NumPy, C-contiguous."""
    return HostArray(np.array(values, order="C"))


namespace = SimpleNamespace(
    __name__="host_array",
    empty=lambda shape, dtype=None: HostArray(np.full(shape, 77, dtype)),
    zeros=lambda shape, dtype=None: HostArray(np.zeros(shape, dtype)),
    ascontiguousarray=lambda array: HostArray(np.ascontiguousarray(array._values)),
)
