"""Its place puts this folder on the import path: tests share `naive`, `gradcheck` and the like.

Tests marked `gpu` run where there is an NVIDIA card, and are counted where there is none.
"""

import pytest

from kfc_numba import devices

_left_out = pytest.StashKey[tuple[int, str]]()


def pytest_collection_modifyitems(config, items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    problem = devices.missing() if marked else None
    if problem is not None:
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in set(marked)]
        config.stash[_left_out] = len(marked), problem


def pytest_terminal_summary(terminalreporter, config):
    count, problem = config.stash.get(_left_out, (0, ""))
    if count:
        terminalreporter.write_line(f"{count} tests marked gpu were not run: {problem}")
