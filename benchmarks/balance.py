"""By how much exact curvature exceeds the approximation, layer by layer, and what balancing brings.

Along u = Fhat^-1 g, the preconditioned gradient of a batch, ``u_l^T F u_l`` of each layer's part is
divided by ``u_l^T g_l``, F the exact Fisher matrix of the batch: 1 where the approximation is right
(`kfc_numba.optim.balance`). Losses are of averaged parameters, on 2,000 training examples.

Run: python -m benchmarks.balance [--steps 100] [--publish docs/balance.md]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tabulate import tabulate

import kfc_numba as kfc
from benchmarks.experiments import tasks
from benchmarks.experiments.results import commit
from benchmarks.peers.timing import describe, environment
from kfc_numba.curvature.fisher import quadratic_forms
from kfc_numba.graph import Graph
from kfc_numba.random import generator

TASKS = (
    *(("autoencoder", 128), ("poisson", 128), ("digits", 32), ("few-images", 32)),
    *(("fashion-bundled", 128), ("cifar-quick", 128)),
)
EVERY = 10  # steps between two looks


def trained(
    task: tasks.Task, size: int, steps: int, *, balance: bool, seed: int
) -> tuple[Graph, list[dict[str, float]]]:
    """A network with averaged parameters, and ratios of its layers on the way."""
    x, y = task.train
    net, optimizer = task.build(seed), kfc.KFC(balance_layers=balance)
    trainer = kfc.Trainer(net, task.loss, optimizer, seed=seed)
    found, epoch, start, order = [], 0, 0, np.arange(0)
    for step in range(steps):
        if start + size > len(order):
            order, start = generator(seed, "shuffle", epoch).permutation(len(x)), 0
            epoch += 1
        chosen = order[start : start + size]
        start += size
        if step and step % EVERY == 0:
            found.append(ratios(net, task.loss, trainer, x[chosen], y[chosen]))
        trainer.step(x[chosen], y[chosen])
    return trainer.evaluation_net(), found


def ratios(
    net: Graph, loss: kfc.Loss, trainer: kfc.Trainer, x: np.ndarray, y: np.ndarray
) -> dict[str, float]:
    """u_l^T F u_l over u_l^T g_l, by layer; by the inverses that the last step left."""
    state = trainer.optimizer_state
    trace = net.forward(x, training=True)
    gradients = net.backward(trace, loss.derivative(trace.outputs, y) / len(x))
    curvature = trainer.optimizer.curvature(net)
    u = curvature.precondition(state, gradients, float(state["inverse_damping"]))
    found = {}
    for placed in net.parameter_layers():
        own = {f"{placed.name}.{short}" for short in placed.names}
        part = {name: value if name in own else 0 * value for name, value in u.items()}
        slope = sum(float(np.sum(u[name] * gradients[name], dtype=float)) for name in own)
        found[placed.name] = float(quadratic_forms(net, trace, loss, [part])[0, 0]) / slope
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--publish", type=Path, metavar="FILE", help="write a page")
    options = parser.parse_args()
    layers, losses = [], []
    for name, size in TASKS:
        try:
            task = tasks.load(name)
        except tasks.MissingError as error:
            print(f"  {name} is left out: {error}")
            continue
        x, y = (array[:2000] for array in task.train)
        after: list[list[float]] = []
        for seed in range(options.seeds):
            after.append([])
            for balance in (False, True):
                how = {"balance": balance, "seed": seed}
                net, found = trained(task, size, options.steps, **how)
                after[-1].append(task.loss.value(net.forward(x).outputs, y))
                if seed == 0 and not balance:
                    for layer in found[0]:
                        values = [each[layer] for each in found]
                        layers.append((name, size, layer, *np.quantile(values, [0.5, 0, 1])))
        plain, balanced = np.median(after, axis=0)
        losses.append((name, size, plain, balanced, np.median([b / a for a, b in after])))
        print(f"  {name}: {plain:.4g} after {options.steps} steps, balanced {balanced:.4g}")
    tables = [
        (layers, ("task", "batch", "layer", "median", "least", "largest"), ".1f"),
        (losses, ("task", "batch", "as it is, loss", "balanced, loss", "ratio"), ".4g"),
    ]
    for rows, headers, digits in tables:
        print(tabulate(rows, headers, floatfmt=digits))
    if options.publish is not None:
        first, second = (
            tabulate(rows, headers, "github", floatfmt=digits) for rows, headers, digits in tables
        )
        options.publish.write_text(
            "# By how much layers differ\n\n"
            "Written by `python -m benchmarks.balance --publish docs/balance.md`: "
            f"{describe(environment() | {'commit': commit()})}.\n\n"
            "## Exact curvature over the approximation\n\n"
            "`u_l^T F u_l / u_l^T g_l` of each layer's part of the preconditioned gradient, every "
            f"{EVERY} of {options.steps} steps of a training without balance.\n\n{first}\n\n"
            "## Training loss\n\n"
            f"After {options.steps} steps, medians over {options.seeds} seeds; the ratio is the "
            f"median of those of the seeds.\n\n{second}\n"
        )


if __name__ == "__main__":
    main()
