"""Import, and a first step, of a new process: compiled kernels absent, then at hand."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

STEP = """
import numpy as np
import kfc_numba as kfc
from kfc_numba import networks

rng = np.random.default_rng(0)
x, y = rng.standard_normal((256, 28, 28, 1), np.float32), rng.integers(0, 10, 256)
net = networks.build("small", (28, 28, 1), 10)
kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), kfc.KFC()).step(x, y)
"""


def seconds(code: str, cache: str) -> float:
    """Time of a process that runs some code with a folder for compiled kernels."""
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return time.perf_counter() - start


class ColdStart:
    """The whole process counts, from the start of the interpreter to its end."""

    timeout = 600
    unit = "s"

    def setup_cache(self) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as cache:
            empty = seconds(STEP, cache)
            filled = min(seconds(STEP, cache) for _ in range(2))
            imported = min(seconds("import kfc_numba", cache) for _ in range(2))
            bare = min(seconds("pass", cache) for _ in range(2))
        return {"empty": empty, "filled": filled, "import": imported - bare}

    def track_first_kfc_step_empty_cache(self, figures: dict[str, float]) -> float:
        return figures["empty"]

    def track_first_kfc_step_filled_cache(self, figures: dict[str, float]) -> float:
        return figures["filled"]

    def track_import(self, figures: dict[str, float]) -> float:
        return figures["import"]


def timeraw_import() -> str:
    """Import of the package in a new interpreter."""
    return "import kfc_numba"
