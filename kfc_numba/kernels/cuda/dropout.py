"""Random masks: the bits that the CPU draws, made where they are needed."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda

from kfc_numba.checks import check_instance, check_number, check_shape
from kfc_numba.kernels.cpu import dropout as cpu
from kfc_numba.kernels.cuda.arguments import output_array
from kfc_numba.kernels.cuda.grids import THREADS, ceil_div
from kfc_numba.kernels.cuda.lanes import store_lanes
from kfc_numba.kernels.cuda.launch import device_kernel
from kfc_numba.kernels.cuda.philox import philox_block
from kfc_numba.kernels.cuda.twin import twin

_HALVES = 8  # numbers of 32 bits in a block of Philox's
_WORDS = 4  # of 64 bits
_BITS = np.dtype(np.uint8)


@twin(cpu.dropout_mask)
def dropout_mask(
    shape: Sequence[int], *, rate: float, rng: np.random.Generator, out: Any = None
) -> Any:
    """The numbers of Philox generators, which this package uses alone, are drawn on the device;
    those of others on the host. The generator is left as the CPU's kernel leaves it.
    """
    check_instance("rng", rng, np.random.Generator, "a NumPy generator")
    least = np.float32(check_number("rate", rate, "[0, 1)"))
    shape = check_shape("shape", shape)
    if out is None:
        import cupy

        out = cupy.empty(shape, dtype=_BITS)
    out = output_array(out, shape, _BITS, out)
    if not isinstance(rng.bit_generator, np.random.Philox):
        out.set(cpu.dropout_mask(shape, rate=rate, rng=rng))
        return out
    # A number is its upper 24 bits over 2^24.
    limit = math.ceil(float(least) * 2**24)
    state: Any = rng.bit_generator.state
    left = _halves_left(state)[: out.size]
    ones = sum(1 << place for place, half in enumerate(left) if half >> 8 >= limit)
    first = _plus(state["state"]["counter"], 1)
    key = [_signed(word) for word in state["state"]["key"]]
    blocks = ceil_div(out.size - len(left), _HALVES)
    at_once = (out.data.ptr + len(left)) % _HALVES == 0
    _mask(at_once)(
        max(1, ceil_div(blocks, THREADS)), THREADS, out, np.int64(out.size),
        len(left), ones, limit, *map(_signed, first), *key,
    )  # fmt: skip
    _draw(rng, state, out.size, len(left), blocks)
    return out


def _halves_left(state: Any) -> list[int]:
    """What a generator gives before its counter moves on."""
    halves = [state["uinteger"]] if state["has_uint32"] else []
    for word in map(int, state["buffer"][state["buffer_pos"] :]):
        halves += [word & 0xFFFFFFFF, word >> 32]
    return halves


def _draw(rng: np.random.Generator, state: Any, size: int, left: int, blocks: int) -> None:
    """Bring a generator to where it is after `size` numbers, by drawing those of its last block."""
    if blocks:
        state["state"]["counter"] = _plus(state["state"]["counter"], blocks - 1)
        state["buffer_pos"], state["has_uint32"] = _WORDS, 0
        rng.bit_generator.state = state
        size -= left + (blocks - 1) * _HALVES
    rng.random(size, dtype=np.float32)


def _plus(counter: np.ndarray, steps: int) -> np.ndarray:
    """A counter of four words, the lowest first, some steps further."""
    number = sum(int(word) << 64 * k for k, word in enumerate(counter)) + steps
    return np.array([number >> 64 * k & 0xFFFFFFFFFFFFFFFF for k in range(_WORDS)], np.uint64)


def _signed(word: np.uint64) -> np.int64:
    """The int64 of the same bits."""
    return word.view(np.int64)


@functools.cache
def _mask(at_once: bool) -> Any:
    one, zero = np.uint64(1), np.uint64(0)
    narrow, wide = np.uint64(8), np.uint64(40)
    upper = np.uint64(0xFFFFFF)

    @device_kernel
    def mask(out, size, left, ones, limit, a, b, c, d, k, m):
        number = cuda.grid(1)
        if number == 0:
            for place in range(left):
                out[place] = ones >> place & 1
        place = left + number * 8
        if place < size:
            least, steps = np.uint64(limit), np.uint64(number)
            u, v, w, x = np.uint64(a) + steps, np.uint64(b), np.uint64(c), np.uint64(d)
            if u < steps:
                v += one
                if v == zero:
                    w += one
                    if w == zero:
                        x += one
            words = philox_block(u, v, w, x, np.uint64(k), np.uint64(m))
            bits = cuda.local.array(8, np.uint8)
            for half in range(4):
                bits[2 * half] = (words[half] >> narrow & upper) >= least
                bits[2 * half + 1] = words[half] >> wide >= least
            if place + 8 <= size:
                store_lanes(out, place, bits, 8, at_once)
            else:
                for half in range(8):
                    if place + half < size:
                        out[place + half] = bits[half]

    return mask
