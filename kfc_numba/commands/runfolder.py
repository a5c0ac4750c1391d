"""The folder of one run: its files, and what they say of how to go on."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfc_numba import saving
from kfc_numba.checkpoint import CheckpointFile
from kfc_numba.commands import CommandError
from kfc_numba.commands.config import Config, config_from, differences
from kfc_numba.commands.folders import reason, write_json
from kfc_numba.commands.options import rebuild
from kfc_numba.description import describe_optimizer
from kfc_numba.environment import environment
from kfc_numba.history import JSON_ROWS, History, Row
from kfc_numba.schema import anything, parse, record, sequence

#: Checkpoints that are kept besides the last one while a run goes on.
KEPT = 2
_LONGEST = 2**25  # bytes of a history.json


@dataclass(frozen=True)
class Stored:
    """What a folder says of its run.

    Attributes
    ----------
    config : Config
    changes : list of dict
        What was changed of the settings on the way.
    rows : list of dict
        Of the history up to the checkpoint.
    mismatch : str or None
        In what ``history.json`` differs from the checkpoint, which counts.
    """

    config: Config
    changes: list[dict[str, Any]]
    rows: list[Row]
    mismatch: str | None


class RunFolder:
    """A folder with the files of one run; every file in it is written whole or not at all.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    path, history, checkpoint, curves : pathlib.Path
        The folder, and ``history.json``, ``checkpoint.safetensors`` and ``curves.png`` in it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.history = self.path / "history.json"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.curves = self.path / "curves.png"

    def read(self) -> Stored:
        """Settings of the run and the rows of its history, by the checkpoint if there is one.

        Returns
        -------
        Stored

        Raises
        ------
        CommandError
            A file is not what a run leaves.
        """
        config: Config | None = None
        changes: list[dict[str, Any]] = []
        rows: list[Row] = []
        if self.history.exists():
            config, changes, rows = self.read_history()
        if not self.checkpoint.exists():
            if rows or config is None:
                raise CommandError(
                    f"{self.checkpoint} is missing, of which {self.history.name} has {len(rows)} "
                    "evaluations: the run cannot be gone on with"
                )
            return Stored(config, changes, rows, None)
        try:
            with saving.opened(self.checkpoint, "trainer") as file:
                believed, changes = _settings(file)
                rows = History.from_header(file.header["history"]).rows
        except ValueError as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(reason(error)) from None
        found = differences(config, believed) if config else []
        mismatch = None
        if found:
            texts = (f"{name} {there} (checkpoint: {here})" for name, there, here in found)
            mismatch = f"{self.history} has {', '.join(texts)}; the checkpoint counts"
        return Stored(believed, changes, rows, mismatch)

    def read_history(self) -> tuple[Config, list[dict[str, Any]], list[Row]]:
        """What ``history.json`` says: settings, changes of them, and rows.

        Raises
        ------
        CommandError
            It is not what a run leaves.
        """
        try:
            if self.history.stat().st_size > _LONGEST:
                raise ValueError(f"more than {_LONGEST:,} bytes")
            content = parse(self.history.read_text(encoding="utf-8"))
            record(
                {"config": anything, "environment": anything, "history": JSON_ROWS}, more=anything
            )("the file", content)
            changes = sequence(record({}, more=anything))("changes", content.get("changes", []))
            return config_from("config", content["config"]), changes, content["history"]
        except OSError as error:
            raise CommandError(reason(error)) from None
        except ValueError as error:
            advice = ""
            if self.checkpoint.exists():
                advice = "; without it, the checkpoint is gone on from all the same"
            raise CommandError(
                f"{self.history} is not what a run of this version writes ({error}){advice}"
            ) from None

    def files(self) -> list[Path]:
        """Those of its files that exist."""
        return [f for f in (self.checkpoint, self.curves, self.history) if f.exists()]

    def write(self, notes: Mapping[str, Any], history: History) -> None:
        """Write ``history.json``.

        Parameters
        ----------
        notes : mapping
            ``run``, the settings, and ``changes``.
        history : History
        """
        content = {
            "config": notes["run"],
            "environment": environment(),
            "history": json.loads(history.to_json()),
        }
        if notes["changes"]:
            content["changes"] = notes["changes"]
        write_json(self.history, content)

    def earlier(self) -> list[Path]:
        """Checkpoints from before the last one, the oldest first."""
        return [path for _, path in self._earlier()]

    def keep(self, step: int) -> None:
        """Keep the checkpoint that is about to be replaced, and of those before it the latest.

        Parameters
        ----------
        step : int
            Number of steps done when it was written.
        """
        target = self.path / f"checkpoint-step-{step}.safetensors"
        target.unlink(missing_ok=True)
        try:
            os.link(self.checkpoint, target)
        except OSError:  # a file system without links
            shutil.copyfile(self.checkpoint, target)
        for path in self.earlier()[:-KEPT]:
            path.unlink(missing_ok=True)

    def forget(self, *, after: int = -1) -> None:
        """Remove checkpoints from before the last one.

        Parameters
        ----------
        after : int
            Those of at least so many steps: they are of a continuation that was given up.
        """
        for step, path in self._earlier():
            if step >= after:
                path.unlink(missing_ok=True)

    def _earlier(self) -> list[tuple[int, Path]]:
        found = []
        for path in self.path.glob("checkpoint-step-*.safetensors"):
            number = re.fullmatch(r"checkpoint-step-(\d{1,18})", path.stem)
            if number:
                found.append((int(number[1]), path))
        return sorted(found)


def _settings(file: CheckpointFile) -> tuple[Config, list[dict[str, Any]]]:
    """Settings of the run from a checkpoint's header, if they are those that it was made with."""
    header = file.header
    if "run" not in header["notes"]:
        raise ValueError("it is of a program's training, not of kfc-numba train")
    config = config_from("notes.run", header["notes"]["run"])
    changes = sequence(record({}, more=anything))("changes", header["notes"].get("changes", []))
    optimizer = describe_optimizer(rebuild(config.optimizer))
    for name, one, other in (
        ("optimizer", optimizer, header["optimizer"]),
        ("seed", config.seed, header["trainer"]["seed"]),
    ):
        if one != other:
            raise ValueError(f"notes.run and {name} are not of one run")
    return config, changes
