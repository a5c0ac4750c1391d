"""A segment of the soak, and that it notices what it is there for."""

import json

import numpy as np
import pytest

from .process import TRAINING, BetweenCheckpoints, WhileWriting
from .record import BEGIN, END, LEAST, MOST_FOR_ROW, MOST_GROWTH, growth, write_page
from .soak import Soak
from .training import LEGS, Training

STEPS = 12

#: Momentum of one layer begins anew where training is gone on with.
FORGETFUL = f"""
import sys

sys.path.insert(0, {str(TRAINING.parent)!r})
import training

class Forgetful(training.kfc.Trainer):
    @classmethod
    def load(cls, *arguments):
        trainer = super().load(*arguments)
        trainer.optimizer_state["momentum/conv1.weight"][...] = 0
        return trainer

training.kfc.Trainer = Forgetful
training.main(*sys.argv[1:])
"""


def test_killed_processes_end_with_the_bits_of_one_that_is_not(tmp_path):
    soak = Soak(
        tmp_path / "soak",
        steps=STEPS,
        deaths=lambda rng: [BetweenCheckpoints(3, 0.5), WhileWriting(3, 0.001)],
    )
    record = soak.run(0)
    assert record["problems"] == []
    assert record["kills"] == {"between checkpoints": 1, "while writing": 1}
    assert record["segments"] == 1
    assert record["steps"] == LEGS * STEPS
    assert record["processor_seconds"] > 1
    assert json.loads((tmp_path / "soak" / "record.json").read_text("utf-8")) == record


def test_a_process_that_forgets_its_momentum_is_noticed(tmp_path):
    script = tmp_path / "forgetful.py"
    script.write_text(FORGETFUL, "utf-8")
    soak = Soak(
        tmp_path / "soak",
        steps=STEPS,
        deaths=lambda rng: [BetweenCheckpoints(3, 0.5)],
        script=script,
    )
    alone = Training(tmp_path, 0, STEPS, lambda report: None)
    soak.with_kills({"digests": alone.segment(0)})
    assert "segment 0: other bits in optimizer/momentum/conv1.weight" in soak.problems
    assert "segment 0: other bits in history" in soak.problems
    assert "segment 0: other bits in place" not in soak.problems


def test_a_process_that_ends_by_itself_is_noticed(tmp_path):
    script = tmp_path / "ends.py"
    script.write_text("raise SystemExit('no more')", "utf-8")
    problems = Soak(tmp_path / "soak", script=script).run(0)["problems"]
    assert problems == ["the process left alone ended: exit status 1: no more\n"]


def reports(memory):
    """Of a process whose memory is given at each second."""
    return [[100 * i, i, value, 4, 1] for i, value in enumerate(memory)]


def test_memory_that_rises_is_noticed():
    rng = np.random.default_rng(0)
    noise = 300e6 + rng.uniform(-2e7, 2e7, 4 * LEAST)
    noise[:100] -= 2e8  # it has to get there
    assert growth(reports(noise))["problems"] == []
    leak = np.arange(len(noise)) * (3 * MOST_GROWTH / len(noise))
    (problem,) = growth(reports(noise + leak))["problems"]
    assert problem.startswith("memory grew by ")
    history = 300e6 + 0.9 * MOST_FOR_ROW * np.arange(20_000)
    assert growth(reports(history))["rise"] > 5 * MOST_GROWTH
    assert growth(reports(history))["problems"] == []
    assert growth(reports(noise[: LEAST // 2]))["problems"] == []  # too short to tell
    few = [[100, LEAST, 3e8, 4, 1]] * 2 + [[200, LEAST + 1, 3e8, 4, 1]]  # after long compilation
    assert growth(few)["problems"] == []


@pytest.mark.parametrize("column", [3, 4])
def test_files_and_threads_that_become_more_are_noticed(column):
    many = reports(np.full(2 * LEAST, 3e8))
    many[-5][column] += 1
    (problem,) = growth(many)["problems"]
    assert "grew to" in problem


def test_the_page_has_what_happened_between_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    record = {
        "processor_seconds": 7236.0,
        "steps": 320_000,
        "segments": 80,
        "checkpoints": 5000,
        "kills": {"while writing": 100, "by age": 1},
        "kills_that_left_half_a_file": 98,
        "memory": growth(reports(350 * 2**20 + 2**20 * np.linspace(-2, 2, 241))),
        "problems": [],
    }
    write_page(record, page)
    text = page.read_text("utf-8")
    assert text.startswith(f"before\n{BEGIN}\n2.01 hours of a processor: 320,000 steps")
    assert text.endswith(f"\n{END}\nafter\n")
    text = " ".join(text.split())
    assert "All segments ended with the same bits." in text
    assert "101 kills (1 by age, 100 while writing" in text
    assert "350 MB; a line through it rises by 3.00 MB in 3 minutes (4.4 allowed" in text
