"""Random masks."""

import numpy as np
import pytest

from kfc_numba.kernels import cpu


def philox(seed=5):
    return np.random.Generator(np.random.Philox(seed))


# More than a block, with an odd rest: numbers come in pairs from the generator.
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (3, 5, 14001), (2, 1 << 16)], ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
def test_the_mask_is_that_of_one_draw(shape, rate):
    rng, other = philox(), philox()
    mask = cpu.dropout_mask(shape, rate=rate, rng=rng)
    assert mask.dtype == np.uint8
    draws = other.random(shape, dtype=np.float32)
    np.testing.assert_array_equal(mask, (draws >= np.float32(rate)).astype(np.uint8))
    assert rng.random() == other.random()  # and the stream goes on from the same place
    out = np.full(shape, 7, np.uint8)
    assert cpu.dropout_mask(shape, rate=rate, rng=philox(), out=out) is out
    np.testing.assert_array_equal(out, mask)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"rate": 1}, ValueError, "rate"),
        ({"rate": "a"}, TypeError, "rate"),
        ({"rng": 3}, TypeError, "rng must be a NumPy generator"),
        ({"shape": (0, 2)}, ValueError, "shape"),
        ({"out": np.zeros((2, 3))}, TypeError, "out"),
        ({"out": np.zeros((3, 3), np.uint8)}, ValueError, "out"),
    ],
)
def test_bad_arguments(changed, error, message):
    with pytest.raises(error, match=message):
        cpu.dropout_mask(**{"shape": (2, 3), "rate": 0.5, "rng": philox(), **changed})
