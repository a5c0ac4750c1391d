"""What the end of a run says besides results, in whichever process it was found."""

import pytest

_notes = pytest.StashKey[list[str]]()


def note(config, text):
    """Have a line written at the end of the run."""
    config.stash.setdefault(_notes, []).append(text)


def noted(config):
    """Lines to be written, each once."""
    return list(dict.fromkeys(config.stash.get(_notes, [])))
