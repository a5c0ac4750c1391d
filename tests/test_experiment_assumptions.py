"""The experiment on the assumptions of KFC: its matrices by loops, its verdicts, its page."""

import sys
from pathlib import Path

import numpy as np

import kfc_numba as kfc
from kfc_numba.curvature import fisher
from kfc_numba.curvature.blockdiagonal import BlockDiagonal

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are not installed

from benchmarks.experiments import assumptions_parts as parts  # noqa: E402

LOSS = kfc.SoftmaxCrossEntropy()


def network():
    layers = [
        *(kfc.Conv2d(3, (3, 2), padding=1), kfc.Tanh(), kfc.MaxPool2d(2)),
        *(kfc.Conv2d(2, 2), kfc.Flatten(), kfc.Dense(3)),
    ]
    return kfc.Sequential(layers, input_shape=(5, 6, 2), seed=1, dtype=np.float64)


def images(count):
    return np.random.default_rng(0).standard_normal((count, 5, 6, 2)) + 0.5


def test_exact_matrix_is_that_of_the_library():
    net = network()
    trace = net.forward(images(4))
    root, places = parts.exact_root(net, trace, LOSS)
    expected = fisher.dense_fisher(net, trace, LOSS)
    # Two orders of the same sums in float64.
    np.testing.assert_allclose(root.T @ root, expected, rtol=0, atol=1e-13)
    for name, block in fisher.layer_blocks(net, trace, LOSS).items():
        np.testing.assert_allclose(expected[places[name], places[name]], block, atol=1e-13)


def white_by_loops(x, kernel, padding):
    """Omega in which products of activations at different locations are those of means."""
    _, height, width, channels = x.shape
    mean = [x[..., j].mean() for j in range(channels)]
    columns = [
        (ky, kx, j) for ky in range(kernel[0]) for kx in range(kernel[1]) for j in range(channels)
    ]
    rows, places = height + 2 * padding - kernel[0] + 1, width + 2 * padding - kernel[1] + 1
    omega = np.zeros((len(columns) + 1, len(columns) + 1))
    for top in range(rows):
        for left in range(places):
            seen = []
            for ky, kx, j in columns:
                y, xx = top + ky - padding, left + kx - padding
                inside = 0 <= y < height and 0 <= xx < width
                seen.append((y, xx, j) if inside else None)
            for a, one in enumerate(seen):
                if one is None:
                    continue
                omega[a, -1] += mean[one[2]]
                omega[-1, a] += mean[one[2]]
                for b, other in enumerate(seen):
                    if other is None:
                        continue
                    if one[:2] == other[:2]:
                        omega[a, b] += np.mean(x[..., one[2]] * x[..., other[2]])
                    else:
                        omega[a, b] += mean[one[2]] * mean[other[2]]
            omega[-1, -1] += 1
    return omega


def test_white_activations_by_loops():
    x = images(3)
    layer = kfc.Conv2d(3, (3, 2), padding=1)
    omega = parts.white_omega(layer, x, x.shape[1:])
    np.testing.assert_allclose(omega, white_by_loops(x, (3, 2), 1), rtol=1e-12)
    assert np.linalg.eigvalsh(omega).min() > -1e-12 * omega.max()


def test_white_activations_are_what_the_library_has_where_they_are_white():
    x = (
        np.random.default_rng(0).standard_normal((4000, 4, 4, 2)) @ np.array([[1.0, 0.5], [0, 1]])
        + 0.3
    )
    layer = kfc.Conv2d(2, 3)
    net = kfc.Sequential([layer], input_shape=(4, 4, 2), dtype=np.float64)
    state = BlockDiagonal(net).compute(net.forward(x), kfc.SquaredError(), mode="fisher_exact")
    difference = state["omega/conv1"] - parts.white_omega(layer, x, (4, 4, 2))
    # 4 locations of 4000 examples, numbers of variance up to about 2: five standard errors.
    assert np.abs(difference).max() < 5 * 4 * 2 / np.sqrt(4000 * 4)
