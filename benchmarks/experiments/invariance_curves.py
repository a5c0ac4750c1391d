"""Training from the same function on the same images in other coordinates."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

import kfc_numba as kfc
from benchmarks.experiments import tasks
from benchmarks.experiments.invariance_coordinates import (
    AffineMap,
    Moments,
    arrays_of,
    coordinates_of,
    pixels_are_meant,
    seeing,
    set_arrays,
)
from benchmarks.experiments.options import describe
from benchmarks.experiments.results import (
    DIVERGED,
    DONE,
    Plan,
    Result,
    Store,
    finished,
    plan_for,
)
from benchmarks.experiments.runs import HIGHEST, OwnTraining, load_kernels, uncompiled
from benchmarks.experiments.tasks import Folder, Task
from kfc_numba import datasets

RATES = (0.1, 0.03, 0.01, 0.003)  # of SGD, searched on the usual inputs
SMALLER = 5  # rates, a tenth of the one before each, where the best of these diverges
EXAMPLES = 25_600  # of the training set, and passes over them: 200 batches of 128
EPOCHS = 1
EVALUATE_EVERY = 10
SAMPLE, VALIDATION = 1000, 500  # examples that losses are means over
BORDER = 2  # pixels around an image: the padding of the first convolution
LESS_DAMPING = 2e-6  # a tenth of the default one, at last, or less
PREFIX, LESS_PREFIX = "quick-on-", "quick-less-damped-on-"  # of the names of tasks


@dataclass(frozen=True, eq=False)
class Images:
    """Images and labels to train on, and others, and the pixels' moments."""

    dataset: kfc.datasets.Dataset
    moments: Moments
    examples: int

    @classmethod
    def load(cls, name: str, folder: Folder, examples: int | None = None) -> Images:
        """Images of a data set; `tasks.MissingError` where they are not at hand."""
        try:
            found = datasets.load(name, folder)
        except datasets.DatasetNotFoundError as error:
            raise tasks.MissingError(str(error)) from None
        kept = found.x_train[:examples]
        return cls(found, Moments.of(kept, 255), len(kept))


def bordered(images: np.ndarray, pixels: AffineMap, mean: np.ndarray) -> np.ndarray:
    """Images, 0 to 255, in coordinates, with the mean colour around them, float32.

    Standardised that is a border of zeros.
    """
    height, width = (size + 2 * BORDER for size in images.shape[1:3])
    result = np.empty((len(images), height, width, images.shape[3]), np.float32)
    result[:] = pixels(mean)
    inner = result[:, BORDER:-BORDER, BORDER:-BORDER]
    for start in range(0, len(images), 1000):
        part = slice(start, start + 1000)
        inner[part] = pixels(images[part] / np.float64(255))
    return result


def quick(shape: Sequence[int], classes: int, seed: int) -> kfc.Sequential:
    """The network ``"quick"`` for images that have the padding of its first layer around them."""

    def mean() -> kfc.AvgPool2d:
        return kfc.AvgPool2d(3, stride=2, ceil_mode=True)

    layers = [
        *(kfc.Conv2d(32, 5), kfc.MaxPool2d(3, stride=2, ceil_mode=True), kfc.ReLU()),
        *(kfc.Conv2d(32, 5, padding=2), kfc.ReLU(), mean()),
        *(kfc.Conv2d(64, 5, padding=2), kfc.ReLU(), mean()),
        *(kfc.Flatten(), kfc.Dense(classes)),
    ]
    return kfc.Sequential(layers, input_shape=shape, seed=seed)


def task_in(images: Images, name: str) -> Task:
    """Training on images in coordinates, from what is the same function in all."""
    named = coordinates_of(images.moments)
    usual = next(iter(named.values()))
    found, count = images.dataset, images.examples
    classes = len(found.classes)
    x = bordered(found.x_train[:count], named[name], images.moments.mean)
    held = bordered(found.x_test[:VALIDATION], named[name], images.moments.mean)

    def build(seed: int) -> kfc.Sequential:
        net = quick(x.shape[1:], classes, seed)
        if named[name] is not usual:
            change = usual.inverse().then(named[name])
            set_arrays(net.params, "conv1", seeing(arrays_of(net.params, "conv1"), change))
        return net

    return Task(
        PREFIX + name.lower().replace(" ", "-"),
        build,
        kfc.SoftmaxCrossEntropy(),
        (x, found.y_train[:count]),
        (held, found.y_test[:VALIDATION]),
        1.0,
        f"{found.name}, {count:,} images",
    )


@pixels_are_meant()
def train(task: Task, optimizer: kfc.Optimizer, plan: Plan) -> Result:
    """Do what a plan with a number of epochs says."""
    load_kernels(task, optimizer, plan.batch_size)
    epochs = plan.epochs
    assert epochs is not None

    def run() -> Result:
        training = OwnTraining(task, optimizer, plan.batch_size, plan.seed)
        training.sample = plan.sample
        try:
            training.train_epochs(epochs, EVALUATE_EVERY)
        except FloatingPointError as error:
            return finished(plan, DIVERGED, str(error), training.rows)
        loss = training.rows[-1]["training_loss"]
        if not loss <= HIGHEST * training.rows[0]["training_loss"]:
            return finished(plan, DIVERGED, f"training loss {loss:.4g}", training.rows)
        return finished(plan, DONE, None, training.rows)

    return uncompiled(run)


def smaller(rate: float) -> list[float]:
    """Rates for inputs that a rate is too large for: a tenth of it, and so on."""
    return [float(f"{rate / 10**power:.3g}") for power in range(1, 1 + SMALLER)]


def runs(images: Images, options: argparse.Namespace, store: Store) -> Iterator[Result]:
    """All runs, computed where there are none: KFC and SGD in each of the coordinates.

    SGD's rate is that of the least training loss on the usual inputs, with the first seed; with
    ``--tune`` all rates are run on the others too. Where it diverges on others smaller ones are
    run. KFC runs with less damping, too, with the first seed.
    """

    def run(task: Task, optimizer: kfc.Optimizer, batch: int, seed: int) -> Result:
        plan = plan_for(task, optimizer, batch, seed, epochs=EPOCHS, sample=SAMPLE)
        result = store.get(plan, functools.partial(train, task, optimizer, plan))
        print(describe(result), flush=True)
        return result

    less = kfc.KFC(damping=LESS_DAMPING)
    best = dict.fromkeys(options.batches, 0.0)
    for place, name in enumerate(coordinates_of(images.moments)):
        task = task_in(images, name)
        # A name of its own: newest results are found by task and optimizer, not by damping.
        other = dataclasses.replace(task, name=task.name.replace(PREFIX, LESS_PREFIX))
        for batch in options.batches:
            for seed in options.seeds:
                yield run(task, kfc.KFC(), batch, seed)
            if place == 0 or options.tune:
                found = {r: run(task, kfc.SGD(learning_rate=r), batch, 0) for r in options.rates}
                yield from found.values()
                if place == 0:
                    best[batch] = min(found, key=lambda rate: found[rate].loss)
            for seed in options.seeds:
                usual = run(task, kfc.SGD(learning_rate=best[batch]), batch, seed)
                yield usual
                if usual.outcome == DIVERGED and seed == 0:
                    for rate in smaller(best[batch]):
                        yield run(task, kfc.SGD(learning_rate=rate), batch, seed)
            if options.less_damped:
                yield run(other, less, batch, 0)
