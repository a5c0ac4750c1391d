"""Where windows lie on an image: argument forms, padding and output sizes of one or two axes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from kfc_numba.checks import check_flag

Made = TypeVar("Made")
Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def normalize_pair(name: str, value: Any, minimum: int = 1) -> Pair:
    """Two integers from one integer, meant for both axes, or from a pair.

    Parameters
    ----------
    name : str
        Name of the argument, for the message.
    value : int or pair of int
        ``(vertical, horizontal)``.
    minimum : int
        Least value allowed.

    Returns
    -------
    (int, int)

    Raises
    ------
    TypeError
        `value` is neither an integer nor a pair of integers.
    ValueError
        A value lies below `minimum`, or there are not two.
    """
    single = _integer(value)
    if single is not None:
        pair = (single, single)
    else:
        entries = [_integer(entry) for entry in _entries(value)]
        if not entries or any(entry is None for entry in entries):
            raise TypeError(f"{name} (={value!r}) must be an integer or a pair of integers")
        if len(entries) != 2:
            raise ValueError(f"{name} (={value!r}) must have two entries, got {len(entries)}")
        pair = (entries[0], entries[1])  # type: ignore[assignment]
    if min(pair) < minimum:
        raise ValueError(f"{name} (={value!r}) must be at least {minimum}")
    return pair


def canonical_padding(padding: Any) -> Literal["same", "valid"] | Padding:
    """Check the form of a padding argument where the size of the image is not yet known.

    Parameters
    ----------
    padding : str, int, pair of int, or pair of pairs of int
        As in `normalize_padding`.

    Returns
    -------
    str or ((int, int), (int, int))
        ``"same"``, ``"valid"``, or ``((top, bottom), (left, right))``.

    Raises
    ------
    TypeError, ValueError
        `padding` has none of these forms, or a value is negative.
    """
    if isinstance(padding, str):
        if padding == "same":
            return "same"
        if padding == "valid":
            return "valid"
        raise ValueError(f"padding (={padding!r}) must be 'same', 'valid', or integers")
    entries = _entries(padding)
    if len(entries) == 2 and all(_entries(entry) for entry in entries):
        return (
            normalize_pair("padding", entries[0], 0),
            normalize_pair("padding", entries[1], 0),
        )
    try:
        vertical, horizontal = normalize_pair("padding", padding, 0)
    except TypeError:
        raise TypeError(
            f"padding (={padding!r}) must be 'same', 'valid', an integer, a pair (vertical, "
            "horizontal), or ((top, bottom), (left, right))"
        ) from None
    return (vertical, vertical), (horizontal, horizontal)


def normalize_padding(
    padding: Any, kernel: Pair, stride: Pair, dilation: Pair, size: Pair
) -> Padding:
    """Cells added on the four sides of an image.

    Parameters
    ----------
    padding : str, int, pair of int, or pair of pairs of int
        ``"valid"``: none. ``"same"``: as many as make the output ``ceil(size / stride)``, an odd
        one at the bottom or right (TensorFlow's rule). An integer: on every side.
        ``(vertical, horizontal)``: on both sides of an axis. ``((top, bottom), (left, right))``.
    kernel, stride, dilation : (int, int)
        Of the window, vertical and horizontal.
    size : (int, int)
        Height and width of the image.

    Returns
    -------
    ((int, int), (int, int))
        ``((top, bottom), (left, right))``.

    Raises
    ------
    TypeError, ValueError
        `padding` has none of these forms, or a value is negative.
    """
    form = canonical_padding(padding)
    if form == "same":
        vertical, horizontal = (
            _same(*axis) for axis in zip(size, kernel, stride, dilation, strict=True)
        )
        return vertical, horizontal
    if form == "valid":
        return (0, 0), (0, 0)
    return form


def output_size(
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    before: int,
    after: int,
    ceil_mode: bool = False,
) -> int:
    """Number of windows along one axis.

    Parameters
    ----------
    size : int
        Cells of the image.
    kernel, stride, dilation : int
        Of the window.
    before, after : int
        Padding on the two sides.
    ceil_mode : bool
        Whether a last window that does not fit is kept. It must start inside the image or the
        padding before it (PyTorch's rule).

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        No window fits.
    """
    span = (kernel - 1) * dilation + 1
    padded = size + before + after
    room = padded - span
    count = room // stride + 1
    if ceil_mode:
        count = min(-(-room // stride) + 1, -(-(size + before) // stride))
    if count < 1 or (room < 0 and not ceil_mode):
        spread = f", {span} cells with dilation (={dilation})," if dilation > 1 else ""
        raise ValueError(
            f"kernel (={kernel}){spread} must be at most the {padded} cells of the padded image "
            f"({before} + {size} + {after})"
        )
    return count


def pooled_size(
    size: Pair, kernel: Pair, stride: Pair, padding: Padding, ceil_mode: bool = False
) -> Pair:
    """Number of pooling windows, each of which holds at least one cell of the image.

    Parameters
    ----------
    size, kernel, stride : (int, int)
    padding : ((int, int), (int, int))
        As from `normalize_padding`.
    ceil_mode : bool
        Whether last windows that do not fit are kept.

    Returns
    -------
    (int, int)

    Raises
    ------
    ValueError
        No window fits, or one could lie in the padding alone.
    """
    for window, sides in zip(kernel, padding, strict=True):
        if max(sides) >= window:
            raise ValueError(
                f"padding (={padding}) must be smaller than kernel (={kernel}) on every side"
            )
    (top, bottom), (left, right) = padding
    return (
        output_size(size[0], kernel[0], stride[0], 1, top, bottom, ceil_mode),
        output_size(size[1], kernel[1], stride[1], 1, left, right, ceil_mode),
    )


class Windows(NamedTuple):
    """Where the windows of a convolution lie: normalised arguments and output size."""

    kernel: Pair
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    size: Pair
    output: Pair

    @classmethod
    def of(cls, size: Pair, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Windows:
        """Normalise and check the arguments of a convolution over an image of `size`."""
        return _remembered(cls._of, size, kernel, stride, padding, dilation)

    @classmethod
    def _of(cls, size: Pair, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Windows:
        k = normalize_pair("kernel", kernel)
        s, d = normalize_pair("stride", stride), normalize_pair("dilation", dilation)
        p = normalize_padding(padding, k, s, d, size)
        output = tuple(output_size(size[i], k[i], s[i], d[i], *p[i]) for i in range(2))
        return cls(k, s, p, d, size, output)  # type: ignore[arg-type]

    def inside(self, i: int, tap: int) -> range:
        """Windows along axis i whose `tap` lies in the image, not in the padding."""
        first = tap * self.dilation[i] - self.padding[i][0]
        low = max(0, -(first // self.stride[i]))
        high = min(self.output[i], (self.size[i] - 1 - first) // self.stride[i] + 1)
        return range(low, max(low, high))

    def cell(self, i: int, window: int, tap: int) -> int:
        """Cell of the image, along axis i, that lies under a tap of a window."""
        return window * self.stride[i] + tap * self.dilation[i] - self.padding[i][0]

    def margins(self) -> Pair:
        """Pixels beside the image, left and right, that windows reach."""
        last = self.cell(1, self.output[1] - 1, self.kernel[1] - 1)
        return self.padding[1][0], max(0, last + 1 - self.size[1])


class PoolWindows(NamedTuple):
    """Where the windows of a pool lie: normalised arguments and output size."""

    kernel: Pair
    stride: Pair
    padding: Padding
    size: Pair
    output: Pair

    @classmethod
    def of(cls, size: Pair, kernel: Any, stride: Any, padding: Any, ceil_mode: Any) -> PoolWindows:
        """Normalise and check the arguments of a pool over an image of `size`.

        A stride of None is the kernel.
        """
        return _remembered(cls._of, size, kernel, stride, padding, ceil_mode)

    @classmethod
    def _of(cls, size: Pair, kernel: Any, stride: Any, padding: Any, ceil_mode: Any) -> PoolWindows:
        size = normalize_pair("size", size)
        k = normalize_pair("kernel", kernel)
        s = k if stride is None else normalize_pair("stride", stride)
        p = normalize_padding(padding, k, s, (1, 1), size)
        return cls(k, s, p, size, pooled_size(size, k, s, p, check_flag("ceil_mode", ceil_mode)))


def _remembered(make: Callable[..., Made], *arguments: Any) -> Made:
    """What `make` returns for the arguments, made once."""
    # The text tells 1 from True and 1.0, which are equal; a wrong type is not remembered.
    text = make.__qualname__ + repr(arguments)
    windows = _known.get(text)
    if windows is None:
        windows = make(*arguments)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[text] = windows
    return windows


_MOST_KNOWN = 1024
_known: dict[str, Any] = {}


def _same(size: int, kernel: int, stride: int, dilation: int) -> Pair:
    windows = -(-size // stride)
    total = max((windows - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _integer(value: Any) -> int | None:
    """The value as an int if it is an integer (a bool is not), else None."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _entries(value: Any) -> tuple:
    """The entries of a list or tuple; none of anything else."""
    return tuple(value) if isinstance(value, (list, tuple)) else ()
