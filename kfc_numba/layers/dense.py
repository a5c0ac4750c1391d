"""Fully connected layer."""

from __future__ import annotations

import math

import numpy as np
from array_api_compat import array_namespace

from kfc_numba.arrays import contiguous
from kfc_numba.checks import check_flag, check_integer
from kfc_numba.foreign_names import UNNEEDED
from kfc_numba.kernels.backend import device_kernels, kernels
from kfc_numba.layers.base import Arrays, Context, KroneckerLayer, Saved, Shape


class Dense(KroneckerLayer):
    """Linear map of the last axis, ``s = a @ weight + bias``.

    Inputs with further axes before the last, such as images, have the map applied at each
    location, as a 1 x 1 convolution would; a flat output needs `Flatten` before.

    Parameters ``weight`` (inputs, units), initialised with He's normal of variance 2 / inputs, and
    ``bias`` (units,), zero.

    Parameters
    ----------
    units : int
        Number of outputs.
    bias : bool
        Whether there is a bias.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.
    """

    kind = "dense"

    def __init__(self, units: int, bias: bool = True):
        self.units = check_integer("units", units)
        try:
            self.bias = check_flag("bias", bias)
        except TypeError as error:  # PyTorch has the number of inputs first
            raise TypeError(f"{error}; {UNNEEDED['in_features']}") from None

    def output_shape(self, *shapes: Shape) -> Shape:
        return (*shapes[0][:-1], self.units)

    def parameters(self, rng: np.random.Generator, *shapes: Shape) -> dict[str, np.ndarray]:
        inputs = shapes[0][-1]
        found = {"weight": rng.normal(scale=np.sqrt(2 / inputs), size=(inputs, self.units))}
        if self.bias:
            found["bias"] = np.zeros(self.units)
        return found

    def forward(
        self, arrays: Arrays, inputs: tuple[np.ndarray, ...], context: Context
    ) -> tuple[np.ndarray, Saved]:
        (x,) = inputs
        y = context.empty((*x.shape[:-1], self.units), x.dtype)
        self._product(x, arrays, y)
        return y, (x,)

    def backward(
        self,
        arrays: Arrays,
        saved: Saved,
        dy: np.ndarray,
        context: Context,
        *,
        need_inputs: bool = True,
        need_parameters: bool = True,
    ) -> tuple[tuple[np.ndarray | None, ...], dict[str, np.ndarray]]:
        (x,) = saved
        assert x is not None
        k = kernels(x)
        rows = dy.reshape(-1, self.units)
        gradients = {}
        if need_parameters:
            flat = x.reshape(-1, x.shape[-1])
            gradients["weight"] = k.matmul(flat, rows, transpose_a=True)
            if self.bias:
                gradients["bias"] = k.conv2d_grad_bias(rows)
        dx = None
        if need_inputs:
            dx = context.empty(x.shape, x.dtype)
            out = dx.reshape(-1, x.shape[-1])
            k.matmul(rows, arrays["weight"], transpose_b=True, out=out)
        return (dx,), gradients

    def tangent(
        self,
        arrays: Arrays,
        saved: Saved,
        dinputs: tuple[np.ndarray | None, ...],
        dparameters: Arrays,
        context: Context,
    ) -> np.ndarray:
        (x,), (dx,) = saved, dinputs
        assert x is not None
        dy = context.empty((*x.shape[:-1], self.units), x.dtype)
        self._product(x, dparameters, dy)
        if dx is not None:
            rows, out = dx.reshape(-1, dx.shape[-1]), dy.reshape(-1, self.units)
            kernels(dx).matmul(rows, arrays["weight"], accumulate=True, out=out)
        return dy

    def _product(self, x: np.ndarray, arrays: Arrays, out: np.ndarray) -> None:
        """``x @ weight + bias`` at each location."""
        kernels(x).matmul(
            x.reshape(-1, x.shape[-1]),
            arrays["weight"],
            arrays.get("bias"),
            out=out.reshape(-1, self.units),
        )

    def room(self, examples: int, shape: Shape, dtype: np.dtype, approx: str | None) -> int:
        room = device_kernels().room
        rows, inputs = examples * math.prod(shape[:-1]), shape[-1]
        found = room.product(rows, inputs, self.units, dtype)
        if approx is None:
            return found
        ones = rows * (inputs + 1) * dtype.itemsize if self.bias else 0
        moments = ((rows, inputs + self.bias), ones), ((rows, self.units), 0)
        return max(found, *(room.moment(ds, dtype) + besides for ds, besides in moments))

    # Kronecker factors.

    def locations(self, saved: Saved, dy: np.ndarray) -> int:
        return dy.size // (len(dy) * self.units)

    def input_moment(self, saved: Saved, approx: str) -> np.ndarray:
        rows = self.input_rows(saved, approx)
        return kernels(rows).output_second_moment(rows)

    def input_rows(self, saved: Saved, approx: str) -> np.ndarray:
        """What `input_moment` is the moment of.

        Parameters
        ----------
        saved : Saved
        approx : {"expand", "reduce"}

        Returns
        -------
        numpy.ndarray
            (M, locations, inputs), with a 1 behind the inputs if there is a bias.
        """
        (x,) = saved
        assert x is not None
        rows = x.reshape(len(x), -1, x.shape[-1])
        if approx == "reduce":
            rows = kernels(x).location_mean(rows)[:, None]
        return self._with_ones(rows)

    def output_moment(self, dy: np.ndarray, approx: str) -> np.ndarray:
        k = kernels(dy)
        ds = dy if approx == "expand" else k.location_sum(dy)
        return k.output_second_moment(ds)

    def to_matrix(self, arrays: Arrays) -> np.ndarray:
        rows = arrays["weight"].T
        if self.bias:
            rows = array_namespace(rows).concat([rows, arrays["bias"][:, None]], axis=1)
        return contiguous(rows)

    def from_matrix(self, matrix: np.ndarray, like: Arrays) -> dict[str, np.ndarray]:
        columns = matrix[:, :-1] if self.bias else matrix
        found = {"weight": contiguous(columns.T)}
        if self.bias:
            found["bias"] = array_namespace(matrix).asarray(matrix[:, -1], copy=True)
        return found

    def homogeneous(self, saved: Saved) -> np.ndarray:
        (x,) = saved
        assert x is not None
        return self._with_ones(x.reshape(len(x), -1, x.shape[-1]))

    def _with_ones(self, rows: np.ndarray) -> np.ndarray:
        """Rows (examples, locations, inputs), each with a 1 behind it if there is a bias."""
        if not self.bias:
            return rows
        return kernels(rows).extract_patches(rows[:, :, None], 1, bias=True)

    def output_rows(self, dy: np.ndarray) -> np.ndarray:
        return dy.reshape(len(dy), -1, self.units)
