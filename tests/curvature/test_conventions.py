"""Conventions of other libraries, against their formulas written out on raw patches."""

import naive
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import conventions
from kfc_numba.curvature.damping import DAMPING_STRATEGIES, damped_eigenvalues
from kfc_numba.curvature.structures import curvature_of

M, T = 3, 12
KERNEL = (2, 3)


@pytest.fixture(scope="module")
def layer():
    """Factors of a convolution, its patches and derivatives, (examples, locations, ...)."""
    net = kfc.Sequential(
        [kfc.Conv2d(2, KERNEL, padding=(0, 1))], input_shape=(4, 4, 2), dtype=float
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(M, 4, 4, 2)), rng.normal(size=(M, 3, 4, 2))
    curvature = curvature_of(net)
    found = curvature.estimate(
        net.forward(x),
        kfc.SquaredError(),
        curvature.initial_state(),
        mode="fisher_empirical",
        targets=y,
    )
    patches = naive.patches(x, KERNEL, padding=(0, 1)).reshape(M, T, -1)
    ds = (net.predict(x) - y).reshape(M, T, 2)
    return found["omega/conv1"], found["gamma/conv1"], patches, ds


def channels_first(patches):
    """Columns of patches as PyTorch's unfold orders them, the bias last."""
    taps = patches[..., :-1].reshape(*patches.shape[:-1], 6, 2)
    turned = np.swapaxes(taps, -1, -2).reshape(*patches.shape[:-1], 12)
    return np.concatenate([turned, patches[..., -1:]], axis=-1)


def test_kfac_jax(layer):
    omega, gamma, patches, ds = layer
    rows, derivatives = patches.reshape(M * T, -1), ds.reshape(M * T, -1)
    a, g = conventions.kfac_jax(locations=T).to_factors(omega, gamma, KERNEL)
    np.testing.assert_allclose(a, rows.T @ rows / (M * T), rtol=1e-12)
    np.testing.assert_allclose(g, derivatives.T @ derivatives / (M * T), rtol=1e-12)
    # The damping is divided by T inside, and the result multiplied by T.
    assert conventions.kfac_jax(locations=T).to_damping(0.3) == pytest.approx(0.3)
    assert conventions.kfac_jax(locations=T, loss_weight=2).from_damping(0.6) == pytest.approx(0.3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_curvlinops(layer, reduction):
    omega, gamma, patches, ds = layer
    rows, derivatives = channels_first(patches).reshape(M * T, -1), ds.reshape(M * T, -1)
    convention = conventions.curvlinops(examples=M, locations=T, reduction=reduction)
    a, g = convention.to_factors(omega, gamma, KERNEL)
    np.testing.assert_allclose(a, rows.T @ rows / (M * T), rtol=1e-12)
    total = M if reduction == "mean" else 1
    np.testing.assert_allclose(g, derivatives.T @ derivatives / total, rtol=1e-12)
    assert convention.to_damping(0.3) == pytest.approx(0.3 * M / total)


def test_kfac_pytorch(layer):
    omega, gamma, patches, ds = layer
    rows, derivatives = channels_first(patches).reshape(M * T, -1) / T, ds.reshape(M * T, -1) / T
    convention = conventions.kfac_pytorch(examples=M, locations=T)
    a, g = convention.to_factors(omega, gamma, KERNEL)
    np.testing.assert_allclose(a, rows.T @ rows / (M * T), rtol=1e-12)
    derivatives = derivatives / M  # of the mean loss
    np.testing.assert_allclose(g, derivatives.T @ derivatives / (M * T), rtol=1e-12)
    assert convention.to_damping(0.3) == pytest.approx(0.3 / (M**2 * T**5))
    dense = conventions.kfac_pytorch(examples=M, convolution=False, loss_weight=2)
    assert dense.to_damping(0.3) == pytest.approx(4 * 0.3 / M**2)


ALL = [
    conventions.kfac_jax(locations=T, loss_weight=2.0),
    conventions.curvlinops(examples=M, locations=T, reduction="sum"),
    conventions.curvlinops(examples=M, locations=T, approx="reduce", loss_weight=0.5),
    conventions.kfac_pytorch(examples=M, locations=T),
    conventions.kfac_pytorch(examples=M, convolution=False),
]


@pytest.mark.parametrize("convention", ALL)
def test_there_and_back(layer, convention):
    omega, gamma = layer[:2]
    there = convention.to_factors(omega, gamma, KERNEL)
    back = convention.from_factors(*there, KERNEL)
    np.testing.assert_allclose(back[0], omega, rtol=1e-14)
    np.testing.assert_allclose(back[1], gamma, rtol=1e-14)
    assert convention.from_damping(convention.to_damping(0.3)) == pytest.approx(0.3)


@pytest.mark.parametrize("convention", ALL[1:])
@pytest.mark.parametrize("strategy", DAMPING_STRATEGIES[:2])
def test_damping_acts_the_same(layer, convention, strategy):
    omega, gamma = layer[:2]
    a, g = convention.to_factors(omega, gamma, KERNEL)
    ours = damped_eigenvalues(np.linalg.eigvalsh(omega), np.linalg.eigvalsh(gamma), 0.3, strategy)
    theirs = damped_eigenvalues(
        np.linalg.eigvalsh(a), np.linalg.eigvalsh(g), convention.to_damping(0.3), strategy
    )
    np.testing.assert_allclose(theirs, convention.damping_scale * ours, rtol=1e-9)


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"kernel \(=\(2, 2\)\) does not fit 7 columns"):
        ALL[1].to_factors(np.eye(7), np.eye(2), (2, 2))
    with pytest.raises(ValueError, match=r"reduction \(='none'\) must be 'mean' or 'sum'"):
        conventions.curvlinops(examples=2, reduction="none")
    with pytest.raises(ValueError, match=r"approx \(='both'\) must be 'expand' or 'reduce'"):
        conventions.curvlinops(examples=2, approx="both")
    with pytest.raises(ValueError, match=r"examples \(=0\) must be a number in \(0, inf\)"):
        conventions.kfac_pytorch(examples=0)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (conventions.kfac_jax, ("locations", "loss_weight")),
        (conventions.curvlinops, ("examples", "locations", "loss_weight")),
        (conventions.kfac_pytorch, ("examples", "locations", "loss_weight")),
    ],
)
def test_arguments_out_of_range(make, names):
    usual = {"examples": 3, "locations": 2, "loss_weight": 0.5}
    usual = {name: usual[name] for name in names}
    make(**usual)
    for name in names:
        for wrong in (0, -1, np.inf):
            message = rf"^{name} \(={wrong}\) must be a number in \(0, inf\)"
            with pytest.raises(ValueError, match=message):
                make(**usual | {name: wrong})


