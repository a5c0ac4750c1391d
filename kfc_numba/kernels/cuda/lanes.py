"""Lanes: neighbouring numbers that a thread loads and stores at once, 128 bits where it can.

A kernel keeps them in ``cuda.local.array(lanes, dtype)``. That ends in registers, because all
places in it are constants once the loops over lanes are unrolled.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.errors import RequireLiteralValue
from numba.cuda.extending import intrinsic

_BYTES = 16


def lanes_of(*arrays: Any) -> int:
    """How many numbers 128 bits hold, of the widest type of some arrays."""
    return _BYTES // max([array.itemsize for array in arrays])


def wide(lanes: int, *arrays: Any, apart: int = 0) -> bool:
    """Whether lanes can be moved at once.

    Parameters
    ----------
    lanes : int
    *arrays : cupy.ndarray
        All must begin where a wide load may.
    apart : int
        Distance of the places from which lanes are counted, such as the length of a row.
    """
    for array in arrays:
        if array.data.ptr % (lanes * array.itemsize):
            return False
    return apart % lanes == 0


def channel_lanes(channels: int, *arrays: Any) -> int:
    """Channels that can be moved at once, or 1: for kernels whose results do not depend on it."""
    lanes = lanes_of(*arrays)
    return lanes if wide(lanes, *arrays, apart=channels) else 1


@intrinsic
def load_lanes(typing, pointer, place, values, lanes, at_once):
    """``values[k] = pointer[place + k]`` for all lanes; `lanes` and `at_once` are constants.

    At once, if the place is a multiple of the lanes and `wide` holds for the array.
    """
    return _moved(pointer, place, values, lanes, at_once, loads=True)


@intrinsic
def store_lanes(typing, pointer, place, values, lanes, at_once):
    """``pointer[place + k] = values[k]`` for all lanes, as `load_lanes` does the opposite."""
    return _moved(pointer, place, values, lanes, at_once, loads=False)


def _moved(pointer: Any, place: Any, values: Any, lanes: Any, at_once: Any, loads: bool) -> Any:
    for constant in (lanes, at_once):
        if not isinstance(constant, types.Literal):
            raise RequireLiteralValue("lanes and at_once must be constants")
    size = pointer.dtype.bitwidth // 8
    alignment = size * (lanes.literal_value if at_once.literal_value else 1)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.get_data_type(pointer.dtype)
        vector = ir.VectorType(number, lanes.literal_value).as_pointer()
        far = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), vector)
        near = context.make_array(values)(context, builder, arguments[2]).data
        near = builder.bitcast(near, vector)
        loaded = builder.load(far if loads else near)
        stored = builder.store(loaded, near if loads else far)
        loaded.align, stored.align = (alignment, size) if loads else (size, alignment)
        return context.get_dummy_value()

    return types.void(pointer, place, values, lanes, at_once), emit
