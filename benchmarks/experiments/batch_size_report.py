"""What `benchmarks.experiments.batch_size` found: tables, figures and verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

import kfc_numba as kfc
from benchmarks.experiments import figures, workers
from benchmarks.experiments.claims import HOLDS, NOT, PART
from benchmarks.experiments.iterations import steps_to
from benchmarks.experiments.results import DIVERGED, Result
from benchmarks.experiments.workers import NETWORKS, Best, Costs, Network

OPTIMIZERS = ("SGD", "KFC")
ITERATIONS, MACHINES = "batch_size_iterations", "batch_size_workers"
MOST_WORKERS = 1024
#: Of a batch g times as large: steps fall to less than 1 / g^LITTLE, or at least to 1 / g^MUCH.
LITTLE, MUCH = 0.25, 0.5
#: The model is called good where its speed-up is off by at most this part.
GOOD = 0.15

DATA = {"cifar-quick": "CIFAR-10, batches 1 to 4 of its training set, network `quick`"}
COMMAND = "python -m benchmarks.experiments.batch_size"

#: A line of the model: KFC if nobody had to wait for decompositions.
BESIDE = "KFC, decompositions beside"

Key = tuple[str, int]  # optimizer, batch size


@dataclass(frozen=True)
class Found:
    """Steps to losses, by optimizer and batch size, with the best learning rates.

    Attributes
    ----------
    runs : dict
        Runs of all seeds with the chosen settings.
    level : float or None
        The least loss that all of these reached.
    every : sequence of Result
    """

    runs: dict[Key, list[Result]]
    level: float | None
    every: Sequence[Result]

    def steps(self, key: Key, level: float) -> float:
        """Median over seeds; infinite where a loss was not reached."""
        return statistics.median(steps_to(run, level) for run in self.runs[key])

    def batches(self, optimizer: str) -> list[int]:
        """Batch sizes, ascending."""
        return sorted(batch for name, batch in self.runs if name == optimizer)

    def common(self) -> list[int]:
        """Batch sizes of both optimizers."""
        return sorted(set(self.batches("SGD")) & set(self.batches("KFC")))

    def to_level(self, optimizer: str) -> dict[int, float]:
        """Steps to `level` by batch size."""
        assert self.level is not None
        return {b: self.steps((optimizer, b), self.level) for b in self.batches(optimizer)}

    def exponent(self, optimizer: str) -> float:
        """p of steps that fall like batch^-p, from the least to the largest common batch."""
        steps, batches = self.to_level(optimizer), self.common()
        least, largest = batches[0], batches[-1]
        return math.log(steps[least] / steps[largest]) / math.log(largest / least)


def found_in(results: Sequence[Result], levels: Sequence[float]) -> Found | None:
    """The best settings of each optimizer and batch size, by the first seed."""
    runs: dict[Key, list[Result]] = {}
    for name in OPTIMIZERS:
        own = [r for r in results if r.name == name]
        for batch in sorted({r.plan.batch_size for r in own}):
            here = [r for r in own if r.plan.batch_size == batch]
            first = min(r.plan.seed for r in here)
            best = min(
                (r for r in here if r.plan.seed == first),
                key=lambda r: (steps_to(r, levels[-1]), r.rows[-1]["training_loss"]),
            )
            runs[name, batch] = [r for r in here if r.label == best.label]
    found = Found(runs, None, results)
    if len(found.common()) < 2:
        return None
    common = [v for v in levels if all(math.isfinite(found.steps(key, v)) for key in runs)]
    return Found(runs, min(common, default=None), results)


# Steps.


def steps_table(found: Found, levels: Sequence[float]) -> str:
    """Steps to each loss, with the best settings."""
    lines = []
    for key, runs in found.runs.items():
        steps = [found.steps(key, level) for level in levels]
        cells = [f"{n:,.0f}" if math.isfinite(n) else "not reached" for n in steps]
        lines.append((runs[0].label, key[1], len(runs), *cells))
    headers = ("optimizer", "batch", "seeds", *(f"steps to {level:g}" for level in levels))
    return tabulate(lines, headers, "github", disable_numparse=True)


def search_table(found: Found, levels: Sequence[float]) -> str:
    """All runs of SGD with the first seed, the losing ones too."""
    first = min(r.plan.seed for r in found.every)
    runs = [r for r in found.every if r.name == "SGD" and r.plan.seed == first]
    runs.sort(key=lambda r: (r.plan.batch_size, r.plan.optimizer["learning_rate"]))
    lines = []
    for r in runs:
        steps, row = steps_to(r, levels[-1]), r.rows[-1]
        if math.isfinite(steps):
            text = f"{steps:,.0f}"
        elif r.outcome == DIVERGED:
            text = f"diverged by step {row['step']}"
        else:
            text = f"more than {row['step']:,}"
        rate = f"{r.plan.optimizer['learning_rate']:g}"
        lines.append((r.plan.batch_size, rate, text, f"{row['training_loss']:.3f}"))
    headers = ("batch", "learning rate", f"steps to {levels[-1]:g}", "last training loss")
    return tabulate(lines, headers, "github", disable_numparse=True)


def batch_verdict(sgd: float, natural: float) -> str:
    """On the exponents of SGD and KFC."""
    if sgd < LITTLE and natural >= MUCH:
        return HOLDS
    return PART if natural > sgd else NOT


def batch_text(found: Found, level: float) -> tuple[str, str]:
    """What larger batches bring, in a sentence, and the verdict."""
    parts = []
    for name in OPTIMIZERS:
        steps, least, largest = found.to_level(name), found.common()[0], found.common()[-1]
        parts.append(
            f"{name} takes {steps[least]:,.0f} steps with batches of {least:,} and "
            f"{steps[largest]:,.0f} with {largest:,}, {steps[least] / steps[largest]:.1f} times "
            f"fewer (steps fall like the batch to the power of {-found.exponent(name):.2f})"
        )
    text = f"To a training loss of {level:g} " + "; ".join(parts) + "."
    return text, batch_verdict(found.exponent("SGD"), found.exponent("KFC"))


def batch_claim(found: Found) -> str:
    """The paper's claim on batch sizes, and what became of it."""
    claim = "with batches of 128, 512 and 2,048 SGD gains little for each iteration, KFC much"
    if found.level is None:
        return f"**Claim: {claim}.** Not known: no loss was reached with all batch sizes."
    text, verdict = batch_text(found, found.level)
    return (
        f"**Claim: {claim}. It {verdict}.** {text} The claim is taken to hold where SGD's steps "
        f"fall by a power below {LITTLE:g} and KFC's by at least {MUCH:g} (1 would be perfect), "
        "and in part where KFC's fall by the larger power."
    )


