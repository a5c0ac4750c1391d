"""Structures of a layer's block: EKFAC, diagonal, full, against single examples in a loop."""

import functools

import curvature_reference as reference
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import example_gradients
from kfc_numba.curvature.blocks import full
from kfc_numba.curvature.damping import DAMPING_STRATEGIES
from kfc_numba.curvature.structures import STRUCTURES, check_structure, curvature_of

GEOMETRIES = {
    "plain": {"kernel": (2, 3), "padding": 1},
    "stride and dilation": {"kernel": 2, "stride": (1, 2), "dilation": 2, "padding": 1},
    "groups": {"kernel": 2, "groups": 2, "bias": False},
    "depthwise": {"kernel": (2, 1), "groups": 4, "stride": 2},
}


def network(layers, shape=(3, 4, 4), dtype=np.float64):
    return kfc.Sequential(layers, input_shape=shape, dtype=dtype)


def convolution(name):
    return network([kfc.Conv2d(4, **GEOMETRIES[name]), kfc.Tanh(), kfc.Flatten(), kfc.Dense(2)])


@functools.cache
def exact_fisher(name):
    net = convolution(name)
    return reference.exact_fisher(net, batch(net)[0], kfc.SoftmaxCrossEntropy())


def batch(net, count=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, *net.input_shape))
    return x, rng.integers(0, 2, count)


def computed(net, x, y, structure, loss=None, **how):
    curvature = curvature_of(net, structure)
    how = how or {"mode": "fisher_empirical", "targets": y}
    loss = loss or kfc.SoftmaxCrossEntropy()
    return curvature, curvature.compute(net.forward(x), loss, **how)


def matrices(net, layer, rows):
    """Per-example gradients of a layer as matrices, (examples, groups, outputs, columns)."""
    return rows[:, reference.slices(net)[layer]][:, reference.matrix_order(net, layer)]


# EKFAC.


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_second_moments_against_single_examples(name, chunk, monkeypatch):
    monkeypatch.setattr(example_gradients, "CHUNK_BYTES", chunk)
    net = convolution(name)
    x, y = batch(net)
    _, state = computed(net, x, y, "ekfac")
    rows = reference.example_gradients(net, x, kfc.SoftmaxCrossEntropy(), y)
    for layer in ("conv1", "dense1"):
        q_gamma, q_omega = state[f"gamma_vectors/{layer}"], state[f"omega_vectors/{layer}"]
        found = state[f"second_moments/{layer}"]
        if q_gamma.ndim == 2:
            q_gamma, q_omega, found = q_gamma[None], q_omega[None], found[None]
        gradients = matrices(net, layer, rows)
        turned = np.einsum("gia,ngid,gdb->ngab", q_gamma, gradients, q_omega)
        expected = np.square(turned).mean(axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * expected.max())


def test_second_moments_of_a_dense_layer_at_locations():
    net = network([kfc.Dense(3), kfc.Tanh(), kfc.GlobalAvgPool2d(), kfc.Dense(2)], (2, 2, 4))
    x, y = batch(net)
    _, state = computed(net, x, y, "ekfac")
    rows = reference.example_gradients(net, x, kfc.SoftmaxCrossEntropy(), y)
    gradients = matrices(net, "dense1", rows)[:, 0]
    turned = state["gamma_vectors/dense1"].T @ gradients @ state["omega_vectors/dense1"]
    expected = np.square(turned).mean(axis=0)
    np.testing.assert_allclose(state["second_moments/dense1"], expected, atol=1e-12)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_ekfac_is_never_farther_than_kfac(name):
    net = convolution(name)
    x, y = batch(net)
    fisher = exact_fisher(name)
    blocks = {}
    for structure in ("kronecker", "ekfac"):
        curvature, state = computed(net, x, y, structure, mode="fisher_exact")
        blocks[structure] = curvature.dense(state)
    curvature, state = computed(net, x, y, "ekfac", mode="fisher_exact")
    for block in curvature.blocks:
        part = reference.slices(net)[block.name]
        exact = fisher[part, part]
        near = np.linalg.norm(blocks["ekfac"][block.name] - exact)
        far = np.linalg.norm(blocks["kronecker"][block.name] - exact)
        assert near < 0.999 * far
        # The nearest matrix with these eigenvectors: what is left has no diagonal in their basis.
        basis = block.basis(state)
        left = basis.T @ (exact - blocks["ekfac"][block.name]) @ basis
        assert np.abs(np.diag(left)).max() < 1e-10 * np.abs(exact).max()


