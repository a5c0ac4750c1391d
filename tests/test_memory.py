"""What a step takes of memory, foretold and counted."""

import tracemalloc

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import networks
from kfc_numba.memory import Meter


@pytest.mark.parametrize("name", ["small", "resnet-small"])
def test_activations_are_those_of_a_step(name):
    net = networks.build(name, (16, 16, 3), 10)
    net.memory(2)  # compiles
    for examples in (5, 32):
        foretold = net.memory(examples)["activations"]
        net.workspace = meter = Meter()
        x = np.zeros((examples, 16, 16, 3), np.float32)
        net.value_and_grad(x, np.zeros(examples, int), kfc.SoftmaxCrossEntropy())
        assert meter.peak + x.nbytes == pytest.approx(foretold, rel=0.01)
        assert meter.used <= net.memory(examples)["activations"]


def test_parameters_and_state_are_counted():
    net = kfc.Sequential([kfc.Dense(3)], input_shape=(4,))
    found = net.memory(8, kfc.SGD(averaging=None))
    parameters = 4 * (4 * 3 + 3)
    assert found["parameters"] == parameters
    assert found["optimizer_state"] == parameters + 8  # momentum, and the number of the step
    assert found["total"] == sum(value for key, value in found.items() if key != "total")
    assert net.memory(8)["optimizer_state"] == 0


def test_a_step_takes_no_more():
    net = networks.build("small", (28, 28, 1), 10)
    optimizer = kfc.KFC()
    trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), optimizer)
    x, y = np.zeros((64, 28, 28, 1), np.float32), np.zeros(64, int)
    trainer.step(x, y)  # compiles
    net.workspace.clear()
    tracemalloc.start()
    try:
        trainer.step(x, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Parameters and state are there already; kernels take memory for a moment besides.
    found = net.memory(64, optimizer)
    new = found["changes"] + found["activations"]
    assert 0.5 * new < peak < 1.3 * new


def test_bad_batch_size():
    net = kfc.Sequential([kfc.Dense(3)], input_shape=(4,))
    with pytest.raises(ValueError, match="batch_size"):
        net.memory(0)