def draw_iterations(found: Found, output: Path) -> None:
    """Training loss against iterations, a panel for each optimizer."""
    figure, panels = figures.new(1, 2)
    for panel, name in zip(panels[0], OPTIMIZERS, strict=True):
        for batch, style in zip(found.batches(name), figures.STYLES, strict=False):
            run = found.runs[name, batch][0]
            rows = run.rows[1:]
            label = f"batch {batch:,}" + (
                "" if name == "KFC" else f", rate {run.plan.optimizer['learning_rate']:g}"
            )
            steps, losses = [r["step"] for r in rows], [r["training_loss"] for r in rows]
            panel.plot(steps, losses, label=label, markersize=3.5, **style)
        if found.level is not None:
            panel.axhline(found.level, color="#808080", linewidth=0.8)
        panel.set(xscale="log", xlabel="iterations", title="KFC()" if name == "KFC" else name)
        panel.legend(fontsize=8)
    panels[0][0].set_ylabel("training loss, nats")
    panels[0][1].sharey(panels[0][0])
    panels[0][1].sharex(panels[0][0])
    figures.save(figure, output, ITERATIONS)


def _processors(abouts: Sequence[Mapping[str, Any]]) -> str:
    return " and ".join(dict.fromkeys(about["processor"] for about in abouts))


def iterations_caption(found: Found) -> str:
    """What the figure of the steps is of."""
    run = found.runs["KFC", found.batches("KFC")[0]][0]
    batches = ", ".join(f"{batch:,}" for batch in found.batches("KFC"))
    return (
        f"Training loss (mean over {run.plan.sample:,} training examples, averaged parameters) "
        f"against iterations. {DATA.get(run.plan.task, run.plan.task)}; batches of {batches}; "
        "SGD with momentum 0.9 and the best learning rate for each batch size, KFC() as it is; "
        f"seed {run.plan.seed}; {_processors([r.environment for r in found.every])}."
    )


