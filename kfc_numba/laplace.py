"""Error bars: the Kronecker factors as the precision of a normal posterior over the weights.

Laplace's approximation (MacKay, 1992, "A practical Bayesian framework for backpropagation
networks"; with Kronecker factors Ritter, Botev and Barber, 2018, "A scalable Laplace approximation
for neural networks"): around trained parameters, theta is normal with that mean and the precision
``N F + tau I``, F the Fisher matrix of an example, N the number of examples and tau the precision
of the prior, a normal distribution around zero.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike

from kfc_numba.arrays import cast
from kfc_numba.checks import check_choice, check_integer, check_number
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.factors import APPROXIMATIONS
from kfc_numba.curvature.linearised import jacobian_size, output_covariance, variances
from kfc_numba.devices import like, to_host
from kfc_numba.evaluation import check_data, finite_inputs
from kfc_numba.graph import Graph
from kfc_numba.losses import Loss, SquaredError
from kfc_numba.random import generator

__all__ = ["KroneckerPosterior"]

METHODS = ("linearised", "monte_carlo")

#: Bytes of Jacobians that are laid out at a time.
CHUNK_BYTES = 1 << 26


class KroneckerPosterior:
    """Normal posterior over a network's weights, by its Kronecker-factored Fisher matrix.

    The precision is ``N F + prior_precision I`` with F block-diagonal: Omega (x) Gamma for each
    layer that has Kronecker factors, the diagonal of F for others (batch normalisation). It is
    damped in the eigenbases of the factors, so nothing is decomposed anew when the prior changes.
    The network is taken in evaluation mode: without dropout, with running statistics. Parameters
    and running statistics are copied by `fit`: later training changes nothing here. `state`, `mean`
    and samples lie where the network did; whatever is predicted is in the memory of the host.

    Targets of `SquaredError` have unit variance around the outputs: divide them by the standard
    deviation of their noise first, where that is another.

    Parameters
    ----------
    net : Graph
        Trained with `loss`, and best with ``l2_reg`` of `prior_precision` over the number of
        examples: the posterior is exact for linear networks only around the maximum that the prior
        gives.
    loss : Loss
    prior_precision : float
        tau, above 0: one over the variance of each parameter before the data.
    kfac_approx : {"expand", "reduce"}
        See `kfc_numba.curvature.factors.scale`.

    Attributes
    ----------
    net, loss, prior_precision
        As given; the prior may be set anew at any time.
    examples : int
        N; 0 before `fit`.
    state : dict of str to numpy.ndarray
        Factors and their eigendecompositions, as `BlockDiagonal` keeps them.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    def __init__(
        self, net: Graph, loss: Loss, prior_precision: float = 1.0, *, kfac_approx: str = "expand"
    ):
        for name, value, kind in (("net", net, Graph), ("loss", loss, Loss)):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
        check_choice("kfac_approx", kfac_approx, APPROXIMATIONS)
        self.net = net
        self.loss = loss
        self.kfac_approx = kfac_approx
        self.prior_precision = prior_precision
        self.examples = 0
        self.state: dict[str, np.ndarray] = {}
        self._curvature = BlockDiagonal(net, "kronecker", kfac_approx)

    @property
    def prior_precision(self) -> float:
        """tau, the precision of the prior of each parameter."""
        return self._prior_precision

    @prior_precision.setter
    def prior_precision(self, value: float) -> None:
        self._prior_precision = check_number("prior_precision", value, "(0, inf)")

    @property
    def mean(self) -> dict[str, np.ndarray]:
        """Parameters at the time of `fit`, by name."""
        return self._fitted().params

    def fit(
        self,
        x: ArrayLike,
        *,
        estimation_mode: str = "fisher_exact",
        batch_size: int = 256,
        seed: int = 0,
    ) -> KroneckerPosterior:
        """Compute the factors on a data set at the current parameters.

        Parameters
        ----------
        x : array_like
            Inputs that the network was trained on, (N, *input_shape). Targets are not needed: the
            Fisher matrix does not depend on them.
        estimation_mode : {"fisher_exact", "fisher_gradients"}
            With one backward pass for each output component, or with one for sampled targets.
        batch_size : int
            Examples computed at a time; the result is their mean, whatever it is.
        seed : int
            Of sampled targets.

        Returns
        -------
        KroneckerPosterior
            This one.
        """
        if estimation_mode not in ("fisher_exact", "fisher_gradients"):
            raise ValueError(
                f"estimation_mode (={estimation_mode!r}) must be 'fisher_exact' or "
                "'fisher_gradients'"
            )
        check_integer("batch_size", batch_size)
        check_integer("seed", seed, least=0)
        x = finite_inputs(self.net, x, "x")
        fitted = copy.copy(self.net)
        fitted.params = {name: value.copy() for name, value in self.net.params.items()}
        fitted.buffers = {name: value.copy() for name, value in self.net.buffers.items()}
        curvature = BlockDiagonal(fitted, "kronecker", self.kfac_approx)
        state = curvature.initial_state()
        totals: dict[str, np.ndarray] = {}
        for index, start in enumerate(range(0, len(x), batch_size)):
            part = x[start : start + batch_size]
            rng = generator(seed, "posterior targets", index)
            found = curvature.estimate(
                fitted.forward(part), self.loss, state, mode=estimation_mode, rng=rng
            )
            for name, value in found.items():
                # In float64: a data set has many batches.
                share = cast(value, np.float64) * (len(part) / len(x))
                totals[name] = totals[name] + share if name in totals else share
        state |= {name: cast(value, fitted.dtype) for name, value in totals.items()}
        state["factor_weight"] = np.ones(())
        state |= curvature.decompose(state)
        self._curvature, self.state, self.examples = curvature, state, len(x)
        return self

    # The evidence.

    def log_marginal_likelihood(self, x: ArrayLike, y: ArrayLike) -> float:
        """Laplace's approximation of the log probability of the targets.

        ``log p(y | theta) - tau/2 |theta|^2 + P/2 log tau - 1/2 log det(N F + tau I)``, P the
        number of parameters; the probability of `SquaredError` has its normalisation, which the
        loss leaves out.

        Parameters
        ----------
        x, y : array_like
            The N examples that `fit` saw, and their targets.

        Returns
        -------
        float
            In nats.
        """
        net = self._fitted()
        x, y = check_data(net, self.loss, x, y, "x", "y")
        if len(x) != self.examples:
            raise ValueError(f"x has {len(x)} examples, fit saw {self.examples}")
        outputs = net.predict(x)
        fit = -float(to_host(self.loss.values(outputs, y)).sum())
        if isinstance(self.loss, SquaredError):
            fit -= 0.5 * np.log(2 * np.pi) * outputs.size
        return fit + self._log_occam(self.prior_precision)

    def tune_prior(self) -> float:
        """Set the prior to the maximum of the log marginal likelihood at fixed parameters.

        The derivative by log tau is half of ``sum(N f / (N f + tau)) - tau |theta|^2`` over
        eigenvalues f of F (MacKay's effective number of parameters, less tau |theta|^2). It falls
        strictly, from above zero to below: the maximum is the one root, found by Brent's method in
        log tau. The likelihood of the targets does not depend on tau, so no data are needed.

        Returns
        -------
        float
            The new `prior_precision`.

        Raises
        ------
        ValueError
            There is no maximum: all parameters are zero, or the Fisher matrix is.
        """
        from scipy.optimize import (
            brentq,
        )  # here: it would double the time that the package loads in

        values = self._precisions()
        square = self._square()
        if not square > 0 or not values.max() > 0:
            what = "parameters are all zero" if not square > 0 else "Fisher matrix is zero"
            raise ValueError(f"the marginal likelihood has no maximum: the {what}")

        def slope(log_tau: float) -> float:
            tau = np.exp(log_tau)
            return float(np.sum(values / (values + tau)) - tau * square)

        # At the lower end one term of the sum is at least 1/2, tau |theta|^2 at most 1/4; at the
        # upper end the sum is below the number of parameters.
        low = np.log(min(values.max(), 0.25 / square))
        high = np.log(2 * len(values) / square)
        self.prior_precision = float(np.exp(brentq(slope, low, high, xtol=1e-10)))
        return self.prior_precision

    # Weights.

    def sample(self, n: int, *, seed: int = 0) -> list[dict[str, np.ndarray]]:
        """Draw parameters from the posterior.

        Parameters
        ----------
        n : int
            At least 1.
        seed : int

        Returns
        -------
        list of dict of str to numpy.ndarray
            n mappings such as ``net.params``, of its dtype. Each depends on `seed` and on its
            place alone.
        """
        check_integer("n", n)
        check_integer("seed", seed, least=0)
        return [self._sample(index, seed) for index in range(n)]

    # Predictions.

    def predict(
        self,
        x: ArrayLike,
        *,
        method: str = "linearised",
        samples: int = 100,
        seed: int = 0,
        batch_size: int = 256,
        return_std: bool = False,
    ) -> Any:
        """Predictions averaged over the posterior.

        Parameters
        ----------
        x : array_like
            Inputs, (examples, *input_shape).
        method : {"linearised", "monte_carlo"}
            "linearised": outputs are normal, by `output_distribution`; probabilities are means over
            `samples` draws of the outputs, not a probit formula; for `SquaredError` the mean is
            that of the network and nothing is drawn. "monte_carlo": means over `samples` draws of
            the parameters, a forward pass each; further from the truth where the posterior is
            wider than the region in which the network is nearly linear.
        samples : int
        seed : int
        batch_size : int
            Examples computed at a time at most; the result does not depend on it.
        return_std : bool
            Whether the standard deviation is returned too.

        Returns
        -------
        mean : numpy.ndarray
            (examples, *output_shape), float64: probabilities of classes (`SoftmaxCrossEntropy`), of
            ones (`SigmoidCrossEntropy`), or means of the targets (`SquaredError`).
        std : numpy.ndarray
            With `return_std`: the standard deviation over the posterior of what `mean` is the mean
            of. That of a target of `SquaredError` is ``sqrt(1 + std**2)``.
        """
        net = self._fitted()
        if method not in METHODS:
            raise ValueError(f"method (={method!r}) must be one of {METHODS}")
        check_integer("samples", samples)
        check_integer("seed", seed, least=0)
        check_integer("batch_size", batch_size)
        x = net.check_inputs(x)
        if method == "monte_carlo":
            mean, square = self._monte_carlo(net, x, samples, seed, batch_size)
        else:
            mean, square = self._linearise(x, samples, seed, batch_size)
        return (mean, np.sqrt(np.maximum(square, 0))) if return_std else mean

    def output_distribution(
        self, x: ArrayLike, *, batch_size: int = 256
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the outputs of the network linearised around its parameters.

        ``f(x; theta*)`` and ``J (N F + tau I)^-1 J^T``, J the exact Jacobian of an example's
        outputs, by one backward pass for each output component (and one tangent pass for each
        parameter of layers without Kronecker factors).

        Parameters
        ----------
        x : array_like
            Inputs, (examples, *input_shape).
        batch_size : int
            Examples computed at a time at most; fewer where their Jacobians are large.

        Returns
        -------
        mean : numpy.ndarray
            (examples, *output_shape), float64.
        covariance : numpy.ndarray
            (examples, K, K), float64, K the number of output components.
        """
        net = self._fitted()
        check_integer("batch_size", batch_size)
        x = net.check_inputs(x)
        means, covariances = zip(*self._distributions(x, batch_size), strict=True)
        return np.concatenate(means), np.concatenate(covariances)

    # Inside.

    def _fitted(self) -> Graph:
        if not self.examples:
            raise ValueError("the posterior has no factors yet: call fit(x) first")
        return self._curvature.net

    def _precisions(self) -> np.ndarray:
        """Eigenvalues of N F, float64."""
        self._fitted()
        parts = [
            np.ravel(to_host(block.eigenvalues(self.state, 0.0, "exact")))
            for block in self._curvature.blocks
        ]
        return self.examples * np.concatenate(parts).astype(np.float64)

    def _square(self) -> float:
        return sum(float(_square_sum(value)) for value in self.mean.values())

    def _log_occam(self, tau: float) -> float:
        """What the log marginal likelihood has besides the likelihood of the targets."""
        values = self._precisions()
        logarithms = np.sum(np.log(values + tau)) - len(values) * np.log(tau)
        return float(-0.5 * (tau * self._square() + logarithms))

    def _sample(self, index: int, seed: int) -> dict[str, np.ndarray]:
        net = self._fitted()
        rng = generator(seed, "posterior sample", index)
        found = {}
        for block in self._curvature.blocks:
            # Independent normal numbers are that in any basis: they are drawn in the eigenbasis.
            values = variances(block, self.state, self.examples, self.prior_precision)
            scale = array_namespace(values).sqrt(values)
            coordinates = scale * like(rng.standard_normal(scale.shape), scale)
            change = block.from_basis(self.state, cast(coordinates, net.dtype))
            for short in block.shapes:
                name = f"{block.name}.{short}"
                found[name] = net.params[name] + change[short]
        return found

    def _means(self, outputs: np.ndarray) -> np.ndarray:
        """What a prediction is the mean of."""
        return self.loss.predictive_mean(to_host(outputs).astype(np.float64))

    def _monte_carlo(
        self, net: Graph, x: np.ndarray, samples: int, seed: int, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        drawn = copy.copy(net)
        mean = np.zeros((len(x), *net.output_shape))
        squares = np.zeros_like(mean)
        for index in range(samples):
            drawn.params = self._sample(index, seed)
            values = self._means(drawn.predict(x, batch_size=batch_size))
            change = values - mean  # Welford: no difference of large squares
            mean += change / (index + 1)
            squares += change * (values - mean)
        return mean, squares / samples

    def _linearise(
        self, x: np.ndarray, samples: int, seed: int, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        rng = generator(seed, "posterior outputs")
        means, variances = [], []
        for mean, covariance in self._distributions(x, batch_size):
            if isinstance(self.loss, SquaredError):
                means.append(mean)
                variances.append(np.einsum("mkk->mk", covariance).reshape(mean.shape))
                continue
            values, vectors = np.linalg.eigh(covariance)
            roots = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
            noise = rng.standard_normal((len(mean), samples, roots.shape[-1]))
            drawn = np.einsum("mkj,msj->msk", roots, noise)
            drawn += mean.reshape(len(mean), 1, -1)
            drawn = self._means(drawn.reshape(len(mean), samples, *mean.shape[1:]))
            means.append(drawn.mean(axis=1))
            variances.append(drawn.var(axis=1))
        return np.concatenate(means), np.concatenate(variances)

    def _distributions(
        self, x: np.ndarray, batch_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Means and covariances of the linearised outputs, some examples at a time."""
        net = self._fitted()
        outputs = int(np.prod(net.output_shape))
        pairs = zip(net.parameter_layers(), self._curvature.blocks, strict=True)
        largest = max((jacobian_size(placed, block, outputs) for placed, block in pairs), default=1)
        count = CHUNK_BYTES // (8 * largest)
        count = max(1, min(batch_size, count))
        for start in range(0, len(x), count):
            trace = net.forward(x[start : start + count])
            covariance = output_covariance(
                self._curvature, self.state, trace, self.examples, self.prior_precision
            )
            yield to_host(trace.outputs).astype(np.float64), covariance


def _square_sum(array: np.ndarray) -> Any:
    xp = array_namespace(array)
    return xp.sum(xp.square(cast(array, np.float64)))
