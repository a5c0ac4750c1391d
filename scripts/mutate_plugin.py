"""Part of scripts/mutate.sh: what pytest must forget between the original and a mutant of it."""

import pytest

from kfc_numba.kernels import geometry


@pytest.fixture(autouse=True)
def nothing_remembered():
    """A mutant runs in a fork of the process that ran the original, and has its memory."""
    geometry._known.clear()
