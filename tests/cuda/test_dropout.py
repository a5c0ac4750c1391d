"""Masks: the very numbers of the CPU, and the generator left where the CPU's kernel leaves it."""

import sys

import host_array
import numpy as np
import pytest
from host_array import HostArray, on_device

from kfc_numba.kernels import cpu, cuda
from kfc_numba.random import generator


def same_state(a, b):
    """Whether two states of a generator are the same, all that is in them."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    return np.array_equal(a, b)


@pytest.mark.parametrize("size", [1, 5, 8, 9, 16, 17, 8 * 256 + 3])
@pytest.mark.parametrize("before", range(10))
def test_the_numbers_of_the_cpu(size, before):
    ours, theirs = (generator(3, "dropout", 7) for _ in range(2))
    for rng in (ours, theirs):  # what a block has left, and a half of a word, come first
        rng.random(before, dtype=np.float32)
    for rate in (0.5, 0.1):
        expected = cpu.dropout_mask((size,), rate=rate, rng=theirs)
        out = on_device(np.full((size,), 7, np.uint8))
        assert cuda.dropout_mask((size,), rate=rate, rng=ours, out=out) is out
        np.testing.assert_array_equal(out.get(), expected)
        assert same_state(ours.bit_generator.state, theirs.bit_generator.state)


@pytest.mark.parametrize("rate", [0, 1e-9, 0.3, np.float32(0.3), 1 - 2**-24, 1 - 2**-30])
def test_rates(rate):
    ours, theirs = (generator(0, "dropout") for _ in range(2))
    out = on_device(np.zeros((20, 10), np.uint8))
    cuda.dropout_mask((20, 10), rate=rate, rng=ours, out=out)
    np.testing.assert_array_equal(out.get(), cpu.dropout_mask((20, 10), rate=rate, rng=theirs))


def test_a_rate_that_is_drawn_exactly():
    drawn = generator(0, "dropout").random(50, dtype=np.float32)
    out = on_device(np.zeros(50, np.uint8))
    for rate in drawn[:5]:
        cuda.dropout_mask((50,), rate=rate, rng=generator(0, "dropout"), out=out)
        np.testing.assert_array_equal(out.get(), drawn >= rate)


@pytest.mark.parametrize("words", [1, 2, 3, 4])
def test_a_counter_that_overflows(words):
    counter = np.zeros(4, np.uint64)
    counter[:words] = 2**64 - 1
    counter[0] -= np.uint64(2)  # three blocks on
    ours, theirs = (np.random.Generator(np.random.Philox(5)) for _ in range(2))
    for rng in (ours, theirs):
        state = rng.bit_generator.state
        state["state"]["counter"] = counter
        rng.bit_generator.state = state
    out = on_device(np.zeros(60, np.uint8))
    cuda.dropout_mask((60,), rate=0.5, rng=ours, out=out)
    np.testing.assert_array_equal(out.get(), cpu.dropout_mask((60,), rate=0.5, rng=theirs))
    assert same_state(ours.bit_generator.state, theirs.bit_generator.state)


def test_a_mask_that_begins_anywhere():
    whole = np.zeros(44, np.uint8)
    for start in range(1, 4):
        out = HostArray(whole[start : start + 40])
        cuda.dropout_mask((40,), rate=0.5, rng=generator(1, "dropout"), out=out)
        expected = cpu.dropout_mask((40,), rate=0.5, rng=generator(1, "dropout"))
        np.testing.assert_array_equal(out.get(), expected)


def test_generators_of_other_kinds():
    out = on_device(np.zeros((3, 5), np.uint8))
    ours, theirs = (np.random.default_rng(4) for _ in range(2))
    cuda.dropout_mask((3, 5), rate=0.5, rng=ours, out=out)
    np.testing.assert_array_equal(out.get(), cpu.dropout_mask((3, 5), rate=0.5, rng=theirs))
    assert same_state(ours.bit_generator.state, theirs.bit_generator.state)


def test_a_new_array_is_cupys(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", host_array.namespace)
    mask = cuda.dropout_mask((3, 5), rate=0.5, rng=generator(1, "dropout"))
    expected = cpu.dropout_mask((3, 5), rate=0.5, rng=generator(1, "dropout"))
    np.testing.assert_array_equal(mask.get(), expected)


def test_bad_arguments():
    out, rng = on_device(np.zeros(4, np.uint8)), generator(0, "dropout")
    with pytest.raises(TypeError, match="rng"):
        cuda.dropout_mask((4,), rate=0.5, rng=np.random, out=out)
    with pytest.raises(ValueError, match=r"rate \(=1\) must be a number in \[0, 1\)"):
        cuda.dropout_mask((4,), rate=1, rng=rng, out=out)
    with pytest.raises(ValueError, match="shape"):
        cuda.dropout_mask((0,), rate=0.5, rng=rng, out=out)
    with pytest.raises(TypeError, match="out must be a device array of dtype uint8"):
        cuda.dropout_mask((4,), rate=0.5, rng=rng, out=on_device(np.zeros(4)))
    with pytest.raises(ValueError, match="out"):
        cuda.dropout_mask((5,), rate=0.5, rng=rng, out=out)
