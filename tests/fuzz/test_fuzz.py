"""Some hundred cases of each kind; ``KFC_NUMBA_FUZZ=60`` does sixty times as many."""

import os

import pytest

from .oracle import run
from .targets import COUNTS, TARGETS

TIMES = int(os.environ.get("KFC_NUMBA_FUZZ", "1"))


@pytest.mark.timeout(600 * TIMES)
@pytest.mark.parametrize("name", COUNTS)
def test_every_case_is_sound_or_refused_in_one_line(name, tmp_path):
    result = run(TARGETS[name](tmp_path), TIMES * COUNTS[name])
    assert not result.problems, str(result)
    assert result.cases == TIMES * COUNTS[name]
    # Cases that are all refused, or all accepted, prove little.
    assert result.accepted > result.cases / 50
    assert result.refused > result.cases / 5