def test_second_moments_are_turned_into_new_bases():
    net = convolution("groups")
    x, y = batch(net)
    curvature, state = computed(net, x, y, "ekfac")
    old = curvature.dense(state)
    rng = np.random.default_rng(3)
    for name in ("omega/conv1", "gamma/conv1", "omega/dense1", "gamma/dense1"):
        noise = rng.normal(size=state[name].shape)
        state[name] = state[name] + noise @ np.swapaxes(noise, -1, -2)
    state |= curvature.decompose(state)
    for block in curvature.blocks:
        basis = block.basis(state)
        expected = np.diag(basis.T @ old[block.name] @ basis)
        found = state[f"second_moments/{block.name}"].ravel()
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        assert found.sum() == pytest.approx(np.trace(old[block.name]), rel=1e-12)
    # The same bases again, up to signs and rounding: nothing changes.
    again = curvature.decompose(state)
    for block in curvature.blocks:
        name = f"second_moments/{block.name}"
        np.testing.assert_allclose(again[name], state[name], rtol=1e-8, atol=1e-12)


def test_ekfac_is_kfac_until_it_knows_better():
    net = convolution("plain")
    x, y = batch(net)
    curvature = curvature_of(net, "ekfac")
    state, how = curvature.initial_state(), {"mode": "fisher_empirical", "targets": y}
    trace, loss = net.forward(x), kfc.SoftmaxCrossEntropy()
    new = curvature.estimate(trace, loss, state, **how)
    assert not any(name.startswith("second_moments") for name in new)
    state |= curvature.average(state, new, 0.9)
    state |= curvature.decompose(state)
    assert curvature.lacks_estimates(state)
    plain = curvature_of(net, "kronecker")
    vector = {name: np.ones_like(value) for name, value in net.params.items()}
    for strategy in DAMPING_STRATEGIES:
        found = curvature.precondition(state, vector, 0.1, strategy)
        expected = plain.precondition(state, vector, 0.1, strategy)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
    first = curvature.estimate_in_bases(trace, loss, state, **how)
    state |= curvature.average(state, first, 0.9)
    assert not curvature.lacks_estimates(state)
    assert state["second_moment_weight"] == pytest.approx(0.1)
    for name, value in first.items():
        np.testing.assert_allclose(state[name], value, rtol=1e-14)


# Diagonal and full blocks.


@pytest.mark.parametrize("name", GEOMETRIES)
def test_diagonal_and_full_blocks_against_the_exact_fisher(name):
    net = convolution(name)
    x, y = batch(net)
    fisher = exact_fisher(name)
    size = np.abs(fisher).max()
    curvature, state = computed(net, x, y, "diagonal", mode="fisher_exact")
    for layer, found in curvature.dense(state).items():
        part = reference.slices(net)[layer]
        expected = np.diag(np.diag(fisher[part, part]))
        np.testing.assert_allclose(found, expected, atol=1e-10 * size, rtol=0)
    curvature, state = computed(net, x, y, "full", mode="fisher_exact")
    for layer, found in curvature.dense(state).items():
        part = reference.slices(net)[layer]
        np.testing.assert_allclose(found, fisher[part, part], atol=1e-10 * size, rtol=0)


# What all structures have in common.


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "diagonal", "full"])
@pytest.mark.parametrize("strategy", DAMPING_STRATEGIES)
def test_powers_against_dense_matrices(structure, strategy):
    net = convolution("groups")
    x, y = batch(net)
    curvature, state = computed(net, x, y, structure)
    rng = np.random.default_rng(1)
    vector = {name: rng.normal(size=value.shape) for name, value in net.params.items()}
    flat = reference.flat(net, vector)
    dense = curvature.dense(state, 0.05, strategy)
    for power in (-2.0, -1.0, -0.5, 0.5, 1.0):
        found = reference.flat(net, curvature.apply(state, vector, 0.05, strategy, power=power))
        for layer, matrix in dense.items():
            part = reference.slices(net)[layer]
            values, vectors = np.linalg.eigh(matrix)
            expected = (vectors * values**power) @ (vectors.T @ flat[part])
            np.testing.assert_allclose(
                found[part], expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max()
            )


