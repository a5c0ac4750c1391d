"""The posterior: Bayesian linear regression in closed form, and dense matrices."""

import numba
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import laplace
from kfc_numba.curvature import fisher


@pytest.fixture(autouse=True)
def _one_thread():
    """Thousands of tiny products: waiting for a second thread costs more than they do."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


CLASSES = {
    kfc.SoftmaxCrossEntropy: lambda z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True),
    kfc.SigmoidCrossEntropy: lambda z: 1 / (1 + np.exp(-z)),
}


def dense_precision(posterior):
    """N F + tau I over all parameters, block by block, from Omega and Gamma as they are."""
    net = posterior._curvature.net
    slices = fisher.parameter_slices(net)
    size = sum(value.size for value in net.params.values())
    result = posterior.prior_precision * np.eye(size)
    for block in posterior._curvature.blocks:
        places = np.arange(
            slices[f"{block.name}.{next(iter(block.shapes))}"].start,
            slices[f"{block.name}.{list(block.shapes)[-1]}"].stop,
        )
        if block.structure == "diagonal":
            parts = [posterior.state[f"diagonal/{block.name}.{s}"].ravel() for s in block.shapes]
            matrix = np.diag(np.concatenate(parts))
        else:
            omega = posterior.state[f"omega/{block.name}"]
            gamma = posterior.state[f"gamma/{block.name}"]
            if omega.ndim == 2:
                omega, gamma = omega[None], gamma[None]
            order = block.order().reshape(len(omega), -1)
            matrix = np.zeros((block.size, block.size))
            for rows, o, g in zip(order, omega, gamma, strict=True):
                matrix[np.ix_(rows, rows)] = np.kron(g, o)
        result[np.ix_(places, places)] += posterior.examples * matrix
    return result


def network(*, norm=True, seed=0):
    layers = [
        kfc.Conv2d(4, 3, padding=1, groups=2),
        *([kfc.BatchNorm()] if norm else []),
        kfc.Tanh(),
        kfc.AvgPool2d(2),
        kfc.Conv2d(2, 2),
        kfc.Tanh(),
        kfc.Flatten(),
        kfc.Dense(3),
    ]
    return kfc.Sequential(layers, input_shape=(4, 4, 2), seed=seed, dtype=np.float64)


def images(count, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 4, 4, 2))


def linear(outputs, bias, prior, seed=0):
    """A linear model at the maximum of its posterior, and its data."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal((12, outputs))
    net = kfc.Sequential([kfc.Dense(outputs, bias=bias)], input_shape=(3,), dtype=np.float64)
    design = np.hstack([x, np.ones((12, 1))]) if bias else x
    precision = design.T @ design + prior * np.eye(design.shape[1])
    best = np.linalg.solve(precision, design.T @ y)
    net.params["dense1.weight"] = np.ascontiguousarray(best[:3])
    if bias:
        net.params["dense1.bias"] = best[3].copy()
    return net, x, y, design, precision


# Bayesian linear regression in closed form.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_linear_model_has_the_closed_form(outputs, bias):
    prior = 0.7
    net, x, y, design, precision = linear(outputs, bias, prior)
    posterior = laplace.KroneckerPosterior(net, kfc.SquaredError(), prior).fit(x, batch_size=5)

    # log N(y; 0, I + X X^T / tau), an output at a time.
    covariance = np.eye(12) + design @ design.T / prior
    _, logdet = np.linalg.slogdet(covariance)
    evidence = -0.5 * (
        np.sum(y * np.linalg.solve(covariance, y)) + outputs * (logdet + 12 * np.log(2 * np.pi))
    )
    np.testing.assert_allclose(posterior.log_marginal_likelihood(x, y), evidence, rtol=1e-12)

    new = np.random.default_rng(5).standard_normal((4, 3))
    rows = np.hstack([new, np.ones((4, 1))]) if bias else new
    variance = np.einsum("md,de,me->m", rows, np.linalg.inv(precision), rows)
    mean, std = posterior.predict(new, return_std=True)
    np.testing.assert_allclose(mean, net.predict(new), rtol=1e-12)
    expected = np.repeat(variance[:, None], outputs, axis=1)
    np.testing.assert_allclose(std**2, expected, rtol=1e-11)
    _, full = posterior.output_distribution(new, batch_size=3)
    np.testing.assert_allclose(
        full, variance[:, None, None] * np.eye(outputs), rtol=1e-11, atol=1e-14
    )


