"""The networks that a card's steps are compared on are the same in PyTorch."""

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import networks
from kfc_numba.commands.pytorch_twin import pytorch_twin

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("small", (14, 13, 1)),
        ("quick", (32, 32, 3)),
        ("resnet-small", (13, 12, 3)),
        ("resnet18", (16, 16, 3)),
        ("resnet18", (65, 67, 3)),
    ],
)
def test_outputs_and_gradients_agree(name, shape):
    net = networks.build(name, shape, 5, dtype=np.float64)
    twin = pytorch_twin(net)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, *shape)), rng.integers(0, 5, 3)
    value, gradients = net.value_and_grad(x, y, kfc.SoftmaxCrossEntropy())
    outputs = twin(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    expected = net.forward(x, training=True).outputs
    np.testing.assert_allclose(outputs.detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    loss = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(y))
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-9)
    sizes = sorted(float((g**2).sum()) for g in gradients.values())
    theirs = sorted(float((p.grad**2).sum()) for p in twin.parameters())
    np.testing.assert_allclose(theirs, sizes, rtol=1e-7)


@pytest.mark.parametrize("layer", [kfc.Dropout(0.5), kfc.MaxPool2d(3, padding=((1, 0), (0, 0)))])
def test_what_is_not_there(layer):
    net = kfc.Sequential([kfc.Conv2d(2, 3), layer], input_shape=(8, 8, 1))
    with pytest.raises(ValueError, match="PyTorch"):
        pytorch_twin(net)
