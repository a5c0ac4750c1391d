"""How good the approximations are, and what they cost."""

from kfc_numba.curvature.report.check import check_curvature
