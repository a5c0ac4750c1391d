"""That the fuzzer finds what it is for: each fault is put in, and has to be seen."""

import json
import random

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import datasets

from . import checkpoints, counts, oracle
from .checkpoints import Checkpoints
from .data_files import DataFiles
from .histories import Histories
from .mutate import change_bytes, change_json, places

CONTENT = bytes(range(256)) * 4
VALUE = {"a": [1, 2.5, {"b": None}], "c": "text", "d": True}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def found(target, count=60):
    return [problem.text for problem in oracle.run(target, count).problems]


def test_a_case_is_the_same_each_time(target):
    descriptions = []
    for _ in range(2):
        for number in (3, 4, 5):
            oracle.run(target, 1, first=number)
            descriptions.append(target.description)
    assert descriptions[:3] == descriptions[3:]
    assert len(set(descriptions)) == 3


def test_damage_is_damage():
    for seed in range(300):
        changed, what = change_bytes(random.Random(seed), CONTENT)
        assert changed != CONTENT
        assert what
        value, what = change_json(random.Random(seed), VALUE)
        assert repr(value) != repr(VALUE)
        assert what
        inside, _ = change_json(random.Random(seed), VALUE, ("a",))
        assert {name: inside.get(name) for name in "cd"} == {"c": "text", "d": True}
    assert VALUE == {"a": [1, 2.5, {"b": None}], "c": "text", "d": True}
    assert sorted(map(len, places(VALUE))) == [0, 1, 1, 1, 2, 2, 2, 3]


def test_a_loader_that_believes_everything_is_found_out(target, monkeypatch):
    sound = kfc.Trainer(checkpoints.network(), checkpoints.LOSS, kfc.SGD(averaging=5), seed=3)
    monkeypatch.setattr(kfc.Trainer, "load", lambda *rest: sound)
    assert any("not noticed" in text for text in found(target))


def test_raw_errors_and_messages_without_a_file_are_found(target, monkeypatch):
    for error, expected in (
        (KeyError("trainer"), "KeyError: 'trainer'"),
        (ValueError("bad"), "a message that names none of"),
        (ValueError(f"{target.path}:\nbad"), "a message of several lines"),
        (ValueError(f"{target.path}: {'x' * 2000}"), "a message of 2,"),
    ):

        def load(*rest, error=error):
            raise error

        monkeypatch.setattr(kfc.Trainer, "load", load)
        texts = found(target, 20)
        assert any(text.startswith(expected) for text in texts), (expected, texts)


def test_a_network_that_is_changed_before_the_error_is_found(target, monkeypatch):
    def load(path, net, *rest):
        net.params["dense1.bias"][0] = 7
        raise ValueError(f"{path} is not whole")

    monkeypatch.setattr(kfc.Trainer, "load", load)
    assert any("the network is changed" in text for text in found(target, 20))


def test_memory_is_seen(target, monkeypatch):
    def load(path, *rest):
        np.ones(oracle.MEMORY + 10 * 2**20, np.uint8)
        raise ValueError(f"{path} is not whole")

    monkeypatch.setattr(kfc.Trainer, "load", load)
    assert any("MB are allowed" in text for text in found(target, 20))


def test_data_that_are_read_wrongly_are_found(tmp_path, monkeypatch):
    usual = datasets.read_idx
    monkeypatch.setattr(datasets, "read_idx", lambda path: usual(path) ^ 1)
    assert any("other bytes" in text for text in found(DataFiles(tmp_path), 100))


def test_a_history_that_is_believed_is_found(tmp_path):
    class Believed(Histories):
        def _changed(self, rng, kind):
            content = json.loads(self.files["history.json"])
            content["history"] = []
            return json.dumps(content).encode(), "no rows"

        def _as_before(self, found):
            (trainer, _), *_ = found.trained
            trainer.history.rows = []
            super()._as_before(found)

    assert all("other rows" in text for text in found(Believed(tmp_path), 2))


def test_the_page_keeps_the_counts_of_kinds_that_were_not_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{counts.BEGIN}\n{counts.END}\nafter\n", "utf-8")
    rows = [
        counts.row(oracle.Result(kind, cases, cases - 3, 3, 2**20))
        for kind, cases in (("one", 10), ("two", 20), ("one", 30_000))
    ]
    for row in rows:
        counts.write_page({row.split("|")[1].strip(): row}, page)
    written = counts.table({"one": rows[2], "two": rows[1]})
    assert page.read_text("utf-8") == (f"before\n{counts.BEGIN}\n{written}\n{counts.END}\nafter\n")
    assert "| one | 30,000 | 29,997 | 3 | 0 | 1 MB |" in written
