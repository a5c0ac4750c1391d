"""Device kernels run on the processor here."""

import pytest

from kfc_numba.kernels import backend
import device_math  # noqa: F401  (what device code calls)
from device_code import Processor
from host_array import HostArray


@pytest.fixture(autouse=True, scope="session")
def device():
    from kfc_numba.kernels.cuda.launch import executed_by

    backend.add_device_type(HostArray)
    with executed_by(Processor()):
        yield
