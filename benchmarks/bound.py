"""How tightly the bound of a KFC step holds on the whole batch, where part of it is looked at.

The step v is shortened to a bound of ``v^T F v`` by the exact Fisher matrix of some examples
(`exact_examples`, see `kfc_numba.optim.exact_forms`), which is computed at some steps
(`exact_period`); here the same form is taken on all examples of the batch after each step.

Run: python -m benchmarks.bound [--steps 100] [--publish docs/bound.md]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tabulate import tabulate

import kfc_numba as kfc
from benchmarks.experiments.results import commit
from benchmarks.peers.timing import describe, environment
from kfc_numba.curvature.fisher import quadratic_forms
from kfc_numba.layers.base import Layer
from kfc_numba.optim.momentum import momentum_at
from kfc_numba.optim.setting import bound_at
from kfc_numba.random import generator

BATCHES = (8, 16, 32, 64, 128, 256, 512)
LOSS = kfc.SoftmaxCrossEntropy()


def network(norm: bool) -> kfc.Sequential:
    """Two convolutions for the bundled images, with batch normalisation or without."""
    layers: list[Layer] = []
    for maps in (16, 32):
        layers += [kfc.Conv2d(maps, 5, padding="same", bias=not norm)]
        layers += [kfc.BatchNorm()] if norm else []
        layers += [kfc.MaxPool2d(3, stride=2, ceil_mode=True), kfc.ReLU()]
    layers += [kfc.Flatten(), kfc.Dense(10)]
    return kfc.Sequential(layers, input_shape=(28, 28, 1), seed=0)


def batches(size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shuffled batches without end."""
    data = kfc.datasets.load("fashion-mnist-10k")
    x, _ = data.normalized()
    epoch = 0
    while True:
        order = generator(0, "shuffle", epoch).permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            chosen = order[start : start + size]
            yield x[chosen], data.y_train[chosen]
        epoch += 1


def ratios(norm: bool, size: int, steps: int, period: int | None) -> list[float]:
    """v^T F v on the whole batch over the bound, for each step in which the bound was in force."""
    net, optimizer = network(norm), kfc.KFC(exact_period=period)
    state = optimizer.init(net)
    found = []
    before = network(norm)
    for step, (x, y) in zip(range(steps), batches(size), strict=False):
        for name, value in net.params.items():
            np.copyto(before.params[name], value)
        old = {name: state[f"momentum/{name}"] for name in net.params}
        try:
            optimizer.step(net, LOSS, x, y, state)
        except FloatingPointError:
            break
        momentum = momentum_at(optimizer, state, step)
        v = {name: state[f"momentum/{name}"] - momentum * old[name] for name in net.params}
        trace = before.forward(x, training=True, step=step)
        length = float(quadratic_forms(before, trace, LOSS, [v])[0, 0])
        found.append(length / bound_at(optimizer, state, step, size))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="of each run")
    parser.add_argument("--exact-period", type=int, help="of KFC")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="write a page")
    options = parser.parse_args()
    rows = []
    for norm in (False, True):
        for size in BATCHES:
            values = np.array(ratios(norm, size, options.steps, options.exact_period))
            above = np.mean(values > 2)
            quantiles = np.quantile(values, [0.5, 0.99])
            name = "with" if norm else "without"
            rows.append((name, size, len(values), *quantiles, values.max(), 100 * above))
            print(f"  {name} batch normalisation, batch {size}: {100 * above:.1f}% above 2")
    headers = ("batch normalisation", "batch", "steps", "median", "99%", "largest", "above 2, %")
    print(tabulate(rows, headers, floatfmt=".2f"))
    if options.publish is not None:
        table = tabulate(rows, headers, "github", floatfmt=".2f")
        options.publish.write_text(
            "# How tightly the bound of a step holds\n\n"
            "Written by `python -m benchmarks.bound --publish docs/bound.md`: `v^T F v` on the "
            "whole batch over its bound, for the steps of `KFC()` as constructed on the bundled "
            "images, a run for each row; "
            f"{describe(environment() | {'commit': commit()})}.\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
