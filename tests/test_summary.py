"""What networks and trainers say of themselves."""

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import networks
from kfc_numba.summary import COLUMNS, described


def small():
    return kfc.Sequential(
        [kfc.Conv2d(4, 3), kfc.MaxPool2d(2), kfc.Flatten(), kfc.Dense(3)], input_shape=(6, 6, 2)
    )


TABLE = """
layer                                     inputs     output shape      parameters
----------------------------------------  ---------  --------------  ------------
input                                                6 x 6 x 2
conv1: Conv2d(filters=4, kernel=3)        input      4 x 4 x 4                 76
max_pool1: MaxPool2d(kernel=2, stride=2)  conv1      2 x 2 x 4                  0
flatten1: Flatten()                       max_pool1  16                         0
dense1: Dense(units=3)                    flatten1   3                         51
total                                                                         127
"""


def test_the_table():
    assert [line.rstrip() for line in small().summary().splitlines()] == TABLE.split("\n")[1:-1]


class Everything(kfc.Layer):
    """A layer with a name, and arguments, of any length."""

    kind = "everything_in_one_layer"

    def __init__(self, words):
        self.words = words


def wide(count):
    node = image = kfc.Input((123, 456, 789))
    parts = [Everything("w" * 7 * n)(kfc.Conv2d(7, 3, groups=1)(node)) for n in range(count)]
    return kfc.Graph(image, kfc.Dense(1234)(kfc.Concat()(*parts)))


NETWORKS = {
    **{
        f"{name} {shape}": lambda name=name, shape=shape: networks.build(name, shape, 10)
        for name in networks.names()
        for shape in ((32, 32, 3), (28, 28, 1))
    },
    "wide": lambda: wide(12),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_it_fits_a_terminal(make):
    net = make()
    lines = net.summary().splitlines()
    assert max(map(len, lines)) <= COLUMNS == 100
    starts = [line.partition(":")[0] for line in lines]
    assert [name for name in starts if name in {p.name for p in net.layers}] == [
        placed.name for placed in net.layers
    ]
    count = sum(value.size for value in net.params.values())
    assert lines[-1].split() == ["total", f"{count:,}"]


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (kfc.Conv2d(8, 3), "Conv2d(filters=8, kernel=3)"),
        (kfc.Conv2d(8, (3, 5), stride=2), "Conv2d(filters=8, kernel=(3, 5), stride=2)"),
        (kfc.Conv2d(8, 3, padding=((0, 1), (0, 1))), "Conv2d(filters=8, kernel=3, padding=(0, 1))"),
        (kfc.Conv2d(8, 3, padding="same", bias=False, groups=2),
         "Conv2d(filters=8, kernel=3, padding='same', groups=2, bias=False)"),
        (kfc.MaxPool2d(3, stride=2, ceil_mode=True),
         "MaxPool2d(kernel=3, stride=2, ceil_mode=True)"),
        (kfc.BatchNorm(), "BatchNorm()"),
        (kfc.BatchNorm(epsilon=1e-3), "BatchNorm(epsilon=0.001)"),
        (kfc.Dense(4, bias=False), "Dense(units=4, bias=False)"),
        (kfc.Dropout(0.5), "Dropout(rate=0.5)"),
        (Everything((2, 2)), "Everything(words=(2, 2))"),
    ],
)  # fmt: skip
def test_layers_with_what_is_not_usual(layer, text):
    assert described(layer) == text


def test_what_it_says_makes_the_same_layer():
    for net in (networks.build(name, (32, 32, 3), 10) for name in networks.names()):
        for placed in net.layers:
            assert repr(eval(described(placed.layer), vars(kfc))) == repr(placed.layer)


def test_repr_of_a_network():
    assert repr(small()) == "<Sequential: 6 x 6 x 2 to 3, 4 layers, 127 parameters, float32>"
    image = kfc.Input((1200,))
    net = kfc.Graph(image, kfc.Dense(10)(image), dtype=np.float64)
    assert repr(net) == "<Graph: 1200 to 10, 1 layer, 12,010 parameters, float64>"


def test_repr_of_a_trainer():
    trainer = kfc.Trainer(small(), kfc.SoftmaxCrossEntropy(), kfc.SGD(), seed=3)
    assert repr(trainer).splitlines() == [
        f"<Trainer of {trainer.net!r}",
        " by SGD, SoftmaxCrossEntropy(), seed 3: 0 steps, 0.00 epochs>",
    ]
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 6, 6, 2)), rng.integers(3, size=20)
    trainer.fit(x, y, batch_size=5, max_steps=6, validation=(x, y), progress=False)
    row = trainer.history.rows[-1]
    assert repr(trainer).splitlines()[1:] == [
        " by SGD, SoftmaxCrossEntropy(), seed 3: 6 steps, 1.50 epochs",
        f" step 6: training loss {row['training_loss']:.4g}, validation loss "
        f"{row['validation_loss']:.4g}, error {row['validation_error']:.4g}>",
    ]
    assert max(map(len, repr(trainer).splitlines())) <= 100


def test_repr_of_a_history():
    row = {"step": 12, "epoch": 1.5, "seconds": 3.0, "training_loss": 0.25}
    alone = row | {"validation_loss": None, "validation_error": None}
    full = row | {"validation_loss": 0.5, "validation_error": 0.125}
    text = (
        "<History of 2 evaluations; step 12: training loss 0.25, validation loss 0.5, error 0.125>"
    )
    assert repr(kfc.History([alone, full])) == text
    assert repr(kfc.History([alone])) == "<History of 1 evaluation; step 12: training loss 0.25>"
    assert repr(kfc.History()) == "<History of 0 evaluations>"
