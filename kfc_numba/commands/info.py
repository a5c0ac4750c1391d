"""``kfc-numba info``: what a result was or would be computed with."""

from __future__ import annotations

import argparse
import textwrap

from tabulate import tabulate

from kfc_numba.environment import environment
from kfc_numba.progress import WIDTH


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
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        if name == "threading_layer":
            rows.append(("threads", threads))
        rows.append((_WORDS.get(name, name), "not installed" if value is None else str(value)))
    rest = WIDTH - max(len(name) for name, _ in rows) - 2
    wrapped = [(name, textwrap.fill(value, rest)) for name, value in rows]
    print(tabulate(wrapped, tablefmt="plain", disable_numparse=True))


_WORDS = {
    "cpu": "processor",
    "cpu_features": "vector instructions",
    "vector_bits": "vector width (bits)",
    "cpus": "processors usable",
    "threading_layer": "threading layer",
    "blas": "BLAS",
    "cuda": "CUDA",
}
