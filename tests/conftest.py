"""Its place puts this folder on the import path: tests share `naive`, `gradcheck` and the like.

All tests together run in several processes, which compile beside each other; those that the command
line names run in one, which begins at once. Tests marked `gpu` run where there is an NVIDIA card,
and are counted where there is none.
"""

import pytest
from notes import note, noted
from processes import from_both_ends, share_out

from kfc_numba import devices


def is_worker(config):
    """Whether this is one of several processes, and not the one that began them."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    if not is_worker(config):
        share_out(config.option, config.args_source is config.ArgsSource.TESTPATHS)


def pytest_collection_modifyitems(config, items):
    if is_worker(config):
        items[:] = from_both_ends(items)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    problem = devices.missing() if marked else None
    if problem is not None:
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in set(marked)]
        note(config, f"{len(marked)} tests marked gpu were not run: {problem}")


def pytest_sessionfinish(session):
    if is_worker(session.config):
        session.config.workeroutput["notes"] = noted(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for text in getattr(node, "workeroutput", {}).get("notes", []):
        note(node.config, text)


def pytest_terminal_summary(terminalreporter, config):
    for text in noted(config):
        terminalreporter.write_line(text)
