"""Claims, tables and figures of `optimisation`, made of results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.experiments import figures
from benchmarks.experiments.claims import ABSTRACT, HOLDS, NOT, PART, Claim, verdict
from benchmarks.experiments.defaults_report import best_of
from benchmarks.experiments.race import medians
from benchmarks.experiments.results import Result, Store
from benchmarks.experiments.runs import RULES
from benchmarks.peers.timing import describe as describe_environment

NAME = "optimisation"
#: The networks, as the page calls them.
TASKS: dict[str, str] = {
    "cifar-quick": "`quick`",
    "cifar-quick-norm": "`quick` with response normalisation",
    "cifar-quick-batchnorm": "`quick` with batch normalisation",
}
RIVALS = ("SGD", "Adam")
OPTIMIZERS = ("KFC", *RIVALS)
BATCHES = (128, 256)
#: Learning rates of the search, the likeliest first: a run is given up beside a better one.
RATES: dict[str, tuple[float, ...]] = {"SGD": (0.03, 0.01, 0.1), "Adam": (0.001, 0.003, 0.0003)}
#: Training losses that seconds and iterations are compared at.
LEVELS = (1.5, 1.2, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
SEEDS = 3  # of the winners, for a complete result
STEPS, SECONDS = 0, 1  # places in what `medians` returns

# The most that KFC may take of what SGD takes, for "holds" and for "holds in part".
SECONDS_BOUNDS = {"holds": 1 / 3, "part": 1.0}
STEPS_BOUNDS = {"holds": 1 / 10, "part": 1 / 3}
# A tenth of the iterations is then a third of the time; or no more than all of it.
COST_BOUNDS = {"holds": 10 / 3, "part": 10.0}


@dataclass(frozen=True)
class Comparison:
    """KFC beside SGD on one network, at the least training loss that both reached.

    Attributes
    ----------
    task : str
    level : float
        The training loss.
    seconds : (float, float)
        Of KFC and of SGD, each with the settings of the least loss; medians over seeds.
    steps : (float, float)
        The same, each with the settings of the fewest iterations.
    settings : (str, str)
        These settings.
    """

    task: str
    level: float
    seconds: tuple[float, float]
    steps: tuple[float, float]
    settings: tuple[str, str]


def load(results: Path) -> list[Result]:
    """All results, of each kind the newest."""
    return Store(results / NAME, read_only=True).newest()


def task_names(results: Sequence[Result]) -> list[str]:
    """Tasks that there are results of."""
    there = {r.plan.task for r in results}
    return [*(name for name in TASKS if name in there), *sorted(there - set(TASKS))]


def title(task: str) -> str:
    return TASKS.get(task, task)


def setting(result: Result) -> str:
    return f"{result.label}, batch {result.plan.batch_size}"


def lowest(*runs: Sequence[Result]) -> float | None:
    """The lowest of the levels that most of each runs reached."""
    common = [v for v in LEVELS if all(r and math.isfinite(medians(r, v)[0]) for r in runs)]
    return min(common, default=None)


def fewest_steps(
    results: Sequence[Result], task: str, name: str, level: float
) -> tuple[float, str]:
    """Fewest iterations of an optimizer to a loss, and the settings that took them."""
    groups: dict[str, list[Result]] = {}
    for r in results:
        if (r.plan.task, r.name) == (task, name):
            groups.setdefault(setting(r), []).append(r)
    return min((medians(runs, level)[STEPS], label) for label, runs in groups.items())


def compare(results: Sequence[Result]) -> list[Comparison]:
    """KFC beside SGD on each network where both reached one of the levels."""
    found = []
    for task in task_names(results):
        ours, theirs = (best_of(results, task, name) for name in ("KFC", "SGD"))
        level = lowest(ours, theirs)
        if level is not None:
            own, other = (fewest_steps(results, task, name, level) for name in ("KFC", "SGD"))
            seconds = medians(ours, level)[SECONDS], medians(theirs, level)[SECONDS]
            steps, settings = (own[0], other[0]), (own[1], other[1])
            found.append(Comparison(task, level, seconds, steps, settings))
    return found


def step_costs(results: Sequence[Result]) -> dict[tuple[str, int], float]:
    """Seconds of a step of KFC over those of SGD, by task and batch size."""
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for r in results:
        row = r.rows[-1]
        if row["step"]:
            cell = found.setdefault((r.plan.task, r.plan.batch_size), {})
            cell.setdefault(r.name, []).append(row["seconds"] / row["step"])
    return {
        key: statistics.median(cell["KFC"]) / statistics.median(cell["SGD"])
        for key, cell in found.items()
        if {"KFC", "SGD"} <= cell.keys()
    }


# Claims.


def claims(results: Path) -> list[Claim]:
    """What the paper claims about optimisation, as far as there are results."""
    found = load(results)
    compared = compare(found)
    return [*_speed_claims(compared), *_cost_claim(found), *_batchnorm_claim(found)]


def _speed_claims(compared: Sequence[Comparison]) -> list[Claim]:
    if not compared:
        return []
    figure = f"{NAME}-{compared[0].task}"
    seconds = [c.seconds[0] / c.seconds[1] for c in compared]
    steps = [c.steps[0] / c.steps[1] for c in compared]
    # A claim holds that does for each of the networks.
    return [
        Claim(
            ABSTRACT["seconds"],
            "KFC() takes " + _ratios(compared, seconds) + " of SGD's seconds",
            verdict(max(seconds), **SECONDS_BOUNDS),
            figure,
        ),
        Claim(
            ABSTRACT["iterations"],
            "KFC() takes " + _ratios(compared, steps) + " of SGD's iterations",
            verdict(max(steps), **STEPS_BOUNDS),
            figure,
        ),
    ]


def _ratios(compared: Sequence[Comparison], ratios: Sequence[float]) -> str:
    parts = [
        f"{ratio:.2f} ({title(c.task)}, to a loss of {c.level:g})"
        for c, ratio in zip(compared, ratios, strict=True)
    ]
    return ", ".join(parts)


def _cost_claim(results: Sequence[Result]) -> list[Claim]:
    costs = step_costs(results)
    if not costs:
        return []
    middle = statistics.median(costs.values())
    spread = f"{min(costs.values()):.2f} to {max(costs.values()):.2f}"
    batches = listed(sorted({batch for _, batch in costs}))
    ours = (
        f"A step of KFC(), curvature and decompositions included, costs {middle:.2f} steps of SGD "
        f"at the same batch size (median; {spread} over networks and batches of {batches})"
    )
    figure = f"{NAME}-{task_names(results)[0]}"
    return [Claim(ABSTRACT["cost"], ours, verdict(middle, **COST_BOUNDS), figure)]


def _batchnorm_claim(results: Sequence[Result]) -> list[Claim]:
    """Batch normalisation brings KFC something, and KFC a network with batch normalisation."""
    plain, normalised = "cifar-quick", "cifar-quick-batchnorm"
    both = best_of(results, normalised, "KFC")
    without = best_of(results, plain, "KFC")
    sgd = best_of(results, normalised, "SGD")
    level = lowest(both, without, sgd)
    if level is None:
        return []
    took, *others = (medians(runs, level)[SECONDS] for runs in (both, without, sgd))
    better = sum(took < other for other in others)
    ours = (
        f"To a loss of {level:g}, KFC() with batch normalisation takes {took:.3g} s, "
        f"without it {others[0]:.3g} s, and SGD with it {others[1]:.3g} s"
    )
    text = "Batch normalisation and KFC-pre can be combined, to the benefit of both"
    return [Claim(text, ours, (NOT, PART, HOLDS)[better], f"{NAME}-{normalised}")]


def listed(values: Sequence[Any]) -> str:
    """Values in words."""
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def machines(results: Sequence[Result]) -> str:
    """Where results come from, and of which commits."""
    names = ("processor", "threads", "numba", "numpy")
    found: dict[str, set[str]] = {}
    for r in results:
        about = describe_environment({name: r.environment.get(name) for name in names})
        found.setdefault(about, set()).add(r.environment.get("commit") or "unknown")
    return "; ".join(f"{about}, commit {listed(sorted(c))}" for about, c in found.items())


def missing(results: Path) -> str:
    """What a complete result has and this one has not, in a sentence."""
    found = load(results)
    parts = []
    for task, name in ((task, name) for name in OPTIMIZERS for task in TASKS):
        count = len({r.plan.seed for r in best_of(found, task, name)})
        runs = [r.plan for r in found if (r.plan.task, r.name) == (task, name)]
        if not runs:
            parts.append(f"{name} on {title(task)}")
            continue
        tried = {plan.optimizer["learning_rate"] for plan in runs}
        lacking = {
            "learning rate": [f"{rate:g}" for rate in RATES.get(name, ()) if rate not in tried],
            "batch size": [b for b in BATCHES if b not in {plan.batch_size for plan in runs}],
        }
        for what, values in lacking.items():
            if values:
                plural = "s" * (len(values) > 1)
                parts.append(f"{what}{plural} {listed(values)} of {name} on {title(task)}")
        if count < SEEDS:
            parts.append(f"{SEEDS - count} of {SEEDS} seeds of {name} on {title(task)}")
    return f"Missing: {'; '.join(parts)}." if parts else "Nothing is missing."


# The section.


def section(results: Path) -> str | None:
    """The part of docs/results.md about optimisation, None without results."""
    found = load(results)
    if not found:
        return None
    first = found[0].plan
    budgets = listed(sorted({f"{r.plan.budget:g}" for r in found}, key=float))
    parts = [
        "## Optimisation",
        "KFC with its default settings, SGD with momentum 0.9 and Adam, all with the averages of "
        f"parameters that `KFC()` takes. Each run has {budgets} seconds of training. With the "
        "first seed, learning rates of SGD and Adam are searched at the first batch size, and the "
        "best of them is then tried at the other; KFC has batch sizes alone to choose from. The "
        "least training loss at the end wins, and the winners run with further seeds.",
        missing(results),
    ]
    if lines := [f"- {c.text}: **{c.verdict}**. {c.ours}." for c in claims(results)]:
        parts += ["\n".join(lines), _rules(compare(found))]
    for task in task_names(found):
        parts += [f"### {title(task)[0].upper()}{title(task)[1:]}", _figure(found, task)]
        if lines := level_table(found, task):
            parts.append(lines)
    parts += [
        "### What deviates from the paper",
        "The paper searched learning rates of both methods on a grid, with larger batches for KFC "
        f"than for SGD, on a GPU. Here KFC has its default settings{_damping(found)}, the machine "
        "is a processor, "
        "and batch 5 of the training images is held out in place of the test images. KFC here "
        "bounds each step by the exact Fisher matrix, and all average over the last tenth of the "
        "iterations.",
        "### All runs",
        RULES,
        runs_table(found),
        f"Training losses are means over the same {first.sample:,} training examples.",
    ]
    return "\n\n".join(parts) + "\n"


def _damping(results: Sequence[Result]) -> str:
    values = {r.plan.optimizer.get("damping") for r in results if r.name == "KFC"} - {None}
    return f", damping {listed([f'{v:g}' for v in sorted(values)])} among them" if values else ""


def _rules(compared: Sequence[Comparison]) -> str:
    settings = "; ".join(f"{title(c.task)}: {' and '.join(c.settings)}" for c in compared)
    return (
        "Ratios are at the lowest of the tables' losses that both reached, medians over seeds; of "
        "seconds and iterations the network where they are highest decides, of a step the median. "
        f"Seconds: a ratio of at most {SECONDS_BOUNDS['holds']:.2g} holds, up to "
        f"{SECONDS_BOUNDS['part']:g} in part. Iterations, each with those of its "
        f"settings that took the fewest ({settings or 'none yet'}): at most "
        f"{STEPS_BOUNDS['holds']:.2g}, and up to {STEPS_BOUNDS['part']:.2g} in part. A step: at "
        f"most {COST_BOUNDS['holds']:.2g} steps of SGD, so that a tenth of the iterations is a "
        f"third of the time, and up to {COST_BOUNDS['part']:g} in part. Batch normalisation: two "
        "comparisons, KFC with it beside KFC without it and beside SGD with it."
    )


def winners(results: Sequence[Result], task: str) -> dict[str, list[Result]]:
    """The runs of each optimizer with its best settings."""
    found = {name: best_of(results, task, name) for name in OPTIMIZERS}
    return {name: runs for name, runs in found.items() if runs}


def level_table(results: Sequence[Result], task: str) -> str:
    """Seconds and iterations of the winners to each training loss that one of them reached."""
    best = winners(results, task)
    names = list(best)
    lines = []
    for level in LEVELS:
        took = {name: medians(runs, level) for name, runs in best.items()}
        if any(math.isfinite(steps) for steps, _ in took.values()):
            lines.append((f"{level:g}", *_cells(took, SECONDS), *_cells(took, STEPS)))
    if not lines:
        return ""
    labels = [setting(best[name][0]) for name in names]
    ratio = ["KFC / SGD"] * ({"KFC", "SGD"} <= best.keys())
    headers = ["training loss", *(f"seconds: {label}" for label in labels), *ratio]
    headers += [*(f"iterations: {label}" for label in labels), *ratio]
    return tabulate(lines, headers, "github", disable_numparse=True)


def _cells(took: Mapping[str, tuple[float, float]], place: int) -> list[str]:
    values = {name: pair[place] for name, pair in took.items()}
    shown = (".3g", ",.0f")[place == STEPS]
    cells = [f"{v:{shown}}" if math.isfinite(v) else "not reached" for v in values.values()]
    if {"KFC", "SGD"} <= values.keys():
        finite = math.isfinite(values["KFC"]) and math.isfinite(values["SGD"])
        cells.append(f"{values['KFC'] / values['SGD']:.2f}" if finite else "")
    return cells


def runs_table(results: Sequence[Result]) -> str:
    """A line for each run."""
    order = {name: place for place, name in enumerate(OPTIMIZERS)}
    lines = []
    for task in task_names(results):
        runs = [r for r in results if r.plan.task == task]
        for r in sorted(
            runs, key=lambda r: (order[r.name], r.label, r.plan.batch_size, r.plan.seed)
        ):
            row = r.rows[-1]
            cost = f"{1e3 * row['seconds'] / row['step']:.3g}" if row["step"] else ""
            error = f"{100 * row['validation_error']:.1f}%"
            cells = (f"{row['step']:,}", cost, f"{row['training_loss']:.3g}", error)
            outcome = f"{r.outcome}: {r.problem}" if r.problem else r.outcome
            lines.append((title(task), setting(r), r.plan.seed, *cells, outcome))
    headers = ("network", "settings", "seed", "iterations", "ms each", "training loss",
               "validation error", "outcome")  # fmt: skip
    return tabulate(lines, headers, "github", disable_numparse=True)


# Figures.


def _figure(results: Sequence[Result], task: str) -> str:
    runs = winners(results, task)
    used = [run for each in runs.values() for run in each]
    settings = "; ".join(
        f"{setting(each[0])}, {'seed' if len(each) == 1 else 'seeds'} "
        + listed([run.plan.seed for run in each])
        for each in runs.values()
    )
    return figures.link(
        f"{NAME}-{task}",
        f"CIFAR-10 (batches 1 to 4; validation: images of batch 5), {title(task)}: training loss "
        f"and validation error of averaged parameters against seconds of training and iterations. "
        f"{settings or 'No run came to its end'}. {machines(used or results)}.",
    )


def draw(results: Path, output: Path) -> None:
    """A figure for each network: loss and error, against seconds and iterations."""
    found = load(results)
    for task in task_names(found):
        figure, panels = figures.new(2, 2)
        for column, (x, xlabel) in enumerate((("seconds", "seconds of training"),
                                              ("step", "iterations"))):  # fmt: skip
            for row, (y, scale, ylabel) in enumerate((
                ("training_loss", 1, "training loss (nats)"),
                ("validation_error", 100, "validation error (%)"),
            )):  # fmt: skip
                _panel(panels[row, column], winners(found, task), x, y, scale)
                panels[row, column].set(xlabel=xlabel, ylabel=ylabel)
                figures.logarithmic(panels[row, column])
        if panels[0, 0].lines:
            panels[0, 0].legend()
        figures.save(figure, output, f"{NAME}-{task}")


def _panel(axes: Any, best: Mapping[str, list[Result]], x: str, y: str, scale: float) -> None:
    for name, style in zip(OPTIMIZERS, figures.STYLES, strict=False):
        for place, run in enumerate(best.get(name, ())):
            rows = [row for row in run.rows if row["step"]]
            # One seed with markers and a name, the others thin: how far seeds differ.
            more = (
                {"label": setting(run), "markersize": 3}
                if not place
                else {"marker": "", "linewidth": 0.7}
            )
            values = [scale * row[y] for row in rows]
            axes.plot([row[x] for row in rows], values, **{**style, **more})
