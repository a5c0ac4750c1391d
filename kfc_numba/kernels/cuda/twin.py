"""What a kernel for devices has in common with the one for the CPU: its documentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Kernel = TypeVar("Kernel", bound=Callable)


def twin(original: Callable[..., Any]) -> Callable[[Kernel], Kernel]:
    """Decorator of a kernel that does with CuPy's arrays what another does with NumPy's.

    The kernel is documented as the other is; what its own docstring says are notes to that.
    """

    def decorate(kernel: Kernel) -> Kernel:
        text = inspect.cleandoc(original.__doc__ or "").replace("numpy.ndarray", "cupy.ndarray")
        if kernel.__doc__:
            text += f"\n\nNotes\n-----\n{inspect.cleandoc(kernel.__doc__)}"
        kernel.__doc__ = text
        return kernel

    return decorate
