"""`fit` overwrites no file but one of its own run."""

import copy
import json
import re

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import kfc_numba as kfc
from kfc_numba import runs

LOSS = kfc.SoftmaxCrossEntropy()


def network(seed=0):
    return kfc.Sequential([kfc.Dense(3)], input_shape=(5,), seed=seed)


def trainer():
    return kfc.Trainer(network(), LOSS, kfc.SGD(), seed=3)


def load(path):
    return kfc.Trainer.load(path, network(9), LOSS, kfc.SGD())


def fit(which, path, **more):
    rng = np.random.default_rng(0)
    options = {"batch_size": 10, "epochs": 1, "progress": False, "checkpoint": path} | more
    return which.fit(rng.standard_normal((40, 5)), rng.integers(3, size=40), **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


def refusal(path, what="is of another run"):
    return re.escape(f"checkpoint: {path} {what}, and is not overwritten")


def test_a_file_of_another_run_is_not_overwritten(path):
    fit(trainer(), path)
    content, other = path.read_bytes(), trainer()
    with pytest.raises(ValueError, match=refusal(path) + r": go on with that one by Trainer\.load"):
        fit(other, path)
    assert path.read_bytes() == content
    assert other.steps == 0
    assert not other.history.rows
    # The same settings and data are not the same run.
    assert other.run != trainer().run


def test_its_own_file_is(path):
    first = trainer()
    for _ in range(2):
        fit(first, path)
    assert load(path).steps == first.steps == 8
    fit(copy.deepcopy(first), path)
    assert load(path).steps == 12


def test_the_file_that_it_was_loaded_from_is(path):
    first = trainer()
    fit(first, path)
    second = load(path)
    assert second.run == first.run == runs.run_of(path)
    fit(second, path)
    third = load(path)
    fit(third, path)
    assert load(path).steps == 12
    # Where it lies does not matter, what it is does.
    elsewhere = path.with_name("moved")
    path.rename(elsewhere)
    fit(third, elsewhere)
    assert load(elsewhere).steps == 16


FILES = {
    "text": b"my thesis",
    "nothing": b"",
    "another safetensors file": safetensors.numpy.save({"x": np.zeros(3)}),
    "a header of something else": safetensors.numpy.save({"x": np.zeros(3)}, {"kfc_numba": "[]"}),
    "a checkpoint of before runs had names": safetensors.numpy.save(
        {"x": np.zeros(3)}, {"kfc_numba": '{"trainer": {"seed": 0}}'}
    ),
    "a network alone": safetensors.numpy.save({"x": np.zeros(3)}, {"kfc_numba": '{"network": 1}'}),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_what_is_no_checkpoint_is_not_overwritten(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=refusal(path, "is no checkpoint of a training")):
        fit(trainer(), path)
    assert path.read_bytes() == content


def test_a_file_that_another_run_writes_in_the_meantime_stays(path):
    first, second = trainer(), trainer()

    def stop(row):
        if row["step"] == 2:
            path.unlink()
            fit(second, path)

    with pytest.raises(ValueError, match=refusal(path)):
        fit(first, path, evaluate_every=2, stop=stop)
    assert first.steps == 4
    assert runs.run_of(path) == second.run
    assert np.isfinite(first.net.predict(np.zeros((1, 5)))).all()
    fit(first, path.with_name("mine"))


def test_save_writes_where_it_is_told(path):
    fit(trainer(), path)
    other = trainer()
    other.save(path)
    assert load(path).run == other.run


def test_a_file_that_cannot_be_read_is_named(path):
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=re.escape(str(path))):
        fit(trainer(), path)


def test_only_the_header_is_read(path, monkeypatch):
    first = trainer()
    first.save(path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert runs.run_of(path) == first.run
    # Other arrays: their checksum is wrong, which nobody looks at here.
    path.write_bytes(content[: 8 + size] + bytes(len(content) - 8 - size))
    assert runs.run_of(path) == first.run
    assert json.loads(header["__metadata__"]["kfc_numba"])["trainer"]["run"] == first.run
