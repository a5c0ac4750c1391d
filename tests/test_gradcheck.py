"""The checker of derivatives accepts what is right, and rejects what is wrong by 0.1%."""

import numpy as np
import pytest
from gradcheck import check_layer, check_network

from kfc_numba.layers.base import Layer
from kfc_numba.losses import SquaredError
from kfc_numba.sequential import Sequential


class Product(Layer):
    """``weight * x^2``, with a weight for each unit; subclasses get something wrong."""

    kind = "product"

    def parameters(self, rng, *shapes):
        return {"weight": rng.normal(size=shapes[0])}

    def forward(self, arrays, inputs, context):
        (x,) = inputs
        return arrays["weight"] * x * x, (x,)

    def backward(self, arrays, saved, dy, context, *, need_inputs=True, need_parameters=True):
        (x,) = saved
        dx = self.wrong_input(2 * arrays["weight"] * x * dy) if need_inputs else None
        gradient = self.wrong_weight((x * x * dy).sum(axis=0))
        return (dx,), {"weight": gradient} if need_parameters else {}

    def tangent(self, arrays, saved, dinputs, dparameters, context):
        (x,) = saved
        dy = dparameters["weight"] * x * x
        if dinputs[0] is not None:
            dy = dy + 2 * arrays["weight"] * x * dinputs[0]
        return self.wrong_tangent(dy)

    def wrong_input(self, dx):
        return dx

    def wrong_weight(self, gradient):
        return gradient

    def wrong_tangent(self, dy):
        return dy


def times(factor):
    return lambda self, array: array * factor


def one_component(self, array):
    """Of the components one of middling size is 0.1% too large."""
    array = array.copy()
    middle = np.argsort(np.abs(array), axis=None)[array.size // 2]
    array.flat[middle] *= 1.001
    return array


def swapped(self, array):
    return array[..., ::-1]


WRONG = {
    "scaled": times(1.001),
    "component": one_component,
    "sign": times(-1),
    "zero": times(0),
    "order": swapped,
}


@pytest.mark.parametrize("shape", [(1,), (5,), (4, 5, 6)])
def test_accepts_a_right_layer(shape):
    check_layer(Product(), [shape])


@pytest.mark.parametrize("place", ["input", "weight", "tangent"])
@pytest.mark.parametrize("error", WRONG)
def test_rejects_a_wrong_derivative(place, error):
    layer = type("Wrong", (Product,), {f"wrong_{place}": WRONG[error]})()
    what = "tangent" if place == "tangent" else f"gradient by {place}"
    with pytest.raises(AssertionError, match=what):
        check_layer(layer, [(6, 7, 6)], batch=4)


def test_finds_one_wrong_component_of_a_thousand():
    layer = type("Wrong", (Product,), {"wrong_input": one_component})()
    with pytest.raises(AssertionError, match="gradient by input 0"):
        check_layer(layer, [(10, 10, 5)], batch=2)


def test_rejects_writing_into_the_derivative():
    class Writes(Product):
        def backward(self, arrays, saved, dy, context, **needs):
            result = super().backward(arrays, saved, dy.copy(), context, **needs)
            dy += 1
            return result

    with pytest.raises(AssertionError):
        check_layer(Writes(), [(4,)])


def test_rejects_writing_into_what_was_saved():
    class Writes(Product):
        def tangent(self, arrays, saved, *rest):
            result = super().tangent(arrays, saved, *rest)
            saved[0][:] = 0
            return result

    with pytest.raises(AssertionError):
        check_layer(Writes(), [(4,)])


def network(**wrong):
    layers = [Product(), type("Wrong", (Product,), wrong)(), Product()]
    return Sequential(layers, input_shape=(2, 3, 4), dtype=np.float64)


def batch():
    rng = np.random.default_rng(5)
    return rng.normal(size=(3, 2, 3, 4)), rng.normal(size=(3, 2, 3, 4))


def test_accepts_a_right_network():
    net = network()
    before = {name: value.copy() for name, value in net.params.items()}
    check_network(net, *batch(), SquaredError())
    for name, value in before.items():
        np.testing.assert_array_equal(net.params[name], value)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("input", "gradient by product1.weight"),
        ("weight", "product2.weight"),
        ("tangent", "tangent"),
    ],
)
def test_rejects_a_network_with_a_wrong_layer(place, what):
    with pytest.raises(AssertionError, match=what):
        check_network(network(**{f"wrong_{place}": times(1.001)}), *batch(), SquaredError())


def test_rejects_float32():
    net = Sequential([Product()], input_shape=(2,))
    with pytest.raises(AssertionError, match="float64"):
        check_network(net, np.ones((2, 2)), np.ones((2, 2)), SquaredError())
