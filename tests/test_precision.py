"""Tensor cores are used where they are asked for, and nowhere else."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import cli
from kfc_numba.kernels import cpu
from kfc_numba.precision import tensor_cores, uses_tensor_cores


def test_off_unless_asked_for_and_within_the_context_alone():
    assert not uses_tensor_cores()
    with tensor_cores():
        assert uses_tensor_cores()
        with tensor_cores(False):
            assert not uses_tensor_cores()
        assert uses_tensor_cores()
    assert not uses_tensor_cores()
    with pytest.raises(KeyError), tensor_cores():
        raise KeyError
    assert not uses_tensor_cores()
    with pytest.raises(TypeError, match=r"^enabled \(=1\)"), tensor_cores(1):
        pass


def test_other_threads_have_to_ask_themselves():
    seen = []
    with tensor_cores():
        thread = threading.Thread(target=lambda: seen.append(uses_tensor_cores()))
        thread.start()
        thread.join()
    assert seen == [False]


@pytest.mark.parametrize(
    ("structure", "file"), [("ekfac", "example_gradients"), ("tridiagonal", "tridiagonal")]
)
def test_statistics_are_summed_without(monkeypatch, structure, file):
    """On the CPU, where it makes no difference: which products would use them."""
    product, seen = cpu.matmul, set()

    def noted(*arguments, **settings):
        caller = sys._getframe(1).f_code.co_filename
        seen.add((Path(caller).stem, uses_tensor_cores()))
        return product(*arguments, **settings)

    monkeypatch.setattr(cpu, "matmul", noted)
    rng = np.random.default_rng(0)
    net = kfc.Sequential([kfc.Dense(5), kfc.Tanh(), kfc.Dense(3)], input_shape=(4,))
    trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), kfc.KFC(structure=structure))
    with tensor_cores():
        trainer.step(rng.normal(size=(20, 4)), rng.integers(0, 3, 20))
    assert {("dense", True), (file, False)} <= seen
    assert ("dense", False) not in seen
    assert (file, True) not in seen


def test_command_line(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(cli.train, "command", lambda arguments: seen.append(uses_tensor_cores()))
    assert cli.main(["train"]) == 0
    assert cli.main(["train", "--tf32"]) == 2
    assert "--tf32 needs --device cuda, --device is cpu" in capsys.readouterr().err
    monkeypatch.setattr(cli.run, "check_device", lambda device: device)
    assert cli.main(["train", "--device", "cuda", "--tf32"]) == 0
    assert seen == [False, True]
    assert not uses_tensor_cores()
