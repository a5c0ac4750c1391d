"""What errors and warnings say about data and shapes as they often come: what to write instead."""

import warnings

import numpy as np
import pytest

import kfc_numba as kfc

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 6, 6, 1)), np.arange(12) % 3
PIXELS = RNG.integers(256, size=(12, 6, 6, 1), dtype=np.uint8)


def trainer(loss=None, outputs=3):
    net = kfc.Sequential([kfc.Flatten(), kfc.Dense(outputs)], input_shape=(6, 6, 1))
    return kfc.Trainer(net, loss or kfc.SoftmaxCrossEntropy(), kfc.SGD(learning_rate=1e-6))


def fit(x, y, **more):
    loss, outputs = more.pop("loss", None), more.pop("outputs", 3)
    return trainer(loss, outputs).fit(x, y, epochs=1, progress=False, **more)


# Targets.


@pytest.mark.parametrize(
    ("y", "hint"),
    [
        (np.eye(3)[Y], r"one-hot labels become classes by y\.argmax\(axis=1\)$"),
        (np.eye(3, dtype=int)[Y], r"one-hot labels become classes by y\.argmax\(axis=1\)$"),
        (Y.astype(float), r"must be integers, got dtype float64; see y\.astype\(int\)$"),
        (Y[:, None], r"must have shape \(12,\), got \(12, 1\); see y\[\.\.\., 0\]$"),
        (np.array(["a", "b", "c"])[Y], r"got dtype <U1; see np\.unique\(y, return_inverse=True\)"),
        (Y + 1, "y: targets must be from 0 to 2, got 1 to 3; classes are counted from 0$"),
    ],
)
def test_labels_that_are_no_classes(y, hint):
    with pytest.raises((TypeError, ValueError), match=hint):
        fit(X, y)


def test_one_hot_maps():
    loss, outputs = kfc.SoftmaxCrossEntropy(), np.zeros((2, 5, 5, 3))
    with pytest.raises(ValueError, match=r"one-hot .* by y\.argmax\(axis=3\)$"):
        loss.value(outputs, np.zeros((2, 5, 5, 3), int))


@pytest.mark.parametrize("y", [np.full(12, 0.5), np.eye(4)[Y], np.full((12, 1), 0.5), Y - 1])
def test_no_hint_where_it_would_be_wrong(y):
    with pytest.raises((TypeError, ValueError)) as caught:
        fit(X, y)
    assert ";" not in str(caught.value)


@pytest.mark.parametrize("loss", [kfc.SquaredError(), kfc.SigmoidCrossEntropy()])
def test_one_number_for_each_example(loss):
    with pytest.raises(
        ValueError, match=r"must have shape \(12, 1\), got \(12,\); see y\[\.\.\., None\]$"
    ):
        fit(X, Y / 3, loss=loss, outputs=1)


# Shapes.


@pytest.mark.parametrize("layer", [kfc.Conv2d(4, 3), kfc.MaxPool2d(2), kfc.GlobalAvgPool2d()])
def test_an_input_shape_with_the_axis_of_examples(layer):
    name = type(layer).__name__
    message = (
        rf"^input_shape \(=\(128, 32, 32, 3\)\) must be that of one example: {name} "
        r"takes \(height, width, channels\), got \(128, 32, 32, 3\)$"
    )
    with pytest.raises(ValueError, match=message):
        kfc.Sequential([kfc.ReLU(), layer, kfc.Flatten()], input_shape=(128, 32, 32, 3))
    with pytest.raises(ValueError, match=rf"^{name} takes \(height, width, channels\), got \(128,"):
        layer(kfc.Input((128, 32, 32, 3)))