def test_samples_have_the_mean_and_covariance_of_the_closed_form():
    net, x, _, _, precision = linear(1, True, 0.7)
    posterior = laplace.KroneckerPosterior(net, kfc.SquaredError(), 0.7).fit(x)
    expected = np.linalg.inv(precision)
    count = 1500
    drawn = np.array(
        [np.append(s["dense1.weight"], s["dense1.bias"]) for s in posterior.sample(count, seed=3)]
    )
    centred = drawn - np.append(net.params["dense1.weight"], net.params["dense1.bias"])
    scale = np.sqrt(np.diag(expected))
    # Standard errors at the Monte-Carlo rate; 4.5 of them over 4 and 10 entries.
    assert np.abs(centred.mean(axis=0) / scale).max() < 4.5 / np.sqrt(count)
    bound = 4.5 * np.sqrt(2 / count) * np.outer(scale, scale)
    assert (np.abs(centred.T @ centred / count - expected) < bound).all()
    # Tight enough to tell the covariance from one without correlations.
    assert (np.abs(np.diag(np.diag(expected)) - expected) > bound).any()


def test_monte_carlo_agrees_with_the_closed_form_of_a_linear_model():
    net, x, _, _, precision = linear(1, True, 0.7)
    posterior = laplace.KroneckerPosterior(net, kfc.SquaredError(), 0.7).fit(x)
    new = np.random.default_rng(5).standard_normal((4, 3))
    rows = np.hstack([new, np.ones((4, 1))])
    std = np.sqrt(np.einsum("md,de,me->m", rows, np.linalg.inv(precision), rows))[:, None]
    mean, found = posterior.predict(new, method="monte_carlo", samples=600, return_std=True)
    assert np.abs((mean - net.predict(new)) / std).max() < 4.5 / np.sqrt(600)
    assert np.abs(found / std - 1).max() < 4.5 / np.sqrt(2 * 600)


# Networks: dense matrices.


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("loss", [kfc.SoftmaxCrossEntropy(), kfc.SquaredError()], ids=repr)
def test_linearised_outputs_are_those_of_dense_matrices(loss, approx):
    net = network()
    rng = np.random.default_rng(2)
    net.buffers = {
        name: value + 0.3 * rng.random(value.shape) for name, value in net.buffers.items()
    }
    posterior = laplace.KroneckerPosterior(net, loss, 2.5, kfac_approx=approx).fit(
        images(11), batch_size=4
    )
    new = images(5, seed=7)
    j = fisher.jacobian(net, net.forward(new))
    inverse = np.linalg.inv(dense_precision(posterior))
    mean, covariance = posterior.output_distribution(new, batch_size=2)
    np.testing.assert_allclose(mean, net.predict(new), rtol=1e-12)
    expected = np.einsum("mkp,pq,mlq->mkl", j, inverse, j)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-12)


