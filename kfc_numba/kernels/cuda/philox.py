"""Philox 4x64 with 10 rounds: the random numbers of `numpy.random.Philox`, in device code.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011). NumPy gives a
block of four words of 64 bits for each value of a counter, each word in two halves where a number
of 32 bits is asked for, the lower half first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

from kfc_numba.kernels.cuda.launch import inlined

_ROUNDS = 10
_FIRST, _SECOND = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_FIRST_STEP, _SECOND_STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)


@intrinsic
def _high(typing, a, b):
    """The upper 64 of the 128 bits of a product."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), emit


@inlined
def philox_block(a, b, c, d, k, m):
    """The four words for a counter of four words and a key of two, all uint64."""
    for _ in range(_ROUNDS):
        high, low = _high(_FIRST, a), _FIRST * a
        other_high, other_low = _high(_SECOND, c), _SECOND * c
        a, b, c, d = other_high ^ b ^ k, other_low, high ^ d ^ m, low
        k, m = k + _FIRST_STEP, m + _SECOND_STEP
    return a, b, c, d
