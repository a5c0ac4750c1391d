"""How values reach the driver, which a function stands for that reads them as the driver does."""

import ctypes
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from host_array import on_device

from kfc_numba.kernels.cuda.card import Card, Prepared, flattened
from kfc_numba.kernels.cuda.launch import device_kernel
from kfc_numba.kernels.rates import H200, Rates

X = on_device(np.arange(6, dtype=np.float32))
Y = on_device(np.arange(3, dtype=np.uint8))
BIG = np.int64(2**40)


class Plan(NamedTuple):
    first: int
    second: int


@device_kernel
def unused(*arguments):
    pass


class Driver:
    """Notes what it is asked for, and reads values of the given types."""

    def __init__(self, *types):
        self.types = types
        self.asked = []

    def launchKernel(self, function, *rest):
        *dims, shared, stream, parameters, extra = rest
        pointers = (ctypes.c_void_p * len(self.types)).from_address(parameters)
        values = [
            kind.from_address(place).value for kind, place in zip(self.types, pointers, strict=True)
        ]
        assert (shared, extra) == (0, 0)
        self.asked.append((function, tuple(dims), stream, values))


def prepared(driver, arguments):
    kinds, values = flattened(arguments)
    function = SimpleNamespace(ptr=16)
    return Prepared("some_kernel", function, kinds, driver.launchKernel), values


def test_values_of_all_kinds():
    """Each where its type may begin: a number of 64 bits behind one of 32 has a gap before it."""
    byte, real, double = np.uint8(200), np.float32(0.1), np.float64(0.1)
    arguments = X, 3, BIG, byte, Y, real, 4, double, Plan(-1, 2**31 - 1), (X, Y), (5, 6, 7)
    whole, address = ctypes.c_int32, ctypes.c_uint64
    driver = Driver(
        *(address, whole, ctypes.c_int64, ctypes.c_uint8, address, ctypes.c_float, whole),
        *(ctypes.c_double, whole, whole, address, address, whole, whole, whole),
    )
    call, values = prepared(driver, arguments)
    call((3, 2), (64,), 5, values)
    (function, dims, stream, found) = driver.asked[0]
    assert (function, dims, stream) == (16, (3, 2, 1, 64, 1, 1), 5)
    x, y = X.data.ptr, Y.data.ptr
    assert found == [x, 3, 2**40, 200, y, real, 4, 0.1, -1, 2**31 - 1, x, y, 5, 6, 7]


def test_memory_is_used_again_but_not_by_a_launch_inside_of_another():
    places = []

    def launch(*given):
        places.append(given[-2])
        if len(places) == 2:  # a handler of a signal, or another thread
            call((1,), (1,), 0, [7])
        seen.append(ctypes.c_int32.from_address(ctypes.c_void_p.from_address(given[-2]).value))
        seen[-1] = seen[-1].value

    seen = []
    call = Prepared("some_kernel", SimpleNamespace(ptr=0), (np.int32,), launch)
    for value in (1, 2, 3):
        call((1,), (1,), 0, [value])
    assert seen == [1, 7, 2, 3]
    assert places[0] == places[1] != places[2]
    assert len(set(places)) == 2


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**70, Plan(0, 2**31)])
def test_what_does_not_fit_is_refused(value):
    driver = Driver()
    call, values = prepared(driver, (value,))
    with pytest.raises(OverflowError, match="an argument of the kernel some_kernel does not fit"):
        call((1,), (1,), 0, values)
    assert not driver.asked


@pytest.fixture
def driver(monkeypatch):
    """In the place of CuPy, with two devices."""
    driver = Driver(ctypes.c_uint64)
    driver.current, driver.contexts, loaded = 0, [], []

    class Module:
        def load(self, code):
            loaded.append((driver.current, code))

        def get_function(self, name):
            return SimpleNamespace(ptr=100 + len(loaded))

    driver.loaded = loaded
    runtime = SimpleNamespace(
        getDevice=lambda: driver.current,
        memGetInfo=lambda: driver.contexts.append(driver.current),
    )
    cuda = SimpleNamespace(
        runtime=runtime,
        driver=driver,
        get_current_stream=lambda device: SimpleNamespace(ptr=70 + device),
        Device=lambda: SimpleNamespace(compute_capability="90"),
    )
    driver.card = cuda
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    monkeypatch.setitem(sys.modules, "cupy.cuda.function", SimpleNamespace(Module=Module))
    return driver


def test_code_is_loaded_once_a_device_and_type(driver, monkeypatch):
    asked = []

    def machine_code(types, capability):
        asked.append((str(types[0]), capability))
        return b"code", "name"

    monkeypatch.setattr(unused, "machine_code", machine_code)
    card = Card()
    for device in (0, 0, 1, 0):
        driver.current = device
        card(unused, (1,), (32,), (X,))
    card(unused, (1,), (32,), (Y,))
    assert [(f, stream) for f, _, stream, _ in driver.asked] == [
        *((101, 70), (101, 70), (102, 71), (101, 70), (103, 70))
    ]
    assert [device for device, _ in driver.loaded] == [0, 1, 0]
    assert asked == [("float32*", (9, 0))] * 2 + [("uint8*", (9, 0))]
    assert driver.contexts == [0, 1]


def test_rates_are_asked_for_once_a_device(driver):
    """By the data sheets of an H200, and of an RTX 4090."""
    sheets = [(132, 1_980_000, 3_201_000, 6144), (128, 2_520_000, 10_501_000, 384)]
    asked = []

    def device():
        asked.append(driver.current)
        names = ("MultiProcessorCount", "ClockRate", "MemoryClockRate", "GlobalMemoryBusWidth")
        attributes = dict(zip(names, sheets[driver.current], strict=True))
        return SimpleNamespace(compute_capability="90", attributes=attributes)

    driver.card.Device = device
    card, found = Card(), []
    for driver.current in (0, 1, 0, 1):
        found.append(card.rates())
    assert found[:2] == found[2:]
    assert found[0] == pytest.approx((33.45e12, 4.92e12, 132), rel=1e-2)
    assert found[1] == pytest.approx((41.3e12, 1.008e12, 128), rel=1e-2)
    assert sorted(set(asked)) == [0, 1]
    assert len(asked) == 4  # for capability and attributes of each


def test_rates_of_cards_with_half_the_units_or_without_a_clock():
    t4 = {"MultiProcessorCount": 40, "ClockRate": 1_590_000}
    t4 |= {"MemoryClockRate": 5_001_000, "GlobalMemoryBusWidth": 256}
    assert Rates.of((7, 5), t4) == pytest.approx((4.07e12, 0.32e12, 40), rel=1e-2)
    assert Rates.of((12, 0), t4).products == 2 * Rates.of((7, 5), t4).products
    assert Rates.of((7, 5), t4 | {"MemoryClockRate": 0}) == H200
