"""``kfc-numba info``: what a result was or would be computed with."""

from __future__ import annotations

import argparse
from typing import Any

from tabulate import tabulate

from kfc_numba.environment import environment


def command(arguments: argparse.Namespace) -> None:
    """Print the environment.

    Parameters
    ----------
    arguments : argparse.Namespace
    """
    found = environment()
    threads = f"{found.pop('threads')} of at most {found.pop('most_threads')}"
    found["blas"] = "; ".join(
        f"{b['internal_api']} {b['version']}, {b['num_threads']} threads" for b in found["blas"]
    )
    found["cpu_features"] = " ".join(found["cpu_features"])
    rows: list[tuple[str, Any]] = []
    for name, value in found.items():
        if name == "threading_layer":
            rows.append(("threads", threads))
        rows.append((_WORDS.get(name, name), "not installed" if value is None else value))
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))


_WORDS = {
    "cpu": "processor",
    "cpu_features": "vector instructions",
    "vector_bits": "vector width (bits)",
    "cpus": "processors usable",
    "threading_layer": "threading layer",
    "blas": "BLAS",
    "cuda": "CUDA",
}
