"""What a worker of one thread takes for the parts of a step, and what two workers take.

Seconds: nothing may run beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np

import kfc_numba as kfc
from benchmarks.common import random_batch
from benchmarks.experiments import data_parallel
from benchmarks.experiments.data_parallel import Job
from benchmarks.peers.timing import in_turn
from kfc_numba import networks
from kfc_numba.curvature.inverses import DAMPING
from kfc_numba.optim.exact_forms import form
from kfc_numba.optim.setting import exact_examples_at, inversion_of

#: Examples of a worker, from the largest batch by one to the smallest share of 1,024.
EXAMPLES = (1, 2, 8, 32, 128, 512, 2048)
#: Trainings by one worker and by two.
JOBS = tuple(
    Job(optimizer, batch, steps)
    for optimizer in (kfc.SGD(averaging=None), kfc.KFC(averaging=None))
    for batch, steps in ((128, 60), (512, 30))
)
ROUNDS = 5
SUMS = (256, 2_000_000)  # numbers that two workers add up
STEP = 1e-3  # a part of a direction that a difference is taken over


@contextmanager
def one_thread() -> Iterator[None]:
    """As a worker computes."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        yield
    finally:
        numba.set_num_threads(threads)


def measure(job: Job, examples: Sequence[int] = EXAMPLES, rounds: int = ROUNDS) -> dict[str, Any]:
    """Costs of one worker.

    Parameters
    ----------
    job : Job
        Its network counts.
    examples : sequence of int
        Shares of a batch.
    rounds : int

    Returns
    -------
    dict
        As `workers.Costs.from_record` takes it; medians.
    """
    loss, optimizer = kfc.SoftmaxCrossEntropy(), kfc.KFC()
    by_examples: dict[str, dict[str, float]] = {"step": {}, "statistics": {}, "length": {}}
    with one_thread():
        for count in examples:
            x, y = random_batch(count, job.shape)
            net = networks.build(job.network, job.shape, 10, dtype=job.dtype)
            curvature, state = optimizer.curvature(net), optimizer.init(net)
            trainer = kfc.Trainer(net, loss, kfc.SGD(learning_rate=1e-6, averaging=None))
            trace = net.forward(x, training=True)
            direction = {name: np.ones_like(value) for name, value in net.params.items()}
            rng = np.random.default_rng(0)

            def statistics(
                curvature=curvature, trace=trace, state=state, rng=rng
            ) -> dict[str, np.ndarray]:
                new = curvature.estimate(trace, loss, state, rng=rng)
                return curvature.average(state, new, 0.85)

            functions = {
                "step": lambda trainer=trainer, x=x, y=y: trainer.step(x, y),
                "statistics": statistics,
                "length": lambda net=net, trace=trace, x=x, direction=direction: form(
                    net, trace, x, loss, direction, exact_examples_at(optimizer, len(x)), STEP
                ),
            }
            for part, timing in in_turn(functions, rounds=rounds).items():
                by_examples[part][str(count)] = timing.median
        # Of full rank, as after the first steps: the factors of the most examples.
        state = state | statistics() | {DAMPING: np.array(1e-4)}
        blocks = {block.name: block for block in curvature.blocks}
        state |= curvature.decompose(state)
        functions = {}
        for name, block in blocks.items():
            own = {short: direction[f"{name}.{short}"] for short in block.shapes}
            functions[f"decompose {name}"] = lambda block=block: block.decompose(state)
            functions[f"precondition {name}"] = lambda block=block, own=own: block.apply(
                state, own, float(state[DAMPING]), optimizer.damping_strategy
            )
        by_layer: dict[str, dict[str, float]] = {"precondition": {}, "decompose": {}}
        for name, timing in in_turn(functions, rounds=rounds).items():
            part, _, layer = name.partition(" ")
            by_layer[part][layer] = timing.median
    sizes = {name: array.size for name, array in state.items()}
    numbers = {
        "parameters": sum(array.size for array in net.params.values()),
        "factors": sum(n for k, n in sizes.items() if k.startswith(("omega/", "gamma/"))),
        "eigenvectors": job.numbers(),
    }
    return {
        "network": job.network,
        "rounds": rounds,
        "by_examples": by_examples,
        "by_layer": by_layer,
        "numbers": numbers,
        "inversion": inversion_of(optimizer),
    }


def measure_two(
    jobs: Sequence[Job] = JOBS, rounds: int = ROUNDS, sums: Sequence[int] = SUMS
) -> dict[str, Any]:
    """Trainings by one worker and by two, in turn, and sums over the two.

    Parameters
    ----------
    jobs : sequence of Job
        Of one dtype.
    rounds : int
    sums : sequence of int
        Numbers that are added up.

    Returns
    -------
    dict
        ``sums``, median seconds by bytes; ``cases``, with the seconds of each round by one worker
        (``alone``) and by two (``both``).
    """
    context = data_parallel.spawning()
    board = data_parallel.board_for(jobs, 2, context)
    sums = [min(numbers, board.numbers) for numbers in sums]
    found = data_parallel.in_processes(data_parallel.time_sums, board, context, sums)
    times = data_parallel.in_processes(data_parallel.time_jobs, board, context, (jobs, rounds))
    cases = [
        {
            "optimizer": type(job.optimizer).__name__,
            "batch": job.batch,
            "steps": job.steps,
            "alone": alone,
            "both": both,
        }
        for job, (alone, both) in zip(jobs, times[0], strict=True)
    ]
    seconds = {str(numbers * board.dtype.itemsize): s for numbers, s in found[0].items()}
    return {"sums": seconds, "cases": cases}
