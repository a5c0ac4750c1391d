"""Cholesky factors and inverses by block elimination, beside LAPACK's in float64."""

import numpy as np
import pytest
import scipy.linalg

from kfc_numba.kernels.cpu import cholesky, tile

# Below, at and above the sizes of a block of lanes and of a diagonal block, and of several.
SIZES = [1, 7, 8, 31, 32, 33, 127, 128, 129, 160, 255, 256, 257, 300, 401]


def positive_definite(size, condition=1e3, seed=0):
    """With eigenvalues from 1 / condition to 1."""
    rng = np.random.default_rng(seed)
    vectors = scipy.linalg.qr(rng.normal(size=(size, size)))[0]
    values = np.geomspace(1 / condition, 1, size)
    matrix = (vectors * values) @ vectors.T
    return (matrix + matrix.T) / 2


def given(matrix, dtype):
    """What a kernel gets: nothing above the diagonal counts."""
    lower = np.tril(matrix).astype(dtype)
    return lower + np.triu(np.full_like(lower, 7), 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_factor(size, dtype):
    found = given(positive_definite(size), dtype)
    exact = np.tril(found).astype(np.float64)
    exact += np.tril(exact, -1).T
    assert cholesky.cholesky_factor(found)
    assert found.dtype == dtype
    lower = np.tril(found).astype(np.float64)
    # Of LAPACK's own factor the bound is N + 1 units in the last place.
    error = abs(lower @ lower.T - exact).max()
    assert error <= (size + 1) * np.finfo(dtype).eps * abs(exact).max()
    np.testing.assert_allclose(
        lower, scipy.linalg.cholesky(exact, lower=True), atol=3e3 * size * np.finfo(dtype).eps
    )


def lapacks_inverse(matrix):
    factor, inverse = scipy.linalg.get_lapack_funcs(("potrf", "potri"), (matrix,))
    lower = np.tril(inverse(factor(matrix, lower=1)[0], lower=1)[0])
    return lower + np.tril(lower, -1).T


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_inverse(size, dtype):
    matrix = positive_definite(size).astype(dtype)
    found = given(matrix, dtype)
    assert cholesky.cholesky_inverse(found)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, found.T)
    # NumPy computes in float64. Of the digits a condition of a thousand leaves all but three.
    expected = np.linalg.inv(matrix.astype(np.float64))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found, expected, atol=1e3 * eps * abs(expected).max())
    assert residual(found, matrix) <= 3 * residual(lapacks_inverse(matrix), matrix) + eps


def residual(inverse, matrix):
    both = inverse.astype(np.float64) @ matrix.astype(np.float64)
    return np.linalg.norm(both - np.eye(len(matrix)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_matrix_that_is_hard_to_invert(dtype):
    """With a hundredth of all digits left: the factor is as good, the inverse nearly."""
    size, condition = 300, 0.01 / np.finfo(dtype).eps
    matrix = positive_definite(size, condition).astype(dtype)
    found = matrix.copy()
    assert cholesky.cholesky_factor(found)
    lower = np.tril(found).astype(np.float64)
    eps = np.finfo(dtype).eps
    assert abs(lower @ lower.T - matrix).max() < size * eps * abs(matrix).max()
    found = matrix.copy()
    assert cholesky.cholesky_inverse(found)
    # Four times LAPACK's in float64, where it solves for one triangle after the other.
    assert residual(found, matrix) < 10 * residual(lapacks_inverse(matrix), matrix)


@pytest.mark.parametrize("routine", [cholesky.cholesky_factor, cholesky.cholesky_inverse])
@pytest.mark.parametrize("place", [0, 7, 8, 100, 127, 128, 200, 299])
@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan])
def test_a_matrix_that_is_not_positive_definite(routine, place, wrong):
    matrix = np.eye(300)
    matrix[place, place] = wrong
    assert not routine(matrix)
    matrix = positive_definite(300) + np.eye(300)
    matrix[place, place] -= 3
    assert not routine(matrix)


@pytest.mark.parametrize("routine", [cholesky.cholesky_factor, cholesky.cholesky_inverse])
def test_wrong_arrays(routine):
    for wrong in ([[1.0]], np.eye(3, dtype=int)):
        with pytest.raises(TypeError, match=r"^matrix "):
            routine(wrong)
    for wrong in (
        np.ones(3),
        np.ones((2, 3)),
        np.eye(4)[:, ::2],
        np.asfortranarray(np.ones((3, 3)))[::2],
    ):
        with pytest.raises(ValueError, match=r"^matrix "):
            routine(wrong)
    frozen = np.eye(3)
    frozen.setflags(write=False)
    with pytest.raises(ValueError, match=r"^matrix "):
        routine(frozen)


def test_diagonal_blocks_are_blocks_of_lanes():
    for dtype in (np.float32, np.float64):
        assert cholesky.ROWS % tile.tile_lanes(dtype) == 0
