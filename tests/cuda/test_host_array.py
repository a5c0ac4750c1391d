"""Arrays that stand for CuPy's: what they refuse, and what they compute."""

import numpy as np
import pytest
from array_api_compat import array_namespace
from host_array import HostArray, on_device

from kfc_numba.kernels import backend, cuda

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda a: np.asarray(a),
        lambda a: np.add(a, X),
        lambda a: a + X,
        lambda a: X + a,
        lambda a: a * X.T.copy().T,
        lambda a: a @ X.T,
        lambda a: a.__setitem__(0, X[0]),
        lambda a: a[np.array([0, 1])],
        lambda a: np.concatenate([a, a]),
        lambda a: array_namespace(a).matmul(a, X.T),
        lambda a: array_namespace(a).concat([a, X]),
        lambda a: np.zeros(3)[a[0, 0]],
        lambda a: hash(a),
    ],
)
def test_arrays_of_numpy_do_not_mix(mixed):
    with pytest.raises(TypeError):
        mixed(on_device(X))


def test_arithmetic():
    a, b = on_device(X), on_device(X + 1)
    for found, expected in (
        (a + b, X + (X + 1)),
        (2 * a - 1, 2 * X - 1),
        (np.float32(2) / b, np.float32(2) / (X + 1)),
        (a @ b.T, X @ (X + 1).T),
        (-a, -X),
        (abs(a) > 0.5, abs(X) > 0.5),
        (a.T[1:, ::2], X.T[1:, ::2]),
        (a[a > 0], X[X > 0]),
        (a.sum(axis=1, keepdims=True), X.sum(axis=1, keepdims=True)),
        (a.mean(), X.mean()),
        (a.astype(np.float64), X.astype(np.float64)),
    ):
        assert type(found) is HostArray
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.get(), expected)


def test_in_place_and_views():
    a = on_device(X)
    rows, flat = a[1:], a.reshape(-1)
    a += 1
    rows[0] = 5
    flat[0] = on_device(np.float32(7))
    expected = X + 1
    expected[1], expected[0, 0] = 5, 7
    np.testing.assert_array_equal(a.get(), expected)
    assert a.flags.c_contiguous
    assert not a.T.flags.c_contiguous


def test_place_in_memory():
    """Fresh arrays are aligned; views begin where they begin."""
    a = on_device(np.arange(100, dtype=np.float32))
    xp = array_namespace(a)
    for fresh in (a, a + 1, xp.zeros(5), xp.empty((3, 3)), a.copy(), xp.concat([a, a])):
        assert fresh.data.ptr % 512 == 0
    assert a[1:].data.ptr == a.data.ptr + 4
    assert xp.reshape(a, (10, 10)).data.ptr == a.data.ptr


def test_namespace():
    a = on_device(X)
    xp = array_namespace(a)
    assert np.isnan(xp.empty(3).get()).all()
    assert (xp.empty(3, dtype=xp.int32).get() == 77).all()
    matrix = xp.matmul(xp.matrix_transpose(a), a)
    values, vectors = xp.linalg.eigh(matrix)
    found = ((vectors * values) @ vectors.T).get()
    np.testing.assert_allclose(found, X.T @ X, atol=1e-5)
    np.testing.assert_array_equal(xp.where(a > 0, a, 0.0).get(), np.where(X > 0, X, 0))
    np.testing.assert_array_equal(xp.asarray(X).get(), X)
    assert xp.astype(a, xp.float64).dtype == np.float64
    with pytest.raises(AttributeError):
        _ = xp.einsum


def test_the_host_waits_when_it_reads():
    a = on_device(X)
    before = HostArray.waits
    assert float(a[0, 0]) == X[0, 0]
    assert bool((a == a).all())
    a.get()
    a.sum()
    assert HostArray.waits == before + 3


def test_kernels_of_the_package_compute_on_it():
    assert backend.kernels(on_device(X)) is cuda
