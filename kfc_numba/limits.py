"""How far a training goes: so much more, or up to so much in total."""

from __future__ import annotations

from dataclasses import dataclass

from kfc_numba.checks import check_integer


@dataclass(frozen=True)
class Limits:
    """Passes and steps, counted from the start of training, that a training ends at.

    Attributes
    ----------
    epochs, steps : int or None
        The first that is reached ends it.
    """

    epochs: int | None
    steps: int | None

    @classmethod
    def of(
        cls,
        epoch: int,
        step: int,
        *,
        epochs: int | None,
        max_steps: int | None,
        total_epochs: int | None,
        total_steps: int | None,
    ) -> Limits:
        """Limits of a call that begins after some passes and steps.

        Parameters
        ----------
        epoch, step : int
            Passes and steps done.
        epochs, max_steps : int or None
            So many more.
        total_epochs, total_steps : int or None
            Up to so many in total.

        Returns
        -------
        Limits

        Raises
        ------
        TypeError, ValueError
            One is no integer of at least 1, or none is given.
        """
        given = {
            "epochs": epochs,
            "max_steps": max_steps,
            "total_epochs": total_epochs,
            "total_steps": total_steps,
        }
        for name, number in given.items():
            if number is not None:
                check_integer(name, number)
        if all(number is None for number in given.values()):
            *most, last = given
            raise ValueError(f"{', '.join(most)} or {last} must be given, got None for each")
        return cls(_least(epoch, epochs, total_epochs), _least(step, max_steps, total_steps))

    def reached(self, epoch: int, step: int) -> bool:
        """Whether passes or steps are as many as they may be.

        Parameters
        ----------
        epoch, step : int

        Returns
        -------
        bool
        """
        return (self.epochs is not None and epoch >= self.epochs) or (
            self.steps is not None and step >= self.steps
        )

    def last_step(self, epoch: int, step: int, left: int, whole: int) -> int:
        """The number of the step that training ends with.

        Parameters
        ----------
        epoch, step : int
            Passes and steps done.
        left, whole : int
            Steps that are left of the current pass, and of a pass.

        Returns
        -------
        int
        """
        ends = [] if self.steps is None else [self.steps]
        if self.epochs is not None:
            passes = max(self.epochs - epoch, 0)
            ends.append(step + (left + whole * (passes - 1) if passes else 0))
        return max(min(ends), step)


def _least(done: int, more: int | None, total: int | None) -> int | None:
    ends = [end for end in (None if more is None else done + more, total) if end is not None]
    return min(ends, default=None)
