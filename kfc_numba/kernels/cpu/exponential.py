"""The exponential of numbers that are not positive, in a form that LLVM vectorises.

``e^x = 2^n e^r`` with an integer n and ``|r| <= log(2) / 2``, and e^r by the polynomial (float32)
or the rational function (float64) of Moshier's Cephes library. `np.exp` in a kernel would call the
C library, one number at a time.
"""

from __future__ import annotations

import numpy as np

from kfc_numba.kernels.cpu.jit import inlined

# A number this large holds no fraction: adding it rounds to an integer, which its last bits are.
_ROUND_32, _ROUND_64 = np.float32(1.5 * 2**23), np.float64(1.5 * 2**52)
# What makes the bits of a power of two of them.
_BIAS_32 = 127 - int(_ROUND_32.view(np.int32))
_BIAS_64 = 1023 - int(_ROUND_64.view(np.int64))
_LOG2E_32, _LOG2E_64 = np.float32(np.log2(np.e)), np.float64(np.log2(np.e))
# log(2) in two parts, of which the first has so few digits that its product with n is exact.
_HIGH_32, _LOW_32 = np.float32(0.693359375), np.float32(-2.12194440e-4)
_HIGH_64, _LOW_64 = np.float64(6.93145751953125e-1), np.float64(1.42860682030941723212e-6)
_LEAST_32, _LEAST_64 = np.float32(-110), np.float64(-750)  # whose exponential is rounded to zero
# Below, a result has fewer digits (a subnormal number): it comes by way of 2^(n + 64).
_SMALL_32, _SMALL_64 = np.float32(-86), np.float64(-707)
_UP, _DOWN_32, _DOWN_64 = 64, np.float32(2.0**-64), np.float64(2.0**-64)

_A0, _A1, _A2, _A3, _A4, _A5 = (
    np.float32(a)
    for a in (
        *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
        *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
    )
)
_P0, _P1 = 1.26177193074810590878e-4, 3.02994407707441961300e-2
_Q0, _Q1, _Q2 = 3.00198505138664455042e-6, 2.52448340349684104192e-3, 2.27265548208155028766e-1


@inlined
def _exponential_32(value):
    one = np.float32(1)
    x = value if value > _LEAST_32 else _LEAST_32  # of NaN too
    shifted = x * _LOG2E_32 + _ROUND_32
    n = shifted - _ROUND_32
    r = (x - n * _HIGH_32) - n * _LOW_32
    y = ((((_A0 * r + _A1) * r + _A2) * r + _A3) * r + _A4) * r + _A5
    y = (y * (r * r) + r) + one
    small = x < _SMALL_32
    bits = np.float32(shifted).view(np.int32) + _BIAS_32 + (_UP if small else 0)
    y = y * np.int32(bits << 23).view(np.float32) * (_DOWN_32 if small else one)
    return y if value == value else value


@inlined
def _exponential_64(value):
    x = value if value > _LEAST_64 else _LEAST_64
    shifted = x * _LOG2E_64 + _ROUND_64
    n = shifted - _ROUND_64
    r = (x - n * _HIGH_64) - n * _LOW_64
    square = r * r
    odd = r * ((_P0 * square + _P1) * square + 1.0)
    even = ((_Q0 * square + _Q1) * square + _Q2) * square + 2.0
    y = 1.0 + 2.0 * (odd / (even - odd))
    small = x < _SMALL_64
    bits = np.float64(shifted).view(np.int64) + _BIAS_64 + (_UP if small else 0)
    y = y * np.int64(bits << 52).view(np.float64) * (_DOWN_64 if small else 1.0)
    return y if value == value else value


@inlined
def exponentials(values):
    """Put e^x in the place of each number x of a vector, none of which is positive.

    Within two units in the last place; NaN stays one.
    """
    if values.itemsize == 4:
        for i in range(values.size):
            values[i] = _exponential_32(np.float32(values[i]))
    else:
        for i in range(values.size):
            values[i] = _exponential_64(np.float64(values[i]))


@inlined
def logistic(x, small, one):
    """``1 / (1 + e^-x)`` of `x` and ``small = e^-|x|``, which cannot overflow; 1 in their type."""
    return (small if x < 0 else one) / (one + small)
