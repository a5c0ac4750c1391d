"""Checkpoints: whole or refused, and never of something else."""

import json
import math
import os
import re

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from kfc_numba import checkpoint
from kfc_numba.layers.activation import ReLU
from kfc_numba.layers.dense import Dense
from kfc_numba.layers.norm import BatchNorm
from kfc_numba.losses import SoftmaxCrossEntropy, SquaredError
from kfc_numba.optim import SGD, Adam
from kfc_numba.sequential import Sequential
from kfc_numba.train import Trainer

LOSS = SoftmaxCrossEntropy()


def network(units=4, seed=0, dtype=np.float32, last=3):
    layers = [Dense(units), BatchNorm(), ReLU(), Dense(last)]
    return Sequential(layers, input_shape=(5,), seed=seed, dtype=dtype)


def data():
    rng = np.random.default_rng(1)
    return rng.standard_normal((12, 5)).astype(np.float32), rng.integers(3, size=12)


@pytest.fixture
def trainer():
    trainer = Trainer(network(), LOSS, SGD(averaging=5), seed=3)
    trainer.fit(*data(), batch_size=5, max_steps=4, evaluate_every=2, progress=False)
    return trainer


@pytest.fixture
def saved(trainer, tmp_path):
    path = tmp_path / "run.safetensors"
    trainer.save(path)
    return path


def everything(net, state=None):
    return {f"net/{k}": v for k, v in (net.params | net.buffers).items()} | (state or {})


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        assert value.shape == expected[name].shape
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_everything_comes_back(trainer, saved):
    trainer.history.rows[-1] |= {"validation_loss": math.inf, "validation_error": math.nan}
    trainer.save(saved)
    loaded = Trainer.load(saved, network(seed=9), LOSS, SGD(averaging=5))
    assert_same(
        everything(loaded.net, loaded.optimizer_state),
        everything(trainer.net, trainer.optimizer_state),
    )
    assert loaded.seed == 3
    assert loaded.steps == 4
    # As text: NaN is not equal to itself.
    assert repr(loaded.history.rows) == repr(trainer.history.rows)
    loaded.save(saved.with_name("again"))
    assert checkpoint.load(saved.with_name("again"))[1] == checkpoint.load(saved)[1]


def test_arrays_of_a_loaded_trainer_are_its_own(saved):
    first, second = (Trainer.load(saved, network(), LOSS, SGD(averaging=5)) for _ in range(2))
    before = {k: v.copy() for k, v in everything(second.net, second.optimizer_state).items()}
    for value in everything(first.net, first.optimizer_state).values():
        value[...] = 7
    assert_same(everything(second.net, second.optimizer_state), before)


def test_the_file_is_plain_safetensors(trainer, saved):
    arrays = safetensors.numpy.load_file(saved)
    np.testing.assert_array_equal(
        arrays["params/dense1.weight"], trainer.raw_params["dense1.weight"]
    )
    assert arrays["optimizer/step"].shape == ()
    with safetensors.safe_open(saved, framework="numpy") as file:
        header = json.loads(file.metadata()["kfc_numba"])
    assert header["optimizer"]["optimizer"] == "SGD"
    assert [row["step"] for row in header["history"]] == [0, 2, 4]


