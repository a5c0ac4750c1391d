"""Networks by name, for images of any shape and any number of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from kfc_numba.graph import Graph, Input, Node
from kfc_numba.layers import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    GlobalAvgPool2d,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
)
from kfc_numba.layers.base import Layer


@dataclass(frozen=True)
class _Entry:
    description: str
    build: Callable[[Node], Node]  # from the images to what the last dense layer takes


def names() -> tuple[str, ...]:
    """Names that `build` accepts."""
    return tuple(_ENTRIES)


def describe(name: str) -> str:
    """One line about a network.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        There is no network of this name.
    """
    return _entry(name).description


def default(input_shape: Sequence[int]) -> str:
    """Name of the network for images of a shape, where none was chosen.

    Parameters
    ----------
    input_shape : sequence of int
        (height, width, channels).

    Returns
    -------
    str
        ``"small"`` for images of one channel, ``"quick"`` for others.
    """
    return "small" if input_shape[-1] == 1 else "quick"


def build(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    *,
    seed: int = 0,
    dtype: DTypeLike = np.float32,
) -> Graph:
    """A network by name, with new parameters.

    =================  ===========================================================================
    ``"small"``        two convolutions of 5x5 with 16 and 32 maps, each before max-pooling: for
                       28x28 images such as those of MNIST
    ``"quick"``        the CIFAR-10 network of the KFC paper, which is cuda-convnet's "18 percent"
                       network: three convolutions of 5x5 with 32, 32 and 64 maps
    ``"quick-norm"``   the same with response normalisation, within maps, behind the first two
                       pools, as in cuda-convnet
    ``"resnet-small"`` a residual network with batch normalisation: three blocks of 16, 32 and 64
                       maps
    ``"resnet18"``     He et al. (2016): eight blocks of 64 to 512 maps; images of at most 64 pixels
                       have a first convolution of 3x3, and no pool behind it
    =================  ===========================================================================

    All end in a dense layer with an output for each class.

    Parameters
    ----------
    name : str
        One of `names`.
    input_shape : sequence of int
        (height, width, channels) of an image.
    classes : int
        Number of outputs.
    seed : int
        Seed of the initial parameters.
    dtype : dtype
        float32 or float64.

    Returns
    -------
    Graph

    Raises
    ------
    ValueError
        There is no network of this name, or its windows do not fit into images that small.
    """
    entry = _entry(name)
    image = Input(input_shape)
    try:
        outputs = Dense(classes)(entry.build(image))
    except ValueError as error:
        raise ValueError(
            f"network {name!r} does not fit images of shape {tuple(input_shape)}: {error}"
        ) from None
    return Graph(image, outputs, seed=seed, dtype=dtype)


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        raise ValueError(f"name (={name!r}) must be one of {', '.join(map(repr, _ENTRIES))}")
    return _ENTRIES[name]


def _chain(node: Node, *layers: Layer) -> Node:
    for layer in layers:
        node = layer(node)
    return node


def _small(image: Node) -> Node:
    node = image
    for maps in (16, 32):
        node = _chain(
            node,
            Conv2d(maps, 5, padding="same"),
            MaxPool2d(3, stride=2, ceil_mode=True),
            ReLU(),
        )
    return Flatten()(node)


def _quick(image: Node, norm: Sequence[Layer] = ()) -> Node:
    """Grosse and Martens (2016), section 5; cuda-convnet's layers-18pct."""

    def mean() -> Layer:
        return AvgPool2d(3, stride=2, ceil_mode=True)

    return _chain(
        image,
        *(Conv2d(32, 5, padding=2), MaxPool2d(3, stride=2, ceil_mode=True), ReLU(), *norm),
        *(Conv2d(32, 5, padding=2), ReLU(), mean(), *norm),
        *(Conv2d(64, 5, padding=2), ReLU(), mean(), Flatten()),
    )


def _quick_norm(image: Node) -> Node:
    # cuda-convnet's layer-params-18pct: its layer rnorm with size, scale and pow.
    norm = LocalResponseNorm(3, alpha=5e-5, beta=0.75, region="within_channel")
    return _quick(image, [norm])


def _resnet_small(image: Node) -> Node:
    node = _chain(image, Conv2d(16, 3, padding="same", bias=False), BatchNorm(), ReLU())
    for maps, stride in ((16, 1), (32, 2), (64, 2)):
        node = _residual_block(node, maps, stride)
    return GlobalAvgPool2d()(node)


def _resnet18(image: Node) -> Node:
    if max(image.shape[:2]) > 64:
        first = Conv2d(64, 7, stride=2, padding=3, bias=False)
        pools: tuple[Layer, ...] = (MaxPool2d(3, stride=2, padding=1),)
    else:
        first, pools = Conv2d(64, 3, padding=1, bias=False), ()
    node = _chain(image, first, BatchNorm(), ReLU(), *pools)
    for maps, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        node = _residual_block(node, maps, stride, padding=1)
        node = _residual_block(node, maps, 1, padding=1)
    return GlobalAvgPool2d()(node)


def _residual_block(node: Node, maps: int, stride: int, padding: str | int = "same") -> Node:
    """Two convolutions beside a short cut (He et al., 2016, "Deep residual learning")."""
    branch = _chain(
        node,
        Conv2d(maps, 3, stride=stride, padding=padding, bias=False),
        BatchNorm(),
        ReLU(),
        Conv2d(maps, 3, padding=padding, bias=False),
        BatchNorm(),
    )
    cut = node
    if branch.shape != node.shape:
        cut = _chain(node, Conv2d(maps, 1, stride=stride, padding="same", bias=False), BatchNorm())
    return ReLU()(Add()(branch, cut))


_ENTRIES = {
    "small": _Entry("two 5x5 convolutions, for 28x28 images", _small),
    "quick": _Entry("three 5x5 convolutions, the KFC paper's network for CIFAR-10", _quick),
    "quick-norm": _Entry("the same with response normalisation", _quick_norm),
    "resnet-small": _Entry("three residual blocks with batch normalisation", _resnet_small),
    "resnet18": _Entry("eight residual blocks of 64 to 512 maps", _resnet18),
}
