"""Comparisons with other libraries need the extra ``peers``, in an environment of its own.

Without those libraries nothing here is collected; ``pytest tests/peers`` then ends with an error
that no tests ran.
"""

import importlib
import importlib.util
import warnings

NEEDED = ("torch", "curvlinops", "jax", "kfac_jax")

if any(importlib.util.find_spec(name) is None for name in NEEDED):
    collect_ignore_glob = ["test_*.py"]
else:
    # Importing them warns of their own internals, which are not ours to mend.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in NEEDED:
            importlib.import_module(name)
