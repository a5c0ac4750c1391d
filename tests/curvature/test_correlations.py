"""Correlations over space: of images whose correlations are known, by hand, and as pictures."""

import numpy as np
import pytest
from curvature_reference import STENCIL, STEP, prediction_fisher

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
        assert len(row) == 5


# Between maps.


def copied(layers, shape, net, names):
    """A part of a network as one of its own, with the parameters of these layers."""
    part = kfc.Sequential(layers, input_shape=shape, dtype=np.float64)
    for own, name in zip(part.parameter_layers(), names, strict=True):
        for short in own.names:
            part.params[f"{own.name}.{short}"][...] = net.params[f"{name}.{short}"]
    return part


def brute_force_between_maps(loss, tail, outputs):
    """From differences of predictions by the outputs of a layer, one number at a time."""
    examples, height, width, maps = outputs.shape
    moment = np.zeros((maps, maps))
    for n in range(examples):
        one = outputs[n : n + 1].copy()
        fisher = prediction_fisher(type(loss).__name__, tail.predict(one))
        for y, x in np.ndindex(height, width):
            columns = []
            for i in range(maps):
                old, column = one[0, y, x, i], 0
                for distance, weight in STENCIL.items():
                    one[0, y, x, i] = old + distance * STEP
                    ahead = tail.predict(one)
                    one[0, y, x, i] = old - distance * STEP
                    column = column + weight * (ahead - tail.predict(one)).ravel() / STEP
                one[0, y, x, i] = old
                columns.append(column)
            for i, j in np.ndindex(maps, maps):
                moment[i, j] += columns[i] @ fisher @ columns[j]
    result = np.empty_like(moment)
    for i, j in np.ndindex(maps, maps):
        result[i, j] = moment[i, j] / (moment[i, i] * moment[j, j]) ** 0.5
    return result


@pytest.mark.parametrize("loss", [kfc.SoftmaxCrossEntropy(), kfc.SigmoidCrossEntropy()])
def test_correlations_between_maps_are_those_of_differences(loss):
    first, second = kfc.Conv2d(4, 3, padding=1, groups=2), kfc.Conv2d(3, 2)
    middle, rest = [kfc.Tanh(), kfc.AvgPool2d(2)], [kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)]
    shape, x = (6, 5, 2), images(3)
    layers = [first, *middle, second, *rest]
    net = kfc.Sequential(layers, input_shape=shape, seed=3, dtype=np.float64)
    rows = correlations.by_layer(net, net.forward(x), loss, 1)
    for name, before, after in (
        ("conv1", [first], [*middle, second, *rest]),
        ("conv2", [first, *middle, second], rest),
    ):
        names = [placed.name for placed in net.parameter_layers()]
        count = 1 + names.index(name)
        outputs = copied(before, shape, net, names[:count]).predict(x)
        tail = copied(after, outputs.shape[1:], net, names[count:])
        expected = brute_force_between_maps(loss, tail, outputs)
        # Differences of eighth order with these steps are off by about 1e-12.
        np.testing.assert_allclose(rows[name]["map_correlation"], expected, rtol=0, atol=1e-10)
        others = np.abs(expected[~np.eye(len(expected), dtype=bool)])
        assert 0.01 < others.min() <= others.max() < 0.98
    assert rows["dense1"]["map_correlation"] is None


def test_maps_without_derivatives_have_no_correlations():
    moment = np.array([[4.0, 0, 1], [0, 0, 0], [1, 0, 1]], np.float32)
    expected = [[1, 0, 0.5], [0, 0, 0], [0.5, 0, 1]]
    np.testing.assert_array_equal(correlations.between_maps(moment), expected)


# Pictures.


def test_pictures_of_one_layer():
    """Offsets at the axes, and colours from -1 to 1."""
    net = kfc.Sequential([kfc.Conv2d(2, 2)], input_shape=(3, 4, 1), dtype=np.float64)
    report = kfc.check_curvature(net, np.zeros((2, 3, 4, 1)), kfc.SquaredError(), repeats=1)
    # Images of zeros have no correlation: zero, not a division by it.
    np.testing.assert_array_equal(report.rows[0]["activation_correlation"], np.zeros((5, 7)))
    derivatives, activations, maps = report.figure().axes[:3]
    (image,) = activations.images
    assert image.get_clim() == derivatives.images[0].get_clim() == (-1, 1)
    assert list(image.get_extent()) == [-3.5, 3.5, 2.5, -2.5]
    assert maps.images[0].get_clim() == (-1, 1)
    np.testing.assert_array_equal(maps.images[0].get_array(), np.eye(2))  # a unit derivative each
