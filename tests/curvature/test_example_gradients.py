"""Gradients of single examples against sums over locations, laid out a few at a time or at once."""

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import example_gradients as module

CASES = {
    "dense": (kfc.Dense(3), (4,)),
    "dense without bias": (kfc.Dense(3, bias=False), (4,)),
    "convolution": (kfc.Conv2d(3, 2), (3, 4, 2)),
    "groups": (kfc.Conv2d(4, 2, groups=2), (3, 3, 2)),
    "one location": (kfc.Conv2d(3, 2), (2, 2, 2)),
    "groups, one location": (kfc.Conv2d(4, 2, groups=2), (2, 2, 2)),
    "few locations, many columns": (kfc.Conv2d(2, 2), (2, 3, 6)),
}


def observed(layer, shape, dtype=np.float64):
    """The layer, what it keeps of 5 examples, derivatives; each example's DW by its definition."""
    net = kfc.Sequential([layer], input_shape=shape, dtype=dtype)
    rng = np.random.default_rng(0)
    trace = net.forward(rng.normal(size=(5, *shape)).astype(dtype))
    derivatives = rng.normal(size=trace.outputs.shape).astype(dtype)
    seen = {}
    net.backward(trace, derivatives, capture=lambda placed, saved, dy: seen.update(found=saved))
    saved = seen["found"]
    gradients = []
    for index in range(5):
        own = np.zeros_like(derivatives)
        own[index] = derivatives[index]
        found = net.backward(trace, own)
        arrays = {name.partition(".")[2]: value for name, value in found.items()}
        gradients.append(net.layers[0].layer.to_matrix(arrays))
    return net.layers[0].layer, saved, derivatives, np.stack(gradients)


def bases(matrix, seed=1):
    """Orthogonal matrices for rows and columns, with an axis of groups where there is one."""
    rng = np.random.default_rng(seed)
    *groups, rows, columns = matrix.shape
    return [np.linalg.qr(rng.normal(size=(*groups, n, n)))[0] for n in (rows, columns)]


@pytest.mark.parametrize("bytes_at_a_time", [1, 1 << 24])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_each_example_by_itself(case, rotated, bytes_at_a_time, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", bytes_at_a_time)
    layer, saved, dy, expected = observed(*CASES[case])
    given = bases(expected[0]) if rotated else []
    if rotated:
        left, right = given
        expected = np.swapaxes(left, -1, -2) @ expected @ right
    parts = list(module.example_gradients(layer, saved, dy, *given))
    assert len(parts) == (5 if bytes_at_a_time == 1 else 1)
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-12, atol=1e-14)
    squares = module.squared_sum(layer, saved, dy, *given)
    assert squares.shape == expected.shape[1:]
    np.testing.assert_allclose(squares, np.square(expected).sum(axis=0), rtol=1e-12, atol=1e-14)


def test_as_many_examples_are_laid_out_as_the_bytes_allow(monkeypatch):
    # An example's gradient has 3 * 5 numbers of 8 bytes, its patch 5.
    monkeypatch.setattr(module, "CHUNK_BYTES", 2 * 3 * 5 * 8)
    layer, saved, dy, _ = observed(kfc.Dense(3), (4,))
    assert [len(part) for part in module.example_gradients(layer, saved, dy)] == [2, 2, 1]
    # Twelve locations of eight columns are more than a gradient of one row.
    monkeypatch.setattr(module, "CHUNK_BYTES", 2 * 6 * 9 * 8)
    layer, saved, dy, _ = observed(kfc.Conv2d(1, 2), (3, 4, 2))
    assert [len(part) for part in module.example_gradients(layer, saved, dy)] == [2, 2, 1]


class WithoutMask(kfc.Dense):
    """Keeps something that is not there at each pass, as layers may."""

    def homogeneous(self, saved):
        x, mask = saved
        assert mask is None
        return super().homogeneous((x,))

    def locations(self, saved, dy):
        return super().locations(saved[:1], dy)


def test_what_a_layer_keeps_may_be_nothing():
    _, saved, dy, expected = observed(*CASES["dense"])
    (found,) = module.example_gradients(WithoutMask(3), (*saved, None), dy)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    squares = module.squared_sum(WithoutMask(3), (*saved, None), dy)
    np.testing.assert_allclose(squares, np.square(expected).sum(axis=0), rtol=1e-12, atol=1e-14)
