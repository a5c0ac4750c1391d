"""Arrays of any library: what the array API lacks, for arrays of parameters and factors.

Code above the kernels takes its functions from `array_api_compat.array_namespace`, so that it runs
on the arrays of every library of the standard (https://data-apis.org/array-api). Numbers that a
state holds (the step, weights, counts) are NumPy's whatever the library: the host wants them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from kfc_numba.kernels.backend import kernels, on_device


def zeros(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """Zeros, of the library and on the device of another array; `dtype` in NumPy's words."""
    xp = array_namespace(like)
    return xp.zeros(shape, dtype=getattr(xp, np.dtype(dtype).name), device=device(like))


def zeros_like(array: Any) -> Any:
    """Zeros of the shape and dtype of an array."""
    return array_namespace(array).zeros_like(array)


def shape_only(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that hold no memory and cannot be written: for what needs nothing but a shape."""
    return np.ndarray(shape, dtype, _ZERO, strides=(0,) * len(shape))


#: One, of the widest dtype.
_ZERO = bytes(16)


def cast(array: Any, dtype: Any) -> Any:
    """An array in a dtype, in NumPy's words; itself if it has that already."""
    if isinstance(array, np.ndarray):
        return array.astype(dtype, copy=False)  # the look-up of a name takes 15 microseconds
    xp = array_namespace(array)
    return xp.astype(array, getattr(xp, np.dtype(dtype).name), copy=False)


def contiguous(array: Any) -> Any:
    """An array in the order of C, as kernels take it, where the library has an order of memory."""
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array)
    order = getattr(array_namespace(array), "ascontiguousarray", None)
    return array if order is None else order(array)


def together(arrays: Iterable[Any]) -> Any:
    """Device code for many arrays at once, `kfc_numba.kernels.cuda.many`; None for other arrays.

    The host takes longer to start an operation than a card to do it to one array of parameters.
    """
    one_a_type = list({type(array): array for array in arrays}.values())
    if one_a_type and all(map(on_device, one_a_type)):
        return kernels(one_a_type[0]).many
    return None


def combine(
    a: float | Mapping[str, float], xs: Mapping[str, Any], b: float, ys: Mapping[str, Any]
) -> dict[str, Any]:
    """``a x + b y`` of arrays by name, those of `xs`; a is one number, or one of each."""
    factors = a if isinstance(a, Mapping) else dict.fromkeys(xs, a)
    many = _for_pairs(xs)
    if many is None:
        return {name: factors[name] * x + b * ys[name] for name, x in xs.items()}
    found = many.combined(
        [factors[name] for name in xs], list(xs.values()), b, [ys[name] for name in xs]
    )
    return dict(zip(xs, found, strict=True))


def scaled(xs: Mapping[str, Any], factors: Mapping[str, float]) -> dict[str, Any]:
    """``a x`` of arrays by name, with a number of each."""
    many = _for_pairs(xs)
    if many is None:
        return {name: factors[name] * x for name, x in xs.items()}
    found = many.scaled(list(xs.values()), [factors[name] for name in xs])
    return dict(zip(xs, found, strict=True))


def towards(
    xs: Mapping[str, Any], ys: Mapping[str, Any], weight: float, roots: Collection[str] = ()
) -> dict[str, Any]:
    """``x + (y - x) / weight`` of arrays by name, those of `xs`, x in float64.

    Of the names in `roots` with the square root of y.
    """
    many = _for_pairs(xs)
    if many is None:
        new = {name: array_namespace(y).sqrt(y) if name in roots else y for name, y in ys.items()}
        return {name: x + (new[name] - x) / weight for name, x in xs.items()}
    rooted = [name in roots for name in xs]
    found = many.averaged(list(xs.values()), [ys[name] for name in xs], weight, rooted)
    return dict(zip(xs, found, strict=True))


def _for_pairs(arrays: Mapping[str, Any]) -> Any:
    """What a package of kernels does to many arrays, if it has it for these."""
    if arrays and all(isinstance(array, np.ndarray) for array in arrays.values()):
        return kernels(next(iter(arrays.values()))).many
    return together(arrays.values())
