"""Networks by name: what they are made of, and that each trains."""

from collections import Counter

import numpy as np
import pytest

from kfc_numba import checkpoint, networks
from kfc_numba.losses import SoftmaxCrossEntropy
from kfc_numba.optim import KFC, SGD

DATA_SETS = [((28, 28, 1), 10), ((32, 32, 3), 10), ((21, 34, 2), 7)]


def layers(name, shape, classes=10):
    """Kind, filters or units, and output shape of each layer."""
    net = networks.build(name, shape, classes)
    return [(placed.name.rstrip("0123456789"), placed.shape) for placed in net.layers]


def test_the_network_of_the_paper():
    # conv 5x5x32 pad 2, max-pool 3/2, ReLU, conv 5x5x32 pad 2, ReLU, avg-pool 3/2, conv 5x5x64
    # pad 2, ReLU, avg-pool 3/2, dense 10; pools keep partial windows.
    assert layers("quick", (32, 32, 3)) == [
        ("conv", (32, 32, 32)),
        ("max_pool", (16, 16, 32)),
        ("relu", (16, 16, 32)),
        ("conv", (16, 16, 32)),
        ("relu", (16, 16, 32)),
        ("avg_pool", (8, 8, 32)),
        ("conv", (8, 8, 64)),
        ("relu", (8, 8, 64)),
        ("avg_pool", (4, 4, 64)),
        ("flatten", (1024,)),
        ("dense", (10,)),
    ]
    net = networks.build("quick", (32, 32, 3), 10)
    shapes = {name: value.shape for name, value in net.params.items()}
    assert shapes == {
        "conv1.weight": (5, 5, 3, 32),
        "conv1.bias": (32,),
        "conv2.weight": (5, 5, 32, 32),
        "conv2.bias": (32,),
        "conv3.weight": (5, 5, 32, 64),
        "conv3.bias": (64,),
        "dense1.weight": (1024, 10),
        "dense1.bias": (10,),
    }


def test_response_norm_follows_the_first_two_pools():
    plain, normed = (layers(name, (32, 32, 3)) for name in ("quick", "quick-norm"))
    norms = [index for index, (kind, _) in enumerate(normed) if kind == "response_norm"]
    assert norms == [3, 7]
    assert [layer for layer in normed if layer[0] != "response_norm"] == plain
    lines = checkpoint.describe(networks.build("quick-norm", (32, 32, 3), 10))
    settings = "size=3, alpha=5e-05, beta=0.75, k=1.0, region='within_channel'"
    assert sum(settings in line for line in lines) == 2


def test_residual_blocks_add_what_they_were_given():
    net = networks.build("resnet-small", (32, 32, 3), 10)
    adds = [placed for placed in net.layers if placed.name.startswith("add")]
    assert [placed.shape for placed in adds] == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    # The first block keeps the shape and has nothing on its short cut; the others have a
    # convolution of 1x1 there.
    kinds = [net.layers[placed.parents[1]].name.rstrip("0123456789") for placed in adds]
    assert kinds == ["relu", "norm", "norm"]
    kernels = [value.shape[:2] for name, value in net.params.items() if "conv" in name]
    assert sorted(kernels) == 2 * [(1, 1)] + 7 * [(3, 3)]
    assert not [name for name in net.params if name.startswith("conv") and "bias" in name]
    # A block whose last scale is zero passes on what it was given, whatever its branch computes.
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    net.params[f"{net.layers[adds[0].parents[0]].name}.weight"][:] = 0
    before = net.predict(x)
    net.params["conv2.weight"] += 1
    net.params["conv3.weight"] += 1
    np.testing.assert_array_equal(net.predict(x), before)
    net.params["conv1.weight"] += 1
    assert abs(net.predict(x) - before).max() > 1e-3


@pytest.mark.parametrize("name", networks.names())
@pytest.mark.parametrize(("shape", "classes"), DATA_SETS)
def test_any_data_set_fits(name, shape, classes):
    net = networks.build(name, shape, classes, seed=3)
    assert net.input_shape == shape
    assert net.output_shape == (classes,)
    assert net.dtype == np.float32
    again, other = (networks.build(name, shape, classes, seed=s) for s in (3, 4))
    for key, value in net.params.items():
        np.testing.assert_array_equal(value, again.params[key])
    assert not np.array_equal(net.params["conv1.weight"], other.params["conv1.weight"])


#: The factors of "resnet18", of 4,609 rows, take it minutes.
CLOSE_KFC = KFC(
    learning_rate=0.3,
    damping=0.1,
    momentum=0.5,
    loss_bound=None,
    kl_bound=0.3,
    exact_examples=None,
    exact_period=1,
    curvature_update_period=1,
    inverse_update_period=4,
    period_growth=0,
)


@pytest.mark.parametrize("name", networks.names())
def test_each_learns_a_few_images_by_heart(name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 14, 14, 1)).astype(np.float32)
    y = np.arange(8) % 4
    net, loss = networks.build(name, (14, 14, 1), 4), SoftmaxCrossEntropy()
    optimizer = SGD(learning_rate=0.01) if name == "resnet18" else CLOSE_KFC
    state = optimizer.init(net)
    for _ in range(20):
        optimizer.step(net, loss, x, y, state)
    trained = loss.value(net.forward(x, training=True).outputs, y)
    assert trained < 0.1


def test_which_one_is_usual():
    assert networks.default((28, 28, 1)) == "small"
    assert networks.default((32, 32, 3)) == "quick"
    assert networks.default((9, 9, 2)) == "quick"


def test_each_is_described():
    for name in networks.names():
        assert networks.describe(name)
        assert f'``"{name}"``' in networks.build.__doc__


@pytest.mark.parametrize(
    "function", [networks.describe, lambda name: networks.build(name, (9,), 2)]
)
def test_unknown_names(function):
    with pytest.raises(ValueError, match=r"name \(='vgg'\) must be one of 'small', 'quick', 'qui"):
        function("vgg")


def test_images_that_are_too_small():
    message = r"network 'small' does not fit images of shape \(3, 3, 1\): MaxPool2d\(.*must be at"
    with pytest.raises(ValueError, match=message):
        networks.build("small", (3, 3, 1), 10)
    assert networks.build("small", (4, 4, 1), 10).output_shape == (10,)


@pytest.mark.parametrize(("size", "last"), [(32, 4), (224, 7)])
def test_resnet18(size, last):
    net = networks.build("resnet18", (size, size, 3), 10)
    found = Counter(type(placed.layer).__name__ for placed in net.layers)
    assert found["Conv2d"] == 20
    assert found["BatchNorm"] == 20
    assert found["Dense"] == 1
    weights = sum(v.size for v in net.params.values())
    assert 11.1e6 < weights < 11.3e6
    shapes = [placed.shape for placed in net.layers]
    assert (last, last, 512) in shapes