def deviations(found: Found) -> str:
    """How this is not the paper's experiment."""
    return (
        "What deviates from the paper: "
        f"{DATA.get(found.every[0].plan.task, found.every[0].plan.task)}, without augmentation "
        "and without response normalisation; KFC with the defaults of this library, its "
        "damping among them, whose step bound grows with the batch, in place of tuned settings; "
        "SGD tuned on the steps to a training loss; parameters averaged over the last tenth of the "
        "steps; a training loss in place of a test error; a processor."
    )


# Machines.


def optimizer_of(name: str, costs: Costs) -> kfc.Optimizer:
    """An optimizer of which the model takes the periods, those of what was measured."""
    return kfc.KFC(inversion=costs.inversion) if name == "KFC" else kfc.SGD()


def best_by_workers(
    found: Found, costs: Costs, network: Network, name: str, *, beside: bool = False
) -> dict[int, Best]:
    """The best batch size for each number of workers."""
    steps, optimizer = found.to_level(name), optimizer_of(name, costs)
    return {
        count: workers.best_batch(costs, network, optimizer, steps, count, beside=beside)
        for count in workers.powers_of_two(MOST_WORKERS)
    }


@dataclass(frozen=True)
class Machines:
    """The least seconds through one network: of both optimizers, and of `BESIDE`."""

    network: Network
    best: dict[str, dict[int, Best]]

    def alone(self, name: str) -> float:
        """Seconds of one worker."""
        return self.best[name][1].seconds.total

    def soonest(self, name: str) -> tuple[int, Best]:
        """The number of workers with least seconds, and these."""
        return min(self.best[name].items(), key=lambda item: item[1].seconds.total)

    @property
    def ratios(self) -> tuple[float, float]:
        """Seconds of SGD over those of KFC: of one worker, and of the best number for each."""
        best = [self.soonest(name)[1].seconds.total for name in OPTIMIZERS]
        return self.alone("SGD") / self.alone("KFC"), best[0] / best[1]


def machines(found: Found, costs: Costs) -> list[Machines]:
    """What the model says, for each network."""
    modelled = []
    for network in NETWORKS:
        best = {name: best_by_workers(found, costs, network, name) for name in OPTIMIZERS}
        best[BESIDE] = best_by_workers(found, costs, network, "KFC", beside=True)
        modelled.append(Machines(network, best))
    return modelled


def machines_verdict(ratios: Sequence[tuple[float, float]]) -> str:
    """On the ratios of each network: of one worker, and of the best numbers of workers."""
    if all(many > max(one, 1.0) for one, many in ratios):
        return HOLDS
    return PART if any(many > 1.0 for _, many in ratios) else NOT


def machines_text(modelled: Sequence[Machines], level: float) -> str:
    """The sentences that the verdict rests on."""
    parts = []
    for m in modelled:
        one, many = m.ratios
        ends = []
        for name in OPTIMIZERS:
            count, best = m.soonest(name)
            ends.append(
                f"{name} is soonest with {count:,} workers and batches of {best.batch:,}, in "
                f"{best.seconds.total:.3g} s, {m.alone(name) / best.seconds.total:.1f} times "
                "sooner than one worker"
            )
        parts.append(
            f"Through {m.network.name} {'; '.join(ends)}. SGD takes {one:.2f} times as long as "
            f"KFC with one worker each, {many:.2f} times with the best number for each. If "
            "nobody had to wait for decompositions, and they still came in time, KFC would take "
            f"{m.soonest(BESIDE)[1].seconds.total:.3g} s with {m.soonest(BESIDE)[0]:,} workers."
        )
    return f"To a training loss of {level:g}, by the model:\n\n" + "\n\n".join(parts)


def machines_table(modelled: Sequence[Machines]) -> str:
    """Seconds for 1 to 1,024 workers."""
    lines = []
    for m in modelled:
        for count in m.best["KFC"]:
            cells: list[Any] = []
            for name in m.best:
                best = m.best[name][count]
                part = best.seconds.sending / best.seconds.total
                cells += [f"{best.seconds.total:.3g}", f"{best.batch:,}", f"{100 * part:.0f}%"]
            lines.append((m.network.name, f"{count:,}", *cells))
    headers = ["network", "workers"]
    for name in (*OPTIMIZERS, BESIDE):
        headers += [f"{name}: seconds", "batch", "of it sending"]
    return tabulate(lines, headers, "github", disable_numparse=True)


