"""Which tests run in several processes, and in which order."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from notes import note, noted
from processes import MOST, from_both_ends, share_out


def options(**more):
    given = {"numprocesses": None, "dist": "no", "loadscopereorder": True}
    nothing = {"collectonly": False, "usepdb": False, "keyword": "", "markexpr": ""}
    return SimpleNamespace(**given | nothing | more)


def test_all_tests_run_in_several_processes():
    option = options()
    share_out(option, True)
    assert option.numprocesses == min(os.cpu_count(), MOST)
    assert (option.dist, option.loadscopereorder) == ("loadfile", False)


@pytest.mark.parametrize(
    "given",
    [
        {"numprocesses": 0},
        {"numprocesses": 7, "dist": "load"},
        {"collectonly": True},
        {"usepdb": True},
        {"keyword": "conv"},
        {"markexpr": "gpu"},
    ],
)
def test_what_is_asked_for_is_done(given):
    option = options(**given)
    share_out(option, True)
    assert option == options(**given)


def test_files_that_are_named_run_in_this_process():
    option = options()
    share_out(option, False)
    assert option == options()


def test_without_xdist_nothing_is_shared_out():
    option = options()
    del option.numprocesses
    share_out(option, True)
    assert not hasattr(option, "numprocesses")


@pytest.mark.parametrize(
    ("files", "expected"),
    [("", ""), ("a", "a"), ("ab", "ab"), ("abcd", "adbc"), ("abcde", "aebdc")],
)
def test_files_come_from_both_ends_and_stay_whole(files, expected):
    items = [SimpleNamespace(path=Path(name), number=n) for name in files for n in range(3)]
    found = [(item.path.name, item.number) for item in from_both_ends(items)]
    assert found == [(name, n) for name in expected for n in range(3)]


def test_a_note_is_written_once():
    config = SimpleNamespace(stash=pytest.Stash())
    assert noted(config) == []
    for text in ("one", "two", "one"):
        note(config, text)
    assert noted(config) == ["one", "two"]