def test_a_layer_that_does_not_fit_is_named_by_its_place():
    message = (
        r"^layers\[1\], on \(3072,\): Conv2d takes \(height, width, channels\), got \(3072,\)$"
    )
    with pytest.raises(ValueError, match=message):
        kfc.Sequential([kfc.Flatten(), kfc.Conv2d(8, 5)], input_shape=(32, 32, 3))
    message = r"^layers\[0\], on \(3, 32, 32\): kernel \(=5\) must be at most the 3 cells"
    with pytest.raises(ValueError, match=message):
        kfc.Sequential([kfc.Conv2d(8, 5)], input_shape=(3, 32, 32))
    message = r"^layers\[0\], on \(9, 9, 3\): groups \(=2\) must divide the channels \(=3\)"
    with pytest.raises(ValueError, match=message):
        kfc.Sequential([kfc.Conv2d(8, 5, groups=2)], input_shape=(9, 9, 3))


def test_an_input_shape_that_only_the_data_contradict():
    net = kfc.Sequential([kfc.Flatten(), kfc.Dense(3)], input_shape=X.shape)
    message = r", .*; input_shape is that of one example: \(6, 6, 1\)$"
    for x in (X, X[:5]):
        with pytest.raises(ValueError, match=message):
            net.predict(x)


def test_an_input_shape_with_channels_first():
    hint = r"; input_shape is \(height, width, channels\)$"
    with pytest.raises(ValueError, match=rf"^layers\[0\], on \(3, 32, 32\): kernel .*{hint}"):
        kfc.Sequential([kfc.Conv2d(8, 5)], input_shape=(3, 32, 32))
    net = kfc.Sequential([kfc.Conv2d(8, 5, padding="same")], input_shape=(3, 32, 32))
    with pytest.raises(ValueError, match=rf"x has shape \(2, 32, 32, 3\), the network .*{hint}"):
        net.predict(np.zeros((2, 32, 32, 3)))
    with pytest.raises(ValueError, match=r"channels come last, see \.transpose\(0, 2, 3, 1\)$"):
        kfc.Sequential([kfc.ReLU()], input_shape=(32, 32, 3)).predict(np.zeros((2, 3, 32, 32)))


def test_layers_that_are_no_sequence():
    message = r"^layers must be a sequence of layers, got Dense: see \[Dense\(\.\.\.\), \.\.\.\]$"
    with pytest.raises(TypeError, match=message):
        kfc.Sequential(kfc.Dense(3), input_shape=(3,))
    with pytest.raises(TypeError, match=r"^layers must be a sequence of layers, got int$"):
        kfc.Sequential(3, input_shape=(3,))


# Pixels.


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.uint16])
def test_pixels_are_warned_of(dtype):
    x = PIXELS.astype(dtype)
    x *= 200 if dtype == np.uint16 else 1  # as of a microscope
    largest = 65535 if dtype == np.uint16 else 255
    message = (
        rf"^x: numbers from {x.min():g} to {x.max():g} look like pixels; .* see x / {largest}, or "
        r".* \.normalized\(\)$"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        fit(x, Y)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="^x: numbers from") as caught:
        trainer().net.predict(x)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_tiny_inputs_are_warned_of():
    x = X * (0.009 / np.abs(X).max())
    with pytest.warns(UserWarning, match=r"^x: numbers of at most 0\.009 are too small") as caught:
        fit(x, Y)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    x[0] /= 10
    with pytest.warns(UserWarning, match="of at most 0.009 are"):
        fit(x, Y)
    x[-1] *= 2 * 0.009 / np.abs(x[-1]).max()  # one that is not
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(x, Y)
        fit(np.zeros_like(x), Y)
        trainer().net.predict(x / 10)


def test_pixels_to_validate_on():
    normal = (PIXELS - PIXELS.mean()) / PIXELS.std()
    with pytest.warns(UserWarning, match="^inputs of validation: numbers") as caught:
        fit(normal, Y, validation=(PIXELS, Y))
    assert len(caught) == 1


def test_no_warning_of_numbers_that_are_no_pixels():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (X, X * 100, PIXELS / 255, PIXELS > 100, PIXELS // 128, PIXELS * 1.5 + 100):
            fit(x, Y, validation=(x, Y))
            trainer().net.predict(x)
        net = kfc.Sequential([kfc.Dense(3)], input_shape=(4,))
        net.predict(np.full((3, 4), 255))
        model = kfc.Model(trainer().net, normalization=kfc.Normalization([120.0], [60.0]))
        model.predict_class(PIXELS)
