"""Factors and damping of other libraries, so that published settings can be carried over.

All of them estimate the same block, up to a factor: A (x) G with A = a Omega and G = b Gamma.
M is the number of examples and T that of output locations (1 for a dense layer on vectors).

================  ==================  ====================  =============  ====================
library           a                   b                     columns of A   its damping
================  ==================  ====================  =============  ====================
kfc_numba         1                   1                     KH, KW, C, 1   of "pi", "exact"
kfac-jax          1 / T               1                     KH, KW, C, 1   the same number [1]_
curvlinops, mean  1 / T               T                     C, KH, KW, 1   the same number [2]_
curvlinops, sum   1 / T               M T                   C, KH, KW, 1   M times ours [2]_
curvlinops with   1                   1 (mean), M (sum)     C, KH, KW, 1   as above
``REDUCE`` [3]_
kfac-pytorch,     1 / T^3             1 / (M T)^2           C, KH, KW, 1   ours / (M^2 T^5) [4]_
convolution
kfac-pytorch,     1 / T               1 / M^2               inputs, 1      ours / (M^2 T) [4]_
dense layer
================  ==================  ====================  =============  ====================

A damping of lambda on (Omega, Gamma) acts as one of a b lambda on (a Omega, b Gamma), by
``"exact"`` damping (lambda is added to the eigenvalues of the product) and by factored Tikhonov
damping (``"pi"``): pi takes up what is shifted between the factors. Damping both factors by one
number (``"uniform"``, or curvlinops' default) carries over only where a = b.

Where their loss of an example is w times the negative log-likelihood, b and the damping are w
times as large: pass ``loss_weight=w``. PyTorch's ``MSELoss`` has w = 2 with ``reduction="sum"``,
and 2 / K with ``"mean"``, K outputs; ``BCEWithLogitsLoss`` 1, and 1 / K; ``CrossEntropyLoss`` 1,
and 1 / L with ``"mean"`` over L predictions of an example; kfac-jax's
``register_squared_error_loss``, and its normal distribution by default (variance 0.5), have 2. With
the empirical Fisher it is w squared.

.. [1] It stores A and G and applies T (A (x) G), with the damping divided by T inside: the
   product comes out the same. Its damping also gets its ``l2_reg`` added. A factor of one row is
   not damped there.
.. [2] ``use_exact_damping=True`` is "exact", ``use_heuristic_damping=True`` is "pi".
.. [3] ``kfac_approx="reduce"`` here.
.. [4] From derivatives of the mean loss over the M examples of one process, with the labels as
   targets (``fisher_empirical``), by its default ``ComputeMethod.EIGEN``, which is "exact".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kfc_numba.checks import check_number

__all__ = ["Convention", "curvlinops", "kfac_jax", "kfac_pytorch"]


@dataclass(frozen=True)
class Convention:
    """How another library scales and orders the factors of one layer.

    Attributes
    ----------
    omega_scale, gamma_scale : float
        a and b: their A is a Omega, their G is b Gamma.
    channels_first : bool
        Whether the columns of A are (channel, kernel row, kernel column) instead of (kernel row,
        kernel column, channel). The bias is last in either.
    """

    omega_scale: float
    gamma_scale: float
    channels_first: bool = False

    def to_factors(
        self, omega: np.ndarray, gamma: np.ndarray, kernel: tuple[int, int] = (1, 1)
    ) -> tuple[np.ndarray, np.ndarray]:
        """A and G from Omega and Gamma.

        Parameters
        ----------
        omega, gamma : numpy.ndarray
            (D, D) and (I, I), as this library keeps them.
        kernel : pair of int
            Height and width of the kernel.

        Returns
        -------
        a, g : numpy.ndarray
        """
        order = self._order(len(omega), kernel)
        return self.omega_scale * omega[np.ix_(order, order)], self.gamma_scale * gamma

    def from_factors(
        self, a: np.ndarray, g: np.ndarray, kernel: tuple[int, int] = (1, 1)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Omega and Gamma from A and G: inverse of `to_factors`.

        Parameters
        ----------
        a, g : numpy.ndarray
        kernel : pair of int
            Height and width of the kernel.

        Returns
        -------
        omega, gamma : numpy.ndarray
        """
        order = np.argsort(self._order(len(a), kernel))
        return a[np.ix_(order, order)] / self.omega_scale, g / self.gamma_scale

    def to_damping(self, damping: float) -> float:
        """Their damping from ours, by "exact" and by factored Tikhonov damping.

        Parameters
        ----------
        damping : float

        Returns
        -------
        float
        """
        return self.damping_scale * damping

    def from_damping(self, damping: float) -> float:
        """Our damping from theirs: inverse of `to_damping`.

        Parameters
        ----------
        damping : float

        Returns
        -------
        float
        """
        return damping / self.damping_scale

    @property
    def damping_scale(self) -> float:
        """What our damping is multiplied by."""
        return self.omega_scale * self.gamma_scale

    def _order(self, columns: int, kernel: tuple[int, int]) -> np.ndarray:
        """Our column for each of theirs."""
        taps = kernel[0] * kernel[1]
        channels = columns // taps
        bias = columns - taps * channels
        if taps > 1 and bias > 1:
            raise ValueError(
                f"kernel (={kernel!r}) does not fit {columns} columns with or without a bias"
            )
        places = np.arange(columns)
        if self.channels_first and taps > 1:
            places[: taps * channels] = places[: taps * channels].reshape(taps, channels).T.ravel()
        return places


