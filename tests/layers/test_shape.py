"""Layers that change shapes."""

import numpy as np
import pytest
from gradcheck import check_layer

from kfc_numba.layers.base import Context
from kfc_numba.layers.shape import Flatten


@pytest.mark.parametrize("shape", [(5,), (4, 5, 3), (2, 1)])
def test_flatten(shape):
    check_layer(Flatten(), [shape])
    x = np.arange(2 * np.prod(shape), dtype=np.float32).reshape(2, *shape)
    y, saved = Flatten().forward({}, (x,), Context())
    np.testing.assert_array_equal(y, np.arange(x.size).reshape(2, -1))
    assert np.shares_memory(y, x)
    # The shape is kept, the memory is not.
    assert not any(np.shares_memory(array, x) for array in saved)
