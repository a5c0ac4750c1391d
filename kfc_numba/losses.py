"""Losses as negative log-likelihoods: value, derivative, sampling, Fisher of the prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike
from scipy.special import expit, log_expit, log_softmax

from kfc_numba.checks import check_real, counted
from kfc_numba.devices import like, owned, to_host
from kfc_numba.foreign_names import Explained
from kfc_numba.kernels.backend import kernels
from kfc_numba.layers.base import Shape
from kfc_numba.targets import check_range, check_shape, class_hint


class Loss(Explained):
    """Negative log-likelihood of targets under the distribution that a network predicts.

    Outputs have the examples first. Everything but `value` and `error` is about each example by
    itself: a mean over M examples has derivatives M times as small, and the Fisher matrix would
    then be M times M too small. Parts of an output that are predicted separately (pixels, or
    components) are independent given the output, and their negative log-likelihoods are added
    within an example. Outputs that are not finite give results that are not finite, without a
    warning; the optimizers check.
    """

    of_classes: ClassVar[bool] = False  #: Whether targets are numbers of classes.

    def value(self, outputs: np.ndarray, targets: ArrayLike) -> float:
        """Mean over examples of the negative log-likelihood, added up in float64.

        Parameters
        ----------
        outputs : numpy.ndarray
            Outputs of a network, (M, ...), floating point.
        targets : array_like
            As `check_targets` requires.

        Returns
        -------
        float
            In nats.
        """
        return float(to_host(self.values(outputs, targets)).mean())

    def values(self, outputs: np.ndarray, targets: ArrayLike) -> np.ndarray:
        """Negative log-likelihood of each example: (M,), float64, in nats."""
        raise NotImplementedError

    def least(self, targets: ArrayLike) -> float:
        """The least `value` that any outputs have for these targets: what no fit takes away."""
        return 0.0

    def derivative(self, outputs: np.ndarray, targets: ArrayLike) -> np.ndarray:
        """Derivative of each example's own negative log-likelihood by its outputs.

        Parameters
        ----------
        outputs : numpy.ndarray
            (M, ...), floating point.
        targets : array_like
            As `check_targets` requires.

        Returns
        -------
        numpy.ndarray
            A new array of the shape and dtype of `outputs`.
        """
        raise NotImplementedError

    def value_and_derivative(
        self, outputs: np.ndarray, targets: ArrayLike
    ) -> tuple[float, np.ndarray]:
        """`value` and `derivative` together, at less than the cost of both where they share work.

        Parameters
        ----------
        outputs : numpy.ndarray
            (M, ...), floating point.
        targets : array_like
            As `check_targets` requires.

        Returns
        -------
        value : float
            Mean over examples.
        derivative : numpy.ndarray
            Of each example's own negative log-likelihood: not of the mean.
        """
        return self.value(outputs, targets), self.derivative(outputs, targets)

    def deferred(
        self, outputs: np.ndarray, targets: ArrayLike
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """`values` and `derivative` without a wait for the card that the outputs lie on.

        Parameters
        ----------
        outputs : numpy.ndarray
            (M, ...), floating point.
        targets : array_like
            As `check_targets` requires.

        Returns
        -------
        values, derivative : numpy.ndarray
            None in place of both where the mean of `values` is not the loss.
        """
        return None

    def sample(self, outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Targets drawn from the predictive distribution, one for each example.

        Parameters
        ----------
        outputs : numpy.ndarray
            (M, ...), floating point.
        rng : numpy.random.Generator
            Numbers are drawn from it in the order of the outputs in memory.

        Returns
        -------
        numpy.ndarray
            Targets as the other methods take them.
        """
        raise NotImplementedError

    def fisher_product(self, outputs: np.ndarray, v: np.ndarray) -> np.ndarray:
        """F_R v, with F_R the Fisher matrix of each example's predictive distribution.

        F_R is the mean over sampled targets of the outer product of `derivative` with itself.

        Parameters
        ----------
        outputs, v : numpy.ndarray
            (M, ...), of one shape.

        Returns
        -------
        numpy.ndarray
            Shape of `outputs`.
        """
        raise NotImplementedError

    def fisher_columns(self, outputs: np.ndarray) -> Iterator[np.ndarray]:
        """Columns of a square root of F_R: the sum of c c^T over columns c is F_R.

        There are as many columns as an example has output components.

        Parameters
        ----------
        outputs : numpy.ndarray
            (M, ...), floating point.

        Yields
        ------
        numpy.ndarray
            A new array of the shape and dtype of `outputs`: one column for each example.
        """
        raise NotImplementedError

    def fisher_trace(self, outputs: np.ndarray) -> np.ndarray:
        """Trace of F_R for each example: how much its prediction leaves open.

        By it the examples are chosen that `KFC` computes exact curvature on. Where a loss defines
        neither this nor `fisher_columns` it is 1 for each: they are taken for alike.

        Parameters
        ----------
        outputs : numpy.ndarray
            (M, ...), floating point.

        Returns
        -------
        numpy.ndarray
            (M,), float64, on the host; its rounding error may be that of the dtype of `outputs`.
        """
        if type(self).fisher_columns is Loss.fisher_columns:
            return np.ones(len(outputs))
        dots = kernels(outputs).example_dots
        return to_host(sum(dots(column, column) for column in self.fisher_columns(outputs)))

    def divergence(self, outputs: np.ndarray, after: np.ndarray) -> np.ndarray | None:
        """Kullback-Leibler divergence from each example's prediction to another one.

        Parameters
        ----------
        outputs, after : numpy.ndarray
            (M, ...), of one shape.

        Returns
        -------
        numpy.ndarray or None
            (M,), float64, on the host; twice of it is ``d^T F_R d`` for a small difference d of
            the outputs. None: that is so for any d, or taken to be.
        """
        return None

    def predictive_mean(self, outputs: np.ndarray) -> np.ndarray:
        """Mean of the predictive distribution: probabilities of classes or of ones, or a mean.

        Parameters
        ----------
        outputs : numpy.ndarray
            (M, ...), floating point.

        Returns
        -------
        numpy.ndarray
            A new array of the shape and dtype of `outputs`.
        """
        raise NotImplementedError

    def error(self, outputs: np.ndarray, targets: ArrayLike) -> float:
        """A mean over examples that says how wrong the prediction is; each loss says which."""
        raise NotImplementedError

    def check_targets(self, outputs_shape: Shape, targets: ArrayLike) -> None:
        """Raise where targets do not fit the outputs.

        Parameters
        ----------
        outputs_shape : tuple of int
            Shape of the outputs, examples first.
        targets : array_like

        Raises
        ------
        TypeError
            Numbers of the wrong kind.
        ValueError
            Wrong shape, or a number out of range.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _ByKernel(Loss):
    """A loss whose values and derivative one kernel computes."""

    def values(self, outputs: np.ndarray, targets: ArrayLike) -> np.ndarray:
        return self._parts(outputs, targets)[0]

    def derivative(self, outputs: np.ndarray, targets: ArrayLike) -> np.ndarray:
        return self._parts(outputs, targets)[1]

    def value_and_derivative(
        self, outputs: np.ndarray, targets: ArrayLike
    ) -> tuple[float, np.ndarray]:
        values, derivative = self._parts(outputs, targets)
        return float(to_host(values).mean()), derivative

    def deferred(
        self, outputs: np.ndarray, targets: ArrayLike
    ) -> tuple[np.ndarray, np.ndarray] | None:
        if type(self).value_and_derivative is not _ByKernel.value_and_derivative:
            return None
        return self._parts(outputs, targets)

    def _parts(self, outputs: np.ndarray, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Values by example, and the derivative."""
        raise NotImplementedError

    def _pair(self, outputs: np.ndarray, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Outputs, and targets in the type that kernels take, if they fit each other."""
        numbers = owned("targets", targets)
        self.check_targets(_floating(outputs).shape, numbers)
        dtype: type = np.int64 if self.of_classes else np.float64
        if numbers.dtype == np.float32 and not self.of_classes:
            dtype = np.float32
        return outputs, like(numbers.astype(dtype, copy=False), outputs)


class SoftmaxCrossEntropy(_ByKernel):
    """Categorical distribution whose logits are the outputs.

    Outputs (M, ..., K): K classes, at each location where there are several. Targets are
    integers from 0 to K - 1, of shape (M, ...). The negative log-likelihood is
    ``log(sum(exp(outputs))) - outputs[target]``. `error` is the fraction of examples (and
    locations) whose largest output is not that of the target.
    """

    of_classes = True

    def _parts(self, outputs: np.ndarray, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        return kernels(outputs).softmax_loss(*self._pair(outputs, targets))

    def sample(self, outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # One number for each location.
        uniform = rng.random(_floating(outputs).shape[:-1])
        return kernels(outputs).softmax_sample(outputs, like(uniform, outputs))

    def fisher_product(self, outputs: np.ndarray, v: np.ndarray) -> np.ndarray:
        return kernels(outputs).softmax_fisher_product(*_same_shape(outputs, v))

    def fisher_columns(self, outputs: np.ndarray) -> Iterator[np.ndarray]:
        probabilities = self.predictive_mean(outputs)
        for index in range(math.prod(outputs.shape[1:])):
            yield kernels(outputs).softmax_fisher_column(probabilities, index=index)

    def fisher_trace(self, outputs: np.ndarray) -> np.ndarray:
        # Of diag(p) - p p^T at each location.
        probabilities = self.predictive_mean(outputs)
        locations = math.prod(outputs.shape[1:-1])
        return locations - to_host(kernels(outputs).example_dots(probabilities, probabilities))

    @np.errstate(all="ignore")
    def divergence(self, outputs: np.ndarray, after: np.ndarray) -> np.ndarray:
        before, later = (log_softmax(_in_double(z), axis=-1) for z in (outputs, after))
        terms = np.exp(before) * (before - later)
        return terms.reshape(len(terms), -1).sum(axis=1)

    def predictive_mean(self, outputs: np.ndarray) -> np.ndarray:
        return kernels(outputs).softmax(_floating(outputs))

    def error(self, outputs: np.ndarray, targets: ArrayLike) -> float:
        return kernels(outputs).softmax_error(*self._pair(outputs, targets))

    def check_targets(self, outputs_shape: Shape, targets: Any) -> None:
        targets = owned("targets", targets)
        if len(outputs_shape) < 2:
            raise ValueError(
                f"outputs must have classes as their last axis, got shape {outputs_shape}"
            )
        if targets.dtype.kind not in "iu":
            hint = class_hint(targets, outputs_shape)
            raise TypeError(f"targets must be integers, got dtype {targets.dtype}{hint}")
        if targets.shape != outputs_shape[:-1]:
            check_shape(targets, outputs_shape[:-1], class_hint(targets, outputs_shape))
        check_range(targets, 0, outputs_shape[-1] - 1, "; classes are counted from 0")


class SquaredError(_ByKernel):
    """Normal distribution of unit variance around the outputs.

    Outputs and targets are real, of one shape (M, ...). The negative log-likelihood is half the
    sum of squared differences; the constant ``log(sqrt(2 pi))`` for each component is left out.
    `error` is the mean squared difference over examples and components.
    """

    def _parts(self, outputs: np.ndarray, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        return kernels(outputs).squared_loss(*self._pair(outputs, targets))

    def sample(self, outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal(_floating(outputs).shape, outputs.dtype.type)
        return kernels(outputs).add(outputs, like(noise, outputs))

    def fisher_product(self, outputs: np.ndarray, v: np.ndarray) -> np.ndarray:
        return _same_shape(outputs, v)[1].copy()

    def fisher_columns(self, outputs: np.ndarray) -> Iterator[np.ndarray]:
        ones = like(np.ones(_floating(outputs).shape, outputs.dtype), outputs)
        for index in range(math.prod(outputs.shape[1:])):
            yield kernels(outputs).single_component(ones, index=index)

    def fisher_trace(self, outputs: np.ndarray) -> np.ndarray:
        return np.full(len(outputs), float(math.prod(_floating(outputs).shape[1:])))

    def predictive_mean(self, outputs: np.ndarray) -> np.ndarray:
        return _floating(outputs).copy()

    def error(self, outputs: np.ndarray, targets: ArrayLike) -> float:
        return kernels(outputs).squared_error(*self._pair(outputs, targets))

    def check_targets(self, outputs_shape: Shape, targets: Any) -> None:
        targets = owned("targets", targets)
        check_real("targets", targets)
        check_shape(targets, outputs_shape)
        bad = to_host(~array_namespace(targets).isfinite(targets))
        if bad.any():
            found = counted("targets", "value", bad, " that {be} not finite")
            raise ValueError(found.replace("has", "must be finite, got", 1))


class SigmoidCrossEntropy(_ByKernel):
    """Independent Bernoulli distributions whose logits are the outputs.

    Outputs and targets have one shape (M, ...); targets are from 0 to 1, and sampled ones 0 or 1.
    The negative log-likelihood is ``log(1 + exp(outputs)) - targets * outputs``, summed over the
    components of an example. `error` is the fraction of examples and components where outputs
    above zero (probability above one half) and targets above one half disagree.
    """

    def _parts(self, outputs: np.ndarray, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        return kernels(outputs).sigmoid_loss(*self._pair(outputs, targets))

    def least(self, targets: ArrayLike) -> float:
        y = np.asarray(to_host(owned("targets", targets)))
        tiny = np.finfo(np.float32).tiny  # of which the logarithm is finite
        bits = sum(p * np.log(np.maximum(p, tiny)) for p in (y, 1 - y))
        return -float(bits.sum(dtype=np.float64)) / len(y)

    def sample(self, outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        uniform = rng.random(_floating(outputs).shape)
        return kernels(outputs).sigmoid_sample(outputs, like(uniform, outputs))

    def fisher_product(self, outputs: np.ndarray, v: np.ndarray) -> np.ndarray:
        return kernels(outputs).sigmoid_fisher_product(*_same_shape(outputs, v))

    def fisher_columns(self, outputs: np.ndarray) -> Iterator[np.ndarray]:
        roots = kernels(outputs).sigmoid_deviation(_floating(outputs))
        for index in range(math.prod(outputs.shape[1:])):
            yield kernels(outputs).single_component(roots, index=index)

    def fisher_trace(self, outputs: np.ndarray) -> np.ndarray:
        roots = kernels(outputs).sigmoid_deviation(_floating(outputs))
        return to_host(kernels(outputs).example_dots(roots, roots))

    @np.errstate(all="ignore")
    def divergence(self, outputs: np.ndarray, after: np.ndarray) -> np.ndarray:
        before, later = _in_double(outputs), _in_double(after)
        terms = expit(before) * (log_expit(before) - log_expit(later))
        terms += expit(-before) * (log_expit(-before) - log_expit(-later))
        return terms.reshape(len(terms), -1).sum(axis=1)

    def predictive_mean(self, outputs: np.ndarray) -> np.ndarray:
        return kernels(outputs).sigmoid_forward(_floating(outputs))

    def error(self, outputs: np.ndarray, targets: ArrayLike) -> float:
        return kernels(outputs).sigmoid_error(*self._pair(outputs, targets))

    def check_targets(self, outputs_shape: Shape, targets: Any) -> None:
        targets = owned("targets", targets)
        check_real("targets", targets)
        check_shape(targets, outputs_shape)
        check_range(targets, 0, 1)


def _floating(outputs: np.ndarray) -> np.ndarray:
    if np.dtype(outputs.dtype) not in (np.float32, np.float64):
        raise TypeError(f"outputs must be float32 or float64, got dtype {outputs.dtype}")
    return outputs


def _in_double(outputs: np.ndarray) -> np.ndarray:
    return np.asarray(to_host(_floating(outputs)), np.float64)


def _same_shape(outputs: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if v.shape != _floating(outputs).shape:
        raise ValueError(f"v must have the shape {outputs.shape} of outputs, got {v.shape}")
    return outputs, v
