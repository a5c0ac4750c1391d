"""Objects of hyperparameters as a program would write them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def written(value: Any, usual: Mapping[str, Any]) -> str:
    """The call that makes an object of hyperparameters, without those that are as usual.

    Parameters
    ----------
    value : object
    usual : mapping of str to object

    Returns
    -------
    str
        In the order of the constructor's arguments; attributes that are none of them follow.
    """
    own = {name: entry for name, entry in vars(value).items() if not name.startswith("_")}
    names = [name for name in inspect.signature(type(value)).parameters if name in own]
    given = (
        f"{name}={own[name]!r}"
        for name in dict.fromkeys((*names, *own))
        if name not in usual or repr(own[name]) != repr(usual[name])
    )
    return f"{type(value).__name__}({', '.join(given)})"
