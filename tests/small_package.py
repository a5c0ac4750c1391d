"""Programs in processes of their own, and a small package around the real compiler settings."""

import os
import shutil
import subprocess
import sys
import textwrap

from kfc_numba.kernels.cpu import jit


def run(code, *arguments, timeout=300, **environment):
    """Output of a Python program; fails with its messages unless it ends well."""
    return process(code, *arguments, timeout=timeout, **environment).stdout.split()


def process(code, *arguments, timeout=300, before=None, **environment):
    """A Python program that has ended well; `before` runs in it before Python does."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        preexec_fn=before,
    )
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stderr}"
    return result


# A small package around the real jit.py: one kernel that calls a function of another file.

CALLEE = """
from jit import {0}

@{0}
def term(x):
    return x + {1}
"""
CALLER = """
import numpy as np
from numba import prange
from callee import term
from jit import parallel

@parallel
def kernel(x, out):
    for i in prange(x.size):
        out[i] = term(x[i])

def total(n):
    x = np.zeros(n)
    out = np.empty_like(x)
    kernel(x, out)
    return out.sum()
"""
CALL = """
import sys
sys.path.insert(0, sys.argv[1])
import caller
print(caller.total(3))
stats = caller.kernel._parallel.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def write_package(folder, constant=1, kind="serial"):
    folder.mkdir(exist_ok=True)
    shutil.copy(jit.__file__, folder / "jit.py")
    (folder / "callee.py").write_text(CALLEE.format(kind, constant))
    (folder / "caller.py").write_text(CALLER)
