"""Correlations over space: of images whose correlations are known, by hand, and as pictures."""

import numpy as np

import kfc_numba as kfc
from kfc_numba.curvature.report import correlations


def images(count, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 6, 5, 2))


def test_what_the_assumptions_say_shows():
    # Derivatives drawn independently at each location, and the same one at all locations.
    rng = np.random.default_rng(0)
    white = rng.standard_normal((200, 8, 8, 2))
    correlation = correlations.autocovariance(white, 2)
    correlation /= correlation[2, 2]
    rest = np.delete(correlation.ravel(), 12)
    assert np.abs(rest).max() < 4.5 / np.sqrt(200 * 6 * 6 * 2)  # the Monte-Carlo rate
    constant = np.broadcast_to(rng.standard_normal((200, 1, 1, 2)), white.shape)
    same = correlations.autocovariance(constant, 2)
    np.testing.assert_allclose(same, same[2, 2])
    assert correlations.spread(np.full((3, 4), 2.0)) == 0
    assert correlations.spread(np.array([[0.0, 2.0]])) == 1
    assert correlations.spread(np.zeros((2, 2))) == 0


def test_max_pooling_makes_derivatives_less_correlated_than_average_pooling():
    def neighbours(pool):
        layers = [kfc.Conv2d(4, 3, padding=1), pool, kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)]
        net = kfc.Sequential(layers, input_shape=(6, 5, 2), dtype=np.float64)
        loss = kfc.SoftmaxCrossEntropy()
        rows = correlations.by_layer(net, net.forward(images(8)), loss, 1)
        return abs(correlations.neighbours(rows["conv1"]["derivative_correlation"]))

    assert neighbours(kfc.MaxPool2d(2)) < 0.2 < neighbours(kfc.AvgPool2d(2))


def test_neighbours_are_those_beside_the_middle():
    correlation = np.arange(15.0).reshape(5, 3)  # 7 in the middle, 10 below it, 8 beside it
    assert correlations.neighbours(correlation) == 9.0
    assert correlations.neighbours(correlation[:, 1:2]) == 10.0
    assert correlations.neighbours(correlation[2:3]) == 8.0
    assert correlations.neighbours(correlation[2:3, 1:2]) is None
    assert correlations.neighbours(None) is None


class ChannelsFirst(kfc.Conv2d):
    """Keeps its input in another order: what it keeps is no image as others have them."""

    def forward(self, arrays, inputs, context):
        y, (x,) = super().forward(arrays, inputs, context)
        return y, (np.ascontiguousarray(x.transpose(0, 3, 1, 2)),)

    def backward(self, arrays, saved, dy, context, **needs):
        x = np.ascontiguousarray(saved[0].transpose(0, 2, 3, 1))
        return super().backward(arrays, (x,), dy, context, **needs)


def test_correlations_are_of_images_of_more_than_one_pixel():
    layers = [
        kfc.Conv2d(2, 2),
        ChannelsFirst(3, 2),
        kfc.Conv2d(2, 2),
        kfc.Conv2d(2, 1),
        kfc.Flatten(),
    ]
    net = kfc.Sequential(layers, input_shape=(4, 4, 2), dtype=np.float64)
    rows = correlations.by_layer(net, net.forward(images(3)[:, :4, :4]), kfc.SquaredError(), 1)
    seen = {name: row["activation_spread"] is not None for name, row in rows.items()}
    assert list(seen.values()) == [True, False, False, False]
    for name, row in rows.items():
        assert all((value is not None) == seen[name] for value in row.values())
        assert len(row) == 4


def test_pictures_of_one_layer():
    """Offsets at the axes, and colours from -1 to 1."""
    net = kfc.Sequential([kfc.Conv2d(2, 2)], input_shape=(3, 4, 1), dtype=np.float64)
    report = kfc.check_curvature(net, np.zeros((2, 3, 4, 1)), kfc.SquaredError(), repeats=1)
    # Images of zeros have no correlation: zero, not a division by it.
    np.testing.assert_array_equal(report.rows[0]["activation_correlation"], np.zeros((5, 7)))
    derivatives, activations = report.figure().axes[:2]
    (image,) = activations.images
    assert image.get_clim() == derivatives.images[0].get_clim() == (-1, 1)
    assert list(image.get_extent()) == [-3.5, 3.5, 2.5, -2.5]
