"""Where a run has its checkpoint, and which run one is of: a training, however often stopped."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import safetensors

#: What a run folder has its checkpoint under.
CHECKPOINT = "checkpoint.safetensors"
_NAMED = 3  # other folders that a message has


def new_run() -> str:
    """A name that no other run has."""
    return secrets.token_hex(8)


def run_of(path: str | os.PathLike[str]) -> str:
    """The run that a checkpoint is of, without a look at its arrays.

    Parameters
    ----------
    path : path

    Returns
    -------
    str

    Raises
    ------
    ValueError
        It is no checkpoint.
    OSError
        It cannot be read.
    """
    with open(path, "rb"):  # its errors name the file
        pass
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
        return str(json.loads(metadata["kfc_numba"])["trainer"]["run"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError):
        raise ValueError(f"{os.fspath(path)} is no checkpoint of a training") from None


def checkpoint_of(path: str | os.PathLike[str]) -> Path:
    """The file that is meant by a run folder, or by its own name.

    Parameters
    ----------
    path : path

    Returns
    -------
    pathlib.Path

    Raises
    ------
    FileNotFoundError
        It does not exist; the message says what is needed.
    """
    path = Path(path)
    needed = "give a folder that kfc-numba train wrote, or a file of Trainer.save"
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: {needed}")
        return path
    if (path / CHECKPOINT).exists():
        return path / CHECKPOINT
    others = sorted(str(found.parent) for found in path.glob(f"*/{CHECKPOINT}"))[:_NAMED]
    hint = f"; {' and '.join(others)} {'have' if len(others) > 1 else 'has'} one" if others else ""
    raise FileNotFoundError(f"{path} holds no {CHECKPOINT}: {needed}{hint}")


def check_own(path: str | os.PathLike[str], run: str) -> None:
    """Raise ValueError where a file would be overwritten that is not a checkpoint of this run.

    Parameters
    ----------
    path : path
    run : str
    """
    if not os.path.exists(path):
        return
    try:
        found = run_of(path)
    except ValueError as error:
        raise ValueError(f"checkpoint: {error}, and is not overwritten") from None
    if found != run:
        raise ValueError(
            f"checkpoint: {os.fspath(path)} is of another run, and is not overwritten: go on with "
            "that one by Trainer.load, or give another path"
        )