def draw_machines(modelled: Sequence[Machines], level: float, output: Path) -> None:
    """Seconds against workers, a panel for each network."""
    figure, panels = figures.new(1, len(modelled))
    for panel, m in zip(panels[0], modelled, strict=True):
        for name, style in zip(("KFC", "SGD", BESIDE), figures.STYLES, strict=False):
            seconds = [best.seconds.total for best in m.best[name].values()]
            panel.plot(list(m.best[name]), seconds, label=name, markersize=4, **style)
        # What SGD would take if nothing were lost.
        ends = np.array([1, MOST_WORKERS])
        panel.plot(ends, m.alone("SGD") / ends, color="#808080", linewidth=0.8)
        panel.set(xscale="log", yscale="log", xlabel="workers", title=m.network.name)
        panel.set_xlim(0.8, 1.25 * MOST_WORKERS)
        panel.legend(fontsize=8)
    panels[0][0].set_ylabel(f"seconds to a training loss of {level:g}")
    for panel in panels[0][1:]:
        panel.sharey(panels[0][0])
    least = min(m.soonest(name)[1].seconds.total for m in modelled for name in m.best)
    panels[0][0].set_ylim(bottom=0.7 * least)
    figures.save(figure, output, MACHINES)


def machines_caption(found: Found, record: Mapping[str, Any], level: float) -> str:
    """What the figure of the machines is of."""
    run, about = found.runs["KFC", found.batches("KFC")[0]][0], record["environment"]
    batches = ", ".join(f"{batch:,}" for batch in found.batches("KFC"))
    return (
        f"Seconds to a training loss of {level:g} against workers, by the model; grey: SGD "
        f"if seconds fell like 1 / workers. {DATA.get(run.plan.task, run.plan.task)}; the best of "
        f"batches of {batches} for each number of workers; SGD with the best learning rate for "
        f"each batch size, KFC() as it is; seeds: {len(found.runs['KFC', run.plan.batch_size])}; "
        f"a worker is one thread of {about['processor']}; network: bandwidth in each direction, "
        "latency of a message."
    )


# One worker and two.


@dataclass(frozen=True)
class Check:
    """A training by one worker and by two: seconds measured and by the model."""

    case: str
    measured: tuple[float, float]
    modelled: tuple[float, float]

    @property
    def speedups(self) -> tuple[float, float]:
        """Of two workers: measured, and by the model."""
        return self.measured[0] / self.measured[1], self.modelled[0] / self.modelled[1]


def checks(record: Mapping[str, Any], costs: Costs) -> tuple[Network, list[Check]]:
    """The model where it can be held against clocks: memory as the network, as measured."""
    sums = {float(size): seconds for size, seconds in record["sums"].items()}
    memory = Network.measured("shared memory", sums, 2)
    found = []
    for case in record["cases"]:
        name, batch, steps = case["optimizer"], case["batch"], case["steps"]
        modelled = [
            workers.training(costs, memory, optimizer_of(name, costs), batch, count, steps).total
            for count in (1, 2)
        ]
        measured = [statistics.median(case[which]) for which in ("alone", "both")]
        text = f"{name}, batch {batch}, {steps} steps"
        found.append(Check(text, (measured[0], measured[1]), (modelled[0], modelled[1])))
    return memory, found


def checks_table(found: Sequence[Check]) -> str:
    """A line for each training."""
    lines = [
        (c.case, *(f"{s:.3g}" for s in (*c.measured, *c.modelled)),
         *(f"{s:.2f}" for s in c.speedups))
        for c in found
    ]  # fmt: skip
    headers = (
        "training",
        "seconds, one",
        "two",
        "by the model, one",
        "two",
        "speed-up",
        "modelled",
    )
    return tabulate(lines, headers, "github", disable_numparse=True)


def checks_text(memory: Network, found: Sequence[Check]) -> str:
    """How good the model is at two workers."""
    errors = [modelled / measured - 1 for measured, modelled in (c.speedups for c in found)]
    worst = max(errors, key=abs)
    word = "agrees with" if abs(worst) <= GOOD else "is off"
    return (
        "Two processes that share memory, through which a sum of few numbers takes "
        f"{1e6 * 2 * memory.latency:.0f} µs and large ones pass at {memory.bandwidth / 1e9:.1f} "
        f"GB/s, beside one: the model {word} {'' if word == 'is off' else 'what was measured '}"
        f"by {100 * worst:+.0f}% at most in the speed-up by the second worker. What two processes "
        "take from each other (memory, cache, clock) is not in it."
    )
