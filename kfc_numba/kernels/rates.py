"""What a card can do in a second, as its driver tells: ways that compute the same go by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Units for float32 of a multiprocessor, by compute capability: CUDA C++ Programming Guide,
# "Arithmetic Instructions". All others have 128.
_HALF = {(6, 0), (7, 0), (7, 2), (7, 5), (8, 0)}
_ASKED = ("MultiProcessorCount", "ClockRate", "MemoryClockRate", "GlobalMemoryBusWidth")


class Rates(NamedTuple):
    """The most that a card can do in a second.

    Attributes
    ----------
    products : float
        float32 multiply-adds.
    moved : float
        Bytes read from its memory, or written.
    processors : int
        Multiprocessors: how many blocks of threads compute at once, or a few times that many.
    """

    products: float
    moved: float
    processors: int = 132

    @classmethod
    def of(cls, capability: tuple[int, int], attributes: Mapping[str, int]) -> Rates:
        """Rates by clocks and widths.

        Parameters
        ----------
        capability : tuple of int
            Compute capability.
        attributes : mapping of str to int
            As `cupy.cuda.Device.attributes`: clocks in kHz, the width of the bus in bits.

        Returns
        -------
        Rates
            Those of `H200` where the driver leaves a number out.
        """
        processors, clock, memory_clock, bits = (attributes.get(name, 0) for name in _ASKED)
        products = processors * (64 if capability in _HALF else 128) * clock * 1e3
        moved = 2 * memory_clock * 1e3 * bits / 8  # two transfers in each clock
        return cls(products, moved, processors) if products and moved else H200


#: Of the card that choices were measured on.
H200 = Rates(33.5e12, 4.8e12)
