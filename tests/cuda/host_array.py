"""Arrays in host memory that behave as CuPy's: NumPy's inside, and strangers to NumPy outside.

Whatever CuPy refuses is refused: conversion to NumPy but by `get`, and arithmetic with NumPy's
arrays. Fresh arrays begin where CuPy's do, at multiples of 512 bytes, views wherever they are; an
array that nobody filled holds NaN. What makes the host wait for a card is counted (`waits`).
"""

import math
import operator
import threading
from types import SimpleNamespace

import array_api_compat.numpy as whole
import array_api_strict
import numpy as np

ALIGNMENT = 512
UNFILLED = 77  # where there is no NaN


class HostArray:
    """A device array as far as the package can tell; `get` copies it to NumPy."""

    __array_ufunc__ = None  # NumPy's operators leave the work to ours, which refuse
    __hash__ = None
    #: How often a value was read by the host, in the thread that steps are asked for in.
    waits = 0
    #: Whether arrays that nobody filled hold NaN.
    fills = True

    def __init__(self, values):
        if not isinstance(values, np.ndarray):
            raise TypeError(f"HostArray holds an array of NumPy, got {type(values).__name__}")
        self._values = values

    @property
    def data(self):
        return SimpleNamespace(ptr=self._values.ctypes.data)

    @property
    def T(self):
        return HostArray(self._values.T)

    @property
    def mT(self):
        return HostArray(self._values.mT)

    @property
    def device(self):
        return "host as a device"

    def get(self):
        _count()
        return self._values.copy()

    def item(self, *place):
        _count()
        return self._values.item(*place)

    def set(self, values, stream=None):
        """Copy from an array of NumPy, of the same shape and dtype."""
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError(f"{values.dtype} {values.shape} into {self.dtype} {self.shape}")
        self._values[...] = values

    def __array__(self, *arguments, **named):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct"
            " a NumPy array explicitly."
        )

    def __array_function__(self, function, kinds, arguments, named):
        raise TypeError(f"{function.__name__} of NumPy does not compute on a device array")

    def __array_namespace__(self, *, api_version=None):
        return namespace

    def __getitem__(self, key):
        return HostArray(np.asarray(self._values[_index(key)]))

    def __setitem__(self, key, value):
        self._values[_index(key)] = _inner(value)

    def __len__(self):
        return len(self._values)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        return bool(self.item())

    def __int__(self):
        return int(self.item())

    def __float__(self):
        return float(self.item())

    def __index__(self):
        return operator.index(self.item())

    def __repr__(self):
        return f"HostArray({self._values!r})"

    def fill(self, value):
        if isinstance(value, (np.ndarray, HostArray)) and value.ndim:
            raise ValueError("fill takes a number")
        self._values.fill(_inner(value))

    def astype(self, dtype, *, copy=True):
        if not copy and self.dtype == dtype:
            return self
        return HostArray(_fresh(self._values.astype(dtype)))

    def copy(self):
        return HostArray(_fresh(self._values))


def _count():
    if threading.current_thread() is threading.main_thread():
        HostArray.waits += 1


def on_device(values):
    """A copy of an array of NumPy, C-contiguous."""
    return HostArray(_fresh(np.asarray(values)))


def _fresh(values):
    """A C-contiguous copy where a new array of a device would begin."""
    copy = _room(values.shape, values.dtype)
    copy[...] = values
    return copy


def _room(shape, dtype):
    """Zeros; the operating system gives memory where it is written, so large ones cost nothing."""
    shape = (shape,) if np.isscalar(shape) else tuple(shape)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + ALIGNMENT, np.uint8)
    first = -room.ctypes.data % ALIGNMENT
    return room[first : first + size].view(dtype).reshape(shape)


def untouched(shape, dtype=np.float32):
    """Array for launches that are only noted: its memory is not used."""
    return HostArray(_room(shape, dtype))


def _inner(value):
    """What NumPy computes with: of an array of NumPy's own, nothing."""
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_inner, value))
    return value._values if isinstance(value, HostArray) else value


