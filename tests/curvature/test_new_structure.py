"""A structure that is added from outside: one class, and one entry of the table."""

from typing import ClassVar

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature.blockdiagonal import BLOCKS
from kfc_numba.curvature.blocks.base import Averages, MatrixBlock
from kfc_numba.curvature.blocks.diagonal import DiagonalBlock
from kfc_numba.curvature.example_gradients import squared_sum
from kfc_numba.curvature.structures import curvature_of

LOSS = kfc.SoftmaxCrossEntropy()


class ScalarBlock(MatrixBlock):
    """A multiple of the identity: the mean squared derivative, which has a weight of its own.

    The largest squared derivative, of which a half is added, waits for the first decomposition.
    """

    structure: ClassVar[str] = "scalar"
    averages: ClassVar[tuple[Averages, ...]] = (
        Averages(kinds=("mean_square",), weight="mean_square_weight"),
        Averages(kinds=("largest",), weight="largest_weight", in_bases=True),
    )

    def layout(self):
        return {f"{kind}/{self.name}": () for kind in ("mean_square", "largest", "ready")}

    def observe(self, sums, arrays, saved, dy, context, state):
        assert "squares" not in sums
        sums["squares"] = squared_sum(self.layer, saved, dy)
        sums["ready"] = state[f"ready/{self.name}"]

    def estimate(self, sums, examples, repeats):
        squares = sums["squares"] / (examples * repeats)
        found = {f"mean_square/{self.name}": np.asarray(squares.mean(dtype=self.dtype))}
        if sums["ready"]:
            found[f"largest/{self.name}"] = np.asarray(squares.max()).astype(self.dtype)
        return found

    def bases(self, state):
        return {f"ready/{self.name}": np.ones((), self.dtype)}

    def eigenvalues(self, state, damping, strategy):
        value = state[f"mean_square/{self.name}"] + state[f"largest/{self.name}"] / 2
        return np.full(self.size, value + damping)

    def into_basis(self, state, vector):
        return np.concatenate([vector[short].reshape(-1) for short in self.shapes])

    def from_basis(self, state, coordinates):
        return DiagonalBlock.from_basis(self, state, coordinates)

    def basis(self, state):
        return np.eye(self.size)


@pytest.fixture(autouse=True)
def _table(monkeypatch):
    monkeypatch.setitem(BLOCKS, "scalar", ScalarBlock)


def network():
    return kfc.Sequential(
        [kfc.Conv2d(3, 3), kfc.Tanh(), kfc.Flatten(), kfc.Dense(3)],
        input_shape=(6, 6, 1),
        dtype="float64",
    )


def batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 6, 6, 1))
    return x, (x.mean(axis=(1, 2, 3)) > 0).astype(int)


@pytest.mark.parametrize("structure", ["scalar", {"conv1": "scalar", "dense1": "ekfac"}])
def test_training(structure):
    optimizer = kfc.KFC(
        structure=structure,
        learning_rate=0.1,
        damping=0.1,
        loss_bound=None,
        curvature_update_period=10,
        inverse_update_period=20,
        period_growth=0,
        num_burnin_steps=2,
    )
    net, (x, y) = network(), batch()
    state = optimizer.init(net)
    assert state["mean_square_weight"] == state["largest_weight"] == 0
    losses = [optimizer.step(net, LOSS, x, y, state) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    # Updates of the factors at steps 0, 1, 10 and 20. What is in bases waits for the decomposition
    # of step 0, on whose batch it is estimated once.
    assert state["factor_batches"] == 4
    for name in ("mean_square_weight", "largest_weight"):
        assert state[name] == pytest.approx(1 - 0.85**4, rel=1e-12)


def test_averages():
    net, (x, y) = network(), batch()
    curvature = curvature_of(net, "scalar")
    diagonal = curvature_of(net, "diagonal")
    parts = [net.forward(x[:5]), net.forward(x[5:])]
    targets = [y[:5], y[5:]]
    state = curvature.initial_state()
    estimates = []
    for trace, own in zip(parts, targets, strict=True):
        how = {"mode": "fisher_empirical", "targets": own}
        new = curvature.estimate(trace, LOSS, state, **how)
        state |= curvature.average(state, new, 0.75)
        state |= curvature.decompose(state)
        if curvature.lacks_estimates(state):
            new = curvature.estimate_in_bases(trace, LOSS, state, **how)
            assert set(new) == {"largest/conv1", "largest/dense1"}
            state |= curvature.average(state, new, 0.75)
        estimates.append(diagonal.compute(trace, LOSS, **how))
    assert not curvature.lacks_estimates(state)
    for name in ("conv1", "dense1"):
        rows = [
            np.concatenate([v.ravel() for k, v in e.items() if k.startswith(f"diagonal/{name}.")])
            for e in estimates
        ]
        for kind, value in (("mean_square", np.mean), ("largest", np.max)):
            first, second = (value(row) for row in rows)
            expected = (0.75 * first + second) / 1.75
            assert state[f"{kind}/{name}"] == pytest.approx(expected, rel=1e-12)
    gradients = {name: np.ones_like(value) for name, value in net.params.items()}
    found = curvature.precondition(state, gradients, 0.1)
    for name, value in found.items():
        layer = name.partition(".")[0]
        scale = 1 / (state[f"mean_square/{layer}"] + state[f"largest/{layer}"] / 2 + 0.1)
        np.testing.assert_allclose(value, scale * gradients[name], rtol=1e-12)


def test_settings():
    with pytest.raises(ValueError, match=r"kfac_approx \(='reduce'\) must be 'expand'"):
        kfc.KFC(structure="scalar", kfac_approx="reduce")
    assert BLOCKS["scalar"] is ScalarBlock
