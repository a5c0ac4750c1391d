"""A report as text: tables no wider than a terminal, with what their columns are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from kfc_numba.curvature.report import correlations

if TYPE_CHECKING:
    from kfc_numba.curvature.report.check import Report

#: Approximations that are compared with the exact block.
COMPARED = ("expand", "reduce", "ekfac", "diagonal")

_ERRORS = """\
error of each approximation A of a layer's exact block F: |A - F| / |F|, Frobenius norm, on
{exact_examples} examples (0: exact; 1: as bad as zero; -: above {largest} parameters, or none)"""
_FACTORS = (
    "Omega (of a layer's inputs) and Gamma (of derivatives by its outputs), on {examples} examples"
)
_EXPLAINED = (
    ("cosine", "of the angle between expand and F: 1 where only the scale is wrong"),
    ("condition", "largest over smallest eigenvalue: the larger, the more damping matters"),
    ("pi", "how damping is divided between the two: above 1, Omega gets more"),
    ("correlation", "of neighbouring locations, which expand takes for 0 in derivatives"),
    ("kB", "of memory, for factors and eigenvectors"),
    ("moments", "milliseconds for the two factors"),
    ("eigen", "milliseconds for their eigenvectors"),
)


def report(found: Report) -> str:
    """Two tables, of errors and of factors, and what the batch costs.

    Parameters
    ----------
    found : Report

    Returns
    -------
    str
    """
    c = found.costs
    foot = (
        f"on {found.examples} examples: gradient {1e3 * c['gradient_seconds']:.3g} ms, statistics "
        f"{1e3 * c['statistics_seconds']:.3g} ms, decomposition "
        f"{1e3 * c['decomposition_seconds']:.3g} ms\n"
        f"suggested for at most {100 * c['overhead']:g}% of a gradient each: "
        f"curvature_update_period={c['curvature_update_period']}, "
        f"inverse_update_period={c['inverse_update_period']}"
    )
    errors = ["parameters", *COMPARED, "cosine"]
    factors = ["condition\nOmega", "condition\nGamma", "pi", "correlation\nderivatives"]
    factors += ["correlation\ninputs", "kB", "moments\n(ms)", "eigen\n(ms)"]
    return "\n\n".join(
        (
            _ERRORS.format(**vars(found)),
            _table([_errors(row) for row in found.rows], errors),
            _FACTORS.format(**vars(found)),
            _table([_factors(row) for row in found.rows], factors),
            tabulate(_EXPLAINED, tablefmt="plain"),
            foot,
        )
    )


def _table(rows: Sequence[Sequence[Any]], heads: Sequence[str]) -> str:
    return tabulate(rows, ["layer", *heads], "simple", floatfmt=".3g", missingval="-")


def _errors(row: Mapping[str, Any]) -> list[Any]:
    errors = row["relative_error"] or dict.fromkeys(COMPARED)
    cosine = row["cosine"]["expand"] if row["cosine"] else None
    return [row["layer"], row["parameters"], *(errors[name] for name in COMPARED), cosine]


def _factors(row: Mapping[str, Any]) -> list[Any]:
    line = [row["layer"], row["condition_omega"], row["condition_gamma"], row["pi"]]
    for kind in correlations.KINDS:
        line.append(correlations.neighbours(row[f"{kind}_correlation"]))
    line.append(sum(row["bytes"].values()) / 1e3)
    seconds = row["seconds"]
    if seconds is None:
        return [*line, None, None]
    line.append(1e3 * (seconds["omega"] + seconds["gamma"]))
    line.append(1e3 * (seconds["omega_eigenvectors"] + seconds["gamma_eigenvectors"]))
    return line
