"""``python -m kfc_numba`` is the command ``kfc-numba``."""

import sys

from kfc_numba.cli import main

sys.exit(main())