def _outer(result, arguments=()):
    """What NumPy computed, on the device; views of arguments stay views."""
    if isinstance(result, tuple):
        parts = [_outer(part, arguments) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    if isinstance(result, list):
        return [_outer(part, arguments) for part in result]
    if not isinstance(result, (np.ndarray, np.generic)):
        return result
    result = np.asarray(result)
    if any(isinstance(a, np.ndarray) and np.may_share_memory(result, a) for a in arguments):
        return HostArray(result)
    return HostArray(_fresh(result))


def _index(key):
    return tuple(map(_inner, key)) if isinstance(key, tuple) else _inner(key)


def _property(name):
    return property(lambda self: getattr(self._values, name))


def _method(name):
    def method(self, *arguments, **named):
        function = getattr(self._values, name)
        named = {key: _inner(value) for key, value in named.items()}
        return _outer(function(*map(_inner, arguments), **named), (self._values,))

    return method


def _binary(function, swapped=False):
    def operate(self, other):
        other = _inner(other)
        pair = (other, self._values) if swapped else (self._values, other)
        return _outer(function(*pair))

    return operate


def _in_place(function):
    def operate(self, other):
        self._values = function(self._values, _inner(other))
        return self

    return operate


def _unary(function):
    return lambda self: _outer(function(self._values))


_PROPERTIES = "shape dtype ndim size nbytes itemsize flags strides"
_METHODS = (
    "reshape transpose ravel squeeze swapaxes sum prod mean std var min max any all argmin argmax "
    "cumsum dot clip take repeat diagonal trace round view"
)
_OPERATORS = "add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift"

for _name in _PROPERTIES.split():
    setattr(HostArray, _name, _property(_name))
for _name in _METHODS.split():
    setattr(HostArray, _name, _method(_name))
for _name in _OPERATORS.split():
    _plain, _function = _name.rstrip("_"), getattr(operator, _name)
    setattr(HostArray, f"__{_plain}__", _binary(_function))
    setattr(HostArray, f"__r{_plain}__", _binary(_function, swapped=True))
    if _plain != "matmul":
        setattr(HostArray, f"__i{_plain}__", _in_place(getattr(operator, f"i{_plain}")))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(HostArray, f"__{_name}__", _binary(getattr(operator, _name)))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(HostArray, f"__{_name}__", _unary(getattr(operator, _name)))


class _Namespace:
    """The functions of the array API standard, as `array_api_compat` has them for CuPy's arrays."""

    def __init__(self, name, source, standard, extra=()):
        self.__name__ = name
        self._source = source
        self._names = {*dir(standard), *extra}
        for own in ("asarray", "empty", "empty_like", "zeros", "fft", "linalg"):
            self._names.discard(own)

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"{self.__name__} has no {name}")
        found = getattr(self._source, name)
        if isinstance(found, type) or not callable(found):
            return found

        def function(*arguments, **named):
            arguments = list(map(_inner, arguments))
            named = {key: _inner(value) for key, value in named.items() if key != "device"}
            return _outer(found(*arguments, **named), arguments)

        return function


def _asarray(values, *, dtype=None, device=None, copy=None):
    """Numbers, lists and arrays of NumPy are uploaded: this is said, not implicit."""
    if isinstance(values, HostArray):
        if dtype is None or values.dtype == dtype:
            return values.copy() if copy else values
        return values.astype(dtype)
    return on_device(np.asarray(values, dtype))


def _empty(shape, dtype=None, *, device=None):
    values = _room(shape, dtype or float)
    if HostArray.fills:
        values.fill(np.nan if values.dtype.kind in "fc" else UNFILLED)
    return HostArray(values)


def _zeros(shape, dtype=None, *, device=None):
    return HostArray(_room(shape, dtype or float))


def _empty_like(array, /, *, dtype=None, device=None):
    return _empty(array.shape, dtype or array.dtype)


namespace = _Namespace("host_array", whole, array_api_strict, ["ascontiguousarray", "errstate"])
namespace.asarray = namespace.array = _asarray
namespace.empty, namespace.empty_like, namespace.zeros = _empty, _empty_like, _zeros
namespace.linalg = _Namespace("host_array.linalg", whole.linalg, array_api_strict.linalg)
