"""Arguments: integers, numbers, flags, choices, shapes; one way to word an error.

A value of the wrong kind is a TypeError, one out of range a ValueError; the message names the
argument, the value given and what is required.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike

Choice = TypeVar("Choice")


@overload
def check_integer(
    name: str, value: Any, *, least: int = 1, optional: Literal[False] = False
) -> int: ...
@overload
def check_integer(
    name: str, value: Any, *, least: int = 1, optional: Literal[True]
) -> int | None: ...
def check_integer(name: str, value: Any, *, least: int = 1, optional: bool = False) -> int | None:
    """An integer of at least `least`, as an int; a bool is none.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    value : object
    least : int
    optional : bool
        Whether None will do.

    Returns
    -------
    int or None

    Raises
    ------
    TypeError, ValueError
    """
    if type(value) is int and value >= least:  # as in every call of a kernel
        return value
    if optional and value is None:
        return None
    required = f"{name} (={value!r}) must be an integer of at least {least}{' or None' * optional}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral):
        raise TypeError(required)
    if value < least:
        raise ValueError(required)
    return int(value)


def check_number(name: str, value: Any, interval: str = "(-inf, inf)", also: str = "") -> float:
    """A real number in an interval, as a float; a bool is none.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    value : object
        A number, or a NumPy scalar or array without dimensions.
    interval : str
        Such as ``"[0, 1)"``. NaN is in none.
    also : str
        What else the argument may be, for the message, with its space: ``" or None"``.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
    """
    given = value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    what = "a finite number" if interval == "(-inf, inf)" else f"a number in {interval}"
    required = f"{name} (={given!r}) must be {what}{also}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(required)
    low, high = (float(end) for end in interval[1:-1].split(","))
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        raise ValueError(required) from None
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if not (above and below):  # NaN is neither
        raise ValueError(required)
    return number


def check_flag(name: str, value: Any) -> bool:
    """True or False, also NumPy's.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    value : object

    Returns
    -------
    bool

    Raises
    ------
    TypeError
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} (={value!r}) must be True or False")
    return bool(value)


def check_choice(name: str, value: Choice, choices: Collection[Choice]) -> Choice:
    """One of some values, of their own kind.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    value : object
    choices : collection

    Returns
    -------
    object
        `value`.

    Raises
    ------
    ValueError
    """
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name} (={value!r}) must be one of {tuple(choices)}")
    return value


def check_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape with one axis or more, each at least 1 long.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    shape : sequence of int

    Returns
    -------
    tuple of int

    Raises
    ------
    TypeError, ValueError
    """
    required = f"{name} (={shape!r}) must be a sequence of integers of at least 1"
    if isinstance(shape, (str, bytes)):
        raise TypeError(required)
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(required) from None
    for size in sizes:
        if isinstance(size, (bool, np.bool_)) or not isinstance(size, Integral):
            raise TypeError(required)
    if not sizes or min(sizes) < 1:
        raise ValueError(required)
    return tuple(int(size) for size in sizes)


def check_instance(name: str, value: Any, kind: type, what: str) -> None:
    """Raise TypeError where a value is not an object of a class.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    value : object
    kind : type
    what : str
        What is required, for the message, such as ``"a network"``.
    """
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name} must be {what}, got {got}")


def as_array(name: str, value: ArrayLike) -> np.ndarray:
    """A value as an array; of masked arrays, and lists of them, only those without a masked entry.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    value : array_like

    Returns
    -------
    numpy.ndarray

    Raises
    ------
    ValueError
        An entry is masked: NumPy would drop the mask in silence.
    """
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ma.MaskedArray) for v in value):
        value = np.ma.stack(value)
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        masked = np.atleast_1d(np.ma.getmaskarray(value))
        raise ValueError(
            f"{counted(name, 'masked value', masked)}; fill them, or leave such examples out: "
            "there is no masked arithmetic here"
        )
    return np.asarray(value)


def counted(
    name: str, what: str, bad: np.ndarray, after: str = "", numbers: np.ndarray | None = None
) -> str:
    """``x has 3 values that are not finite, the first in example 17``, for messages.

    Parameters
    ----------
    name : str
        Of the argument.
    what : str
        What the entries are, in the singular.
    bad : numpy.ndarray of bool
        Which entries are meant, at least one: examples first.
    after : str
        What follows `what`, with ``{be}`` where its verb has to agree in number.
    numbers : numpy.ndarray, optional
        Numbers of the examples; 0, 1, ... if none are given.

    Returns
    -------
    str
    """
    count = int(np.count_nonzero(bad))
    examples = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    first = examples[0] if numbers is None else numbers[examples].min()
    one = count == 1
    text = f"{name} has {count} {what}{'' if one else 's'}{after.format(be='is' if one else 'are')}"
    return f"{text}, {'' if one else 'the first in '}example {first}"


def check_real(name: str, array: np.ndarray) -> None:
    """Raise TypeError where an array does not hold real numbers.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    array : numpy.ndarray
    """
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")


def check_examples(name: str, x: Any, shape: tuple[int, ...]) -> None:
    """ValueError unless an array holds examples of a shape, at least one.

    Parameters
    ----------
    name : str
        What the message calls it.
    x : array
    shape : tuple of int
        Of one example.
    """
    if x.ndim == len(shape) + 1 and x.shape[1:] == shape:
        if len(x):
            return
        raise ValueError(f"{name} has no examples, its shape is {x.shape}")
    hint = ""
    if x.ndim == 4 and x.shape[1:] == (shape[-1], *shape[:-1]):
        hint = "; channels come last, see .transpose(0, 2, 3, 1)"
    elif x.ndim == 4 and x.shape[1:] == (*shape[1:], shape[0]):
        hint = "; input_shape is (height, width, channels)"
    elif x.ndim == len(shape) and (*x.shape[1:], 1) == shape:
        hint = "; one channel is an axis too, see [..., None]"
    elif x.shape == shape and x.ndim <= 3:
        hint = "; one example is a batch of one, see [None]"
    elif x.ndim == len(shape) and x.shape[1:] == shape[1:]:
        hint = f"; input_shape is that of one example: {x.shape[1:]}"
    expected = ", ".join(map(str, ("examples", *shape)))
    raise ValueError(f"{name} has shape {x.shape}, the network takes ({expected}){hint}")
