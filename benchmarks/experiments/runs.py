"""One training run within a budget of seconds, and the folder that results are kept in.

A result is a JSON file named after all that determines it, so a program that was stopped goes on
where it was. Seconds are those of training alone: compilation, evaluation and files are in none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numba.core import event

import kfc_numba as kfc
from benchmarks.experiments.tasks import Task
from benchmarks.peers.timing import environment
from kfc_numba.commands.run import write_bytes
from kfc_numba.history import History, Row

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)  # learning rates that rivals are tuned over
TRAINING_SAMPLE = 5000  # examples that the training loss is a mean over
GROWTH = 1.2  # of the seconds from one evaluation to the next
MOST_GAP = 0.1  # of the budget, between two evaluations
LEAST_STEPS = 20  # before a run is judged by where its training loss is
HIGHEST = 100  # a training loss above this many times its first has diverged

DONE, REACHED, DIVERGED, GIVEN_UP = "done", "reached", "diverged", "given up"

RULES = (
    f"A run has diverged when a training step fails, when its training loss is not finite or above "
    f"{HIGHEST} times its first, or when it is above its first after a quarter of the budget and "
    f"{LEAST_STEPS} steps; it stops there. A run of the search for a rival's settings is given up "
    "when its training loss after half of the budget is above what the best run of the same "
    "optimizer so far had after a quarter of it."
)


@dataclass(frozen=True)
class Plan:
    """All that determines a run but for the machine and the version of the library.

    Attributes
    ----------
    task : str
    checksum : int
        Of the task's data and network.
    optimizer : dict
        As `Optimizer.config` gives it.
    batch_size, seed : int
    budget : float or None
        Seconds of training.
    epochs : int or None
        Passes over the data, where there is no budget.
    level : float or None
        Training loss at which the run ends.
    sample : int
        Examples that the training loss is a mean over.
    """

    task: str
    checksum: int
    optimizer: dict[str, Any]
    batch_size: int
    seed: int
    budget: float | None = None
    epochs: int | None = None
    level: float | None = None
    sample: int = TRAINING_SAMPLE

    @property
    def file_name(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        label = label_of(self.optimizer).replace(" ", "-").lower()
        return f"{self.task}-{label}-{self.batch_size}-{self.seed}-{digest}.json"


@dataclass(frozen=True)
class Result:
    """How a run went.

    Attributes
    ----------
    plan : Plan
    outcome : str
        ``"done"``, ``"reached"`` (its level), ``"diverged"`` or ``"given up"``.
    problem : str or None
        Why it ended before its time.
    rows : list of dict
        As in `History`.
    environment : dict
        The machine and the versions; ``finished``, when.
    """

    plan: Plan
    outcome: str
    problem: str | None
    rows: list[Row]
    environment: dict[str, Any]

    @property
    def label(self) -> str:
        return label_of(self.plan.optimizer)

    @property
    def name(self) -> str:
        """The optimizer's class."""
        return self.plan.optimizer["optimizer"]

    @property
    def loss(self) -> float:
        """The last training loss; infinite if the run did not come to its end."""
        return self.rows[-1]["training_loss"] if self.outcome in (DONE, REACHED) else math.inf

    @property
    def error(self) -> float | None:
        return self.rows[-1]["validation_error"]

    def reached(self, level: float) -> tuple[float, float] | None:
        """Steps and seconds to a training loss, None if it was not reached.

        Between two evaluations the logarithm of the loss is taken for linear.
        """
        before: Row | None = None
        for row in self.rows:
            loss = row["training_loss"]
            if loss <= level:
                if before is None or loss <= 0 or level <= 0:
                    return row["step"], row["seconds"]
                start = before["training_loss"]
                part = math.log(start / level) / math.log(start / loss)
                step, seconds = (
                    before[name] + part * (row[name] - before[name]) for name in ("step", "seconds")
                )
                return step, seconds
            # After a value that is not finite there is nothing to draw a line from.
            before = row if math.isfinite(loss) else None
        return None


def label_of(config: Mapping[str, Any]) -> str:
    """``"SGD 0.01"``: class and learning rate; KFC, which nobody tunes, by its name alone."""
    name = config["optimizer"]
    return name if name == "KFC" else f"{name} {config['learning_rate']:g}"


# Results as files.


