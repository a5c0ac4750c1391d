"""A small network and its twin in other coordinates, in float64, step by step.

Every method takes the same steps on both, on the whole of the data at once and without sampling;
what is compared is what the two compute on other data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import kfc_numba as kfc
from benchmarks.experiments.invariance_coordinates import (
    AffineMap,
    ChannelMap,
    Moments,
    arrays_of,
    coordinates_of,
    giving,
    pixels_are_meant,
    random_map,
    scaling,
    seeing,
    set_arrays,
)
from kfc_numba.layers.base import Arrays, Layer
from kfc_numba.optim.momentum import grown, lasted_after
from kfc_numba.optim.step_size import bound_by_loss, is_by_noise, next_loss

STEPS = 10
EXAMPLES, HELD_OUT = 200, 100
NO_DAMPING = 1e-30  # below the rounding errors of all that it is added to
RATES = {"Adam": 0.01, "SGD": 0.03}
LEARNING_RATE, MOMENTUM, LOSS_BOUND = 0.1, 0.9, 1e-4  # of all natural gradients
LOSS = kfc.SigmoidCrossEntropy()
CLASSES, SIZE = 10, 7
HIDDEN = ("conv1", "conv2", "dense1")  # layers with a tanh behind them, and what sees it next
NEXT = {"conv1": "conv2", "conv2": "dense1", "dense1": "dense2"}
# At the top and the left: around the whole image all weights of a 2x2 kernel would see all of it,
# and patches averaged over locations ("reduce") would have moments of low rank.
BORDER = (1, 0)
HARDEST = 6  # of the cases: the one with all maps
DAMPINGS = tuple(10.0**e for e in range(-20, 1, 2))
FAST_DAMPINGS = (1e-12, 1e-8, 1e-4)
WIDTHS = {"conv1": 4, "conv2": 4, "dense1": 5}


# Data.


def colour_images() -> tuple[np.ndarray, np.ndarray]:
    """Images of 7x7 in colours, RGB from 0 to 1, and targets, (images, 10), 0 or 1.

    Three bundled images of Fashion-MNIST are the planes of one; the target says what the first
    shows. Colours are mixed a little, as in photographs: channels are correlated.
    """
    count = EXAMPLES + HELD_OUT
    found = kfc.datasets.load("fashion-mnist-10k")
    pixels = found.x_train[: 3 * count, :, :, 0] / 255.0
    small = pixels.reshape(-1, SIZE, 28 // SIZE, SIZE, 28 // SIZE).mean(axis=(2, 4))
    planes = small.reshape(3, count, SIZE, SIZE).transpose(1, 2, 3, 0)
    mixed = planes @ (0.5 * np.eye(3) + 0.5 / 3)
    return np.ascontiguousarray(mixed), np.eye(CLASSES)[found.y_train[:count]]


# Networks.


@dataclass(frozen=True)
class Case:
    """Coordinates of a twin.

    Attributes
    ----------
    name : str
    inputs : AffineMap, optional
        Of the inputs, from standardised ones.
    hidden : dict of str to (AffineMap, AffineMap)
        By layer: a map before and one behind the tanh that follows it.
    sigmoid : bool
        Whether the activations are logistic functions, ``tanh(s) = 2 sigmoid(2 s) - 1``.
    padding : str
        Around the images: "none", "zeros", or "mapped": what the map makes of zeros.
    holds : bool
        Whether the theorem says that the twin stays one.
    """

    name: str
    inputs: AffineMap | None = None
    hidden: Mapping[str, tuple[AffineMap, AffineMap]] = field(default_factory=dict)
    sigmoid: bool = False
    padding: str = "none"
    holds: bool = True


def cases(moments: Moments) -> list[Case]:
    """All twins, for images of RGB from 0 to 1."""
    named = coordinates_of(moments)
    usual, *others = named
    back = named[usual].inverse()
    rng = np.random.default_rng(0)
    hidden = {
        layer: (random_map(WIDTHS[layer], rng), random_map(WIDTHS[layer], rng)) for layer in HIDDEN
    }
    colours = back.then(named["YCbCr"])
    return [
        *(Case(f"inputs {name}", back.then(named[name])) for name in others),
        Case("logistic functions for tanh", sigmoid=True),
        Case("affine maps around each tanh", hidden=hidden),
        Case("inputs YCbCr, and affine maps around each tanh", colours, hidden),
        Case("linear part of YCbCr, padded with zeros", colours.linear(), padding="zeros"),
        Case("inputs YCbCr, padded with what zeros become", colours, padding="mapped"),
        Case("inputs YCbCr, padded with zeros", colours, padding="zeros", holds=False),
    ]


def network(case: Case, *, seed: int = 1) -> kfc.Sequential:
    """The network of a case, with parameters that make it compute what that of ``Case("")`` does.

    Padding is part of the images where it is what zeros become.
    """
    padding = (BORDER, BORDER) if case.padding == "zeros" else 0

    def activation(layer: str) -> list[Layer]:
        curve = kfc.Sigmoid() if case.sigmoid else kfc.Tanh()
        if layer not in case.hidden:
            return [curve]
        first, last = case.hidden[layer]
        return [ChannelMap(first), curve, ChannelMap(last)]

    size = SIZE + (sum(BORDER) if case.padding == "mapped" else 0)
    layers = [
        *(kfc.Conv2d(WIDTHS["conv1"], 2, padding=padding), *activation("conv1")),
        *(kfc.Conv2d(WIDTHS["conv2"], 2, stride=2), *activation("conv2"), kfc.Flatten()),
        *(kfc.Dense(WIDTHS["dense1"]), *activation("dense1"), kfc.Dense(CLASSES)),
    ]
    net = kfc.Sequential(layers, input_shape=(size, size, 3), seed=seed, dtype=np.float64)
    if case.name:  # initial parameters depend on how many layers there are before
        for name, value in network(Case("", padding=case.padding), seed=seed).params.items():
            net.params[name][...] = value
    if case.inputs is not None:
        set_arrays(net.params, "conv1", seeing(arrays_of(net.params, "conv1"), case.inputs))
    for layer in HIDDEN:
        width = WIDTHS[layer]
        maps = [case.hidden[layer]] if layer in case.hidden else []
        if case.sigmoid:  # sigmoid(s / ...) of 2 s is (tanh(s) + 1) / 2
            half = np.full(width, 0.5)
            maps = [(scaling(half), scaling(half, 0.5))]
        for before, behind in maps:
            set_arrays(net.params, layer, giving(arrays_of(net.params, layer), before))
            follower = NEXT[layer]
            set_arrays(net.params, follower, seeing(arrays_of(net.params, follower), behind))
    return net


def inputs_of(case: Case, x: np.ndarray) -> np.ndarray:
    """What the network of a case sees of standardised images."""
    if case.padding == "mapped":
        x = np.pad(x, ((0, 0), BORDER, BORDER, (0, 0)))
    return x if case.inputs is None else case.inputs(x)


# Methods.

Step = Callable[[kfc.Graph, np.ndarray, np.ndarray], float | None]


def trained_by(make: Callable[[], kfc.Optimizer]) -> Callable[[], Step]:
    """Steps of an optimizer of the library; each returns the condition of what it inverted."""

    def start() -> Step:
        trainers: list[kfc.Trainer] = []

        def step(net: kfc.Graph, x: np.ndarray, y: np.ndarray) -> float | None:
            if not trainers:
                trainers.append(kfc.Trainer(net, LOSS, make()))
            trainers[0].step(x, y)
            return condition(trainers[0].optimizer_state)

        return step

    return start


def condition(state: Mapping[str, np.ndarray]) -> float | None:
    """Largest condition number of a layer's block, full or factored; None where there is none."""
    found = []
    for name, values in state.items():
        kind, _, layer = name.partition("/")
        if kind in ("full_values", "omega_values"):
            others = state.get(f"gamma_values/{layer}", np.ones(1))
            least = float(values.min()) * float(others.min())
            largest = float(values.max()) * float(others.max())
            found.append(largest / least if least > 0 else math.inf)
    return max(found, default=None)


