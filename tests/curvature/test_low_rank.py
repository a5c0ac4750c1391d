"""Decompositions of matrices of low rank take a shorter way, to the same result."""

import numpy as np
import pytest

from kfc_numba.curvature import eigen, lapack


def matrix(size, rank, dtype, spread=1e3):
    """Symmetric, of a rank, with eigenvalues between 1 and 1 / spread."""
    rng = np.random.default_rng(size + rank)
    basis, _ = np.linalg.qr(rng.normal(size=(size, rank)))
    values = np.geomspace(1.0, 1.0 / spread, rank)
    return ((basis * values) @ basis.T).astype(dtype), values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [1, 20, 127, 128, 200])
def test_a_decomposition(dtype, rank, monkeypatch):
    size = eigen.LEAST_LOW_RANK
    a, expected = matrix(size, rank, dtype)
    shorter, usual = [], eigen._low_rank_eigh
    monkeypatch.setattr(eigen, "_low_rank_eigh", lambda m: shorter.append(usual(m)) or shorter[-1])
    values, vectors = eigen.decompose(a, "omega/dense1")
    # Below half of full rank it is the shorter way.
    assert (shorter[0] is not None) == (rank < size / 2)
    # Norms of what is left are a few times the rounding error of the largest eigenvalue, 1.
    tolerance = 20 * np.finfo(dtype).eps
    assert values.dtype == vectors.dtype == dtype
    assert (np.diff(values) >= 0).all()
    np.testing.assert_allclose(values[-rank:], expected[::-1], atol=tolerance)
    np.testing.assert_allclose(values[:-rank], 0, atol=tolerance)
    assert np.linalg.norm((vectors * values) @ vectors.T - a, 2) < size * tolerance / 10
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(size), atol=10 * tolerance)


def test_a_matrix_of_zeros():
    values, vectors = eigen.decompose(np.zeros((300, 300)), "omega/dense1")
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(300), atol=1e-12)


def test_blas_has_one_thread_and_then_its_own_back(monkeypatch):
    from threadpoolctl import threadpool_info

    def threads():
        return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]

    before, within, usual = threads(), [], lapack.eigh
    monkeypatch.setattr(lapack, "eigh", lambda a: within.extend(threads()) or usual(a))
    eigen.decompose(np.eye(300), "omega/dense1")
    assert threads() == before
    assert set(within) == {1}