@pytest.mark.parametrize("structure", ["ekfac", "diagonal", "full"])
def test_damping_of_other_structures(structure):
    net = convolution("plain")
    x, y = batch(net)
    curvature, state = computed(net, x, y, structure)
    undamped = curvature.dense(state)
    kronecker = curvature_of(net)
    for strategy in DAMPING_STRATEGIES:
        for layer, matrix in curvature.dense(state, 0.3, strategy).items():
            added = 0.3 * np.eye(len(matrix))
            if structure == "ekfac" and strategy != "exact":
                # The terms that factored damping adds to K-FAC.
                added = kronecker.dense(state, 0.3, strategy)[layer]
                added = added - kronecker.dense(state)[layer]
            np.testing.assert_allclose(matrix - undamped[layer], added, atol=1e-10)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_several_samples_are_a_mean_of_estimates(structure):
    layers = [kfc.Dense(3), kfc.Tanh(), kfc.Dense(2)]
    if structure != "tridiagonal":
        layers = [kfc.Conv2d(4, 2, groups=2), kfc.BatchNorm(), kfc.Flatten(), *layers]
    net = network(layers, (4,) if structure == "tridiagonal" else (3, 4, 4))
    x, y = batch(net)
    curvature, state = computed(net, x, y, structure)
    trace, loss = net.forward(x), kfc.SoftmaxCrossEntropy()
    found = curvature.estimate(trace, loss, state, rng=np.random.default_rng(5), samples=3)
    rng = np.random.default_rng(5)
    single = [curvature.estimate(trace, loss, state, rng=rng) for _ in range(3)]
    for name, value in found.items():
        expected = np.mean([one[name] for one in single], axis=0)
        np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-13)


def test_structures_by_layer():
    net = network([kfc.Conv2d(4, 2), kfc.BatchNorm(), kfc.Flatten(), kfc.Dense(2)])
    curvature = curvature_of(net, {"conv1": "ekfac", "dense1": "full"})
    assert [block.structure for block in curvature.blocks] == ["ekfac", "diagonal", "full"]
    assert [block.structure for block in curvature_of(net, "full").blocks] == [
        "full",
        "diagonal",
        "full",
    ]
    assert curvature_of(net, {"norm1": "diagonal"}).blocks[2].structure == "kronecker"


def test_a_full_block_of_the_largest_size(monkeypatch):
    net = network([kfc.Dense(3)], (4,))
    monkeypatch.setattr(full, "LARGEST", 15)
    (block,) = curvature_of(net, "full").blocks
    assert block.size == 15
    monkeypatch.setattr(full, "LARGEST", 14)
    with pytest.raises(ValueError, match="it has 15 parameters, a full block takes at most 14"):
        curvature_of(net, "full")


def test_structures_that_cannot_be():
    net = network([kfc.Conv2d(4, 2), kfc.BatchNorm(), kfc.Flatten(), kfc.Dense(700)])
    with pytest.raises(ValueError, match=r"structure \(='sparse'\) must be one of"):
        check_structure("sparse")
    with pytest.raises(ValueError, match=r"structure\['conv1'\] \(='tridiagonal'\) must be one of"):
        check_structure({"conv1": "tridiagonal"})
    with pytest.raises(TypeError, match=r"structure \(=3\) must be"):
        check_structure(3)
    with pytest.raises(
        ValueError, match="names 'conv2', the layers with parameters are conv1, norm1"
    ):
        curvature_of(net, {"conv2": "full"})
    with pytest.raises(ValueError, match="layer norm1: BatchNorm has no gradients in matrix form"):
        curvature_of(net, {"norm1": "ekfac"})
    with pytest.raises(ValueError, match=r"layer dense1: it has \d+ parameters.*at most 4096"):
        curvature_of(net, {"dense1": "full"})
    with pytest.raises(ValueError, match=r"structure \(='full'\) of layer dense1"):
        curvature_of(net, "full")
    assert set(STRUCTURES) == {"kronecker", "ekfac", "diagonal", "full", "tridiagonal"}


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "diagonal", "full"])
def test_memory(structure):
    net = network([kfc.Conv2d(4, 2, groups=2), kfc.BatchNorm(), kfc.Flatten(), kfc.Dense(2)])
    curvature = curvature_of(net, structure)
    total = sum(sum(kinds.values()) for kinds in curvature.memory().values())
    held = {n: a for n, a in curvature.initial_state().items() if a.ndim}
    assert total == sum(array.nbytes for array in held.values())
    if structure == "kronecker":
        assert curvature.memory()["conv1"]["omega"] == 2 * 9 * 9 * 8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_state_with_estimates_keeps_its_layout(dtype):
    layers = [kfc.Conv2d(4, 2, groups=2), kfc.BatchNorm(), kfc.Flatten(), kfc.Dense(2)]
    net = network(layers, dtype=dtype)
    x, y = batch(net)
    for structure in ("kronecker", "ekfac", "diagonal", "full"):
        curvature, state = computed(net, x, y, structure)
        initial = curvature.initial_state()
        assert {n: (a.shape, a.dtype) for n, a in state.items()} == {
            n: (a.shape, a.dtype) for n, a in initial.items()
        }