def fisher_rows(net: kfc.Graph, trace: Any) -> np.ndarray:
    """Rows R with ``F = R^T R``, columns as in `to_vector`: a gradient for each output of each.

    What `kfc_numba.curvature.fisher.fisher_root` has, by backward instead of tangent passes, of
    which there is one for each parameter.
    """
    found: list[np.ndarray] = []
    for column in LOSS.fisher_columns(trace.outputs):
        parts: dict[str, np.ndarray] = {}

        def capture(placed: Any, saved: Any, dy: np.ndarray, parts: dict = parts) -> None:
            rows, patches = placed.layer.output_rows(dy), placed.layer.homogeneous(saved)
            parts[placed.name] = np.einsum("mti,mtd->mid", rows, patches).reshape(len(dy), -1)

        net.backward(trace, column, parameters=False, capture=capture)
        found.append(np.concatenate([parts[p.name] for p in net.parameter_layers()], axis=1))
    return np.concatenate(found) / math.sqrt(len(trace.outputs))


def to_vector(net: kfc.Graph, arrays: Arrays) -> np.ndarray:
    """Parameters, or gradients, as the layers' flattened matrices one after the other."""
    parts = [p.layer.to_matrix(arrays_of(arrays, p.name)) for p in net.parameter_layers()]
    return np.concatenate([part.ravel() for part in parts])


def add_vector(net: kfc.Graph, vector: np.ndarray) -> None:
    """Add a vector as from `to_vector` to the parameters."""
    for placed in net.parameter_layers():
        arrays = arrays_of(net.params, placed.name)
        matrix = placed.layer.to_matrix(arrays)
        part, vector = vector[: matrix.size], vector[matrix.size :]
        change = placed.layer.from_matrix(part.reshape(matrix.shape), arrays)
        for short, value in change.items():
            arrays[short] += value