class Store:
    """A folder of results, all of one machine.

    Parameters
    ----------
    folder : path
    read_only : bool
        Whether nothing will be run: results of another machine are then no error.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        self.folder = folder
        self._results: dict[str, Result] = {}
        here = machine()
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            result = _from_json(json.loads(path.read_text()))
            there = {name: result.environment.get(name) for name in here}
            if not read_only and there != here:
                raise SystemExit(
                    f"{path} is a result of {there}, this is {here}: seconds of two machines are "
                    "not to be compared. Give another folder with --results, or --report-only"
                )
            self._results[path.name] = result

    def __contains__(self, plan: Plan) -> bool:
        return plan.file_name in self._results

    def get(self, plan: Plan, run: Callable[[], Result]) -> Result:
        """The result of a plan, which is run if there is none."""
        name = plan.file_name
        if name not in self._results:
            result = run()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self.folder / name, (_to_json(result) + "\n").encode())
            self._results[name] = result
        return self._results[name]

    def newest(self) -> list[Result]:
        """Of each task, optimizer, batch size and seed the newest result."""
        found: dict[tuple[Any, ...], Result] = {}
        for result in sorted(self._results.values(), key=lambda r: r.environment["finished"]):
            plan = result.plan
            key = (plan.task, result.label, plan.batch_size, plan.seed, plan.epochs, plan.level)
            found[key] = result
        return list(found.values())


def machine() -> dict[str, Any]:
    """What seconds depend on."""
    found = environment()
    return {name: found[name] for name in ("processor", "threads")}


def commit() -> str | None:
    """The version of the sources, None where git does not know."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _to_json(result: Result) -> str:
    columns: dict[str, list[Any]] = {name: [] for name in result.rows[0]}
    for row in History(result.rows).to_header():
        for name, value in row.items():
            columns[name].append(float(f"{value:.6g}") if isinstance(value, float) else value)
    content = dataclasses.asdict(result) | {"rows": columns}
    lines = (f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in content.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _from_json(content: Mapping[str, Any]) -> Result:
    columns = content["rows"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Result(
        Plan(**content["plan"]),
        content["outcome"],
        content["problem"],
        History.from_header(rows).rows,
        content["environment"],
    )


# One run.


class Training(Protocol):
    """What can be trained in steps; `rows` gets one before the first step and after each call."""

    rows: list[Row]

    def train_to(self, steps: int) -> None: ...


class CompiledError(Exception):
    """Kernels were compiled within the seconds of a training."""


class OwnTraining:
    """A task and an optimizer of ours."""

    def __init__(self, task: Task, optimizer: kfc.Optimizer, batch_size: int, seed: int):
        self.task, self.batch_size = task, batch_size
        self.trainer = kfc.Trainer(task.build(seed), task.loss, optimizer, seed=seed)
        self.rows = self.trainer.history.rows
        self.sample = TRAINING_SAMPLE

    def train_to(self, steps: int) -> None:
        self._fit(max_steps=steps, evaluate_every=steps)

    def train_epochs(self, epochs: int, evaluate_every: int) -> None:
        self._fit(epochs=epochs, evaluate_every=evaluate_every)

    def _fit(self, **limits: Any) -> None:
        with event.install_recorder("numba:compile") as compiled:
            self.trainer.fit(
                *self.task.train,
                batch_size=self.batch_size,
                validation=self.task.validation,
                progress=False,
                training_sample=self.sample,
                **limits,
            )
        if compiled.buffer:
            raise CompiledError


def uncompiled(run: Callable[[], Result]) -> Result:
    """What a run gives when nothing is compiled in it; until then it begins anew."""
    while True:
        try:
            return run()
        except CompiledError:
            continue  # what was compiled is compiled now


def train_for(
    training: Training,
    budget: float,
    *,
    level: float | None = None,
    reference: Sequence[Row] | None = None,
    give_up_after: float = math.inf,
    growth: float = GROWTH,
) -> tuple[str, str | None]:
    """Train until a budget of seconds is used up, or there is a reason to stop.

    Evaluations are the closer, the earlier: curves are looked at in ratios of seconds.

    Parameters
    ----------
    training : Training
    budget : float
        Seconds.
    level : float, optional
        A training loss to stop at.
    reference : sequence of rows, optional
        Of the best run so far; see `RULES`.
    give_up_after : float
        Seconds after which the run cannot be the best any more.
    growth : float
        Of the seconds from one evaluation to the next.

    Returns
    -------
    outcome : str
    problem : str or None
    """
    steps, due = 1, budget / 200
    while True:
        try:
            training.train_to(steps)
        except FloatingPointError as error:
            return DIVERGED, str(error)
        row = training.rows[-1]
        seconds, loss = row["seconds"], row["training_loss"]
        problem = divergence(training.rows, budget)
        if problem:
            return DIVERGED, problem
        if level is not None and loss <= level:
            return REACHED, None
        if seconds >= budget:
            return DONE, None
        if seconds >= give_up_after:
            return GIVEN_UP, f"not reached after {seconds:.3g} s"
        if reference is not None and seconds >= budget / 2:
            quarter = next(r["training_loss"] for r in reference if r["seconds"] >= budget / 4)
            if loss > quarter:
                return GIVEN_UP, f"training loss {loss:.4g} after {seconds:.3g} s"
        while due <= seconds:
            due += min(max((growth - 1) * due, budget / 200), MOST_GAP * budget)
        last = training.rows[-2]
        a_step = (seconds - last["seconds"]) / (row["step"] - last["step"])
        more = (min(due, budget, give_up_after) - seconds) / a_step
        # The first steps say little about those that follow: never more than twice as many.
        steps = row["step"] + max(1, min(math.ceil(more), 2 * row["step"]))


def divergence(rows: Sequence[Row], budget: float) -> str | None:
    """Why the last row means that a run has diverged; None if it does not."""
    first, row = rows[0]["training_loss"], rows[-1]
    loss, where = row["training_loss"], f"at step {row['step']}"
    if not math.isfinite(loss) or loss > HIGHEST * first:
        return f"training loss {loss:.4g} {where}, {first:.4g} at first"
    if row["seconds"] >= budget / 4 and row["step"] >= LEAST_STEPS and loss > first:
        return f"training loss {loss:.4g} {where}, still above {first:.4g}, the first"
    return None


def own_run(
    task: Task,
    optimizer: kfc.Optimizer,
    plan: Plan,
    *,
    reference: Sequence[Row] | None = None,
    give_up_after: float = math.inf,
    growth: float = GROWTH,
) -> Result:
    """Do what a plan with a budget says.

    Parameters
    ----------
    task : Task
    optimizer : Optimizer
        That the plan describes.
    plan : Plan
    reference, give_up_after, growth
        See `train_for`.

    Returns
    -------
    Result
    """
    load_kernels(task, optimizer, plan.batch_size)
    budget = plan.budget
    if budget is None:
        raise ValueError("plan.budget is None; required: a number of seconds")

    def run() -> Result:
        training = OwnTraining(task, optimizer, plan.batch_size, plan.seed)
        training.sample = plan.sample
        outcome, problem = train_for(
            training,
            budget,
            level=plan.level,
            reference=reference,
            give_up_after=give_up_after,
            growth=growth,
        )
        return finished(plan, outcome, problem, training.rows)

    return uncompiled(run)


def finished(plan: Plan, outcome: str, problem: str | None, rows: list[Row]) -> Result:
    """A result of now and here."""
    about = environment() | {"commit": commit(), "finished": time.strftime("%Y-%m-%dT%H:%M:%S")}
    return Result(plan, outcome, problem, rows, about)


def plan_for(task: Task, optimizer: kfc.Optimizer, batch_size: int, seed: int, **more: Any) -> Plan:
    """The plan of a run with an optimizer of ours.

    Parameters
    ----------
    task : Task
    optimizer : Optimizer
    batch_size, seed : int
    **more
        Other attributes of the plan.

    Returns
    -------
    Plan
    """
    return Plan(task.name, task.checksum, optimizer.config(), batch_size, seed, **more)


def rival_averaging(steps_per_epoch: int) -> float | None:
    """Timescale of iterate averaging that rivals get: what `KFC()` has.

    Parameters
    ----------
    steps_per_epoch : int

    Returns
    -------
    float or None
        Its number of steps; one epoch if it names its timescale otherwise; None if it does not
        average.
    """
    own = kfc.KFC().averaging
    return float(steps_per_epoch) if isinstance(own, str) else own


_loaded: set[tuple[str, str, int]] = set()


def load_kernels(task: Task, optimizer: kfc.Optimizer, batch_size: int) -> None:
    """Train a little and throw it away, so that kernels are in memory."""
    key = task.name, type(optimizer).__name__, batch_size
    if key in _loaded:
        return
    trainer = kfc.Trainer(task.build(0), task.loss, optimizer)
    x, y = (array[: 4 * batch_size] for array in task.train)
    # What becomes of this training is nobody's business: the real one will say if it fails.
    with contextlib.suppress(FloatingPointError):
        trainer.fit(x, y, batch_size=batch_size, max_steps=3, progress=False)
    _loaded.add(key)
