"""One thread for these tests: networks are so small that handing work to a second only costs."""

import numba
import pytest


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)