def damaged(content):
    """The file cut short, altered, and replaced: name and bytes of each."""
    header = 8 + int.from_bytes(content[:8], "little")
    for length in (0, 7, 8, 100, header - 1, header, len(content) - 1):
        yield f"cut to {length}", content[:length]
    for place in (0, 8, 60, header // 2, header + 3, len(content) - 1):
        yield (
            f"altered at {place}",
            bytes(byte ^ 1 if index == place else byte for index, byte in enumerate(content)),
        )
    yield "longer", content + b"\0"
    yield "text", b"not a checkpoint " * 100
    yield "zeros", bytes(1000)
    yield "another file", safetensors.numpy.save({"params/dense1.weight": np.zeros((5, 4))})


def test_a_damaged_file_is_one_clear_error_and_changes_nothing(saved):
    net = network(seed=9)
    before = {name: value.copy() for name, value in everything(net).items()}
    message = re.escape(str(saved)) + " must be a (whole )?kfc_numba checkpoint, it"
    for _, content in damaged(saved.read_bytes()):
        saved.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Trainer.load(saved, net, LOSS, SGD(averaging=5))
    assert_same(everything(net), before)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        Trainer.load(tmp_path / "gone.safetensors", network(), LOSS, SGD())
    with pytest.raises(OSError, match=f"^{re.escape(str(tmp_path))} holds no checkpoint"):
        Trainer.load(tmp_path, network(), LOSS, SGD())


def test_a_file_of_another_format(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    with pytest.raises(
        ValueError, match=r"run\.safetensors has checkpoint format 2, this version .* format 3"
    ):
        checkpoint.load(saved)


def test_a_file_of_the_first_format(tmp_path):
    metadata = {"kfc_numba": json.dumps({"format": 1, "network": []}), "crc32": "5"}
    (tmp_path / "old").write_bytes(safetensors.numpy.save({"params/w": np.zeros(2)}, metadata))
    with pytest.raises(ValueError, match=r"old has checkpoint format 1, this version .* format 2"):
        checkpoint.load(tmp_path / "old")


@pytest.mark.parametrize(
    ("net", "loss", "optimizer", "message"),
    [
        (network(6), LOSS, SGD(averaging=5), "has <dense1: Dense.*4.*network given has <dense1"),
        (network(dtype=np.float64), LOSS, SGD(averaging=5), "<input: float32.*<input: float64"),
        (
            Sequential([Dense(4), BatchNorm(), ReLU()], input_shape=(5,)),
            LOSS,
            SGD(averaging=5),
            "only the checkpoint has <dense2: ",
        ),
        (network(), SquaredError(), SGD(averaging=5), r"loss is SoftmaxCrossEntropy\(\), the one"),
        (network(), LOSS, Adam(averaging=5), "optimizer is SGD, the one given is Adam"),
        (network(), LOSS, SGD(averaging=None), "only the checkpoint has average"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(saved, net, loss, optimizer, message):
    before = {name: value.copy() for name, value in everything(net).items()}
    with pytest.raises(ValueError, match=rf"run\.safetensors does not fit: .*{message}"):
        Trainer.load(saved, net, loss, optimizer)
    assert_same(everything(net), before)


def test_an_average_cannot_start_in_the_middle(tmp_path):
    Trainer(network(), LOSS, SGD(averaging=None)).save(tmp_path / "a")
    with pytest.raises(ValueError, match="the checkpoint lacks average_weight"):
        Trainer.load(tmp_path / "a", network(), LOSS, SGD(averaging=5))


def test_hyperparameters_may_change(trainer, saved):
    loaded = Trainer.load(saved, network(), LOSS, SGD(learning_rate=0.0, averaging=9))
    before = {name: value.copy() for name, value in loaded.raw_params.items()}
    loaded.optimizer_state["momentum/dense1.weight"][:] = 0
    loaded.step(*data())
    np.testing.assert_array_equal(loaded.net.params["dense1.weight"], before["dense1.weight"])


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(trainer, saved, monkeypatch, call):
    content = saved.read_bytes()
    trainer.step(*data())

    def full(*arguments):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="no space left"):
            trainer.save(saved)
    assert saved.read_bytes() == content
    assert os.listdir(saved.parent) == [saved.name]
    trainer.save(saved)
    assert saved.read_bytes() != content


def test_scalars_empty_arrays_and_memory_order(tmp_path):
    arrays = {
        "a": np.array(3, np.int64),
        "b": np.zeros((0, 2)),
        "c": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "d": np.arange(12, dtype=np.float32)[::2],
    }
    checkpoint.save(tmp_path / "f", arrays, {"note": "é"})
    found, header = checkpoint.load(tmp_path / "f")
    assert_same(found, arrays)
    assert header == {"note": "é"}


def test_a_folder_that_is_not_there_is_told_with_the_name_that_was_given(tmp_path):
    path = tmp_path / "none" / "run.safetensors"
    with pytest.raises(FileNotFoundError) as raised:
        checkpoint.save(path, {}, {})
    assert raised.value.filename == str(path)