@dataclass(frozen=True)
class _KfacJax(Convention):
    """T (A (x) G) is damped: with the same number as Omega (x) Gamma."""

    @property
    def damping_scale(self) -> float:
        return self.omega_scale * self.gamma_scale * self.locations

    locations: int = 1


def kfac_jax(*, locations: int = 1, loss_weight: float = 1.0) -> Convention:
    """Convention of kfac-jax (0.0.8), `Conv2DTwoKroneckerFactored` and `DenseTwoKroneckerFactored`.

    Parameters
    ----------
    locations : int
        T, the number of output locations of a convolution; 1 for a dense layer.
    loss_weight : float
        w, see the table.

    Returns
    -------
    Convention
    """
    check_number("locations", locations, "(0, inf)")
    check_number("loss_weight", loss_weight, "(0, inf)")
    return _KfacJax(1 / locations, loss_weight, locations=locations)


def curvlinops(
    *,
    examples: int,
    locations: int = 1,
    approx: str = "expand",
    reduction: str = "mean",
    loss_weight: float = 1.0,
) -> Convention:
    """Convention of curvlinops (3.0.1), `KFACLinearOperator`.

    Parameters
    ----------
    examples : int
        M.
    locations : int
        T, the number of output locations.
    approx : {"expand", "reduce"}
        ``KFACType.EXPAND`` or ``KFACType.REDUCE``.
    reduction : {"mean", "sum"}
        Of the loss function.
    loss_weight : float
        w, see the table.

    Returns
    -------
    Convention
    """
    check_number("examples", examples, "(0, inf)")
    check_number("locations", locations, "(0, inf)")
    check_number("loss_weight", loss_weight, "(0, inf)")
    if approx not in ("expand", "reduce"):
        raise ValueError(f"approx (={approx!r}) must be 'expand' or 'reduce'")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction (={reduction!r}) must be 'mean' or 'sum'")
    shared = locations if approx == "expand" else 1
    total = examples if reduction == "sum" else 1
    return Convention(1 / shared, loss_weight * total * shared, channels_first=True)


def kfac_pytorch(
    *, examples: int, locations: int = 1, convolution: bool = True, loss_weight: float = 1.0
) -> Convention:
    """Convention of kfac-pytorch, `Conv2dModuleHelper` and `LinearModuleHelper`.

    Parameters
    ----------
    examples : int
        M, in one process.
    locations : int
        T, the number of output locations.
    convolution : bool
        Whether the layer is a convolution, not a dense layer.
    loss_weight : float
        w, see the table; its square, since it has the empirical Fisher, is taken here.

    Returns
    -------
    Convention
    """
    check_number("examples", examples, "(0, inf)")
    check_number("locations", locations, "(0, inf)")
    check_number("loss_weight", loss_weight, "(0, inf)")
    weight = loss_weight**2 / examples**2
    if convolution:
        return Convention(1 / locations**3, weight / locations**2, channels_first=True)
    return Convention(1 / locations, weight)
