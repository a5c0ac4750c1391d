"""Seconds of a data-parallel training by a model: measured computing, a stated network.

W workers have B / W examples of each batch, rounded up, and all of the parameters. In a step

- each computes its gradient, and they add them up (allreduce);
- KFC: each has the length of the step by the exact Fisher matrix on its examples, one number that
  is added up; where the statistics are due, each has the factors of its examples, and these are
  added up;
- KFC: layers are divided among the workers. A worker preconditions the gradient of its layers and,
  where it is due, decomposes their factors; the others get the results (allgather).

Nothing is sent while something is computed. A message of n bytes takes ``latency + n / bandwidth``,
and with k = log2(W), rounded up, an allgather of n bytes in all takes
``k latency + (W - 1) / W n / bandwidth`` (recursive doubling), an allreduce twice that (a
reduce-scatter before it): R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of collective
communication operations in MPICH" (2005). Adding is not counted, nor what balances layers now and
then: two passes on 32 examples.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import kfc_numba as kfc
from kfc_numba.optim.periods import INVERSE_GROWTH, is_due
from kfc_numba.optim.setting import exact_period_at, inversion_of

NUMBER = 4  # bytes of a float32


@dataclass(frozen=True)
class Network:
    """What workers send through.

    Attributes
    ----------
    name : str
    bandwidth : float
        Bytes in a second, of each worker in each direction.
    latency : float
        Seconds of an empty message.
    """

    name: str
    bandwidth: float
    latency: float

    def allgather(self, size: float, workers: int) -> float:
        """Seconds until all have what each had a part of.

        Parameters
        ----------
        size : float
            Bytes of all parts.
        workers : int

        Returns
        -------
        float
        """
        rounds, part = math.ceil(math.log2(workers)), (workers - 1) / workers
        return rounds * self.latency + part * size / self.bandwidth

    def allreduce(self, size: float, workers: int) -> float:
        """Seconds until all have the sum of what each had.

        Parameters
        ----------
        size : float
            Bytes of one term.
        workers : int

        Returns
        -------
        float
        """
        return 2 * self.allgather(size, workers)

    @classmethod
    def measured(cls, name: str, allreduces: Mapping[float, float], workers: int) -> Network:
        """The network in which the least and the largest of some sums take what they took.

        Parameters
        ----------
        name : str
        allreduces : mapping of float to float
            Seconds by bytes.
        workers : int

        Returns
        -------
        Network
        """
        small, large = min(allreduces), max(allreduces)
        more = max(allreduces[large] - allreduces[small], 1e-12)
        bandwidth = 2 * (workers - 1) / workers * (large - small) / more
        rest = allreduces[small] - cls(name, bandwidth, 0.0).allreduce(small, workers)
        return cls(name, bandwidth, max(rest, 0.0) / (2 * math.ceil(math.log2(workers))))


ETHERNET = Network("10 Gbit/s, 50 µs", 10e9 / 8, 50e-6)
FAST = Network("100 Gbit/s, 5 µs", 100e9 / 8, 5e-6)
NETWORKS = (ETHERNET, FAST)


class Seconds(NamedTuple):
    """Of a training."""

    computing: float
    sending: float

    @property
    def total(self) -> float:
        return self.computing + self.sending


@dataclass(frozen=True)
class Costs:
    """What a worker computes, and how much it sends.

    Attributes
    ----------
    by_examples : dict of str to dict of int to float
        Seconds of ``step`` (a whole step of SGD), ``statistics`` and ``length`` (v^T F v) for some
        numbers of examples.
    by_layer : dict of str to dict of str to float
        Seconds of ``precondition`` and ``decompose`` for each layer.
    numbers : dict of str to int
        How many ``parameters``, entries of ``factors``, and of ``eigenvectors`` with their values,
        or of inverses.
    inversion : {"cholesky", "eigen"}
        What ``decompose`` is.
    """

    by_examples: dict[str, dict[int, float]]
    by_layer: dict[str, dict[str, float]]
    numbers: dict[str, int]
    inversion: str = "eigen"

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Costs:
        """From JSON, where keys are text."""
        by_examples = {
            part: {int(examples): seconds for examples, seconds in times.items()}
            for part, times in record["by_examples"].items()
        }
        # Records from before there was another way do not name it.
        inversion = record.get("inversion", "eigen")
        return cls(by_examples, record["by_layer"], record["numbers"], inversion)

    def share(self, part: str, batch: int, workers: int) -> float:
        """Seconds of a part of `by_examples` on a worker's share of the batch.

        Between two numbers of examples that were measured seconds lie on a line; beyond the last
        they grow in proportion.
        """
        times, examples = self.by_examples[part], -(-batch // workers)
        known = sorted(times)
        at = bisect.bisect_left(known, examples)
        if at == len(known):
            return times[known[-1]] * examples / known[-1]
        if known[at] == examples or at == 0:
            return times[known[at]]
        low, high = known[at - 1], known[at]
        weight = (examples - low) / (high - low)
        return (1 - weight) * times[low] + weight * times[high]

    def divided(self, part: str, workers: int) -> float:
        """Seconds of a part of `by_layer` where layers are divided among workers."""
        times = self.by_layer[part]
        owners = division(times, workers)
        return max(
            sum(seconds for layer, seconds in times.items() if owners[layer] == worker)
            for worker in set(owners.values())
        )


def division(costs: Mapping[str, float], workers: int) -> dict[str, int]:
    """A worker for each layer: the dearest layer first, each to who has least so far.

    Parameters
    ----------
    costs : mapping of str to float
        By layer.
    workers : int

    Returns
    -------
    dict of str to int
    """
    loads, owners = [0.0] * workers, {}
    for layer in sorted(costs, key=lambda name: (-costs[name], name)):
        owner = min(range(workers), key=lambda worker: loads[worker])
        loads[owner] += costs[layer]
        owners[layer] = owner
    return owners


def updates(optimizer: kfc.KFC, steps: float) -> tuple[int, int]:
    """Updates of the statistics, and decompositions, in the first steps.

    Parameters
    ----------
    optimizer : KFC
        Without burn-in.
    steps : float

    Returns
    -------
    statistics, decompositions : int
    """
    o, every = optimizer, range(math.ceil(steps))
    growths = o.period_growth, INVERSE_GROWTH[inversion_of(o)] * o.period_growth
    periods = o.curvature_update_period, o.inverse_update_period
    statistics, decompositions = (
        sum(is_due(step, period, growth) for step in every)
        for period, growth in zip(periods, growths, strict=True)
    )
    return statistics, decompositions


def training(
    costs: Costs,
    network: Network,
    optimizer: kfc.Optimizer,
    batch: int,
    workers: int,
    steps: float,
    *,
    beside: bool = False,
) -> Seconds:
    """Seconds of the first steps of a training.

    Parameters
    ----------
    costs : Costs
    network : Network
    optimizer : KFC or SGD
    batch : int
        Examples of a batch, of all workers together.
    workers : int
    steps : float
    beside : bool
        Whether decompositions are done beside the steps, and nobody waits for them.

    Returns
    -------
    Seconds
    """

    def reduce(what: str) -> float:
        return network.allreduce(NUMBER * costs.numbers[what], workers)

    def gather(what: str) -> float:
        return network.allgather(NUMBER * costs.numbers[what], workers)

    computing = steps * costs.share("step", batch, workers)
    sending = steps * reduce("parameters")
    if isinstance(optimizer, kfc.KFC):
        statistics, decompositions = updates(optimizer, steps)
        decompositions *= not beside
        seen = min(batch, optimizer.curvature_examples or batch)
        computing += (
            steps * costs.share("length", batch, workers) / exact_period_at(optimizer, batch)
            + steps * costs.divided("precondition", workers)
            + statistics * costs.share("statistics", seen, workers)
            + decompositions * costs.divided("decompose", workers)
        )
        sending += (
            steps * (gather("parameters") + network.allreduce(NUMBER, workers))
            + statistics * reduce("factors")
            + decompositions * gather("eigenvectors")
        )
    return Seconds(computing, sending)


class Best(NamedTuple):
    """The batch size that is soonest at a loss."""

    batch: int
    seconds: Seconds


def best_batch(
    costs: Costs,
    network: Network,
    optimizer: kfc.Optimizer,
    steps: Mapping[int, float],
    workers: int,
    *,
    beside: bool = False,
) -> Best:
    """The best batch size for a number of workers.

    Parameters
    ----------
    costs : Costs
    network : Network
    optimizer : KFC or SGD
    steps : mapping of int to float
        Steps to the loss by batch size.
    workers : int
    beside : bool
        See `training`.

    Returns
    -------
    Best
    """
    found = [
        Best(batch, training(costs, network, optimizer, batch, workers, needed, beside=beside))
        for batch, needed in steps.items()
        if math.isfinite(needed)
    ]
    return min(found, key=lambda best: best.seconds.total)


def powers_of_two(most: int) -> Iterable[int]:
    """1, 2, 4, ... up to a number."""
    return (2**k for k in range(most.bit_length()))
