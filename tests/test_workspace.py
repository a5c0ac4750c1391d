"""Memory of networks: used again, never overwritten, and bounded whatever the sizes of batches."""

import copy
import gc
import pickle
import sys
import threading
import tracemalloc
from bisect import insort

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import workspace as module
from kfc_numba.workspace import MOST_HELD, Workspace

KILOBYTE = 1 << 10
LOSS = kfc.SoftmaxCrossEntropy()


def kilobytes(workspace, count):
    return workspace.empty((count, KILOBYTE), np.uint8)


def address(array):
    return array.__array_interface__["data"][0]


def pretend_step(workspace, examples):
    """Activations of four layers, then derivatives that replace them from the last one on."""
    layers = [kilobytes(workspace, examples * width) for width in (3, 8, 2, 5)]
    derivative = None
    while layers:
        before = derivative
        derivative = workspace.empty(layers.pop().shape, np.uint8)
        del before


SIZES = {
    "rising": range(10, 200),
    "falling": range(200, 10, -1),
    "random": np.random.default_rng(0).integers(10, 200, 300),
    "up and down": [*range(10, 200, 3), *range(200, 10, -3), *range(10, 200, 3)],
    "two in turn": [200, 150] * 50,
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_what_is_held_is_a_small_multiple_of_what_the_largest_step_needs(sizes):
    workspace, alone = Workspace(), Workspace()
    pretend_step(alone, max(sizes))
    for examples in sizes:
        pretend_step(workspace, int(examples))
        # A block may be a quarter larger than what is asked for.
        assert workspace.held_bytes <= 1.25 * MOST_HELD * alone.held_bytes
    assert workspace.free_bytes == workspace.held_bytes > 0


def images(sizes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((max(sizes), 6, 6, 2)).astype(np.float32)
    return x, rng.integers(3, size=len(x))


def network():
    layers = [kfc.Conv2d(16, 3, padding="same"), kfc.ReLU(), kfc.Flatten(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=(6, 6, 2))


def train(net, x, y, sizes):
    trainer = kfc.Trainer(net, LOSS, kfc.SGD())
    for size in sizes:
        trainer.step(x[:size], y[:size])


def predict(net, x, y, sizes):
    for size in sizes:
        net.predict(x[:size])


BATCHES = {
    "rising": range(20, 301, 4),
    "falling": range(300, 19, -4),
    "random": np.random.default_rng(1).integers(20, 301, 70),
}


@pytest.mark.parametrize("use", [train, predict])
@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
def test_a_network_given_batches_of_any_sizes_stays_small(use, sizes):
    """Bytes that NumPy asks for, as tracemalloc counts them, and those the workspace speaks of."""
    x, y = images(sizes)
    most = {}
    for name, these in (("one", [max(sizes)]), ("all", sizes)):
        net = network()
        use(net, x, y, [20])  # compiles
        net.workspace.clear()
        tracemalloc.start()
        use(net, x, y, these)
        most[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        most[name + ", held"] = net.workspace.held_bytes
    assert most["one"] > 1_000_000  # megabytes: nothing else in the program counts
    assert most["all"] <= (MOST_HELD + 0.1) * most["one"]
    assert most["all, held"] <= MOST_HELD * most["one, held"]


def test_the_oldest_blocks_are_dropped_first(monkeypatch):
    monkeypatch.setattr(module, "MOST_HELD", 3)
    workspace = Workspace()
    addresses = {size: address(kilobytes(workspace, size)) for size in (100, 200, 50, 400)}
    kept = kilobytes(workspace, 100)  # used anew: the oldest are now those of 200 and of 50
    assert address(kept) == addresses[100]
    del kept
    assert workspace.held_bytes == 750 * KILOBYTE
    large = kilobytes(workspace, 600)  # 1,800 may be held
    assert workspace.held_bytes == 1350 * KILOBYTE
    del large
    kilobytes(workspace, 800)  # 2,400 may be held, where there would be 2,150
    assert workspace.held_bytes == 2150 * KILOBYTE
    kilobytes(workspace, 300)  # there would be 2,450: the block of 200 has to go
    assert workspace.held_bytes == 2250 * KILOBYTE
    kilobytes(workspace, 170)  # 2,420, or, without the block of 50, 2,370
    assert workspace.held_bytes == 2370 * KILOBYTE
    for size in (100, 400, 600, 800, 300, 170):
        kilobytes(workspace, size)
        assert workspace.held_bytes == 2370 * KILOBYTE  # all of these are still there


def test_the_same_steps_ask_for_no_new_memory():
    x, y = images([64])
    net = network()
    trainer = kfc.Trainer(net, LOSS, kfc.KFC(averaging=None))

    def both():
        trainer.step(x[:40], y[:40])
        net.predict(x)

    both()
    held = net.workspace.held_bytes
    for _ in range(4):
        both()
    blocks = {address(block) for _, _, block in net.workspace._free}
    for _ in range(4):
        both()
    assert {address(block) for _, _, block in net.workspace._free} == blocks
    assert net.workspace.held_bytes <= 2 * held


def test_an_array_that_is_kept_is_not_given_to_another():
    workspace = Workspace()
    first = kilobytes(workspace, 64)
    view = first[3:5, ::7]
    view[:] = 1
    del first
    others = [kilobytes(workspace, 64) for _ in range(3)]
    for other in others:
        other[:] = 2
    assert (view == 1).all()
    place = address(view) - 3 * KILOBYTE
    assert place not in map(address, others)
    del view
    assert address(kilobytes(workspace, 64)) == place


def test_small_arrays_are_left_to_the_allocator():
    workspace = Workspace()
    workspace.zeros((31, KILOBYTE), np.uint8)
    assert workspace.held_bytes == 0
    assert not workspace.zeros((32, KILOBYTE), np.uint8).any()
    assert workspace.held_bytes == 32 * KILOBYTE


def test_shapes_and_types():
    workspace = Workspace()
    for dtype in (np.float32, np.float64, np.int8):
        array = workspace.empty((7, 8, 999), dtype)
        assert array.shape == (7, 8, 999)
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_clear():
    workspace = Workspace()
    kept = kilobytes(workspace, 50)
    kilobytes(workspace, 900)
    workspace.clear()
    assert workspace.free_bytes == 0
    assert workspace.held_bytes == 50 * KILOBYTE
    # What is held is bounded by what was in use since.
    del kept
    for size in range(50, 100, 3):
        kilobytes(workspace, size)
        assert workspace.held_bytes <= MOST_HELD * 100 * KILOBYTE


def test_arrays_outlive_the_workspace():
    workspace = Workspace()
    array = kilobytes(workspace, 64)
    array[:] = 5
    del workspace
    gc.collect()
    np.zeros((64, KILOBYTE), np.uint8)
    assert (array == 5).all()


def test_the_end_of_an_array_runs_nothing_that_an_interrupt_could_come_into():
    """KeyboardInterrupt in a finalizer is printed and lost; the same holds for weak references."""
    workspace = Workspace()
    arrays = [kilobytes(workspace, 64)]
    called = []
    sys.setprofile(lambda frame, event, argument: called.append((event, frame.f_code.co_name)))
    arrays.clear()
    sys.setprofile(None)
    assert [name for event, name in called if event == "call"] == []
    assert workspace.free_bytes == 64 * KILOBYTE


@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt_while_blocks_are_taken_back(monkeypatch, before):
    workspace = Workspace()

    def interrupted(blocks, block):
        monkeypatch.undo()
        if not before:
            insort(blocks, block)
        raise KeyboardInterrupt

    arrays = [kilobytes(workspace, 64) for _ in range(3)]
    arrays.clear()
    monkeypatch.setattr(module, "insort", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kilobytes(workspace, 64)
    arrays = [kilobytes(workspace, 64) for _ in range(3)]
    assert len(set(map(address, arrays))) == 3
    arrays.clear()
    kilobytes(workspace, 100)
    assert workspace.held_bytes == (3 * 64 + 100) * KILOBYTE
    assert workspace.free_bytes == workspace.held_bytes


def test_arrays_in_a_cycle_come_back_with_the_collector():
    workspace = Workspace()
    cycle = [kilobytes(workspace, 64)]
    cycle.append(cycle)
    del cycle
    assert workspace.free_bytes == 0
    gc.collect()
    assert workspace.free_bytes == 64 * KILOBYTE


def test_threads_never_share_an_array():
    workspace, wrong = Workspace(), []

    def work(number):
        rng = np.random.default_rng(number)
        kept = []
        for _ in range(400):
            array = kilobytes(workspace, int(rng.integers(32, 64)))
            array[:] = number
            kept.append(array)
            if len(kept) > 3:
                found = kept.pop(int(rng.integers(4)))
                if not (found == number).all():
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    assert workspace.free_bytes == workspace.held_bytes <= MOST_HELD * 16 * 64 * KILOBYTE


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_memory_is_no_part_of_a_copy(copied):
    workspace = Workspace()
    kilobytes(workspace, 64)
    other = copied(workspace)
    assert other.held_bytes == 0
    assert kilobytes(other, 64).shape == (64, KILOBYTE)
    assert workspace.held_bytes == 64 * KILOBYTE
