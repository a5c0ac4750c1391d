"""Which taps the positions of a product see, where convolution has a stride or its gradient has.

Pixels of an input fall into classes by the stride, each with taps of its own (`direct.Axis`). One
launch computes up to two classes along each axis: they read the same derivatives, and blocks of one
compute while those of another wait for memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from numba import int32

from kfc_numba.kernels.cpu.direct import Axis
from kfc_numba.kernels.cuda.integers import divider
from kfc_numba.kernels.cuda.launch import inlined


class Taps(NamedTuple):
    """Of one class. Factor and shift are those of `divider`."""

    depth: int  # terms of a sum: taps times channels of the source
    beside: int  # taps beside each other
    beside_factor: int
    beside_shift: int
    source_y: int  # the first tap of the first position
    source_x: int
    target_y: int  # the first position
    target_x: int
    weight: int  # the first tap, in the kernel


class Classes(NamedTuple):
    """Of up to two classes along each axis; the number of a block says of which class it is.

    Neighbours are of different classes, so that what they read alike is read at about one time;
    those with the most taps come first.
    """

    below_bits: int  # of the number of a block: 1 where there are two
    beside_bits: int
    below: int  # taps below each other, of the first class and of the second
    below_1: int
    source_y: int
    source_y_1: int
    target_y: int
    target_y_1: int
    weight_y: int
    weight_y_1: int
    beside: int
    beside_1: int
    beside_factor: int
    beside_factor_1: int
    beside_shift: int
    beside_shift_1: int
    source_x: int
    source_x_1: int
    target_x: int
    target_x_1: int
    weight_x: int
    weight_x_1: int
    channels: int  # of the source


def taps_of(axes: tuple[Axis, Axis], width: int, channels: int) -> Taps:
    """Of one class: vertical and horizontal axis, width of the kernel, channels of the source."""
    rows, columns = axes
    beside = max(len(columns.taps), 1)
    return Taps(
        len(rows.taps) * len(columns.taps) * channels,
        beside,
        *divider(beside),
        rows.source_first,
        columns.source_first,
        rows.target_first,
        columns.target_first,
        _first(rows) * width + _first(columns),
    )


def classes_of(
    axes: tuple[Axis, Axis], others: tuple[Axis | None, Axis | None], width: int, channels: int
) -> Classes:
    """Of one or two classes along each axis."""
    rows, columns = ((axis, other or axis) for axis, other in zip(axes, others, strict=True))
    beside = [max(len(axis.taps), 1) for axis in columns]
    dividers = [divider(count) for count in beside]
    return Classes(  # type: ignore[call-arg]
        *(int(other is not None) for other in others),
        *(len(axis.taps) for axis in rows),
        *(axis.source_first for axis in rows),
        *(axis.target_first for axis in rows),
        *(_first(axis) * width for axis in rows),
        *(len(axis.taps) for axis in columns),
        *(factor for factor, _ in dividers),
        *(shift for _, shift in dividers),
        *(axis.source_first for axis in columns),
        *(axis.target_first for axis in columns),
        *(_first(axis) for axis in columns),
        channels,
    )


def count(classes: Classes) -> int:
    """Classes in all."""
    return 1 << (classes.below_bits + classes.beside_bits)


def finding(several: bool) -> Callable:
    """Function of device code (number of a block, `Taps` or `Classes`): its own number and taps.

    The first is the number among the blocks of its class.
    """

    @inlined
    def given(block, taps):
        return block, taps

    @inlined
    def found(block, classes):
        bits = int32(classes.below_bits + classes.beside_bits)
        second_x = (block & classes.beside_bits) != 0
        second_y = ((block >> classes.beside_bits) & classes.below_bits) != 0
        below = classes.below_1 if second_y else classes.below
        beside = classes.beside_1 if second_x else classes.beside
        weight_y = classes.weight_y_1 if second_y else classes.weight_y
        weight_x = classes.weight_x_1 if second_x else classes.weight_x
        taps = Taps(
            int32(below * beside * classes.channels),
            beside,
            classes.beside_factor_1 if second_x else classes.beside_factor,
            classes.beside_shift_1 if second_x else classes.beside_shift,
            classes.source_y_1 if second_y else classes.source_y,
            classes.source_x_1 if second_x else classes.source_x,
            classes.target_y_1 if second_y else classes.target_y,
            classes.target_x_1 if second_x else classes.target_x,
            int32(weight_y + weight_x),
        )
        return int32(block >> bits), taps

    return found if several else given


def _first(axis: Axis) -> int:
    return axis.taps[0] if axis.taps else 0
