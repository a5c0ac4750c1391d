"""Results of training runs, and the folder that they are kept in.

A result is a JSON file named after all that determines it, so a program that was stopped goes on
where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfc_numba as kfc
from benchmarks.experiments.tasks import Task
from benchmarks.peers.timing import environment
from kfc_numba.checkpoint import write_bytes
from kfc_numba.history import History, Row

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

TRAINING_SAMPLE = 5000  # examples that the training loss is a mean over
DONE, REACHED, DIVERGED, GIVEN_UP = "done", "reached", "diverged", "given up"


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
    steps : int or None
        Most steps, where neither is given.
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
    steps: int | None = None

    @property
    def file_name(self) -> str:
        content = dataclasses.asdict(self)
        if self.steps is None:  # names of older results
            del content["steps"]
        text = json.dumps(content, sort_keys=True)
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
    """``"SGD 0.01"``: class and learning rate; KFC, which nobody tunes, ``"KFC"``.

    KFC of another structure is ``"KFC ekfac"``, with adaptive damping ``"KFC adaptive"``.
    """
    name = config["optimizer"]
    if name != "KFC":
        return f"{name} {config['learning_rate']:g}"
    structure = config.get("structure", "kronecker")
    words = [name]
    if structure != "kronecker":
        words.append(structure if isinstance(structure, str) else "of several structures")
    if config.get("use_adaptive_damping"):
        words.append("adaptive")
    return " ".join(words)


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


def finished(plan: Plan, outcome: str, problem: str | None, rows: list[Row]) -> Result:
    """A result of now and here."""
    about = environment() | {"commit": commit(), "finished": time.strftime("%Y-%m-%dT%H:%M:%S")}
    return Result(plan, outcome, problem, rows, about)


# Results as files.


class Store:
    """A folder of results, all of one machine.

    Parameters
    ----------
    folder : path
    read_only : bool
        Whether nothing will be run: results of another machine are then no error.
    any_machine : bool
        Whether seconds do not count: results of another machine are then no error either.
    """

    def __init__(self, folder: Path, *, read_only: bool = False, any_machine: bool = False):
        self.folder = folder
        self._results: dict[str, Result] = {}
        here = machine()
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            result = _from_json(json.loads(path.read_text()))
            there = {name: result.environment.get(name) for name in here}
            if not (read_only or any_machine) and there != here:
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