def exact_natural_gradient() -> Step:
    """Steps by the whole exact Fisher matrix, undamped; bound and momentum are those of `KFC`."""
    memory: dict[str, Any] = {"loss": math.nan, "previous": None, "lasted": 0.0}

    def step(net: kfc.Graph, x: np.ndarray, y: np.ndarray) -> float:
        value, gradients = net.value_and_grad(x, y, LOSS)
        rows = fisher_rows(net, net.forward(x))
        gradient = to_vector(net, gradients)
        # R^T R is not formed: its condition is the square of that of R.
        _, values, basis = np.linalg.svd(np.linalg.qr(rows, mode="r"))
        if not values.min() > 0:
            raise np.linalg.LinAlgError("the Fisher matrix is singular")
        natural = basis.T @ ((basis @ gradient) / values**2)
        noisy = is_by_noise(LOSS_BOUND, len(x))
        memory["loss"] = next_loss(memory["loss"], value, noisy)
        bound = bound_by_loss(LOSS_BOUND, len(x), memory["loss"])
        length = LEARNING_RATE**2 * float(natural @ gradient)
        rate = LEARNING_RATE * min(1.0, math.sqrt(bound / length))
        if memory["previous"] is None:
            delta = -rate * natural
        else:
            slope = float(memory["previous"] @ gradient)
            memory["lasted"] = lasted_after(memory["lasted"], slope, bound, MOMENTUM, noisy)
            delta = grown(MOMENTUM, memory["lasted"]) * memory["previous"] - rate * natural
        add_vector(net, delta)
        memory["previous"] = delta
        return float((values.max() / values.min()) ** 2)

    return step


def natural(**settings: Any) -> Callable[[], Step]:
    """Steps of `KFC` with the exact expectation over targets."""
    common = {
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "loss_bound": LOSS_BOUND,
        "exact_examples": None,
        "curvature_examples": None,
        "estimation_mode": "fisher_exact",
        "damping": NO_DAMPING,
        "damping_strategy": "exact",
        "weight_decay": 0.0,
    }
    return trained_by(lambda: kfc.KFC(**(common | settings)))


STRATEGY = kfc.KFC().damping_strategy
DAMPING = 2e-4  # about that of `KFC()` at last, with batches of 32


@dataclass(frozen=True)
class Method:
    """A way to take steps; `invariant` says whether the theorem is about it."""

    name: str
    start: Callable[[], Step]
    invariant: bool


METHODS = (
    Method("exact Fisher", exact_natural_gradient, True),
    Method("exact blocks", natural(structure="full"), True),
    Method("KFC", natural(), True),
    Method("KFC, reduce", natural(kfac_approx="reduce"), True),
    Method(
        "KFC, damped",
        natural(damping=DAMPING, damping_strategy=STRATEGY),
        False,
    ),
    Method("EKFAC", natural(structure="ekfac"), False),
    Method("diagonal Fisher", natural(structure="diagonal"), False),
    Method("Adam", trained_by(lambda: kfc.Adam(learning_rate=RATES["Adam"])), False),
    Method("SGD", trained_by(lambda: kfc.SGD(learning_rate=RATES["SGD"])), False),
)


@pixels_are_meant()
def compare(case: Case, start: Callable[[], Step], steps: int = STEPS) -> dict[str, Any]:
    """Take steps on a network and on its twin.

    Parameters
    ----------
    case : Case
    start : callable
        Gives the steps, anew for each network.
    steps : int

    Returns
    -------
    dict
        ``start``, the largest difference of outputs before the first step over the largest output;
        ``differences``, after each step, over how far outputs have come from the first ones, both
        on held-out images; ``condition``, the largest of what was inverted, None where nothing was;
        ``problem``, why the twin failed, or None.
    """
    rgb, y = colour_images()
    x = next(iter(coordinates_of(Moments.of(rgb)).values()))(rgb)
    original = Case("", padding="none" if case.padding == "none" else "zeros")
    pairs = [(network(c), inputs_of(c, x), start()) for c in (original, case)]
    first, other = (net.predict(data[EXAMPLES:]) for net, data, _ in pairs)
    differences: list[float] = []
    conditions: list[float | None] = []
    problem = None
    for _ in range(steps):
        outputs = []
        try:
            with np.errstate(all="ignore"):  # what fails is said by the step
                for net, data, step in pairs:
                    conditions.append(step(net, data[:EXAMPLES], y[:EXAMPLES]))
                    outputs.append(net.predict(data[EXAMPLES:]))
        except (FloatingPointError, np.linalg.LinAlgError) as error:
            problem = str(error)
            differences.append(math.inf)
            break
        moved = np.abs(outputs[0] - first).max()
        differences.append(float(np.abs(outputs[1] - outputs[0]).max() / moved))
    return {
        "start": float(np.abs(first - other).max() / np.abs(first).max()),
        "differences": differences,
        "condition": max((c for c in conditions if c is not None), default=None),
        "problem": problem,
    }


def damping_sweep(case: Case, dampings: Sequence[float], steps: int = STEPS) -> dict[str, Any]:
    """The largest difference that KFC's steps leave, by how damping is divided and how much."""
    found: dict[str, Any] = {"case": case.name, "dampings": list(dampings), "differences": {}}
    for strategy in ("exact", "pi"):
        found["differences"][strategy] = [
            max(compare(case, natural(damping=d, damping_strategy=strategy), steps)["differences"])
            for d in dampings
        ]
    return found
