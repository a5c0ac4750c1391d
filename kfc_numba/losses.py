"""Losses as negative log-likelihoods: value, derivative, sampling, Fisher of the prediction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from kfc_numba.checks import check_real
from kfc_numba.layers.base import Shape


class Loss:
    """Negative log-likelihood of targets under the distribution that a network predicts.

    Outputs have the examples first. Everything but `value` and `error` is about each example by
    itself: a mean over M examples has derivatives M times as small, and the Fisher matrix would
    then be M times M too small. Parts of an output that are predicted separately (pixels, or
    components) are independent given the output, and their negative log-likelihoods are added
    within an example. Outputs that are not finite give results that are not finite, without a
    warning; the optimizers check.
    """

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
        return float(self.values(outputs, targets).mean())

    def values(self, outputs: np.ndarray, targets: ArrayLike) -> np.ndarray:
        """Negative log-likelihood of each example: (M,), float64, in nats."""
        raise NotImplementedError

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

    def _pair(self, outputs: np.ndarray, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        outputs, targets = _floating(outputs), np.asarray(targets)
        self.check_targets(outputs.shape, targets)
        return outputs, targets

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class SoftmaxCrossEntropy(Loss):
    """Categorical distribution whose logits are the outputs.

    Outputs (M, ..., K): K classes, at each location where there are several. Targets are
    integers from 0 to K - 1, of shape (M, ...). The negative log-likelihood is
    ``log(sum(exp(outputs))) - outputs[target]``. `error` is the fraction of examples (and
    locations) whose largest output is not that of the target.
    """

    def values(self, outputs: np.ndarray, targets: ArrayLike) -> np.ndarray:
        return self._parts(*self._pair(outputs, targets))[0]

    def derivative(self, outputs: np.ndarray, targets: ArrayLike) -> np.ndarray:
        return self._parts(*self._pair(outputs, targets))[1]

    def value_and_derivative(
        self, outputs: np.ndarray, targets: ArrayLike
    ) -> tuple[float, np.ndarray]:
        values, derivative = self._parts(*self._pair(outputs, targets))
        return float(values.mean()), derivative

    def _parts(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and derivative, from one exponential of each output."""
        with np.errstate(invalid="ignore", over="ignore"):
            result = np.subtract(outputs, outputs.max(axis=-1, keepdims=True), order="C")
            rows = result.reshape(-1, result.shape[-1])
            target = (np.arange(len(rows)), targets.ravel())
            chosen = rows[target].astype(np.float64)
            np.exp(rows, out=rows)
            total = rows.sum(axis=-1)
            rows /= total[:, None]
            values = np.log(total.astype(np.float64)) - chosen
        rows[target] -= 1
        return _per_example(values.reshape(targets.shape)), result

    def sample(self, outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        cumulative = _softmax(_floating(outputs)).cumsum(axis=-1, dtype=np.float64)
        # One number for each location; the last class needs no comparison.
        uniform = rng.random(cumulative.shape[:-1]) * cumulative[..., -1]
        return np.count_nonzero(cumulative[..., :-1] <= uniform[..., None], axis=-1)

    def fisher_product(self, outputs: np.ndarray, v: np.ndarray) -> np.ndarray:
        probabilities = _softmax(_same_shape(outputs, v))
        result = probabilities * v
        result -= probabilities * result.sum(axis=-1, keepdims=True)
        return result

    def fisher_columns(self, outputs: np.ndarray) -> Iterator[np.ndarray]:
        probabilities = _softmax(_floating(outputs))
        classes = probabilities.shape[-1]
        rows = probabilities.reshape(len(probabilities), -1, classes)
        for location in range(rows.shape[1]):
            for index in range(classes):
                column = np.zeros_like(rows)
                here = column[:, location]
                here -= rows[:, location]
                here[:, index] += 1
                here *= np.sqrt(rows[:, location, index, None])
                yield column.reshape(probabilities.shape)

    def error(self, outputs: np.ndarray, targets: ArrayLike) -> float:
        outputs, targets = self._pair(outputs, targets)
        return float(np.mean(outputs.argmax(axis=-1) != targets))

    def check_targets(self, outputs_shape: Shape, targets: ArrayLike) -> None:
        targets = np.asarray(targets)
        if len(outputs_shape) < 2:
            raise ValueError(
                f"outputs must have classes as their last axis, got shape {outputs_shape}"
            )
        if targets.dtype.kind not in "iu":
            raise TypeError(f"targets must be integers, got dtype {targets.dtype}")
        _check_shape(targets, outputs_shape[:-1])
        _check_range(targets, 0, outputs_shape[-1] - 1)


class SquaredError(Loss):
    """Normal distribution of unit variance around the outputs.

    Outputs and targets are real, of one shape (M, ...). The negative log-likelihood is half the
    sum of squared differences; the constant ``log(sqrt(2 pi))`` for each component is left out.
    `error` is the mean squared difference over examples and components.
    """

    def values(self, outputs: np.ndarray, targets: ArrayLike) -> np.ndarray:
        outputs, targets = self._pair(outputs, targets)
        with np.errstate(invalid="ignore", over="ignore"):
            return 0.5 * _per_example(np.square(np.subtract(outputs, targets, dtype=np.float64)))

    def derivative(self, outputs: np.ndarray, targets: ArrayLike) -> np.ndarray:
        outputs, targets = self._pair(outputs, targets)
        with np.errstate(invalid="ignore", over="ignore"):
            return (outputs - targets).astype(outputs.dtype, copy=False)

    def sample(self, outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        outputs = _floating(outputs)
        return outputs + rng.standard_normal(outputs.shape, outputs.dtype.type)

    def fisher_product(self, outputs: np.ndarray, v: np.ndarray) -> np.ndarray:
        _same_shape(outputs, v)
        return v.copy()

    def fisher_columns(self, outputs: np.ndarray) -> Iterator[np.ndarray]:
        outputs = _floating(outputs)
        for index in range(outputs[0].size):
            column = np.zeros((len(outputs), outputs[0].size), outputs.dtype)
            column[:, index] = 1
            yield column.reshape(outputs.shape)

    def error(self, outputs: np.ndarray, targets: ArrayLike) -> float:
        outputs, targets = self._pair(outputs, targets)
        with np.errstate(invalid="ignore", over="ignore"):
            return float(np.mean(np.square(np.subtract(outputs, targets, dtype=np.float64))))

    def check_targets(self, outputs_shape: Shape, targets: ArrayLike) -> None:
        targets = np.asarray(targets)
        check_real("targets", targets)
        _check_shape(targets, outputs_shape)
        if not np.isfinite(targets).all():
            raise ValueError("targets must be finite, got infinite or NaN entries")


class SigmoidCrossEntropy(Loss):
    """Independent Bernoulli distributions whose logits are the outputs.

    Outputs and targets have one shape (M, ...); targets are from 0 to 1, and sampled ones 0 or 1.
    The negative log-likelihood is ``log(1 + exp(outputs)) - targets * outputs``, summed over the
    components of an example. `error` is the fraction of examples and components where outputs
    above zero (probability above one half) and targets above one half disagree.
    """

    def values(self, outputs: np.ndarray, targets: ArrayLike) -> np.ndarray:
        outputs, targets = self._pair(outputs, targets)
        targets = targets.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            # max(z, 0) - t z, without the difference of two large numbers.
            linear = np.where(outputs > 0, (1 - targets) * outputs, -targets * outputs)
            return _per_example(linear + np.log1p(np.exp(-np.abs(outputs))))

    def derivative(self, outputs: np.ndarray, targets: ArrayLike) -> np.ndarray:
        outputs, targets = self._pair(outputs, targets)
        return (_sigmoid(outputs) - targets).astype(outputs.dtype, copy=False)

    def sample(self, outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        outputs = _floating(outputs)
        return (rng.random(outputs.shape) < _sigmoid(outputs)).astype(outputs.dtype)

    def fisher_product(self, outputs: np.ndarray, v: np.ndarray) -> np.ndarray:
        outputs = _same_shape(outputs, v)
        return _sigmoid(outputs) * _sigmoid(-outputs) * v

    def fisher_columns(self, outputs: np.ndarray) -> Iterator[np.ndarray]:
        outputs = _floating(outputs)
        roots = np.sqrt(_sigmoid(outputs) * _sigmoid(-outputs)).reshape(len(outputs), -1)
        for index in range(roots.shape[1]):
            column = np.zeros_like(roots)
            column[:, index] = roots[:, index]
            yield column.reshape(outputs.shape)

    def error(self, outputs: np.ndarray, targets: ArrayLike) -> float:
        outputs, targets = self._pair(outputs, targets)
        return float(np.mean((outputs > 0) != (targets > 0.5)))

    def check_targets(self, outputs_shape: Shape, targets: ArrayLike) -> None:
        targets = np.asarray(targets)
        check_real("targets", targets)
        _check_shape(targets, outputs_shape)
        _check_range(targets, 0, 1)


def _softmax(outputs: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        result = np.subtract(outputs, outputs.max(axis=-1, keepdims=True), order="C")
        np.exp(result, out=result)
        result /= result.sum(axis=-1, keepdims=True)
    return result


def _sigmoid(outputs: np.ndarray) -> np.ndarray:
    # exp of what is never positive cannot overflow.
    small = np.exp(-np.abs(outputs))
    return np.where(outputs >= 0, 1, small) / (1 + small)


def _per_example(values: np.ndarray) -> np.ndarray:
    """Sum over all axes but the first, of values that are float64."""
    return values.reshape(len(values), -1).sum(axis=1)


def _floating(outputs: np.ndarray) -> np.ndarray:
    outputs = np.asarray(outputs)
    if outputs.dtype.kind != "f":
        raise TypeError(f"outputs must be floating point, got dtype {outputs.dtype}")
    return outputs


def _same_shape(outputs: np.ndarray, v: np.ndarray) -> np.ndarray:
    outputs = _floating(outputs)
    if np.shape(v) != outputs.shape:
        raise ValueError(f"v must have the shape {outputs.shape} of outputs, got {np.shape(v)}")
    return outputs


def _check_shape(targets: np.ndarray, shape: Shape) -> None:
    if targets.shape != shape:
        raise ValueError(f"targets must have shape {shape}, got {targets.shape}")


def _check_range(targets: np.ndarray, low: int, high: int) -> None:
    if not targets.size:
        return
    least, greatest = targets.min(), targets.max()
    if not (least >= low and greatest <= high):  # NaN is out of range too
        raise ValueError(f"targets must be from {low} to {high}, got {least} to {greatest}")
