"""Device kernels run on the processor here, by the extra ``cuda-test``: no card is needed.

Without those packages nothing here is collected, which the end of the run says.
"""

import gc
import importlib.util

import pytest
from notes import note

NEEDED = ("numba_cuda", "nvidia")  # the second has the compiler and the disassembler
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if missing:
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config):
    if missing:
        note(
            config,
            f"Kernels for NVIDIA cards were not tested: no package {' nor '.join(missing)}. "
            'They need no card, but: pip install -e ".[test,cuda-test]"',
        )


@pytest.fixture(autouse=True, scope="module")
def device():
    from device_code import Processor
    from host_array import HostArray

    from kfc_numba.kernels import backend
    from kfc_numba.kernels.cuda.launch import executed_by

    # Numba keeps millions of objects of the kernels of other files. They are no garbage: without
    # this, whoever looks for some goes through all of them again, which takes seconds each time.
    gc.collect()
    gc.freeze()
    backend.add_device_type(HostArray)
    with executed_by(Processor()):
        yield