def test_the_evidence_is_that_of_dense_matrices():
    net = network()
    x, y = images(11), np.arange(11) % 3
    loss = kfc.SoftmaxCrossEntropy()
    posterior = laplace.KroneckerPosterior(net, loss, 2.5).fit(x)
    theta = fisher.flatten(net, net.params)
    _, logdet = np.linalg.slogdet(dense_precision(posterior))
    z = net.predict(x)
    probability = CLASSES[kfc.SoftmaxCrossEntropy](z)[np.arange(11), y]
    expected = np.log(probability).sum() - 2.5 / 2 * theta @ theta
    expected += 0.5 * len(theta) * np.log(2.5) - 0.5 * logdet
    np.testing.assert_allclose(posterior.log_marginal_likelihood(x, y), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", list(CLASSES), ids=lambda kind: kind.__name__)
def test_probabilities_are_means_over_normal_outputs(kind):
    net = network(norm=False)
    posterior = laplace.KroneckerPosterior(net, kind(), 0.5).fit(images(9))
    new = images(3, seed=7)
    found, std = posterior.predict(new, samples=4000, seed=1, return_std=True)
    means, covariances = posterior.output_distribution(new)
    rng = np.random.default_rng(0)
    for example, (m, s) in enumerate(zip(means, covariances, strict=True)):
        drawn = CLASSES[kind](rng.multivariate_normal(m, s, size=40000))
        # Two independent estimates, the one with 4,000 draws has nearly all of the error.
        error = np.abs(found[example] - drawn.mean(axis=0))
        assert (error < 4.5 * drawn.std(axis=0) * np.sqrt(1 / 4000 + 1 / 40000)).all()
        np.testing.assert_allclose(std[example], drawn.std(axis=0), rtol=0.1)
    if kind is kfc.SoftmaxCrossEntropy:
        np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-12)


def test_both_methods_agree_where_the_posterior_is_narrow():
    net = network(norm=False)
    posterior = laplace.KroneckerPosterior(net, kfc.SoftmaxCrossEntropy(), 1e5).fit(images(9))
    new = images(3, seed=7)
    linearised, small = posterior.predict(new, samples=4000, return_std=True)
    drawn, std = posterior.predict(new, method="monte_carlo", samples=300, return_std=True)
    assert std.min() > 0
    # Standard errors of a mean and of a deviation of 300, 4.5 of them, and terms of second order.
    assert (np.abs(drawn - linearised) < 4.5 * std / np.sqrt(300) + 1e-4).all()
    np.testing.assert_allclose(std, small, rtol=4.5 / np.sqrt(2 * 300))