def test_what_is_meant_where_nothing_is_said():
    assert conventions.kfac_jax() == conventions.kfac_jax(locations=1, loss_weight=1.0)
    assert conventions.curvlinops(examples=5) == conventions.curvlinops(
        examples=5, locations=1, approx="expand", reduction="mean", loss_weight=1.0
    )
    assert conventions.kfac_pytorch(examples=5) == conventions.kfac_pytorch(
        examples=5, locations=1, convolution=True, loss_weight=1.0
    )


def test_sums_over_locations(layer):
    """With "reduce" a factor is of sums over locations: no location is divided by."""
    omega, gamma, *_ = layer
    reduced = conventions.curvlinops(examples=M, locations=T, approx="reduce")
    assert reduced == conventions.curvlinops(examples=M, approx="reduce")
    found, _ = reduced.to_factors(omega, gamma, KERNEL)
    assert np.trace(found) == pytest.approx(np.trace(omega))
    dense = conventions.kfac_pytorch(examples=M, locations=T, convolution=False)
    found, _ = dense.to_factors(omega, gamma, (1, 1))
    assert np.trace(found) == pytest.approx(np.trace(omega) / T)


@pytest.mark.parametrize("kernel", [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("bias", [0, 1])
def test_order_of_few_taps(kernel, bias):
    """Columns (taps, channels, bias) become (channels, taps, bias), whatever the numbers."""
    taps, channels = kernel[0] * kernel[1], 3
    columns = [(tap, channel) for tap in range(taps) for channel in range(channels)]
    wanted = [(tap, channel) for channel in range(channels) for tap in range(taps)]
    order = [columns.index(pair) for pair in wanted] + [len(columns)] * bias
    omega = np.diag(np.arange(1.0, len(columns) + bias + 1))
    convention = conventions.curvlinops(examples=1)
    found, _ = convention.to_factors(omega, np.eye(2), kernel)
    np.testing.assert_array_equal(np.diag(found), np.diag(omega)[order])
    np.testing.assert_array_equal(convention.from_factors(found, np.eye(2), kernel)[0], omega)
