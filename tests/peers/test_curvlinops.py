"""Curvature matrices against curvlinops, which has PyTorch differentiate.

Both libraries get the same network and data in float64. Their matrices are compared in full, in
PyTorch's order of the parameters.
"""

import curvlinops
import numpy as np
import pytest
import torch

import kfc_numba as kfc
from kfc_numba.curvature import conventions, operators
from kfc_numba.curvature.structures import curvature_of

# Warnings of PyTorch and curvlinops about their own internals are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES = 4


class ChannelsLast(torch.nn.Module):
    """Flattens images in the order that NHWC arrays have."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def pair(geometry=None, pool=False):
    """The same network in both libraries, and in which order PyTorch has our parameters."""
    geometry = geometry or {"kernel": (2, 3), "stride": (1, 2), "padding": (1, 1)}
    tail = [kfc.GlobalAvgPool2d()] if pool else [kfc.Flatten()]
    net = kfc.Sequential(
        [kfc.Conv2d(3, **geometry), kfc.Tanh(), *tail, kfc.Dense(3)],
        input_shape=(4, 5, 2),
        dtype=np.float64,
    )
    rng = np.random.default_rng(7)
    for value in net.params.values():
        value += rng.normal(size=value.shape) / 5
    renamed = {("kernel_size" if k == "kernel" else k): v for k, v in geometry.items()}
    tail = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()] if pool else [ChannelsLast()]
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, **renamed),
        torch.nn.Tanh(),
        *tail,
        torch.nn.Linear(net.params["dense1.weight"].shape[0], 3),
    ).double()
    order, start = [], 0
    places = {}
    for name, value in net.params.items():
        places[name] = np.arange(start, start + value.size).reshape(value.shape)
        start += value.size
    for (_, parameter), (name, value) in zip(
        model.named_parameters(), net.params.items(), strict=True
    ):
        axes = (3, 2, 0, 1) if value.ndim == 4 else tuple(range(value.ndim))[::-1]
        parameter.data = torch.tensor(np.ascontiguousarray(value.transpose(axes)))
        order.append(places[name].transpose(axes).ravel())
    return net, model, np.concatenate(order)


def losses(kind, reduction):
    """Our loss, theirs, targets, and by what theirs is larger for one example."""
    rng = np.random.default_rng(1)
    if kind == "softmax":
        y = rng.integers(0, 3, EXAMPLES)
        return kfc.SoftmaxCrossEntropy(), torch.nn.CrossEntropyLoss(reduction=reduction), y, 1
    if kind == "squared":
        y = rng.normal(size=(EXAMPLES, 3))
        weight = 2 if reduction == "sum" else 2 / 3
        return kfc.SquaredError(), torch.nn.MSELoss(reduction=reduction), y, weight
    y = rng.integers(0, 2, (EXAMPLES, 3)).astype(float)
    weight = 1 if reduction == "sum" else 1 / 3
    loss = torch.nn.BCEWithLogitsLoss(reduction=reduction)
    return kfc.SigmoidCrossEntropy(), loss, y, weight


def inputs():
    return np.random.default_rng(0).normal(size=(EXAMPLES, 4, 5, 2))


def data(x, y):
    return [(torch.tensor(x.transpose(0, 3, 1, 2).copy()), torch.tensor(y))]


def close(actual, expected, tolerance=1e-10):
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


def total(reduction):
    """By what a sum over examples is larger than our mean."""
    return EXAMPLES if reduction == "sum" else 1


def full(operator):
    return operator @ np.eye(operator.shape[1])


def torch_full(operator):
    found = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
    return found.detach().numpy()


def block_matrix(net, order, structure, approx, loss, x, **how):
    operator = operators.block_curvature(net, x, loss, structure=structure, approx=approx, **how)
    return full(operator)[np.ix_(order, order)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["softmax", "squared", "sigmoid"])
def test_exact_fisher_is_their_generalised_gauss_newton(kind, reduction):
    (net, model, order), x = pair(), inputs()
    ours, theirs, y, weight = losses(kind, reduction)
    operator = curvlinops.GGNLinearOperator(
        model, theirs, list(model.parameters()), data(x, y), check_deterministic=False
    )
    found = full(operators.exact_fisher(net, x, ours))[np.ix_(order, order)]
    close(weight * total(reduction) * found, torch_full(operator))


def kfac(model, theirs, x, y, kind=curvlinops.KFACLinearOperator, **how):
    return kind(
        model,
        theirs,
        list(model.parameters()),
        data(x, y),
        check_deterministic=False,
        separate_weight_and_bias=False,
        **how,
    )


GEOMETRIES = {
    "plain": {"kernel": 3},
    "stride": {"kernel": (2, 3), "stride": (1, 2), "padding": (1, 1)},
    "dilation": {"kernel": 2, "dilation": (2, 1), "padding": (0, 1)},
}


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_kfac_of_convolutions(name, approx):
    (net, model, order), x = pair(GEOMETRIES[name]), inputs()
    ours, theirs, y, _ = losses("softmax", "mean")
    expected = kfac(
        model, theirs, x, y, fisher_type=curvlinops.FisherType.TYPE2, kfac_approx=approx
    )
    close(block_matrix(net, order, "kronecker", approx, ours, x), torch_full(expected))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["softmax", "squared", "sigmoid"])
def test_kfac_of_losses(kind, reduction):
    (net, model, order), x = pair(), inputs()
    ours, theirs, y, weight = losses(kind, reduction)
    expected = kfac(model, theirs, x, y, fisher_type=curvlinops.FisherType.TYPE2)
    found = block_matrix(net, order, "kronecker", "expand", ours, x)
    close(weight * total(reduction) * found, torch_full(expected))


def test_empirical_fisher():
    (net, model, order), x = pair(), inputs()
    ours, theirs, y, _ = losses("softmax", "mean")
    expected = kfac(model, theirs, x, y, fisher_type=curvlinops.FisherType.EMPIRICAL)
    found = block_matrix(
        net, order, "kronecker", "expand", ours, x, mode="fisher_empirical", targets=y
    )
    close(found, torch_full(expected))


def test_sampled_fisher():
    # Two samplers of the same distribution: equal up to the noise of sampling.
    (net, model, order), x = pair(), inputs()
    ours, theirs, y, _ = losses("softmax", "mean")
    expected = torch_full(
        kfac(model, theirs, x, y, fisher_type=curvlinops.FisherType.MC, mc_samples=300)
    )
    rng = np.random.default_rng(0)
    found = block_matrix(
        net, order, "kronecker", "expand", ours, x, mode="fisher_gradients", rng=rng, samples=300
    )
    # 4 examples of 300 samples each: some 3% of the norm, each.
    assert np.linalg.norm(found - expected) < 0.15 * np.linalg.norm(expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_ekfac(name, reduction):
    (net, model, order), x = pair(GEOMETRIES[name]), inputs()
    ours, theirs, y, _ = losses("softmax", reduction)
    expected = kfac(
        model,
        theirs,
        x,
        y,
        kind=curvlinops.EKFACLinearOperator,
        fisher_type=curvlinops.FisherType.EMPIRICAL,
    )
    found = block_matrix(net, order, "ekfac", "expand", ours, x, mode="fisher_empirical", targets=y)
    # Eigenvectors of an eigenvalue of zero are not unique, and EKFAC depends on them: only where
    # gradients are zero, though, up to rounding.
    close(total(reduction) * found, torch_full(expected), 1e-8)


@pytest.mark.parametrize("strategy", ["exact", "pi"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_damped_inverse(strategy, reduction):
    (net, model, order), x = pair(), inputs()
    ours, theirs, y, _ = losses("softmax", reduction)
    convention = conventions.curvlinops(examples=EXAMPLES, reduction=reduction)
    damping = 1e-2
    matrix = kfac(model, theirs, x, y, fisher_type=curvlinops.FisherType.TYPE2)
    how = "use_exact_damping" if strategy == "exact" else "use_heuristic_damping"
    inverse = curvlinops.KFACInverseLinearOperator(
        matrix, damping=convention.to_damping(damping), **{how: True}
    )
    operator = operators.block_curvature(net, x, ours, damping=damping, strategy=strategy)
    found = full(operator.inverse())[np.ix_(order, order)] / convention.damping_scale
    close(found, torch_full(inverse), 1e-8)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_factors_by_the_table_of_conventions(approx, reduction):
    (net, model, _), x = pair(), inputs()
    ours, theirs, y, _ = losses("softmax", reduction)
    matrix = kfac(model, theirs, x, y, fisher_type=curvlinops.FisherType.TYPE2, kfac_approx=approx)
    matrix.compute_kronecker_factors()
    state = curvature_of(net, approx=approx).compute(net.forward(x), ours, mode="fisher_exact")
    for name, module, kernel in (("conv1", "0", (2, 3)), ("dense1", "3", (1, 1))):
        locations = net.layers[0].shape[0] * net.layers[0].shape[1] if name == "conv1" else 1
        convention = conventions.curvlinops(
            examples=EXAMPLES, locations=locations, approx=approx, reduction=reduction
        )
        a, g = convention.to_factors(state[f"omega/{name}"], state[f"gamma/{name}"], kernel)
        close(a, matrix._input_covariances[module].numpy())
        close(g, matrix._gradient_covariances[module].numpy())