def test_monte_carlo_is_the_mean_over_sampled_networks():
    net = network()
    posterior = laplace.KroneckerPosterior(net, kfc.SigmoidCrossEntropy(), 5.0).fit(images(9))
    new = images(4, seed=7)
    drawn = []
    before = dict(net.params)
    for params in posterior.sample(6, seed=2):
        net.params = params
        drawn.append(CLASSES[kfc.SigmoidCrossEntropy](net.predict(new)))
    net.params = before
    mean, std = posterior.predict(
        new, method="monte_carlo", samples=6, seed=2, batch_size=3, return_std=True
    )
    np.testing.assert_allclose(mean, np.mean(drawn, axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, np.std(drawn, axis=0), rtol=1e-10)


# The prior.


@pytest.mark.parametrize("start", [1e-3, 1e3])
def test_tuning_finds_the_maximum_of_the_evidence(start):
    net = network()
    x, y = images(11), np.arange(11) % 3
    posterior = laplace.KroneckerPosterior(net, kfc.SoftmaxCrossEntropy(), start).fit(x)
    best = posterior.tune_prior()
    assert posterior.prior_precision == best
    greatest = posterior.log_marginal_likelihood(x, y)
    grid = best * np.geomspace(1e-4, 1e4, 81)
    values = []
    for tau in grid:
        posterior.prior_precision = tau
        values.append(posterior.log_marginal_likelihood(x, y))
    assert np.argmax(values) == 40  # the grid has the maximum in its middle, and no other
    assert np.argmax(np.diff(values) < 0) == 40
    np.testing.assert_allclose(values[40], greatest, rtol=1e-12)


def test_no_maximum_of_the_evidence_is_an_error():
    net = network(norm=False)
    posterior = laplace.KroneckerPosterior(net, kfc.SquaredError(), 3.0).fit(images(4))
    for value in posterior.mean.values():
        value[:] = 0
    with pytest.raises(ValueError, match="no maximum: the parameters are all zero"):
        posterior.tune_prior()
    assert posterior.prior_precision == 3.0


# State and arguments.


def test_later_training_changes_nothing():
    net = network()
    posterior = laplace.KroneckerPosterior(net, kfc.SoftmaxCrossEntropy(), 2.0).fit(images(6))
    new = images(2, seed=7)
    before = posterior.predict(new, samples=5), posterior.sample(1)[0]
    for value in net.params.values():
        value += 1
    for value in net.buffers.values():
        value += 1
    np.testing.assert_array_equal(posterior.predict(new, samples=5), before[0])
    for name, value in posterior.sample(1)[0].items():
        np.testing.assert_array_equal(value, before[1][name])


def test_results_depend_on_the_seed_and_not_on_the_batch_size():
    net = network()
    posterior = laplace.KroneckerPosterior(net, kfc.SoftmaxCrossEntropy(), 2.0).fit(images(6))
    new = images(5, seed=7)
    first = posterior.predict(new, samples=7, seed=1)
    np.testing.assert_allclose(posterior.predict(new, samples=7, seed=1, batch_size=2), first)
    assert np.abs(posterior.predict(new, samples=7, seed=2) - first).max() > 1e-4
    one, both = posterior.sample(1, seed=4), posterior.sample(2, seed=4)
    np.testing.assert_array_equal(one[0]["dense1.weight"], both[0]["dense1.weight"])
    assert (both[1]["dense1.weight"] != both[0]["dense1.weight"]).all()


def test_sampled_factors_converge_to_the_exact_ones():
    net = network(norm=False)
    x = np.repeat(images(3), 400, axis=0)
    exact = laplace.KroneckerPosterior(net, kfc.SoftmaxCrossEntropy()).fit(x[::400])
    sampled = laplace.KroneckerPosterior(net, kfc.SoftmaxCrossEntropy()).fit(
        x, estimation_mode="fisher_gradients", seed=1
    )
    for name in ("gamma/conv1", "gamma/dense1"):
        scale = np.abs(exact.state[name]).max()
        np.testing.assert_allclose(sampled.state[name], exact.state[name], atol=0.15 * scale)
    np.testing.assert_allclose(sampled.state["omega/conv1"], exact.state["omega/conv1"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: laplace.KroneckerPosterior("net", p.loss), TypeError, "net must be a Graph"),
        (lambda p: laplace.KroneckerPosterior(p.net, None), TypeError, "loss must be a Loss"),
        (lambda p: laplace.KroneckerPosterior(p.net, p.loss, 0.0), ValueError, r"\(=0.0\)"),
        (lambda p: laplace.KroneckerPosterior(p.net, p.loss, "1"), TypeError, r"\(='1'\)"),
        (
            lambda p: laplace.KroneckerPosterior(p.net, p.loss, kfac_approx="both"),
            ValueError,
            r"kfac_approx \(='both'\)",
        ),
        (
            lambda p: p.fit(images(2), estimation_mode="fisher_empirical"),
            ValueError,
            r"estimation_mode \(='fisher_empirical'\)",
        ),
        (lambda p: p.fit(images(2)[:, :3]), ValueError, "x has shape"),
        (lambda p: p.fit(images(2), batch_size=0), ValueError, r"batch_size \(=0\)"),
        (lambda p: p.predict(images(2), method="exact"), ValueError, r"method \(='exact'\)"),
        (lambda p: p.predict(images(2), samples=0), ValueError, r"samples \(=0\)"),
        (lambda p: p.sample(0), ValueError, r"n \(=0\)"),
        (lambda p: p.sample(1, seed=-1), ValueError, r"seed \(=-1\)"),
        (
            lambda p: p.log_marginal_likelihood(images(3), np.zeros(3, int)),
            ValueError,
            "x has 3 examples, fit saw 4",
        ),
        (
            lambda p: p.log_marginal_likelihood(images(4), np.zeros(3, int)),
            ValueError,
            "y: targets must have shape",
        ),
        (
            lambda p: laplace.KroneckerPosterior(p.net, p.loss).predict(images(2)),
            ValueError,
            r"call fit\(x\) first",
        ),
    ],
)
def test_wrong_arguments(call, error, message):
    posterior = laplace.KroneckerPosterior(network(), kfc.SoftmaxCrossEntropy()).fit(images(4))
    with pytest.raises(error, match=message):
        call(posterior)
