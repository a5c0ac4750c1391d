"""Which run a checkpoint is of: one training, however often it was stopped and gone on with."""

from __future__ import annotations

import json
import os
import secrets

import safetensors


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
