"""The eigensolver that lets Python's lock go, and blocks that are decomposed at the same time."""

import ctypes

import numba
import numpy as np
import pytest
import scipy.linalg

import kfc_numba as kfc
from kfc_numba.curvature import lapack
from kfc_numba.curvature.blockdiagonal import BlockDiagonal


def semidefinite(size, dtype, seed=0):
    rows = np.random.default_rng(seed).normal(size=(size, size + 3)).astype(dtype)
    return rows @ rows.T


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 26, 100])
def test_the_same_as_scipys(size, dtype):
    matrix = semidefinite(size, dtype)
    before = matrix.copy()
    values, vectors = lapack.eigh(matrix)
    expected, expected_vectors = scipy.linalg.eigh(before, driver="evd")
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(vectors, expected_vectors)
    np.testing.assert_array_equal(matrix, before)
    assert values.dtype == vectors.dtype == dtype


def test_the_lower_triangle_counts():
    matrix = semidefinite(5, np.float64)
    found, _ = lapack.eigh(np.tril(matrix))
    np.testing.assert_array_equal(found, lapack.eigh(matrix)[0])


def test_a_solver_that_does_not_converge(monkeypatch):
    monkeypatch.setattr(lapack, "_call", lambda *arguments: 3)
    with pytest.raises(np.linalg.LinAlgError, match="ended with info 3"):
        lapack.eigh(np.eye(2))


def test_other_threads_go_on():
    # How fast they do is no test; ctypes keeps Python's lock in functions with this flag alone.
    assert ctypes.PYFUNCTYPE(None)._flags_ & ctypes._FUNCFLAG_PYTHONAPI
    for name in ("syevd", "potrf", "potri"):
        assert not lapack._routine(name, "f")._flags_ & ctypes._FUNCFLAG_PYTHONAPI


def decomposed(threads, state=None):
    layers = [kfc.Conv2d(4, 3), kfc.Flatten(), kfc.Dense(20), kfc.Tanh(), kfc.Dense(3)]
    net = kfc.Sequential(layers, input_shape=(8, 8, 2), seed=0)
    loss = kfc.SoftmaxCrossEntropy()
    curvature = BlockDiagonal(net)
    x = np.random.default_rng(0).normal(size=(7, 8, 8, 2)).astype(np.float32)
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        if state is not None:
            return curvature.decompose(curvature.initial_state() | state)
        rng = np.random.default_rng(1)
        return curvature.compute(net.forward(x), loss, mode="fisher_gradients", rng=rng)
    finally:
        numba.set_num_threads(before)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread")
def test_threads_change_no_bit():
    one, two = decomposed(1), decomposed(2)
    assert list(one) == list(two)
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("threads", [1, min(2, numba.config.NUMBA_NUM_THREADS)])
def test_what_fails_is_named_in_the_order_of_the_layers(threads):
    bad = {"omega/dense1": np.full((145, 145), np.nan, np.float32)}
    with pytest.raises(FloatingPointError, match="factor omega/dense1 is not finite"):
        decomposed(threads, bad | {"gamma/dense2": np.full((3, 3), np.inf, np.float32)})
