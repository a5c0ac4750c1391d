"""How far training has come, on standard error: a bar in a terminal, in a log a line a time."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

WIDTH = 100  #: columns that nothing is wider than


class Progress:
    """What is shown of a training: nothing, and by subclasses something.

    A context manager, which ends what is shown.
    """

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def step(self, loss: float, epoch: int) -> None:
        """A step was done.

        Parameters
        ----------
        loss : float
            Of its batch.
        epoch : int
            The pass that it belongs to, from 1.
        """

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """There is a new row of the history.

        Parameters
        ----------
        row : mapping of str to object
        """

    def close(self) -> None:
        """Nothing more will be shown."""


class Lines(Progress):
    """A line for each evaluation, without carriage returns: for logs and pipes.

    Parameters
    ----------
    stream : text stream
    total : int
        Number of the last step.
    """

    def __init__(self, stream: TextIO, total: int):
        self._stream: TextIO | None = stream
        self._total = total

    def evaluated(self, row: Mapping[str, Any]) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(f"{line(row, self._total)}\n")
            self._stream.flush()
        except (OSError, ValueError):
            # The reader is gone: that is no reason to lose the training.
            self._stream = None


class Bar(Progress):
    """A bar by tqdm, redrawn in place: for terminals and notebooks.

    Parameters
    ----------
    stream : text stream
    first, total : int
        Numbers of steps done, and of the last step.
    epochs : int, optional
        Passes to do, if they limit the training.
    """

    def __init__(self, stream: TextIO, first: int, total: int, epochs: int | None):
        # In a notebook this is the bar of a notebook; elsewhere, tqdm's own.
        from tqdm.auto import tqdm

        self._bar = tqdm(
            desc="compiling",
            initial=first,
            total=total,
            unit="step",
            file=stream,
            ncols=min(WIDTH, shutil.get_terminal_size().columns),
            nrows=20,  # tqdm shows nothing in a terminal that says it has none
        )
        self._name = "epoch {}" if epochs is None else f"epoch {{}}/{epochs}"
        self._begun = False
        self._error = ""

    def step(self, loss: float, epoch: int) -> None:
        self._bar.set_postfix_str(f"loss {number(loss)}{self._error}", refresh=False)
        self._bar.set_description_str(self._name.format(epoch), refresh=False)
        if self._begun:
            self._bar.update()
            return
        # The first step compiles: it says nothing about how long the others take.
        self._begun = True
        self._bar.initial += 1
        self._bar.n += 1
        self._bar.unpause()

    def evaluated(self, row: Mapping[str, Any]) -> None:
        if row["validation_error"] is not None:
            self._error = f", error {number(row['validation_error'])}"
        self._bar.set_postfix_str(f"loss {number(row['training_loss'])}{self._error}")

    def close(self) -> None:
        self._bar.close()


def progress(shown: bool, first: int, total: int, epochs: int | None) -> Progress:
    """What suits standard error as it is now.

    Parameters
    ----------
    shown : bool
        Whether anything is.
    first, total : int
        Numbers of steps done, and of the last step.
    epochs : int, optional
        Passes to do, if they limit the training.

    Returns
    -------
    Progress
    """
    stream = sys.stderr
    if not shown or stream is None or stream.closed:
        return Progress()
    if stream.isatty() or "ipykernel" in sys.modules:
        return Bar(stream, first, total, epochs)
    return Lines(stream, total)


def line(row: Mapping[str, Any], total: int) -> str:
    """A row of a history in one line.

    Parameters
    ----------
    row : mapping of str to object
    total : int
        Number of the last step.

    Returns
    -------
    str
    """
    place = f"step {row['step']}/{total}, epoch {row['epoch']:.2f}, {row['seconds']:.1f} s"
    return f"{place}: {described(row)}"


def described(row: Mapping[str, Any]) -> str:
    """Losses and error of a row.

    Parameters
    ----------
    row : mapping of str to object

    Returns
    -------
    str
    """
    text = f"training loss {number(row['training_loss'])}"
    if row["validation_loss"] is not None:
        text += f", validation loss {number(row['validation_loss'])}"
        text += f", error {number(row['validation_error'])}"
    return text


def number(value: float) -> str:
    """Four digits: never as wide as a number in full can be."""
    return f"{value:.4g}"
