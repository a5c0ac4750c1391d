"""The choice of a structure for the curvature of a network."""

from __future__ import annotations

from collections.abc import Mapping

from kfc_numba.curvature.blockdiagonal import BLOCKS, BlockDiagonal
from kfc_numba.curvature.inverses import InverseBlocks
from kfc_numba.curvature.tridiagonal import BlockTridiagonal
from kfc_numba.graph import Graph

#: Structures of the whole network: see the classes of `BLOCKS`, and `BlockTridiagonal`.
STRUCTURES = (*BLOCKS, "tridiagonal")


def check_structure(structure: str | Mapping[str, str]) -> str | dict[str, str]:
    """Raise where a structure is none, whatever the network.

    Parameters
    ----------
    structure : str or mapping of str to str
        One of `STRUCTURES`, or one of `BLOCKS` for each named layer.

    Returns
    -------
    str or dict of str to str
        What was given.

    Raises
    ------
    TypeError
        Neither a string nor a mapping between strings.
    ValueError
        An unknown structure.
    """
    if isinstance(structure, str):
        if structure not in (*BLOCKS, "tridiagonal"):
            raise ValueError(f"structure (={structure!r}) must be one of {STRUCTURES}")
        return structure
    if not isinstance(structure, Mapping) or not all(isinstance(name, str) for name in structure):
        raise TypeError(
            f"structure (={structure!r}) must be one of {STRUCTURES} or a mapping from names of "
            "layers"
        )
    for name, value in structure.items():
        if value not in BLOCKS:
            raise ValueError(f"structure[{name!r}] (={value!r}) must be one of {tuple(BLOCKS)}")
    return dict(structure)


def check_settings(structure: str | Mapping[str, str], approx: str, strategy: str) -> None:
    """Raise where a structure cannot have a setting, or would ignore it.

    Parameters
    ----------
    structure : str or mapping of str to str
        As from `check_structure`.
    approx : {"expand", "reduce"}
        See `kfc_numba.curvature.factors.scale`.
    strategy : {"pi", "exact", "uniform"}
        See `kfc_numba.curvature.damping.damped_eigenvalues`.

    Raises
    ------
    ValueError
    """
    if structure == "tridiagonal" and strategy == "exact":
        raise ValueError(
            "damping_strategy (='exact') must be 'pi' or 'uniform' with structure 'tridiagonal', "
            "which damps its factors"
        )
    named = BLOCKS.get(structure) if isinstance(structure, str) else None
    if named is not None and not named.has_factors and approx != "expand":
        raise ValueError(
            f"kfac_approx (={approx!r}) must be 'expand' with structure {structure!r}, which has "
            "no Kronecker factors"
        )


def curvature_of(
    net: Graph,
    structure: str | Mapping[str, str] = "kronecker",
    approx: str = "expand",
    *,
    inverses: bool = False,
) -> BlockDiagonal:
    """The curvature of a network in the chosen structure.

    Parameters
    ----------
    net : Graph
    structure : str or mapping of str to str
        One of `STRUCTURES`, or one of `BLOCKS` for each named layer; see `BlockDiagonal`.
    approx : {"expand", "reduce"}
        See `kfc_numba.curvature.factors.scale`.
    inverses : bool
        Whether the damped inverses of Kronecker factors are kept, and no eigenvectors; see
        `kfc_numba.curvature.inverses.InverseBlock`. Not of a tridiagonal structure.

    Returns
    -------
    BlockDiagonal

    Raises
    ------
    TypeError, ValueError
        An unknown structure or layer, or a structure that a layer cannot have.
    """
    structure = check_structure(structure)
    if structure == "tridiagonal":
        return BlockTridiagonal(net, approx)
    return (InverseBlocks if inverses else BlockDiagonal)(net, structure, approx)
