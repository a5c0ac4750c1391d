"""`KFC()` with no argument on six small tasks: it never fails, and never ends above its start."""

import numpy as np
import pytest
import scipy.fft

import kfc_numba as kfc

BATCHES = (8, 32, 256)
STEPS = 300


def images(count=400):
    """Bundled images, at a quarter of their width and height."""
    data = kfc.datasets.fashion_mnist_10k()
    x = data.x_train[:: len(data.x_train) // count].astype(np.float32)
    x = x.reshape(len(x), 7, 4, 7, 4, 1).mean(axis=(2, 4)) / 255
    return x, data.y_train[:: len(data.y_train) // count]


def classes(layers, count=400):
    x, y = images(count)
    x = (x - x.mean()) / x.std()
    net = kfc.Sequential(layers, input_shape=x.shape[1:], seed=0)
    return net, kfc.SoftmaxCrossEntropy(), x, y


def convolution():
    layers = [kfc.Conv2d(8, 3, padding=1), kfc.ReLU(), kfc.MaxPool2d(2), kfc.Flatten()]
    return classes([*layers, kfc.Dense(10)])


def normalised():
    layers = [kfc.Conv2d(8, 3, padding=1, bias=False), kfc.BatchNorm(), kfc.ReLU(), kfc.Flatten()]
    return classes([*layers, kfc.Dense(10)])


def few():
    return classes([kfc.Flatten(), kfc.Dense(20), kfc.Tanh(), kfc.Dense(10)], count=40)


def residual():
    x, y = images()
    start = kfc.Input(x.shape[1:])
    first = kfc.Conv2d(8, 3, padding=1)(start)
    second = kfc.Conv2d(8, 3, padding=1)(kfc.ReLU()(first))
    outputs = kfc.Dense(10)(kfc.GlobalAvgPool2d()(kfc.Add()(first, second)))
    return kfc.Graph(start, outputs, seed=0), kfc.SoftmaxCrossEntropy(), x, y


def autoencoder():
    x, _ = images()
    x = x.reshape(len(x), -1)
    layers = [kfc.Dense(20), kfc.Tanh(), kfc.Dense(5), kfc.Dense(20), kfc.Tanh(), kfc.Dense(49)]
    net = kfc.Sequential(layers, input_shape=(49,), seed=0)
    return net, kfc.SigmoidCrossEntropy(), x, x


def field():
    """Poisson's equation on a square: the solution at points, from the right-hand side."""
    rng = np.random.default_rng(0)
    waves = np.arange(1, 9)
    laplacian = waves[:, None] ** 2 + waves**2
    coefficients = rng.normal(size=(400, 8, 8)) / laplacian
    x = scipy.fft.idstn(coefficients, type=1, axes=(1, 2))[..., None]
    y = scipy.fft.idstn(coefficients / laplacian, type=1, axes=(1, 2))[:, ::3, ::3]
    layers = [kfc.Conv2d(4, 3, padding=1), kfc.Tanh(), kfc.Flatten(), kfc.Dense(9)]
    net = kfc.Sequential(layers, input_shape=(8, 8, 1), seed=0, dtype=np.float64)
    return net, kfc.SquaredError(), x, y.reshape(400, 9)


TASKS = [convolution, normalised, few, residual, autoencoder, field]


@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("task", TASKS)
def test_training_ends_below_its_start(task, batch_size):
    net, loss, x, y = task()
    trainer = kfc.Trainer(net, loss, kfc.KFC())
    history = trainer.fit(
        x, y, batch_size=batch_size, max_steps=STEPS, evaluate_every=30, progress=False
    )
    losses = [row["training_loss"] for row in history.rows]
    assert np.isfinite(losses).all()
    assert max(losses) == losses[0], losses
    # It does not come back up either, beyond the noise of small batches.
    assert losses[-1] <= 1.5 * min(losses) + 0.01 * losses[0], losses
